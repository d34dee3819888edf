"""Every k-th frame at one stride, the others at twice that stride.

Source: Zhang et al., "LLaVA-Video: Video Instruction Tuning With Synthetic Data",
arXiv:2410.02713, section 4 (LLaVA-Video SlowFast), as `add_faster_video` in the released code.
Differs: no newline tokens; a frame smaller than the stride gives one row.

Shapes: N = T x R x C tokens, whole frames in raster order; frames 0, k, 2 k, ... give
floor(R / s) x floor(C / s) rows (ceil with interpolation), the others as at 2 s, frame after
frame. Cost: O(N D).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field

from tokpipe.compress._grid_axes import Grids, bilinear, floored, in_order
from tokpipe.frames import placed, stacked
from tokpipe.maps import GridMap, TokenMap
from tokpipe.spec import Layout, Scope, Where
from tokpipe.tensors import Query, TokenBatch


@dataclass(frozen=True, slots=True, kw_only=True)
class LlavaVideo:
    """Slow frames in detail, fast ones at half of it.

    Attributes:
        every: Distance of the slow frames, 1 or more.
        stride: Least stride of the slow frames, 1 or more; a budget may raise it. None is 2, or
            whatever the budget allows.
        mode: Averages of windows, or bilinear interpolation.

    Example:
        >>> from tokpipe.testing.golden import frame_tokens
        >>> tokens = frame_tokens(torch.zeros(11, 64, 1))
        >>> len(LlavaVideo().decide(tokens, None))
        68
    """

    source: ClassVar[str] = "arXiv:2410.02713, section 4"
    scope: ClassVar[Scope] = "video"
    needs: ClassVar[tuple[str, ...]] = ()
    modalities: ClassVar[tuple[str, ...]] = ("video",)
    causal: ClassVar[bool] = True
    layouts: ClassVar[tuple[Layout, ...]] = ("ragged",)
    version: ClassVar[int] = 1
    exact: ClassVar[bool] = False
    where: ClassVar[Where] = "outputs"
    golden: ClassVar[tuple[str, ...]] = ()

    every: Annotated[int, Field(ge=1)] = 10
    stride: Annotated[int, Field(ge=1)] | None = None
    mode: Literal["average", "bilinear"] = "average"

    @property
    def drop(self) -> bool:
        """A stride that was asked for holds whatever the budget."""
        return self.stride is not None

    def decide(
        self, tokens: TokenBatch, budget: int | None, query: Query | None = None
    ) -> TokenMap | GridMap:
        """Pool slow and fast frames; with room for every token, keep them all.

        Raises:
            RecipeError: The tokens are not whole frames in raster order.
        """
        grid = Grids.of(tokens, "llava-video")
        if len(grid) == 0 or (budget is not None and budget >= len(grid) and not self.drop):
            return grid.keep()
        if budget is not None and budget < grid.steps:
            return grid.averaged(budget, 1, 1)
        stride, most = self.stride or (2 if budget is None else 1), max(grid.rows, grid.cols)
        while budget is not None and stride < most and self._count(grid, stride) > budget:
            stride += 1
        step = torch.arange(grid.steps, device=grid.device)
        cells = torch.arange(grid.rows * grid.cols, device=grid.device)
        maps = []
        for chosen, side in (
            (step % self.every == 0, stride),
            (step % self.every != 0, 2 * stride),
        ):
            index = step[chosen]
            source = (index[:, None] * cells.shape[0] + cells).flatten()
            some = Grids(int(index.shape[0]), grid.rows, grid.cols, grid.device)
            if some.steps:
                made = some.map(None, self._axis(grid.rows, side), self._axis(grid.cols, side))
                maps.append(placed(made.expand(), source, len(grid)))
        both = stacked(maps, len(grid), grid.device)
        return in_order(both, torch.argsort(both.anchor // cells.shape[0], stable=True))

    def _axis(self, size: int, stride: int) -> torch.Tensor:
        if self.mode == "average":
            return floored(size, stride)
        return bilinear(size, -(-size // stride))

    def _count(self, grid: Grids, stride: int) -> int:
        """Rows of all frames when the slow ones are pooled at ``stride``."""
        slow = -(-grid.steps // self.every)
        total = 0
        for frames, side in ((slow, stride), (grid.steps - slow, 2 * stride)):
            up = 0 if self.mode == "average" else side - 1
            rows, cols = (max(1, (size + up) // side) for size in (grid.rows, grid.cols))
            total += frames * rows * cols
        return total

    def out_count(self, n: int, budget: int | None) -> tuple[int, bool]:
        """Most rows for ``n`` tokens; the shape depends on the frame's own."""
        return (n, False) if budget is None else (min(n, budget), not self.drop and budget >= n)
