"""Keep tokens evenly spread over the sequence, whatever they show.

Source: tokpipe; the uniform baseline that papers on token pruning compare with.
Differs: token i of k is floor((2 i + 1) N / (2 k)), the middles of equal spans, so neither end is
favoured.

Shapes: N tokens; keeps k of them, in the order they come. Cost: O(k).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field

from tokpipe.spec import Layout, Scope, Where
from tokpipe.tensors import Query, TokenBatch, TokenMap


@dataclass(frozen=True, slots=True, kw_only=True)
class UniformTokens:
    """An evenly spread subset.

    Attributes:
        ratio: Part of the tokens kept when no budget is given, above 0 to 1 (rounded half to
            even, at least one).

    Example:
        >>> tokens = TokenBatch.build(torch.zeros(6, 2), torch.zeros(6).double())
        >>> UniformTokens().decide(tokens, budget=2).anchor.tolist()
        [1, 4]
    """

    source: ClassVar[str] = "tokpipe"
    scope: ClassVar[Scope] = "video"
    needs: ClassVar[tuple[str, ...]] = ()
    modalities: ClassVar[tuple[str, ...]] = ("video", "audio")
    causal: ClassVar[bool] = False
    layouts: ClassVar[tuple[Layout, ...]] = ("ragged",)
    scale_free: ClassVar[bool] = True
    version: ClassVar[int] = 1
    exact: ClassVar[bool] = True
    where: ClassVar[Where] = "outputs"
    golden: ClassVar[tuple[str, ...]] = ()

    ratio: Annotated[float, Field(gt=0, le=1)] = 1.0

    def decide(
        self, tokens: TokenBatch, budget: int | None, query: Query | None = None
    ) -> TokenMap:
        """Keep min(budget, N) tokens."""
        n = len(tokens)
        count, _ = self.out_count(n, budget)
        order = torch.arange(count, device=tokens.data.device)
        return TokenMap.keep((2 * order + 1) * n // (2 * max(1, count)), n)

    def out_count(self, n: int, budget: int | None) -> tuple[int, bool]:
        """Rows for ``n`` tokens, exact."""
        if budget is None:
            return min(n, max(1, round(self.ratio * n))), True
        return min(n, budget), True
