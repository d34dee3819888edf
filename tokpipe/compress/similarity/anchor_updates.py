"""Keep whole frames at equal spans, and the cells that change most in between.

Source: tokpipe; key frames and updates against them, as in video coding.

Where the novel cells fit the budget they are all kept, then repeats by descending change. Where
they do not, floor(anchors x N / C) whole frames at the middles of equal spans are kept and the
rest of the budget goes to the cells of highest score. A budget below one frame keeps the middle
frame at a reduced grid of exactly N pieces. Repeats that are not kept are represented by the kept
cell of their state.

Needs scores where 1 is the border of novel (``temporal-drop``). Two passes: ``observe`` sees every
block once before ``settle`` fixes the choice; memory is O(N + block).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from typing import Annotated, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from tokpipe.budget import Supply, largest_remainder
from tokpipe.compress._states import StateMapper, frame_slices
from tokpipe.grid import ragged_partition, regular_shape, spans
from tokpipe.spec import KIND_POOLED, Layout, Scope
from tokpipe.tensors import TokenBatch, TokenMap

#: Candidates remembered beyond the limit before the worst are let go: sorting is rare then.
_SPARE = 1 << 15


@dataclass(slots=True)
class _State:
    """Two-pass state; ids count cells frame by frame from the first frame of the stream."""

    limit: int
    rows: int
    cols: int
    frames: int = 0
    novel: int = 0
    ids: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    scores: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))
    chosen: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    ranks: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    pieces: list[tuple[int, int, int, int]] = field(default_factory=list)
    first: int | None = None
    seen: int = 0
    mapper: StateMapper = field(default_factory=StateMapper)
    settled: torch.Tensor | None = None

    @property
    def cells(self) -> int:
        return self.rows * self.cols


@dataclass(frozen=True, slots=True)
class AnchorUpdates:
    """Stream reducer that meets its budget exactly.

    Attributes:
        anchors: Share of the budget for whole frames when not every novel cell fits.
    """

    source: ClassVar[str] = "tokpipe"
    scope: ClassVar[Scope] = "stream"
    needs: ClassVar[tuple[str, ...]] = ("score",)
    modalities: ClassVar[tuple[str, ...]] = ("video",)
    layouts: ClassVar[tuple[Layout, ...]] = ("ragged", "frames", "grid")
    causal: ClassVar[bool] = False
    exact: ClassVar[bool] = True
    version: ClassVar[int] = 1

    anchors: Annotated[float, Field(ge=0, le=1)] = 0.75

    def begin(self, limit: int, rows: int, cols: int) -> _State:
        """Fresh state for frames of ``rows`` x ``cols`` cells and a budget of at most ``limit``."""
        return _State(limit=limit, rows=rows, cols=cols)

    def observe(self, state: _State, tokens: TokenBatch) -> None:
        """First pass: count, and remember the best ``limit`` cells by (score, lower id)."""
        score = torch.nan_to_num(tokens.score, nan=0.0).numpy()
        first = state.frames * state.cells
        state.novel += int((score >= 1).sum())
        state.frames += len(frame_slices(tokens))
        ids = np.concatenate([state.ids, first + np.arange(len(score))])
        scores = np.concatenate([state.scores, score])
        if len(ids) > 2 * max(state.limit, _SPARE):
            best = np.lexsort((ids, -scores))[: state.limit]
            ids, scores = ids[best], scores[best]
        state.ids, state.scores = ids, scores

    def supply(self, state: _State) -> Supply:
        """Novel cells and all cells seen."""
        return Supply(state.novel, state.frames * state.cells)

    def settle(
        self, state: _State, budget: int, layout: Layout = "ragged", per_frame: int | None = None
    ) -> None:
        """Fix the choice: at most ``budget`` rows, at most ``per_frame`` of each frame."""
        cells, total = state.cells, state.frames * state.cells
        budget = min(budget, total)
        order = np.lexsort((state.ids, -state.scores))
        updates = state.ids[order]
        if budget <= 0:
            picked = updates[:0]
        elif per_frame is not None and layout != "ragged":
            picked = self._smaller(state, budget, min(per_frame, cells))
        elif per_frame is not None:
            picked = self._per_frame(state, updates, budget, per_frame)
        elif layout != "ragged" or budget < cells:
            picked = self._regular(state, budget, layout)
        elif state.novel <= budget:
            picked = updates[:budget]
        else:
            whole = _middles(state.frames, int(Fraction(str(self.anchors)) * budget / cells), cells)
            rest = updates[~np.isin(updates, whole)][: budget - len(whole)]
            picked = np.concatenate([whole, rest])
        by_id = np.argsort(picked, kind="stable")
        state.chosen, state.ranks = picked[by_id], by_id.astype(np.int64)

    def _per_frame(
        self, state: _State, updates: NDArray[np.int64], budget: int, most: int
    ) -> NDArray[np.int64]:
        caps = [min(most, state.cells)] * state.frames
        quota = np.array(largest_remainder(budget, [1] * state.frames, caps=caps))
        frame = updates // state.cells
        # Place of each cell among those of its own frame, best first.
        by_frame = np.argsort(frame, kind="stable")
        begin = np.searchsorted(frame[by_frame], frame[by_frame])
        place = np.empty(len(updates), np.int64)
        place[by_frame] = np.arange(len(updates)) - begin
        keep = place < quota[frame]
        return updates[keep][np.argsort(place[keep], kind="stable")]

    def _regular(self, state: _State, budget: int, layout: Layout) -> NDArray[np.int64]:
        """Whole frames or frames at a smaller grid; sets the pieces they are pooled into."""
        rows, cols, cells = state.rows, state.cols, state.cells
        if layout == "frames" and budget >= cells:
            return _middles(state.frames, budget // cells, cells)
        if layout == "ragged":
            state.pieces = ragged_partition(rows, cols, budget)
            return _middles(state.frames, 1, cells)
        # A quarter of the cells buys four times the moments; short media get finer grids.
        quarter = regular_shape(rows, cols, max(1, min(budget, cells // 4)))
        count = 1 if layout == "frames" else min(state.frames, budget // (quarter[0] * quarter[1]))
        high, wide = regular_shape(rows, cols, min(cells, budget // count))
        state.pieces = _pieces(state, high, wide)
        return _middles(state.frames, count, cells)

    def _smaller(self, state: _State, budget: int, most: int) -> NDArray[np.int64]:
        """Frames at the largest regular grid of at most ``most`` cells each."""
        high, wide = regular_shape(state.rows, state.cols, most)
        count = min(state.frames, budget // (high * wide))
        if high * wide < state.cells:
            state.pieces = _pieces(state, high, wide)
        return _middles(state.frames, count, state.cells)

    def push(
        self, state: _State, carried: TokenBatch | None, new: TokenBatch
    ) -> tuple[_State, TokenMap]:
        """Second pass: map over [carried; new]."""
        if state.first is None:
            state.first = int(new.cell[0, 0])
        count, start = len(new), state.seen
        state.seen += count
        a, b = np.searchsorted(state.chosen, [start, start + count])
        chosen = np.zeros(count, dtype=np.bool_)
        chosen[state.chosen[a:b] - start] = True
        novel = torch.nan_to_num(new.score, nan=0.0).numpy() >= 1
        shape = (count // state.cells, state.cells)
        tmap = state.mapper.push(
            len(carried) if carried is not None else 0, novel.reshape(shape), chosen.reshape(shape)
        )
        state.settled = state.mapper.settled
        return state, tmap

    def finish(self, state: _State, carried: TokenBatch) -> TokenMap:
        """Drop what still waits."""
        tmap = state.mapper.finish(len(carried))
        state.settled = state.mapper.settled
        return tmap

    def conclude(self, state: _State, kept: TokenBatch) -> TokenMap | None:
        """Map of the kept rows, in the cache's order, to a reduced grid; None at the full grid."""
        if not state.pieces:
            return None
        owner = np.zeros((state.rows, state.cols), dtype=np.int64)
        for i, (y, x, h, w) in enumerate(state.pieces):
            owner[y : y + h, x : x + w] = i
        step = kept.cell[:, 0].numpy()
        number = np.unique(step, return_inverse=True)[1]
        group = number * len(state.pieces) + owner[kept.cell[:, 1].numpy(), kept.cell[:, 2].numpy()]
        count = (int(number.max()) + 1) * len(state.pieces)
        tmap = TokenMap.mean(torch.from_numpy(group), count)
        kind = torch.full((count,), KIND_POOLED, dtype=torch.uint8)
        return TokenMap(src=tmap.src, dst=tmap.dst, weight=tmap.weight, share=tmap.share,
                        anchor=tmap.anchor, num_sources=len(kept), kind=kind)  # fmt: skip

    def order(self, state: _State, kept: TokenBatch) -> torch.Tensor:
        """Rank int64 [K] of each kept row: which to give up last when the budget shrinks."""
        if state.pieces:
            return torch.arange(len(kept))
        cell = kept.cell.long().numpy()
        ids = (cell[:, 0] - (state.first or 0)) * state.cells + cell[:, 1] * state.cols + cell[:, 2]
        return torch.from_numpy(state.ranks[np.searchsorted(state.chosen, ids)])


def _pieces(state: _State, high: int, wide: int) -> list[tuple[int, int, int, int]]:
    """Rectangles (y, x, height, width) that cut a frame into ``high`` x ``wide``."""
    return [
        (y, x, b - y, d - x) for y, b in spans(state.rows, high) for x, d in spans(state.cols, wide)
    ]


def _middles(frames: int, count: int, cells: int) -> NDArray[np.int64]:
    """Ids of all cells of ``count`` frames at the middles of equal spans, coarse to fine."""
    count = min(count, frames)
    if count <= 0:
        return np.zeros(0, np.int64)
    middle = np.array([(2 * i + 1) * frames // (2 * count) for i in range(count)], dtype=np.int64)
    bits = max(1, (count - 1).bit_length())
    coarse = sorted(range(count), key=lambda i: (int(f"{i:0{bits}b}"[::-1], 2), i))
    return (middle[coarse][:, None] * cells + np.arange(cells)).reshape(-1)
