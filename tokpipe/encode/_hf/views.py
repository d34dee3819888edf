"""What of a picture a tower sees: the whole, or the whole beside crops of a larger one.

Letters: T pictures, K tiles of one (S x S pixels each), m tokens of a tile, n of a picture.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad

from tokpipe.encode._fit import Filter, Frame, constant, placed, resized
from tokpipe.encode._hf.pixels import Pixels, pixels_of
from tokpipe.encode._tower import Places
from tokpipe.spec import KIND_KEPT, KIND_NEWLINE

_LANCZOS, _BICUBIC = 1, 3
_DIGIT = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """The picture resized, put on a canvas, and cut into tiles.

    Attributes:
        frame: Where the resized picture lies on the canvas.
        side: S.
        tiles: Rows and columns of tiles; the canvas is as large.
        before: Sizes the picture is resized to first, one after the other.
        fill: Grey levels of padding, three colours.
    """

    frame: Frame
    side: int
    tiles: tuple[int, int] = (1, 1)
    before: tuple[tuple[int, int], ...] = ()
    fill: tuple[int, ...] = (0, 0, 0)

    def cut(self, pixels: Tensor, how: Filter) -> Tensor:
        """Tiles uint8 [T, rows x columns, S, S, 3] of pictures uint8 [T, H, W, 3]."""
        for size in (*self.before, (self.frame.height, self.frame.width)):
            pixels = resized(pixels, *size, how)
        rows, cols = self.tiles
        canvas = (rows * self.side, cols * self.side)
        seen = placed(pixels, self.frame, canvas, self.fill)
        split = seen.reshape(len(seen), rows, self.side, cols, self.side, 3)
        return split.permute(0, 1, 3, 2, 4, 5).flatten(1, 2)


@dataclass(frozen=True, slots=True)
class Look:
    """How the model's processor makes pictures into numbers.

    Attributes:
        pixels: Its scale, means and deviations.
        how: Its filter.
    """

    pixels: Pixels
    how: Filter

    def tiles(self, pixels: Tensor, views: tuple[View, ...]) -> Tensor:
        """float32 [T, K, 3, S, S] of uint8 [T, H, W, 3], the tiles of one view after the other."""
        cut = torch.cat([view.cut(pixels, self.how) for view in views], 1)
        made = self.pixels.normalised(cut.flatten(0, 1))
        return made.reshape(*cut.shape[:2], *made.shape[1:])

    def about(self) -> dict[str, Any]:
        """For ``Outline.about``."""
        return {**self.pixels.about(), "interpolation": self.how}


def look_of(processor: Any) -> Look:
    """Read an image or video processor of transformers.

    Raises:
        ModelError: It resizes by a filter tokpipe does not have.
    """
    if int(getattr(processor, "resample", None) or 0) == _LANCZOS:
        # Everything but the filter is read by the module that knows the other two.
        other = copy.copy(processor)
        other.resample = _BICUBIC
        return Look(pixels_of(other), "lanczos")
    pixels = pixels_of(processor)
    return Look(pixels, "bicubic" if pixels.bicubic else "bilinear")


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How the tokens of all tiles become the tokens of a picture of one size.

    Attributes:
        views: What the tower sees, in the order of the tiles.
        places: Of the n tokens.
        take: int64 [base + high x wide], which of the K x m tokens there are: those of the whole
            picture, then the crops' as one grid without padding. None: all, as they come.
        mosaic: Rows and columns of that grid; either may be 0.
        shrunk: Rows and columns it is interpolated to, those of ``mosaic`` where it is not.
        newline: A row that is no picture ends each line of it.
    """

    views: tuple[View, ...]
    places: Places
    take: Tensor | None = None
    mosaic: tuple[int, int] = (0, 0)
    shrunk: tuple[int, int] = (0, 0)
    newline: bool = False

    def arranged(self, tokens: Tensor, newline: Tensor) -> Tensor:
        """Values [T, n, F] of a picture's tokens from those [T, K x m, F] of its tiles.

        Args:
            newline: [F], the value of newline rows.
        """
        if self.take is None:
            return tokens
        taken = tokens[:, self.take.to(tokens.device, non_blocking=True)]
        high, wide = self.mosaic
        # Of a very long picture no line of crops, or nothing but line ends, may be left.
        count = taken.shape[1] - high * wide
        base, crops = taken[:, :count], taken[:, count:]
        if self.shrunk != self.mosaic:
            grid = crops.reshape(len(crops), high, wide, -1).permute(0, 3, 1, 2).contiguous()
            grid = interpolate(grid, size=self.shrunk, mode="bilinear")
            crops = grid.permute(0, 2, 3, 1).flatten(1, 2)
        if self.newline:
            lines = crops.reshape(len(crops), *self.shrunk, crops.shape[2])
            end = newline.to(lines).expand(*lines.shape[:2], 1, -1)
            crops = torch.cat([lines, end], 2).flatten(1, 2)
        return torch.cat([base, crops], 1)


def raster(y: Tensor, x: Tensor, tile: int, *, newline: bool = False) -> Places:
    """Places of one tile.

    Args:
        y, x: float64 [rows, 2] and [columns, 2], where each row and column of tokens begins and
            ends, in fractions of the picture.
        newline: One more token ends each row; it has the box of its row, of the whole width where
            the row is empty.
    """
    rows, cols = len(y), len(x)
    if newline:
        ends = torch.stack([x[0, 0], x[-1, 1]]) if cols else torch.tensor([0.0, 1.0]).to(x)
        x = torch.cat([x, ends[None]])
    row = torch.arange(rows).repeat_interleave(len(x))
    col = torch.arange(len(x)).repeat(rows)
    kind = torch.where(col < cols, KIND_KEPT, KIND_NEWLINE).to(torch.uint8)
    box = torch.stack([y[row, 0], x[col, 0], y[row, 1], x[col, 1]], 1)
    return Places(
        grid=(rows, cols), cell=torch.stack([row, col], 1).int(), box=box,
        tile=torch.full((len(row),), tile, dtype=torch.int32), kind=kind,
    )  # fmt: skip


def with_class(places: Places) -> Places:
    """A class token before them: no cell, and all of the picture is its box."""
    box = torch.tensor([[0.0, 0.0, 1.0, 1.0]], dtype=torch.float64)
    return Places(
        grid=places.grid, cell=torch.cat([places.cell.new_full((1, 2), -1), places.cell]),
        box=torch.cat([box, places.box]), tile=torch.cat([places.tile[:1], places.tile]),
        kind=torch.cat([places.kind.new_full((1,), KIND_KEPT), places.kind]),
    )  # fmt: skip


def joined(parts: list[Places], grid: tuple[int, int]) -> Places:
    """Places of several tiles, in their order; ``grid`` is that of the whole picture."""
    return Places(
        grid=grid,
        cell=torch.cat([part.cell for part in parts]),
        box=torch.cat([part.box for part in parts]),
        tile=torch.cat([part.tile for part in parts]),
        kind=torch.cat([part.kind for part in parts]),
    )


def spans(count: int, step: float, start: float, length: float) -> Tensor:
    """float64 [count, 2]: tokens of ``step`` pixels each, from pixel 0 of a canvas.

    In fractions of a picture that begins at pixel ``start`` and has ``length`` of them.
    """
    edges = (torch.arange(count + 1, dtype=torch.float64) * step - start) / length
    return torch.stack([edges[:-1], edges[1:]], 1)


def stamped(tiles: Tensor, height: int, width: int) -> Tensor:
    """Tiles with one row of pixels more, [T, K, 3, S + 1, S], which tells the picture's size.

    In digits every float type holds exactly. What ``prepare`` gives travels alone, and how tokens
    of crops are packed depends on more than the number of tiles.
    """
    marked = pad(tiles, (0, 0, 0, 1))
    digits = [*divmod(height, _DIGIT), *divmod(width, _DIGIT)]
    marked[:, 0, 0, -1, : len(digits)] = constant(tuple(digits), tiles.dtype, tiles.device)
    return marked


def read_stamp(prepared: Tensor) -> tuple[Tensor, int, int]:
    """Tiles [T, K, 3, S, S], height and width back from ``stamped``; waits for the device."""
    a, b, c, d = (int(digit) for digit in prepared[0, 0, 0, -1, :4].tolist())
    return prepared[..., :-1, :], a * _DIGIT + b, c * _DIGIT + d


def crops(cut: View | None, whole: View, tokens: int, used: int) -> Layout:
    """Crops tile by tile, then the whole picture; tile 0 is the whole picture.

    Args:
        cut: None where there is only the whole.
        tokens: On a side of a tile.
        used: Pixels on a side of a tile that belong to tokens.
    """
    step, side = used / tokens, whole.side
    last = spans(tokens, step, 0, side)
    grid = (tokens, tokens)
    if cut is None:
        return Layout(views=(whole,), places=raster(last, last, 0))
    rows, cols = cut.tiles
    parts = [
        raster(
            spans(tokens, step, -row * side, rows * side),
            spans(tokens, step, -col * side, cols * side),
            1 + row * cols + col,
        )
        for row in range(rows)
        for col in range(cols)
    ]
    places = joined([*parts, raster(last, last, 0)], grid)
    return Layout(views=(cut, whole), places=places)
