"""Resize each frame's grid by bilinear interpolation.

Source: Li et al., "LLaVA-OneVision", arXiv:2408.03326, section 3.2 (video frames and the largest
number of tokens of high-resolution pictures), as in LLaVA-NeXT's 2-D pooling.
Differs: never enlarges.

Interpolation looks at four cells at most (corners not aligned, no antialiasing): at a stride of 3
or more some cells have no part in any row and are dropped.

Shapes: N = T x R x C tokens, whole frames in raster order; result T x a x b. Cost: O(N D).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from tokpipe.compress import _grid_axes as axes
from tokpipe.maps import GridMap, TokenMap
from tokpipe.spec import Layout, Scope, Where
from tokpipe.tensors import Query, TokenBatch


@dataclass(frozen=True, slots=True, kw_only=True)
class Bilinear:
    """A smaller regular grid per frame, interpolated.

    Attributes:
        stride: The result has ceil(size / stride) rows and columns, 1 or more. None is 2, or
            whatever the budget pays.
        rows, cols: Rows and columns of the result instead, 1 or more, at most the frame's own.
        most: Tokens of a frame above which it is resized at all, instead of ``stride``, 1 or more:
            with t = sqrt(R C / most) above 1.1 it becomes floor(R / t) x floor(C / t).

    A budget makes any of these shapes smaller where it must.

    Example:
        >>> from tokpipe.testing.golden import frame_tokens
        >>> import torch
        >>> tokens = frame_tokens(torch.arange(16.0).reshape(16, 1))
        >>> tokens.reduce(Bilinear().decide(tokens, None)).data.flatten().tolist()
        [2.5, 4.5, 10.5, 12.5]
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
    rows: Annotated[int, Field(ge=1)] | None = None
    cols: Annotated[int, Field(ge=1)] | None = None
    most: Annotated[int, Field(ge=1)] | None = None

    @property
    def drop(self) -> bool:
        """A shape that was asked for holds whatever the budget."""
        return (self.stride, self.rows, self.cols, self.most) != (None, None, None, None)

    def decide(
        self, tokens: TokenBatch, budget: int | None, query: Query | None = None
    ) -> TokenMap | GridMap:
        """Resize every frame; with a budget, to the largest shape within it.

        Raises:
            RecipeError: The tokens are not whole frames in raster order.
        """
        grid = axes.Grids.of(tokens, "bilinear")
        stride = self.stride or (2 if budget is None or self.drop else 1)
        steps, a, b = grid.within(*self._shape(grid.rows, grid.cols, stride), budget)
        if steps * a * b == len(grid):
            return grid.keep()
        over_time = None if steps == grid.steps else GridMap.average(grid.steps, steps)
        return grid.map(over_time, axes.bilinear(grid.rows, a), axes.bilinear(grid.cols, b))

    def _shape(self, rows: int, cols: int, stride: int) -> tuple[int, int]:
        """Rows and columns of the result for a frame of ``rows`` x ``cols``."""
        if self.most is not None:
            times = math.sqrt(rows * cols / self.most)
            if times <= 1.1:
                return rows, cols
            return max(1, int(rows // times)), max(1, int(cols // times))
        a = -(-rows // stride) if self.rows is None else min(rows, self.rows)
        b = -(-cols // stride) if self.cols is None else min(cols, self.cols)
        return a, b

    def out_count(self, n: int, budget: int | None) -> tuple[int, bool]:
        """Most rows for ``n`` tokens; the shape depends on the frame's own."""
        free = not self.drop and budget is not None
        return (n, free) if budget is None else (min(n, budget), free and budget >= n)
