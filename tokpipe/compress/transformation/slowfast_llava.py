"""Few frames in detail, all frames coarsely.

Source: Xu et al., "SlowFast-LLaVA: A Strong Training-Free Baseline for Video Large Language
Models", arXiv:2407.15841, section 3.2.
Differs: the slow path takes the mean where the released default takes the maximum, which no linear
map can (the projector `max-pool` does). A token of a slow frame is in both paths and gives half of
its mass to each; what a slow window leaves over stays in the fast path. Where there are fewer
frames than slow ones each is taken once.

Shapes: N = T x R x C tokens, whole frames in raster order; slow rows first, then T x a x b fast
ones. Slow frame i of n is floor(i T / n). Cost: O(N D).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field

from tokpipe.compress._grid_axes import Grids, floored, together
from tokpipe.frames import placed
from tokpipe.grid import regular_shape
from tokpipe.maps import GridMap, TokenMap
from tokpipe.spec import Layout, Scope, Where
from tokpipe.tensors import Query, TokenBatch

Aggregate = Literal["concat", "spatial_1d_avg_pool", "spatial_2d_avg_pool", "temporal_global_pool"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SlowFastLlava:
    """Two rates, two resolutions.

    Attributes:
        slow: Most frames of the slow path, 1 or more; None is 10, or as many as the budget pays.
        aggregate: What the slow path does: nothing, the mean of two neighbours in raster order, of
            2 x 2 windows, or of all slow frames.
        rows, cols: Grid of each frame in the fast path, 1 or more.

    Of a budget half at most goes to the fast path, the rest to slow frames.

    Example:
        >>> from tokpipe.testing.golden import frame_tokens
        >>> tokens = frame_tokens(torch.zeros(20, 576, 1))
        >>> len(SlowFastLlava().decide(tokens, None))
        3200
    """

    source: ClassVar[str] = "arXiv:2407.15841, section 3.2"
    scope: ClassVar[Scope] = "video"
    needs: ClassVar[tuple[str, ...]] = ()
    modalities: ClassVar[tuple[str, ...]] = ("video",)
    causal: ClassVar[bool] = False
    layouts: ClassVar[tuple[Layout, ...]] = ("ragged",)
    version: ClassVar[int] = 1
    exact: ClassVar[bool] = False
    where: ClassVar[Where] = "outputs"
    golden: ClassVar[tuple[str, ...]] = ("slowfast",)

    slow: Annotated[int, Field(ge=1)] | None = None
    aggregate: Aggregate = "spatial_1d_avg_pool"
    rows: Annotated[int, Field(ge=1)] = 4
    cols: Annotated[int, Field(ge=1)] = 4

    @property
    def drop(self) -> bool:
        """A number of slow frames that was asked for holds whatever the budget."""
        return self.slow is not None

    def decide(
        self, tokens: TokenBatch, budget: int | None, query: Query | None = None
    ) -> TokenMap:
        """Take the slow and the fast rows; with room for every token, keep them all.

        Raises:
            RecipeError: The tokens are not whole frames in raster order.
        """
        grid = Grids.of(tokens, "slowfast-llava")
        n = len(grid)
        if n == 0 or (budget is not None and budget >= n and self.slow is None):
            return grid.keep()
        steps = grid.steps
        slow = min(steps, self.slow or (10 if budget is None else steps))
        a, b = min(grid.rows, self.rows), min(grid.cols, self.cols)
        if budget is not None:
            room = max(1, budget // 2) if steps * a * b > budget // 2 else steps * a * b
            steps, a, b = _reduced(steps, a, b, room)
            slow = min(slow, self._affordable(grid, budget - steps * a * b))
        axes = GridMap.average(grid.rows, a), GridMap.average(grid.cols, b)
        fast = grid.map(GridMap.average(grid.steps, steps), *axes).expand()
        if slow == 0:
            return fast
        return together([self.slow_rows(tokens, slow), fast], n, grid.device)

    def slow_rows(self, tokens: TokenBatch, slow: int) -> TokenMap:
        """The slow path alone: ``slow`` frames of whole frames in raster order, aggregated."""
        grid = Grids.of(tokens, "slowfast-llava")
        index = slow_frames(grid.steps, slow, grid.device)
        cells = grid.rows * grid.cols
        source = (index[:, None] * cells + torch.arange(cells, device=index.device)).flatten()
        some = Grids(index.shape[0], grid.rows, grid.cols, grid.device)
        if self.aggregate == "concat":
            return TokenMap.keep(source, len(grid))
        if self.aggregate == "temporal_global_pool":
            made = some.map(GridMap.average(some.steps, 1), None, None)
        elif self.aggregate == "spatial_2d_avg_pool":
            made = some.map(None, floored(grid.rows, 2), floored(grid.cols, 2))
        else:
            line = Grids(some.steps, 1, cells, grid.device)
            made = line.map(None, None, floored(cells, 2))
        return placed(made.expand(), source, len(grid))

    def _affordable(self, grid: Grids, room: int) -> int:
        """Slow frames worth at most ``room`` rows."""
        cells = grid.rows * grid.cols
        if self.aggregate == "temporal_global_pool":
            return grid.steps if cells <= room else 0
        each = {
            "concat": cells,
            "spatial_1d_avg_pool": max(1, cells // 2),
            "spatial_2d_avg_pool": max(1, grid.rows // 2) * max(1, grid.cols // 2),
        }[self.aggregate]
        return min(grid.steps, room // each)

    def out_count(self, n: int, budget: int | None) -> tuple[int, bool]:
        """Most rows for ``n`` tokens; the fast path may repeat what the slow one has."""
        if budget is None:
            return 2 * n, False
        return (budget, False) if self.drop else (min(n, budget), budget >= n)


def slow_frames(steps: int, slow: int, device: torch.device | str = "cpu") -> torch.Tensor:
    """Frames int64 [min(slow, T)] of the slow path: floor(i T / n)."""
    count = min(slow, steps)
    return torch.arange(count, device=device) * steps // max(1, count)


def _reduced(steps: int, a: int, b: int, room: int) -> tuple[int, int, int]:
    steps = min(steps, room)
    return (steps, *regular_shape(a, b, room // steps))
