"""Keep a random subset of the tokens, the same for the same seed.

Source: tokpipe; the random baseline that papers on token pruning compare with.
Differs: the draw is made on the CPU whatever the device, so the subset depends on the seed and the
number of tokens alone.

Shapes: N tokens; keeps k of them, in the order they come. Cost: O(N).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field

from tokpipe.spec import Layout, Scope, Where
from tokpipe.tensors import Query, TokenBatch, TokenMap


@dataclass(frozen=True, slots=True, kw_only=True)
class Random:
    """A subset drawn without looking.

    Attributes:
        ratio: Part of the tokens kept when no budget is given, above 0 to 1 (rounded half to
            even, at least one).
        seed: Of the draw, 0 to 2^63 - 1.

    Example:
        >>> tokens = TokenBatch.build(torch.zeros(6, 2), torch.zeros(6).double())
        >>> len(Random(seed=3).decide(tokens, budget=2))
        2
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
    seed: Annotated[int, Field(ge=0, le=(1 << 63) - 1)] = 0

    def decide(
        self, tokens: TokenBatch, budget: int | None, query: Query | None = None
    ) -> TokenMap:
        """Keep min(budget, N) tokens."""
        n = len(tokens)
        count, _ = self.out_count(n, budget)
        draw = torch.Generator().manual_seed(self.seed)
        index = torch.randperm(n, generator=draw)[:count].sort().values
        return TokenMap.keep(index.to(tokens.data.device), n)

    def out_count(self, n: int, budget: int | None) -> tuple[int, bool]:
        """Rows for ``n`` tokens, exact."""
        if budget is None:
            return min(n, max(1, round(self.ratio * n))), True
        return min(n, budget), True
