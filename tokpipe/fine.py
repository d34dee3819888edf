"""Still pictures rich in text, put by at a finer grid than the video's while it is decoded.

Slides are read, not only seen: the bank keeps one fine picture of each, so that a budget with room
for it can send them at 2 or 4 times the grid. The picture is still when the next sampled one shows
the same, or when nothing was worth sampling for two seconds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tokpipe.cache.bank import BankWriter
from tokpipe.compress._cell_distance import cell_change
from tokpipe.encode._text import text_richness
from tokpipe.grid import CELL, Grid
from tokpipe.protocols import Picture
from tokpipe.spec import TEXT_RICH, VideoInfo

#: Most cells on the long side of a fine picture.
MOST_CELLS = 64
#: Part of a picture's cells that must stay for it to be still, and part that must be new for it to
#: be another one than the fine picture before; mean difference of a new cell in grey levels.
_STILL, _NEW, _MOVED = 0.8, 0.03, 4.0
#: Seconds until the next sampled picture that say the same as a repeat.
_QUIET = 2.0
#: Fine pictures after which the least distance in time between two doubles, so that days of slides
#: stay bounded.
_MANY = 256


def finer_times(grid: Grid, video: VideoInfo) -> int:
    """How many times finer a picture can be: 4, 2 or 1; never enlarged, 64 cells at most."""
    long, pixels = max(grid.rows, grid.cols), max(video.width, video.height)
    limit = min(MOST_CELLS, -(-pixels // CELL))
    return next((times for times in (4, 2) if long * times <= limit), 1)


class Look(NamedTuple):
    """What is noticed of a sampled picture while its decoder has it.

    Attributes:
        text: How rich in text it is, 0 to 1.
        fine: uint8 [H, W, 3] at the fine grid, None where it is not worth it.
    """

    text: float
    fine: NDArray[np.uint8] | None


@dataclass(slots=True)
class FineLooker:
    """Looks at sampled pictures in the decoder's thread.

    Attributes:
        times: How many times finer than ``grid``.
    """

    grid: Grid
    times: int
    _last: NDArray[np.float32] | None = None

    def look(self, picture: Picture, rgb: NDArray[np.uint8]) -> Look:
        """Notice text, and resize again what is rich in it and new.

        Args:
            picture: The decoded picture, for ``rgb`` at another size.
            rgb: The same at the grid, uint8 [H, W, 3].
        """
        text = text_richness(rgb)
        if self.times == 1 or text < TEXT_RICH:
            return Look(text, None)
        # A few lines of each cell tell whether this is the same picture again.
        part = rgb[2::4, 2::4, 1].astype(np.float32)
        side = CELL // 4
        cells = part.reshape(self.grid.rows, side, self.grid.cols, side).swapaxes(1, 2)
        if self._last is not None:
            moved = np.abs(cells - self._last).mean((2, 3)) >= _MOVED
            if moved.mean() < _NEW:
                return Look(text, None)
        self._last = cells
        return Look(text, picture.rgb(self.grid.width * self.times, self.grid.height * self.times))


@dataclass(slots=True)
class FineKeeper:
    """Stores the fine pictures that stay on screen, in order of time."""

    writer: BankWriter
    times: int
    _waiting: tuple[int, float, NDArray[np.uint8], NDArray[Any]] | None = None
    _since: float = -math.inf
    _apart: float = 0.0
    _count: int = 0

    def add(self, fine: NDArray[np.uint8] | None, step: int, pts: float,
            cells: NDArray[Any]) -> None:  # fmt: skip
        """Take the next sampled picture with its descriptors [C, 24]."""
        self._settle(pts, cells)
        if fine is not None and pts - self._since >= self._apart:
            self._waiting = step, pts, fine, cells

    def finish(self, end: float) -> None:
        """The last picture stays until ``end``."""
        self._settle(end, None)

    def _settle(self, pts: float, cells: NDArray[Any] | None) -> None:
        """Store the waiting picture if it stayed."""
        if self._waiting is None:
            return
        step, at, fine, own = self._waiting
        same = cells is not None and (cell_change(cells, own) < 1).mean() >= _STILL
        if same or pts - at >= _QUIET:
            self.writer.fine_picture(fine, step, self.times)
            self._since = at
            self._count += 1
            if self._count % _MANY == 0:
                self._apart = 2 * self._apart or 1.0
        self._waiting = None
