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

from dataclasses import dataclass
from fractions import Fraction
from typing import Annotated, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from tokpipe.budget import Supply
from tokpipe.compress._two_pass import (
    Choice,
    Ids,
    middles,
    regular_pieces,
    settle_each,
    settle_grid,
    settle_smaller,
)
from tokpipe.grid import ragged_partition, regular_shape
from tokpipe.spec import Layout, Scope
from tokpipe.tensors import TokenBatch, TokenMap


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

    def begin(self, limit: int, rows: int, cols: int) -> Choice:
        """Fresh state for frames of ``rows`` x ``cols`` cells and a budget of at most ``limit``."""
        return Choice(limit=limit, rows=rows, cols=cols)

    def observe(self, state: Choice, tokens: TokenBatch) -> None:
        """First pass: count, and remember the best cells."""
        state.observe(tokens)

    def glance(
        self, state: Choice, scores: NDArray[np.float32], seconds: NDArray[np.float64]
    ) -> None:
        """First pass where scores float32 [T, C] are known already."""
        del seconds
        state.count(scores.reshape(-1), len(scores))

    def supply(self, state: Choice) -> Supply:
        """Novel cells and all cells seen."""
        return state.supply()

    def settle(
        self, state: Choice, budget: int, layout: Layout = "ragged", per_frame: int | None = None
    ) -> None:
        """Fix the choice: at most ``budget`` rows, at most ``per_frame`` of each frame."""
        cells = state.cells
        budget = min(budget, state.total)
        updates = state.by_change()
        if budget <= 0:
            picked = updates[:0]
        elif per_frame is not None and layout != "ragged":
            picked = settle_smaller(state, budget, min(per_frame, cells))
        elif per_frame is not None:
            picked = settle_each(state, budget, per_frame)
        elif layout != "ragged" or budget < cells:
            picked = self._regular(state, budget, layout)
        elif state.novel <= budget:
            picked = updates[:budget]
        else:
            count = int(Fraction(str(self.anchors)) * budget / cells)
            whole = middles(state.frames, count, cells)
            rest = updates[~np.isin(updates, whole)][: budget - len(whole)]
            picked = np.concatenate([whole, rest])
        state.keep(picked)

    def _regular(self, state: Choice, budget: int, layout: Layout) -> Ids:
        """Whole frames or frames at a smaller grid; sets the pieces they are pooled into."""
        rows, cols, cells = state.rows, state.cols, state.cells
        if layout == "grid":
            return settle_grid(state, budget)
        if layout == "ragged":
            state.pieces = ragged_partition(rows, cols, budget)
        elif budget >= cells:
            return middles(state.frames, budget // cells, cells)
        else:
            state.pieces = regular_pieces(rows, cols, *regular_shape(rows, cols, budget))
        return middles(state.frames, 1, cells)

    def push(
        self, state: Choice, carried: TokenBatch | None, new: TokenBatch
    ) -> tuple[Choice, TokenMap]:
        """Second pass: map over [carried; new]."""
        return state, state.push(carried, new)

    def finish(self, state: Choice, carried: TokenBatch) -> TokenMap:
        """Drop what still waits."""
        return state.finish(carried)

    def conclude(self, state: Choice, kept: TokenBatch) -> TokenMap | None:
        """Map of the kept rows, in the cache's order, to a reduced grid; None at the full grid."""
        return state.conclude(kept)

    def order(self, state: Choice, kept: TokenBatch) -> torch.Tensor:
        """Rank int64 [K] of each kept row: which to give up last when the budget shrinks."""
        return state.order(kept)
