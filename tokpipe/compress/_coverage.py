"""Which moments cover a whole video best under a budget of cells, each sent as what changed.

A moment is sent like a picture of a video codec: only the cells that differ from what is shown
already. So the cost of a moment depends on its neighbours among the chosen, and still scenes buy
many moments. Moments are chosen greedily: most covered for its cost first (facility location under
a knapsack), then those least like anything chosen.

Letters: n moments, C cells of a picture, P pieces of a picture at a reduced grid.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokpipe.compress._cell_distance import cell_change
from tokpipe.compress._moments import Moments
from tokpipe.compress._two_pass import Ids, owners, regular_pieces

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]

#: Exponent of the distance in what the greedy rule covers: far pictures weigh more than in a mean.
_POWER = 2.4
#: Loss of likeness in an image embedding per unit of distance, measured on varied media.
_LIKENESS = 0.125
#: Loss of likeness of a picture 8 cells wide; it falls with the square of the width.
_BLUR, _WIDTH = 0.045, 8
#: Distance from which a moment is a state of its own.
STATE = 0.3
#: Moments whose loss is compared with all others at once.
_ROWS = 64
#: Bytes of compared cells that are kept for other choosers.
_HELD = 32 << 20
#: Part of the budget kept for moments unlike anything shown, however short.
RESERVE = 0.3


@dataclass(frozen=True, slots=True)
class Level:
    """A grid that pictures are sent at.

    Attributes:
        owner: int64 [C], the piece each cell lies in; None: every cell is its own piece.
        count: P.
        blur: Loss of likeness of a picture at this grid.
    """

    owner: Ids | None
    count: int
    blur: float


def levels_of(rows: int, cols: int) -> list[Level]:
    """The full grid, and three quarters and halves of it down to 8 cells on the long side."""
    cells, long = rows * cols, max(rows, cols)
    made = [Level(None, cells, _blur(long))]
    for part in (0.75, 0.5, 0.375, 0.25, 0.1875, 0.125):
        high, wide = math.ceil(rows * part), math.ceil(cols * part)
        if max(high, wide) < _WIDTH or (high, wide) == (rows, cols):
            continue
        pieces = regular_pieces(rows, cols, high, wide)
        made.append(Level(owners(pieces, rows, cols), len(pieces), _blur(max(high, wide))))
    return made


def _blur(long: int) -> float:
    return _BLUR * (_WIDTH / long) ** 2


class Likeness:
    """How unlike the moments look, and what each would cover alone; shared by all choosers.

    Attributes:
        apart: float32 [n, n] distances; ``loss``: what the greedy rule makes of them.
        weight: float64 [n], part of the time each is on screen.
        start: Distance of everything from nothing chosen.
        gain: float64 [n], what each moment takes off the loss at first.
    """

    def __init__(self, moments: Moments) -> None:
        """Compare all with all."""
        self.moments = moments
        self.apart = moments.apart()
        self.loss = self.apart**_POWER
        self.weight = moments.seconds / moments.seconds.sum()
        self.start = np.float32(self.apart.max(initial=0) * 1.01 + 1e-3)
        self._room = np.empty(self.loss.shape)
        self._changed: dict[tuple[int, int, int], Mask] = {}
        self._held = 0
        every = np.arange(len(moments))
        self.gain = self.gained(every, np.full(len(moments), self.start**_POWER))

    def gained(self, rows: Ids, now: NDArray[Any]) -> Floats:
        """What each moment would take off the loss ``now`` [m] of the moments ``rows``."""
        # A few rows at a time in memory that is there: fresh pages cost more than the sums.
        better = self._room[: len(rows)]
        for a in range(0, len(rows), _ROWS):
            part = self.loss[rows[a : a + _ROWS]]
            np.subtract(now[a : a + _ROWS, None], part, out=part)
            better[a : a + _ROWS] = np.maximum(part, 0, out=part)
        made: Floats = self.weight[rows] @ better
        return made

    def changed(self, one: int, first: int, last: int) -> Mask:
        """Cells bool [m, C] in which the moments ``first:last`` differ from another.

        Choosers for several grids ask the same at first; what was found is kept within bounds.
        """
        asked = (one, first, last)
        if (found := self._changed.get(asked)) is None:
            data = self.moments.data
            found = cell_change(data[first:last], data[one]) >= 1
            if self._held + found.size <= _HELD:
                self._changed[asked] = found
                self._held += found.size
        return found


class Cover:
    """Chooses moments one by one; the order is that of :attr:`order`.

    Attributes:
        order: Chosen moments.
        steady: bool [n], moments that may stand for others; set by the caller.
        spent: Tokens they cost, as far as neighbours tell.
    """

    def __init__(self, likeness: Likeness, level: Level, whole: Mask, *,
                 delta: bool = True) -> None:  # fmt: skip
        """Prepare.

        Args:
            level: What moments are sent at, but those in ``whole`` bool [n] at the full grid.
            delta: Send what changed; otherwise every moment is sent as a whole.
        """
        moments = likeness.moments
        self.moments, self.level, self.delta = moments, level, delta
        self.likeness, self.apart, self.weight = likeness, likeness.apart, likeness.weight
        self.coarse = ~whole if level.owner is not None else np.zeros(len(moments), np.bool_)
        self.near = np.full(len(moments), likeness.start)
        self.gain = likeness.gain.copy()
        self.cells = moments.rows * moments.cols
        self.full = np.where(self.coarse, level.count, self.cells).astype(np.float64)
        self.cost = self.full.copy()
        self.steady = np.ones(len(moments), np.bool_)
        self.order: list[int] = []
        self.sorted: list[int] = []
        self.spent = 0.0

    def left(self) -> float:
        """Mean loss of likeness to the nearest chosen moment, with what the grids blur."""
        blur = np.where(self.coarse, self.level.blur, _blur(max(self.moments.rows,
                                                                self.moments.cols)))  # fmt: skip
        return float(self.weight @ (_LIKENESS * self.near + blur))

    def uncovered(self) -> float:
        """Mean loss of likeness to the nearest chosen moment."""
        return self.distance() * _LIKENESS

    def distance(self) -> float:
        """Mean distance to the nearest chosen moment."""
        return float(self.weight @ self.near)

    def run(self, limit: float, *, until: float = 0.0, any_: bool = False) -> None:
        """Choose what covers most for its cost while ``limit`` tokens last and loss > ``until``.

        Only steady moments are chosen, unless ``any_`` may be.
        """
        while len(self.near) and (self.order == [] or self.uncovered() > until):
            fits = self.spent + self.cost <= limit
            fits[self.order] = False
            fits &= self.steady | any_
            value = self.gain / np.maximum(self.cost, 1) if self.order else self.gain
            value = np.where(fits, value, -1.0)
            best = int(value.argmax())
            if value[best] <= 1e-12:
                return
            self.take(best)

    def reach(self, limit: float, farther: float) -> None:
        """Choose what is least like anything chosen, while it is ``farther`` than this."""
        open_ = np.ones(len(self.near), np.bool_)
        while open_.any():
            far = np.where(open_, self.near, -1.0)
            best = int(far.argmax())
            if far[best] <= farther:
                return
            open_[best] = False
            if self.spent + self.cost[best] <= limit:
                self.take(best)

    def take(self, moment: int) -> None:
        """Choose a moment."""
        self.spent += float(self.cost[moment])
        self.order.append(moment)
        now = np.minimum(self.near, self.apart[:, moment])
        nearer = np.flatnonzero(now < self.near)
        self.gain -= self.likeness.gained(nearer, self.near[nearer] ** _POWER)
        self.gain += self.likeness.gained(nearer, now[nearer] ** _POWER)
        self.near = now
        place = int(np.searchsorted(self.sorted, moment))
        before = self.sorted[place - 1] if place else None
        after = self.sorted[place] if place < len(self.sorted) else None
        self.sorted.insert(place, moment)
        if self.delta:
            self._price(before, moment)
            self._price(moment, after)

    def _price(self, before: int | None, after: int | None) -> None:
        """Costs of the moments between two chosen neighbours."""
        first = 0 if before is None else before + 1
        last = len(self.near) if after is None else after
        if first == last:
            return
        there = self.full[first:last]
        if before is not None:
            there = self._sent(before, first, last, out=self.coarse[before])
        if after is not None:
            back = self._sent(after, first, last, into=self.coarse[after])
            there = there + back - self._direct(before, after)
        self.cost[first:last] = np.maximum(there, 0)

    def _direct(self, before: int | None, after: int) -> float:
        if before is None:
            return float(self.full[after])
        return float(self._sent(before, after, after + 1, out=self.coarse[before])[0])

    def _sent(
        self, one: int, first: int, last: int, *, into: Any = None, out: Any = None
    ) -> Floats:
        """Tokens [m] that lead from a moment to each of ``first:last``, or back.

        Args:
            into, out: What is led to or from is sent coarse; None: as each of the many is.
        """
        changed = self.likeness.changed(one, first, last)
        fine: Floats = changed.sum(1).astype(np.float64)
        if self.level.owner is None:
            return fine
        many = self.coarse[first:last]
        into, out = many if into is None else into, many if out is None else out
        # What was sent coarse does not serve a picture at the full grid.
        fine = np.where(out & ~into, float(self.cells), fine)
        if not np.any(into):
            return fine
        made: Floats = np.where(into, touched(changed, self.level).sum(1), fine)
        return made


def touched(cells: Mask, level: Level) -> Mask:
    """Pieces bool [m, P] in which any of the cells bool [m, C] lies."""
    if level.owner is None:
        return cells
    out = np.zeros((len(cells), level.count), dtype=np.bool_)
    frame, cell = np.nonzero(cells)
    out[frame, level.owner[cell]] = True
    return out
