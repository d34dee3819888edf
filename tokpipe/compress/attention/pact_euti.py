"""Keep the tokens that the mean query attends to most, weighted by their length.

Source: Dhouib et al., "PACT: Pruning and Clustering-Based Token Reduction for Faster Visual
Language Models", CVPR 2025, arXiv:2504.08966, section 3.1 (efficient unimportant token
identification).
Differs: ties at the border go to the lower index; the mean query is that of the tokens themselves,
within a frame by default.

Shapes: queries and keys [N, D'] or [N, H, D']; keeps min(budget, N) tokens in the order they come.
Cost: O(N D'), no pairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field

from tokpipe.compress._columns import column
from tokpipe.compress._cosine import DENSE
from tokpipe.compress._saliency import mean_query_saliency
from tokpipe.compress._stacks import Rows, stacks
from tokpipe.spec import Layout, Where
from tokpipe.tensors import Query, TokenBatch, TokenMap


@dataclass(frozen=True, slots=True, kw_only=True)
class PactEuti:
    """Top tokens by softmax(mean query . key / sqrt(D')), head mean, times the data's length.

    Attributes:
        keep: Part of the tokens kept without a budget, above 0 to 1 (rounded down, at least one).
        scope: Mean query and softmax within a frame, or over the whole video.
    """

    source: ClassVar[str] = "arXiv:2504.08966, section 3.1"
    needs: ClassVar[tuple[str, ...]] = ("queries", "keys")
    modalities: ClassVar[tuple[str, ...]] = ("video", "audio")
    causal: ClassVar[bool] = False
    layouts: ClassVar[tuple[Layout, ...]] = ("ragged",)
    where: ClassVar[Where] = "llm"
    golden: ClassVar[tuple[str, ...]] = ("pact_euti",)
    gives: ClassVar[tuple[str, ...]] = ("score",)
    version: ClassVar[int] = 1
    exact: ClassVar[bool] = True

    keep: Annotated[float, Field(gt=0, le=1)] = 0.55
    scope: Literal["frame", "video"] = "frame"

    def decide(
        self, tokens: TokenBatch, budget: int | None, query: Query | None = None
    ) -> TokenMap:
        """Keep the ``budget`` most salient; the map's ``score`` is the saliency.

        Raises:
            RecipeError: ``queries`` or ``keys`` is missing.
        """
        queries = column(tokens, "queries", "pact-euti")
        keys = column(tokens, "keys", "pact-euti")
        rows = Rows(len(tokens), tokens.data.device)
        for stack in stacks(tokens, budget, self.scope, DENSE):
            value = mean_query_saliency(stack.of(queries), stack.of(keys), stack.of(tokens.data))
            size = value.shape[1]
            count = self._own(size) if stack.quota is None else stack.most
            order = torch.argsort(value, dim=1, descending=True, stable=True)
            kept = torch.zeros_like(value, dtype=torch.bool)
            kept.scatter_(1, order[:, :count], stack.within(count))
            rows.add(stack, stack.own(), kept, score=value)
        return rows.keep()

    def out_count(self, n: int, budget: int | None) -> tuple[int, bool]:
        """Rows for ``n`` tokens, exact."""
        return (self._own(n) if budget is None else min(n, budget)), True

    def _own(self, n: int) -> int:
        return min(n, max(1, int(n * self.keep)))
