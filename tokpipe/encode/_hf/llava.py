"""LLaVA-1.5, LLaVA-NeXT and LLaVA-OneVision.

Frames are encoded untiled, as one tile each: for LLaVA-NeXT that is its whole picture without
crops; for LLaVA-OneVision what it does with a frame of a video, 27 x 27 tokens pooled to 14 x 14
after the projector. Its newline is one a video and no part of a frame: whoever exports a video adds
it. With ``tiles`` pictures enter as these models' images: the whole, then a grid of crops of the
best of their pinpoints, without padding, each line of it ended by the newline.

Before the projector there are no newlines, and grids are those of the tower: the projector of a row
is a row the model then pools or packs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from tokpipe.encode._fit import Frame
from tokpipe.encode._hf.front import FrontFamily
from tokpipe.encode._hf.views import Layout, View, joined, raster, spans
from tokpipe.errors import ModelError

#: From this shrink on LLaVA-OneVision interpolates the grid of crops.
_SHRINK = 1.1


class LlavaFamily(FrontFamily):
    """LLaVA-1.5: one fixed grid a picture."""

    model = "LlavaModel"

    def __post_init__(self) -> None:
        """See the base class; the class token must not be among the tokens."""
        super().__post_init__()
        select = str(self.config.vision_feature_select_strategy)
        if (select == "default") != bool(self.prefix):
            raise ModelError(
                f"`{self.settings.model}` selects features by `{select}`, which does not fit its "
                f"tower of {self.prefix} class tokens",
                hint="`default` drops the class token, `full` is for towers without one",
            )

    def _layer(self) -> int | list[int]:
        found: int | list[int] = self.config.vision_feature_layer
        return found

    def _facts(self) -> Mapping[str, Any]:
        return {"select": str(self.config.vision_feature_select_strategy)}


class LlavaNextFamily(LlavaFamily):
    """LLaVA-NeXT."""

    model = "LlavaNextModel"
    newlines = True
    stamps = True

    def _facts(self) -> Mapping[str, Any]:
        newlines = "one a line of crops" if self.tiled and self.post else "none"
        return {**super()._facts(), "newlines": newlines}

    def _most(self) -> int:
        """Tiles whose tokens the grid of crops may have before it is shrunk; 0 for any."""
        return 0

    def _tiled(self, height: int, width: int) -> Layout:
        from transformers.image_processing_utils import select_best_resolution

        g, side = self.grid, self.side
        pins = [tuple(pin) for pin in self.config.image_grid_pinpoints]
        canvas = select_best_resolution((height, width), pins)
        tiles = (canvas[0] // side, canvas[1] // side)
        frame = _centred(height, width, canvas)
        top, left = _unpadding(height, width, (tiles[0] * g, tiles[1] * g))
        row = torch.arange(top, tiles[0] * g - top)
        col = torch.arange(left, tiles[1] * g - left)
        tile = 1 + (row // g)[:, None] * tiles[1] + (col // g)[None]
        inside = (row % g)[:, None] * g + (col % g)[None]
        take = torch.cat([torch.arange(g * g), (tile * g * g + inside).flatten()])
        mosaic = (len(row), len(col))
        shrunk = self._shrunk(mosaic) if self.post else mosaic
        y = self._crossing(top, mosaic[0], shrunk[0], frame.top, frame.height)
        x = self._crossing(left, mosaic[1], shrunk[1], frame.left, frame.width)
        whole = spans(g, self.patch, 0, side)
        return Layout(
            views=(
                View(frame=Frame(0, 0, side, side), side=side),
                View(frame=frame, side=side, tiles=tiles),
            ),
            places=joined([raster(whole, whole, 0), raster(y, x, 1, newline=self.post)], (g, g)),
            take=take, mosaic=mosaic, shrunk=shrunk, newline=self.post,
        )  # fmt: skip

    def _shrunk(self, mosaic: tuple[int, int]) -> tuple[int, int]:
        if not self._most():
            return mosaic
        ratio = math.sqrt(mosaic[0] * mosaic[1] / (self._most() * self.grid**2))
        if ratio <= _SHRINK:
            return mosaic
        return int(mosaic[0] // ratio), int(mosaic[1] // ratio)

    def _crossing(self, first: int, count: int, made: int, start: int, length: int) -> Tensor:
        """float64 [made, 2], where the lines of the grid of crops lie in the picture.

        Args:
            first, count: Patches before the first line that is no padding, and lines of patches.
            made: Lines they are interpolated to.
            start, length: Of the picture on the canvas, in pixels.
        """
        edges = first + torch.arange(made + 1, dtype=torch.float64) * count / made
        # A tile's last pixels may belong to no patch; a line begins in the tile after a border and
        # ends in the tile before it.
        ends = []
        for at, tile in (
            (edges[:-1], (edges[:-1] / self.grid).floor()),
            (edges[1:], (edges[1:] / self.grid).ceil() - 1),
        ):
            ends.append(tile * self.side + (at - tile * self.grid) * self.patch)
        return (torch.stack(ends, 1) - start) / length


class LlavaOnevisionFamily(LlavaNextFamily):
    """LLaVA-OneVision."""

    model = "LlavaOnevisionModel"
    kind: ClassVar[Literal["image", "video"]] = "video"
    pools = True

    def _facts(self) -> Mapping[str, Any]:
        facts = dict(super()._facts())
        if not self.tiled:
            facts["newlines"] = "one a video, added at export"
        pooled = "2 x 2, bilinear, after the projector"
        return {**facts, "pool": pooled if self.pooling else "none"}

    def _most(self) -> int:
        rule = str(self.config.vision_aspect_ratio)
        digits = rule.removeprefix("anyres_max_")
        if not digits.isdigit():
            raise ModelError(
                f"`{self.settings.model}` packs crops by `{rule}`, known is `anyres_max_N`",
                hint="set tiles to false",
            )
        return int(digits)


def _centred(height: int, width: int, canvas: tuple[int, int]) -> Frame:
    """The picture as large as the canvas allows, in its middle."""
    by_width, by_height = canvas[1] / width, canvas[0] / height
    if by_width < by_height:
        high, wide = min(math.ceil(height * by_width), canvas[0]), canvas[1]
    else:
        high, wide = canvas[0], min(math.ceil(width * by_height), canvas[1])
    return Frame((canvas[0] - high) // 2, (canvas[1] - wide) // 2, high, wide)


def _unpadding(height: int, width: int, grid: tuple[int, int]) -> tuple[int, int]:
    """Lines of a grid of crops that are left out on top and bottom, and on both sides."""
    if width / height > grid[1] / grid[0]:
        return (grid[0] - int(round(height * (grid[1] / width), 7))) // 2, 0
    return 0, (grid[1] - int(round(width * (grid[0] / height), 7))) // 2
