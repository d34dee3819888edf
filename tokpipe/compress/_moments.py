"""Candidate moments of a video: whole pictures with what they look like, in bounded memory.

Letters: n moments held, C cells of a picture.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokpipe.compress._cell_distance import DIM as CELL_DIM
from tokpipe.compress._picture_space import DIM, place_pictures
from tokpipe.compress._states import frame_slices
from tokpipe.errors import RecipeError
from tokpipe.tensors import TokenBatch

Places = Callable[[int, int], NDArray[Any]]
Cells = Callable[[NDArray[np.int64]], NDArray[Any]]
#: Moments held, and the bytes of cell descriptors they may take.
CAPACITY, _BYTES, _LEAST = 2048, 32 << 20, 64
#: One in so many moments may join the one before in a round.
_AT_ONCE = 6
#: Frames taken together.
_BLOCK = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What may be known of the frames of a stream besides their cells.

    Attributes:
        text: float32 [T], part of a picture's tiles that look like text; empty: unknown.
        finest: int64 [T], times each side of the grid that a picture is at hand at; empty: 1.
        even: bool [T], the frame is on the sampler's time grid or stays as long; others show a
            change between its ticks, and stand for themselves only. Empty: all are.
        places: Gives the places [n, DIM] of the frames ``first:last``, None: made from the cells.
        cells: Gives the cells [n, C, 24] of some frames, rising, None: only as they pass.
    """

    text: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))
    finest: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    even: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, np.bool_))
    places: Places | None = None
    cells: Cells | None = None


class Moments:
    """Moments in order of time.

    When twice as many as may stay are held, those that look most like the one before join it:
    what is unlike its neighbours stays, however short.

    Attributes:
        rows, cols: Cells of a picture.
        capacity: Moments that may stay.
    """

    def __init__(self, rows: int, cols: int) -> None:
        """Hold nothing yet; rows are taken as they are needed."""
        self.rows, self.cols = rows, cols
        cells = rows * cols
        self.capacity = min(CAPACITY, max(_LEAST, _BYTES // (cells * CELL_DIM * 4)))
        # Memory that is never written is never taken; one block may come on top.
        room = 2 * self.capacity + _BLOCK
        self._number = np.empty(room, np.int64)
        self._seconds = np.empty(room)
        self._place = np.empty((room, DIM), np.float32)
        self._data = np.empty((room, cells, CELL_DIM), np.float32)
        self._cells: Cells | None = None
        self._read = False
        self._count = self._seen = 0

    def __len__(self) -> int:
        """Return n."""
        return self._count

    @property
    def number(self) -> NDArray[np.int64]:
        """Which frame of the stream each is, int64 [n]."""
        return self._number[: self._count]

    @property
    def seconds(self) -> NDArray[np.float64]:
        """How long each (and what joined it) was on screen, float64 [n]."""
        return self._seconds[: self._count]

    @property
    def place(self) -> NDArray[np.float32]:
        """Where each lies, float32 [n, DIM], see ``place_pictures``."""
        return self._place[: self._count]

    @property
    def data(self) -> NDArray[np.float32]:
        """Cell descriptors float32 [n, C, 24]; where they are at hand elsewhere, read but now."""
        data = self._data[: self._count]
        if self._cells is not None and not self._read:
            for a in range(0, self._count, _BLOCK):
                data[a : a + _BLOCK] = self._cells(self.number[a : a + _BLOCK])
            self._read = True
        return data

    def add(self, tokens: TokenBatch, places: Places | None = None) -> None:
        """Add whole frames of ``pixels`` tokens.

        Args:
            places: Gives the places [t, DIM] of the frames ``first:last``, where they are known.

        Raises:
            RecipeError: Rows of something else.
        """
        if tokens.data.shape[1] != CELL_DIM:
            raise RecipeError(
                "`coverage-updates` looks at `pixels` descriptors, "
                f"got tokens of width {tokens.data.shape[1]}",
                hint="use it after the `pixels` encoder",
            )
        starts = [a for a, _ in frame_slices(tokens)]
        rows = tokens.data.numpy().reshape(len(starts), -1, CELL_DIM)
        pts = tokens.pts[starts].numpy()
        for a in range(0, len(starts), _BLOCK):
            b = min(a + _BLOCK, len(starts))
            part, stays = rows[a:b], pts[a:b, 1] - pts[a:b, 0]
            if places is None:
                where = place_pictures(part.reshape(b - a, self.rows, self.cols, CELL_DIM))
            else:
                where = places(self._seen, self._seen + b - a)
            self._put(part, where, np.maximum(stays, 1e-3))

    def glance(self, seconds: NDArray[np.float64], facts: Facts) -> None:
        """Add frames that stay ``seconds`` [t], whose places and cells are known.

        All frames of a stream are added by this, or none.
        """
        assert facts.places and facts.cells  # noqa: S101 - as said
        self._cells = facts.cells
        for a in range(0, len(seconds), _BLOCK):
            stays = np.maximum(seconds[a : a + _BLOCK], 1e-3)
            self._put(None, facts.places(self._seen, self._seen + len(stays)), stays)

    def _put(
        self, data: NDArray[Any] | None, place: NDArray[Any], seconds: NDArray[np.float64]
    ) -> None:
        count = len(seconds)
        own = slice(self._count, self._count + count)
        self._number[own] = self._seen + np.arange(count)
        self._seconds[own], self._place[own] = seconds, place
        if data is not None:
            self._data[own] = data
        self._read = False
        self._count += count
        self._seen += count
        if self._count > 2 * self.capacity:
            self.trim()

    def trim(self) -> None:
        """Let those that look most like the one before join it until ``capacity`` are left."""
        while self._count > self.capacity:
            self._join(self._count - self.capacity)

    def apart(self) -> NDArray[np.float32]:
        """Distances [n, n] between all pictures."""
        made = between(self.place, self.place)
        np.fill_diagonal(made, 0)
        return made

    def _join(self, count: int) -> None:
        """Let at most ``count`` moments join their predecessors, no two neighbours at once."""
        apart = np.linalg.norm(np.diff(self.place, axis=0), axis=1)
        gone = np.zeros(self._count, dtype=np.bool_)
        # A few at a time: half of all at once would take every second one, however unlike.
        nearest = np.argsort(apart, kind="stable")[: max(1, len(apart) // _AT_ONCE)]
        for i in nearest.tolist():
            if not (gone[i] or gone[i + 1] or (i + 2 < len(gone) and gone[i + 2])):
                gone[i + 1] = True
                self._seconds[i] += self._seconds[i + 1]
                count -= 1
                if not count:
                    break
        stay = np.flatnonzero(~gone)
        self._read = False
        columns: list[NDArray[Any]] = [self._number, self._seconds, self._place]
        for column in columns if self._cells is not None else [*columns, self._data]:
            # Rows move down in order, so none is overwritten before it moved.
            for a in range(0, len(stay), _BLOCK):
                part = stay[a : a + _BLOCK]
                column[a : a + len(part)] = column[part]
        self._count = len(stay)


def between(one: NDArray[np.float32], other: NDArray[np.float32]) -> NDArray[np.float32]:
    """Distances [n, m] between places [n, DIM] and [m, DIM]."""
    squares = (one**2).sum(1)[:, None] + (other**2).sum(1) - 2 * (one @ other.T)
    made: NDArray[np.float32] = np.sqrt(np.maximum(squares, 0))
    return made
