"""Cells of the picture itself, each with a small DCT descriptor; no weights.

Source: tokpipe. The descriptor is the low-frequency corner of the orthonormal DCT-II of each
28-px cell: 4 x 4 of luma, 2 x 2 of Cb and of Cr on the 2 x 2 averaged (4:2:0) planes.

The token's content is the cell's pixels; they are stored in the cache's atlas, see ``AtlasPages``.
"""

from __future__ import annotations

import io
import math
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Annotated, ClassVar

import numpy as np
import torch
from PIL import Image, WebPImagePlugin
from pydantic import Field
from torch import Tensor

from tokpipe.grid import CELL, Grid, cell_grid
from tokpipe.spec import MediaInfo, TokenSpec
from tokpipe.tensors import FrameBatch, TokenBatch

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Descriptor layout: 16 luma, 4 Cb, 4 Cr coefficients, frequencies row by row.
LUMA, CHROMA, DIM = 4, 2, 24
#: Frames of one matrix product, whatever the batch, so that batch size never changes bits; four
#: stay in the processor's cache.
BLOCK = 4
#: BT.601 full-range RGB to Y, Cb - 128, Cr - 128.
_YCC = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))

PAGE_CELLS, PAGE_SIDE, MARGIN = 1024, 32, 2
SLOT = CELL + 2 * MARGIN
QUALITY = (98, 100)
#: Pillow knows WebP once this is loaded, and need not load all other formats to find it.
WEBP = WebPImagePlugin.WebPImageFile.format
_ROOM = threading.local()
#: Luma PSNR in dB below which a cell's page is encoded again at the second quality.
MIN_PSNR = 36.0


@dataclass(frozen=True, slots=True)
class Pixels:
    """Encoder whose tokens are cells of the signal.

    Attributes:
        cells: Cells on the long side of the picture.
    """

    source: ClassVar[str] = "tokpipe"
    modalities: ClassVar[tuple[str, ...]] = ("video",)
    version: ClassVar[int] = 1
    #: No learned weights: the cache is of the signal domain.
    domain: ClassVar[str] = "signal"

    cells: Annotated[int, Field(ge=8, le=64)] = 16

    def grid(self, info: MediaInfo) -> Grid:
        """The cell grid of this media's pictures."""
        if info.video is None:
            raise ValueError("Pixels.grid: the media has no video")
        return cell_grid(info.video.width, info.video.height, info.video.pixel_aspect, self.cells)

    def out_spec(self, info: MediaInfo, steps: int | None) -> TokenSpec:
        """C tokens of 24 numbers a frame."""
        grid = self.grid(info)
        tokens = None if steps is None else steps * grid.cells
        return TokenSpec(
            modality="video", dim=DIM, tokens=tokens, steps=steps, grid=(grid.rows, grid.cols)
        )

    def encode(self, batch: FrameBatch) -> TokenBatch:
        """Tokens of frames already at the grid's size, in raster order per frame.

        Args:
            batch: pixels uint8 [T, 28 * rows, 28 * cols, 3].
        """
        t, height, width = batch.pixels.shape[:3]
        rows, cols = height // CELL, width // CELL
        data = describe(batch.pixels).reshape(-1, DIM)
        return cell_tokens(data, batch.pts, batch.pts + batch.duration, batch.index,
                           torch.arange(t, dtype=torch.int32), rows, cols)  # fmt: skip


def cell_tokens(
    data: Tensor, start: Tensor, stop: Tensor, index: Tensor, step: Tensor, rows: int, cols: int
) -> TokenBatch:
    """Source tokens of T whole frames.

    Args:
        data: [T * rows * cols, D] in raster order.
        start, stop: float64 [T] seconds each frame stands for.
        index: int64 [T] rank of the frame, -1 unknown.
        step: int32 [T] number of the sampled frame, the ``t`` of the cells.
    """
    c = rows * cols
    y = torch.arange(rows, dtype=torch.int32).repeat_interleave(cols).repeat(len(step))
    x = torch.arange(cols, dtype=torch.int32).repeat(rows * len(step))
    return TokenBatch.build(
        data, start.repeat_interleave(c),
        pts=torch.stack([start, stop], 1).repeat_interleave(c, 0),
        cell=torch.stack([step.repeat_interleave(c), y, x], 1),
        frame=torch.stack([index, index], 1).repeat_interleave(c, 0),
    )  # fmt: skip


@cache
def _basis(device: str) -> tuple[Tensor, Tensor]:
    """Down [6, 28]: luma, then chroma rows. Across [84, 8]: colour and DCT in one product."""
    luma, chroma = _dct(LUMA, CELL), _dct(CHROMA, CELL // 2).repeat_interleave(2, dim=1) / 2
    across = torch.zeros(CELL, 3, 8, dtype=torch.float64)
    for rgb in range(3):
        across[:, rgb, :4] = luma.T * _YCC[0][rgb]
        across[:, rgb, 4:6] = chroma.T * _YCC[1][rgb]
        across[:, rgb, 6:] = chroma.T * _YCC[2][rgb]
    down = torch.cat([luma, chroma])
    return down.float().to(device), across.reshape(CELL * 3, 8).float().to(device)


def _dct(count: int, size: int) -> Tensor:
    """First ``count`` rows of the orthonormal DCT-II of ``size`` points, float64."""
    k, n = (
        torch.arange(count, dtype=torch.float64)[:, None],
        torch.arange(size, dtype=torch.float64),
    )
    rows = torch.cos(math.pi * (2 * n + 1) * k / (2 * size)) * math.sqrt(2 / size)
    rows[0] /= math.sqrt(2)
    return rows


def _room(shape: tuple[int, ...], device: torch.device) -> Tensor:
    """A buffer float32 that stays, one a thread: fresh memory would cost more than the products."""
    room: Tensor | None = getattr(_ROOM, "block", None)
    if room is None or room.shape != shape or room.device != device:
        room = _ROOM.block = torch.empty(shape, device=device)
    return room


def describe(pixels: Tensor) -> Tensor:
    """Descriptors float16 [T, rows, cols, 24] of uint8 [T, 28 * rows, 28 * cols, 3].

    Orthonormal coefficients in grey levels: a flat cell of luma g has a first number of 28 g, of
    chroma offset c (Cb - 128) 14 c.
    """
    down, across = _basis(str(pixels.device))
    t, height, width = pixels.shape[:3]
    rows, cols = height // CELL, width // CELL
    out = torch.empty((t, rows, cols, DIM), dtype=torch.float16, device=pixels.device)
    block = _room((BLOCK, height, width, 3), pixels.device)
    for a in range(0, t, BLOCK):
        n = min(BLOCK, t - a)
        block[:n].copy_(pixels[a : a + n])
        block[n:].zero_()
        # Down the columns first: it leaves 6 of 28 lines for the wider product across.
        low = down @ block.reshape(BLOCK * rows, CELL, width * 3)
        both = (low.reshape(-1, CELL * 3) @ across).reshape(BLOCK, rows, LUMA + CHROMA, cols, 8)
        both = both.permute(0, 1, 3, 2, 4)
        luma, colour = both[..., :LUMA, :4].flatten(3), both[..., LUMA:, 4:]
        cb, cr = colour[..., :CHROMA].flatten(3), colour[..., CHROMA:].flatten(3)
        out[a : a + n] = torch.cat([luma, cb, cr], 3)[:n].half()
    return out


@dataclass(slots=True)
class AtlasPages:
    """Packs cells into pages of 32 x 32 slots, each 28 px and a replicated edge of 2 px.

    The last page holds only the slot rows it needs. Pages are WebP by Pillow, which repeats byte
    for byte.
    """

    count: int = 0
    _cells: list[NDArray[np.uint8]] = field(default_factory=list)

    def add(self, cell: NDArray[np.uint8]) -> tuple[tuple[int, int, int, int], list[bytes]]:
        """Add uint8 [28, 28, 3]; returns its box (page, x, y, size) and pages that became full."""
        page, slot = divmod(self.count, PAGE_CELLS)
        y, x = divmod(slot, PAGE_SIDE)
        self._cells.append(cell)
        self.count += 1
        return (page, x * SLOT + MARGIN, y * SLOT + MARGIN, CELL), list(self._flush(PAGE_CELLS))

    def finish(self) -> list[bytes]:
        """The last, partly filled page, if any."""
        return list(self._flush(1))

    def _flush(self, at_least: int) -> Iterator[bytes]:
        if len(self._cells) >= at_least:
            yield encode_page(np.stack(self._cells))
            self._cells.clear()


def encode_page(cells: NDArray[np.uint8]) -> bytes:
    """WebP of up to 1024 cells uint8 [n, 28, 28, 3], again at 100 where one falls under 36 dB."""
    n, side = len(cells), PAGE_SIDE
    high = -(-n // side)
    slots = np.zeros((high * side, SLOT, SLOT, 3), dtype=np.uint8)
    slots[:n] = np.pad(cells, ((0, 0), (MARGIN, MARGIN), (MARGIN, MARGIN), (0, 0)), mode="edge")
    page = (
        slots.reshape(high, side, SLOT, SLOT, 3).swapaxes(1, 2).reshape(high * SLOT, side * SLOT, 3)
    )
    data = _webp(page, QUALITY[0])
    with Image.open(io.BytesIO(data)) as decoded:
        back = np.asarray(decoded.convert("RGB"))
    if _worst_psnr(page, back, n) < MIN_PSNR:
        data = _webp(page, QUALITY[1])
    return data


def _webp(page: NDArray[np.uint8], quality: int) -> bytes:
    stream = io.BytesIO()
    # Methods above 2 take twice the time for a twentieth of the bytes.
    Image.fromarray(page).save(stream, WEBP, quality=quality, method=2)
    return stream.getvalue()


def _worst_psnr(page: NDArray[np.uint8], back: NDArray[np.uint8], n: int) -> float:
    """Lowest luma PSNR in dB over the first ``n`` slots."""
    weights = np.array(_YCC[0], dtype=np.float32)
    error = ((page.astype(np.float32) - back) @ weights) ** 2
    high = page.shape[0] // SLOT
    cells = error.reshape(high, SLOT, PAGE_SIDE, SLOT).swapaxes(1, 2)[
        :, :, MARGIN:-MARGIN, MARGIN:-MARGIN
    ]
    worst = float(cells.mean(axis=(2, 3)).reshape(-1)[:n].max())
    return 10 * math.log10(255**2 / worst) if worst > 0 else math.inf
