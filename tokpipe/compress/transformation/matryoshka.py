"""Nested averages of a frame: 1, 9, 36, 144 or all of its tokens.

Source: Cai et al., "Matryoshka Multimodal Models", ICLR 2025, arXiv:2405.17430, section 3.1.
Differs: a grid that is no multiple of the window is pooled adaptively (bins may overlap by a
cell) instead of losing its border; trained nested training is not needed to form the tokens.

The window's side is floor(sqrt(C / scale)), C the tokens of a frame.

Shapes: N = T x R x C tokens, whole frames in raster order; result T x floor(R / k) x floor(C / k).
Cost: O(N D).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from tokpipe.compress._grid_axes import Grids
from tokpipe.maps import GridMap, TokenMap
from tokpipe.spec import Layout, Scope, Where
from tokpipe.tensors import Query, TokenBatch

#: Tokens of a frame at the scales of the paper, besides all of them.
SCALES = (144, 36, 9, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Matryoshka:
    """One of the nested scales.

    Attributes:
        scale: Tokens of a square frame, 1 or more; None is 144, or with a budget the largest
            nested scale that fits (a budget makes an explicit scale smaller too).

    Example:
        >>> from tokpipe.testing.golden import frame_tokens
        >>> import torch
        >>> tokens = frame_tokens(torch.arange(16.0).reshape(16, 1))
        >>> tokens.reduce(Matryoshka(scale=1).decide(tokens, None)).data.flatten().tolist()
        [7.5]
    """

    source: ClassVar[str] = "arXiv:2405.17430, section 3.1"
    scope: ClassVar[Scope] = "frame"
    needs: ClassVar[tuple[str, ...]] = ()
    modalities: ClassVar[tuple[str, ...]] = ("video",)
    causal: ClassVar[bool] = True
    layouts: ClassVar[tuple[Layout, ...]] = ("grid", "ragged")
    version: ClassVar[int] = 1
    exact: ClassVar[bool] = False
    where: ClassVar[Where] = "outputs"
    golden: ClassVar[tuple[str, ...]] = ("matryoshka",)

    scale: Annotated[int, Field(ge=1)] | None = None

    @property
    def drop(self) -> bool:
        """A scale that was asked for holds whatever the budget."""
        return self.scale is not None

    def decide(
        self, tokens: TokenBatch, budget: int | None, query: Query | None = None
    ) -> TokenMap | GridMap:
        """Average every frame to the scale, or to the largest one within ``budget``.

        Raises:
            RecipeError: The tokens are not whole frames in raster order.
        """
        grid = Grids.of(tokens, "matryoshka")
        if budget is None:
            return grid.averaged(grid.steps, *_shape(grid, self.scale or SCALES[0]))
        first = grid.rows * grid.cols if self.scale is None else self.scale
        for scale in (first, *(s for s in SCALES if s < first)):
            a, b = _shape(grid, scale)
            if grid.steps * a * b <= budget:
                return grid.averaged(grid.steps, a, b)
        return grid.averaged(budget, 1, 1)

    def out_count(self, n: int, budget: int | None) -> tuple[int, bool]:
        """Most rows for ``n`` tokens; the shape depends on the frame's own."""
        free = not self.drop and budget is not None
        return (n, free) if budget is None else (min(n, budget), free and budget >= n)


def _shape(grid: Grids, scale: int) -> tuple[int, int]:
    """Rows and columns of a frame at a scale."""
    if scale == 1:
        return 1, 1
    side = max(1, math.isqrt(grid.rows * grid.cols // scale))
    return max(1, grid.rows // side), max(1, grid.cols // side)
