"""Average each frame at a stride; what no whole window covers is dropped.

Source: Zhang et al., "LLaVA-NeXT: A Strong Zero-shot Video Understanding Model", 2024 (2-D pooling
of the projected tokens); Li et al., "LLaVA-OneVision", arXiv:2408.03326, section 3.2.
Differs: a frame smaller than the stride gives one row instead of none. Maximum pooling is the
projector `max-pool`, interpolation the operator `bilinear`.

Shapes: N = T x R x C tokens, whole frames in raster order; result T x floor(R / s) x floor(C / s).
Cost: O(N D).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from tokpipe.compress._grid_axes import Grids, floored
from tokpipe.maps import GridMap, TokenMap
from tokpipe.spec import Layout, Scope, Where
from tokpipe.tensors import Query, TokenBatch


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool2d:
    """Averages of square windows.

    Attributes:
        stride: Least side of a window, 1 or more; a budget may raise it. None is 2, or whatever
            the budget allows.

    Example:
        >>> from tokpipe.testing.golden import frame_tokens
        >>> import torch
        >>> tokens = frame_tokens(torch.arange(9.0).reshape(9, 1))
        >>> tokens.reduce(Pool2d().decide(tokens, None)).data.flatten().tolist()
        [2.0]
    """

    source: ClassVar[str] = "arXiv:2408.03326, section 3.2"
    scope: ClassVar[Scope] = "frame"
    needs: ClassVar[tuple[str, ...]] = ()
    modalities: ClassVar[tuple[str, ...]] = ("video",)
    causal: ClassVar[bool] = True
    layouts: ClassVar[tuple[Layout, ...]] = ("grid", "ragged")
    scale_free: ClassVar[bool] = True
    version: ClassVar[int] = 1
    exact: ClassVar[bool] = False
    where: ClassVar[Where] = "outputs"
    golden: ClassVar[tuple[str, ...]] = ("pool2d", "llavanext_pool2d")

    stride: Annotated[int, Field(ge=1)] | None = None

    @property
    def drop(self) -> bool:
        """A stride that was asked for holds whatever the budget."""
        return self.stride is not None

    def decide(
        self, tokens: TokenBatch, budget: int | None, query: Query | None = None
    ) -> TokenMap | GridMap:
        """Pool every frame; with a budget, at the smallest stride within it.

        Raises:
            RecipeError: The tokens are not whole frames in raster order.
        """
        grid = Grids.of(tokens, "pool-2d")
        if budget is None:
            stride = self.stride or 2
        elif grid.steps > budget:
            return grid.averaged(budget, 1, 1)
        else:
            stride = _smallest(grid, self.stride or 1, budget)
        if len(grid) == 0 or stride == 1 or grid.rows == grid.cols == 1:
            return grid.keep()
        return grid.map(None, floored(grid.rows, stride), floored(grid.cols, stride))

    def out_count(self, n: int, budget: int | None) -> tuple[int, bool]:
        """Most rows for ``n`` tokens; the shape depends on the frame's own."""
        free = self.stride == 1 or (budget is not None and self.stride is None)
        return (n, free) if budget is None else (min(n, budget), free and budget >= n)


def _smallest(grid: Grids, stride: int, budget: int) -> int:
    """The smallest stride from ``stride`` on whose windows fit; one window a frame fits."""
    last = max(grid.rows, grid.cols)
    while stride < last:
        rows, cols = max(1, grid.rows // stride), max(1, grid.cols // stride)
        if grid.steps * rows * cols <= budget:
            break
        stride += 1
    return stride
