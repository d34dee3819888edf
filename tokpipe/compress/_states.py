"""Who stands for whom when the cells of a fixed grid repeat over time.

At each position of the grid, time falls into states: a novel cell begins one, the repeats after
it belong to it. Of a state's cells some are chosen. A repeat that is not chosen is represented by
the latest chosen cell of its state, or by the first chosen one after it; a state without a chosen
cell is dropped.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray

from tokpipe.tensors import TokenBatch, TokenMap

_ALIVE, _DROPPED = -2, -1


def frame_slices(tokens: TokenBatch) -> list[tuple[int, int]]:
    """Runs ``[a, b)`` of rows with the same time step ``cell[:, 0]``."""
    step = tokens.cell[:, 0].cpu().numpy()
    borders = np.flatnonzero(np.diff(step)) + 1
    edges = [0, *borders.tolist(), len(step)]
    return list(pairwise(edges)) if len(step) else []


def stands_for(
    scores: Callable[[int, int], NDArray[np.float32]], chosen: NDArray[np.int64], frames: int,
    cells: int, block: int = 256,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:  # fmt: skip
    """Frames [first, last) int64 [K] that each chosen cell stands for, where all scores are known.

    The same as :class:`StateMapper` finds block by block.

    Args:
        scores: Gives the scores float32 [t, C] of the frames ``a:b``; 1 and above is novel.
        chosen: Ids of the chosen cells, rising, counted frame by frame.
    """
    frame, cell = np.divmod(chosen, cells)
    begin, end = np.zeros_like(chosen), np.full_like(chosen, frames)
    starts = range(0, frames, block)
    state = np.zeros(cells, np.int64)
    for a in starts:
        mine = _within(frame, a, a + block)
        novel = _novel(scores, a, min(a + block, frames), 0)
        latest = np.maximum.accumulate(np.maximum(novel, state), 0)
        begin[mine], state = latest[frame[mine] - a, cell[mine]], latest[-1]
    state = np.full(cells, frames, np.int64)
    for a in reversed(starts):
        mine = _within(frame, a, a + block)
        novel = np.append(_novel(scores, a, min(a + block, frames), frames), state[None], 0)
        following = np.minimum.accumulate(novel[::-1], 0)[::-1]
        end[mine], state = following[frame[mine] - a + 1, cell[mine]], following[0]
    order = np.lexsort((frame, cell))
    again = (np.diff(cell[order]) == 0) & (np.diff(begin[order]) == 0)
    # Of a state's chosen cells the first stands for what came before, each for what follows.
    later, earlier = order[1:][again], order[:-1][again]
    begin[later] = frame[later]
    end[earlier] = frame[later]
    return begin, end


def _within(frame: NDArray[np.int64], first: int, last: int) -> slice:
    a, b = np.searchsorted(frame, [first, last])
    return slice(int(a), int(b))


def _novel(
    scores: Callable[[int, int], NDArray[np.float32]], first: int, last: int, other: int
) -> NDArray[np.int64]:
    """The number of its frame where a cell is novel, ``other`` elsewhere, [t, C]."""
    return np.where(scores(first, last) >= 1, np.arange(first, last)[:, None], other)


@dataclass(slots=True)
class StateMapper:
    """Builds the maps of one stream, block by block.

    Attributes:
        settled: bool [K] of the last map: rows no later cell can join.
    """

    settled: torch.Tensor | None = None
    _row: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    _chosen: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, dtype=np.bool_))

    def push(self, carried: int, novel: NDArray[np.bool_], chosen: NDArray[np.bool_]) -> TokenMap:
        """Map over [carried; new] for new cells ``novel``, ``chosen`` bool [F, C].

        Rows are the chosen cells and, per position, an open state's cell that waits for one.
        """
        frames, cells = novel.shape
        if not len(self._row):
            self._row = np.full(cells, -1, dtype=np.int64)
            self._chosen = np.zeros(cells, dtype=np.bool_)
        total = carried + frames * cells
        owner = np.arange(total)
        anchor = np.concatenate([np.arange(carried), np.zeros(frames * cells, dtype=np.int64)])
        parent = np.full(total, _ALIVE, dtype=np.int64)
        count = carried
        row, selected = self._row, self._chosen
        for f in range(frames):
            base = carried + f * cells
            begins = novel[f] | (row < 0)
            fresh = begins | chosen[f]
            made = np.flatnonzero(fresh)
            ids = np.full(cells, -1, dtype=np.int64)
            ids[made] = count + np.arange(len(made))
            anchor[count : count + len(made)] = base + made
            count += len(made)
            waiting = (row >= 0) & ~selected
            parent[row[waiting & begins]] = _DROPPED
            joined = waiting & ~begins & chosen[f]
            parent[row[joined]] = ids[joined]
            row = np.where(fresh, ids, row)
            selected = np.where(fresh, chosen[f], selected)
            owner[base : base + cells] = row
        return self._close(owner, anchor[:count], parent[:count], row, selected)

    def _close(
        self, owner: NDArray[np.int64], anchor: NDArray[np.int64], parent: NDArray[np.int64],
        row: NDArray[np.int64], selected: NDArray[np.bool_],
    ) -> TokenMap:  # fmt: skip
        alive = parent == _ALIVE
        number = np.cumsum(alive) - 1
        target = np.where(alive, np.arange(len(parent)), parent)
        final = target[owner]
        src = np.flatnonzero(final >= 0)
        dst = number[final[src]]
        anchors = anchor[alive]
        is_open = np.zeros(len(anchors), dtype=np.bool_)
        is_open[number[row[row >= 0]]] = True
        kept = np.cumsum(is_open) - 1
        self._row = np.where(row >= 0, kept[number[row]], -1)
        self._chosen = selected
        self.settled = torch.from_numpy(~is_open)
        return TokenMap(
            src=torch.from_numpy(src), dst=torch.from_numpy(dst),
            weight=torch.from_numpy((anchors[dst] == src).astype(np.float32)),
            share=torch.ones(len(src)), anchor=torch.from_numpy(anchors), num_sources=len(owner),
        )  # fmt: skip

    def finish(self, carried: int) -> TokenMap:
        """Map over the carried rows: those chosen; states still waiting are dropped."""
        rows = np.sort(self._row[self._chosen & (self._row >= 0)])
        self.settled = torch.ones(len(rows), dtype=torch.bool)
        return TokenMap.keep(torch.from_numpy(rows), carried)
