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
#: Moments held, and the bytes of cell descriptors they may take.
CAPACITY, _BYTES, _LEAST = 2048, 32 << 20, 64
#: One in so many moments may join the one before in a round.
_AT_ONCE = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What may be known of the frames of a stream besides their cells.

    Attributes:
        text: float32 [T], part of a picture's tiles that look like text; empty: unknown.
        finest: int64 [T], times each side of the grid that a picture is at hand at; empty: 1.
        even: bool [T], the frame is on the sampler's time grid or stays as long; others show a
            change between its ticks, and stand for themselves only. Empty: all are.
        places: Gives the places [n, DIM] of the frames ``first:last``, None: made from the cells.
    """

    text: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))
    finest: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    even: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, np.bool_))
    places: Places | None = None


@dataclass(slots=True)
class Moments:
    """Moments in order of time.

    When twice as many as may stay are held, those that look most like the one before join it:
    what is unlike its neighbours stays, however short.

    Attributes:
        rows, cols: Cells of a picture.
        number: int64 [n], which frame of the stream.
        seconds: float64 [n], how long it (and what joined it) was on screen.
        place: float32 [n, DIM], see ``place_pictures``.
        data: float32 [n, C, 24], cell descriptors.
    """

    rows: int
    cols: int
    number: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    seconds: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    place: NDArray[np.float32] = field(default_factory=lambda: np.zeros((0, DIM), np.float32))
    data: NDArray[np.float32] = field(
        default_factory=lambda: np.zeros((0, 0, CELL_DIM), np.float32)
    )
    seen: int = 0

    def __len__(self) -> int:
        """Return n."""
        return len(self.number)

    @property
    def capacity(self) -> int:
        """Moments that may stay."""
        return min(CAPACITY, max(_LEAST, _BYTES // (self.rows * self.cols * CELL_DIM * 4)))

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
        data = tokens.data.float().numpy().reshape(len(starts), -1, CELL_DIM)
        pts = tokens.pts[starts].numpy()
        grid = data.reshape(len(starts), self.rows, self.cols, CELL_DIM)
        last = self.seen + len(starts)
        place = place_pictures(grid) if places is None else places(self.seen, last)
        self.number = np.append(self.number, self.seen + np.arange(len(starts)))
        self.seconds = np.append(self.seconds, np.maximum(pts[:, 1] - pts[:, 0], 1e-3))
        self.place = np.concatenate([self.place, place.astype(np.float32)])
        self.data = data.copy() if not len(self.data) else np.concatenate([self.data, data])
        self.seen += len(starts)
        if len(self) > 2 * self.capacity:
            self.trim()

    def trim(self) -> None:
        """Let those that look most like the one before join it until ``capacity`` are left."""
        while len(self) > self.capacity:
            self._join(len(self) - self.capacity)

    def apart(self) -> NDArray[np.float32]:
        """Distances [n, n] between all pictures."""
        size = (self.place**2).sum(1)
        squares = size[:, None] + size - 2 * (self.place @ self.place.T)
        made: NDArray[np.float32] = np.sqrt(np.maximum(squares, 0))
        np.fill_diagonal(made, 0)
        return made

    def _join(self, count: int) -> None:
        """Let at most ``count`` moments join their predecessors, no two neighbours at once."""
        apart = np.linalg.norm(np.diff(self.place, axis=0), axis=1)
        gone = np.zeros(len(self), dtype=np.bool_)
        # A few at a time: half of all at once would take every second one, however unlike.
        nearest = np.argsort(apart, kind="stable")[: max(1, len(apart) // _AT_ONCE)]
        for i in nearest.tolist():
            if not (gone[i] or gone[i + 1] or (i + 2 < len(gone) and gone[i + 2])):
                gone[i + 1] = True
                self.seconds[i] += self.seconds[i + 1]
                count -= 1
                if not count:
                    break
        stay = ~gone
        self.number, self.seconds = self.number[stay], self.seconds[stay]
        self.place, self.data = self.place[stay], self.data[stay]
