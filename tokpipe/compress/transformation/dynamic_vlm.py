"""Average each frame to a square whose side follows from one cap for the whole video.

Source: "Dynamic-VLM: Simple Dynamic Visual Token Compression for VideoLLM", arXiv:2412.09530,
section 3.2 (adaptive average pooling variant).
Differs: never enlarges a frame; a budget takes the place of both numbers, and below one token a
frame it averages over time.

Shapes: N = T x R x C tokens, whole frames in raster order; result T x s x s with
s = max(1, floor(sqrt(min(cap // T, tokens)))). Cost: O(N D).
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


@dataclass(frozen=True, slots=True, kw_only=True)
class DynamicVlm:
    """Square frames within a cap.

    Attributes:
        cap: Most tokens of the video, 1 or more; None is 2048, or the budget.
        tokens: Most tokens of a frame, 1 or more; None is 144, or whatever the budget pays.

    Example:
        >>> from tokpipe.testing.golden import frame_tokens
        >>> import torch
        >>> tokens = frame_tokens(torch.zeros(3, 16, 1))
        >>> len(DynamicVlm(cap=13).decide(tokens, None))
        12
    """

    source: ClassVar[str] = "arXiv:2412.09530, section 3.2"
    scope: ClassVar[Scope] = "video"
    needs: ClassVar[tuple[str, ...]] = ()
    modalities: ClassVar[tuple[str, ...]] = ("video",)
    causal: ClassVar[bool] = False
    layouts: ClassVar[tuple[Layout, ...]] = ("grid", "ragged")
    version: ClassVar[int] = 1
    exact: ClassVar[bool] = False
    where: ClassVar[Where] = "outputs"
    golden: ClassVar[tuple[str, ...]] = ("dynamicvlm",)

    cap: Annotated[int, Field(ge=1)] | None = None
    tokens: Annotated[int, Field(ge=1)] | None = None

    @property
    def drop(self) -> bool:
        """Numbers that were asked for hold whatever the budget."""
        return (self.cap, self.tokens) != (None, None)

    def decide(
        self, tokens: TokenBatch, budget: int | None, query: Query | None = None
    ) -> TokenMap | GridMap:
        """Average every frame to one square side.

        Raises:
            RecipeError: The tokens are not whole frames in raster order.
        """
        grid = Grids.of(tokens, "dynamic-vlm")
        steps, cells = grid.steps, grid.rows * grid.cols
        if budget is not None and steps > budget:
            return grid.averaged(budget, 1, 1)
        # Where nothing is asked for a budget stands in for both numbers.
        cap = self.cap or (2048 if budget is None else len(grid))
        cap = cap if budget is None else min(cap, budget)
        each = min(cap // max(1, steps), self.tokens or (144 if budget is None else cells))
        if each >= cells:
            return grid.keep()
        side = max(1, math.isqrt(each))
        return grid.averaged(steps, min(side, grid.rows), min(side, grid.cols))

    def out_count(self, n: int, budget: int | None) -> tuple[int, bool]:
        """Most rows for ``n`` tokens: every frame keeps one at least."""
        return (n, False) if budget is None else (min(n, budget), not self.drop and budget >= n)
