"""Keep the most attended tokens of each of some equal stretches of time.

Source: "Segmentwise Pruning in Audio-Language Models", arXiv:2511.14293.
Differs: what an even split leaves over goes to the first segments, and what a short segment
cannot hold to the others; ``compat="released"`` keeps floor(K / S) of each, as the paper writes.

Shapes: N tokens in order of time, attention [N] or [N, H]; rows in order of time.
Cost: O(N log N).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field

from tokpipe.budget import largest_remainder
from tokpipe.compress._columns import head_mean
from tokpipe.compress._ranked import best_of_each
from tokpipe.spec import Layout, Scope, Where
from tokpipe.tensors import Query, TokenBatch, TokenMap


@dataclass(frozen=True, slots=True, kw_only=True)
class Segmentwise:
    """Top-k by attention in each segment, so that the kept tokens spread over time.

    Attributes:
        keep: Part of the tokens kept when no budget is given, 0 .. 1, rounded down.
        segments: Segments S of N / S tokens, 1 to 100000.
        compat: ``released`` keeps equally many of each segment and leaves the rest of K unused.

    Example:
        >>> tokens = TokenBatch.build(torch.zeros(4, 1), torch.arange(4).double())
        >>> tokens = tokens.with_extras(attention=torch.tensor([0.4, 0.3, 0.1, 0.2]))
        >>> Segmentwise(segments=2).decide(tokens, budget=2).anchor.tolist()
        [0, 3]
    """

    source: ClassVar[str] = "arXiv:2511.14293"
    scope: ClassVar[Scope] = "video"
    needs: ClassVar[tuple[str, ...]] = ("attention",)
    modalities: ClassVar[tuple[str, ...]] = ("audio",)
    causal: ClassVar[bool] = False
    layouts: ClassVar[tuple[Layout, ...]] = ("ragged",)
    scale_free: ClassVar[bool] = True
    version: ClassVar[int] = 1
    exact: ClassVar[bool] = True
    where: ClassVar[Where] = "outputs"
    golden: ClassVar[tuple[str, ...]] = ("segmentwise_topk",)
    gives: ClassVar[tuple[str, ...]] = ("score",)

    keep: Annotated[float, Field(ge=0, le=1)] = 0.25
    segments: Annotated[int, Field(ge=1, le=100_000)] = 10
    compat: Literal["paper", "released"] = "paper"

    def decide(
        self, tokens: TokenBatch, budget: int | None, query: Query | None = None
    ) -> TokenMap:
        """Keep the best of each segment.

        Returns:
            Rows in order of time; ``score`` is the attention.

        Raises:
            RecipeError: ``attention`` is missing.
        """
        n, device = len(tokens), tokens.data.device
        count = self._count(n, budget)
        if count >= n:
            return TokenMap.identity(n, device)
        score = head_mean(tokens, "attention", "segmentwise")
        edges = [round(i * n / self.segments) for i in range(self.segments + 1)]
        sizes = [b - a for a, b in pairwise(edges)]
        if self.compat == "released":
            quota = [min(count // self.segments, size) for size in sizes]
        else:
            quota = largest_remainder(count, [1.0] * self.segments, caps=sizes)
        owner = torch.repeat_interleave(torch.tensor(sizes, device=device))
        index = best_of_each(score, owner, quota)
        return TokenMap.keep(index, n, score=score[index])

    def out_count(self, n: int, budget: int | None) -> tuple[int, bool]:
        """Rows for ``n`` tokens, exact; a bound with ``released``."""
        count = self._count(n, budget)
        return count, count >= n or self.compat == "paper"

    def _count(self, n: int, budget: int | None) -> int:
        return min(n, max(1, int(n * self.keep)) if budget is None else budget)
