"""Give up unimportant tokens, cluster the others, and take back those near a cluster.

Source: Dhouib et al., "PACT: Pruning and Clustering-Based Token Reduction for Faster Visual
Language Models", CVPR 2025, arXiv:2504.08966, section 3 (steps `pact-euti` and `pact-dbdpc`).
Differs: as those two; with a budget above the tokens that importance would keep, as many stay as
the budget asks for.

Shapes: data [N, D]; K rows in the tokens' own order, tokens far from every centre are dropped.
Passes: 1 N x N, 13 N x K of keys, as `pact-dbdpc`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field

from tokpipe.compress._columns import column
from tokpipe.compress._cosine import DENSE, Cosines
from tokpipe.compress._cover import cover
from tokpipe.compress._saliency import mean_query_saliency
from tokpipe.compress._stacks import Rows, stacks
from tokpipe.spec import Layout, Where
from tokpipe.tensors import Query, TokenBatch, TokenMap


@dataclass(frozen=True, slots=True, kw_only=True)
class Pact:
    """Importance first, then density cover with recovery.

    Tokens are compared by ``keys``, heads side by side.

    Attributes:
        keep: Part of the tokens that is clustered, above 0 to 1 (rounded down, at least one).
        cutoff: Largest distance 1 - cosine to a centre, 0 to 2; without a budget.
        scale: Distance in units of which the density falls, above 0.
        reach: Part of the cutoff within which given up tokens are recovered, 0 or more.
        scope: Decide within a frame, or over the whole video.
    """

    source: ClassVar[str] = "arXiv:2504.08966, section 3"
    needs: ClassVar[tuple[str, ...]] = ("queries", "keys")
    modalities: ClassVar[tuple[str, ...]] = ("video", "audio")
    causal: ClassVar[bool] = False
    layouts: ClassVar[tuple[Layout, ...]] = ("ragged",)
    where: ClassVar[Where] = "llm"
    golden: ClassVar[tuple[str, ...]] = ("pact_euti", "pact_dbdpc")
    version: ClassVar[int] = 1
    exact: ClassVar[bool] = True

    keep: Annotated[float, Field(gt=0, le=1)] = 0.55
    cutoff: Annotated[float, Field(ge=0, le=2)] = 0.21
    scale: Annotated[float, Field(gt=0)] = 2.0
    reach: Annotated[float, Field(ge=0)] = 1.5
    scope: Literal["frame", "video"] = "frame"

    def decide(
        self, tokens: TokenBatch, budget: int | None, query: Query | None = None
    ) -> TokenMap:
        """Cluster by ``cutoff``, or into ``budget`` clusters.

        Returns:
            Plain means in the order of the centres' places.

        Raises:
            RecipeError: ``queries`` or ``keys`` is missing.
        """
        n, device = len(tokens), tokens.data.device
        queries = column(tokens, "queries", "pact")
        keys = column(tokens, "keys", "pact")
        if budget is not None and budget >= n:
            return TokenMap.identity(n, device)
        rows = Rows(n, device)
        for stack in stacks(tokens, budget, self.scope, DENSE):
            own = stack.of(keys)
            value = mean_query_saliency(stack.of(queries), own, stack.of(tokens.data))
            order = torch.argsort(value, dim=1, descending=True, stable=True)
            count = torch.full_like(stack.frame, max(1, int(order.shape[1] * self.keep)))
            if stack.quota is not None:
                count = torch.maximum(count, stack.quota)
            live = torch.zeros_like(order, dtype=torch.bool)
            live.scatter_(1, order, stack.own() < count[:, None])
            found = cover(
                Cosines(own.flatten(2)), self.cutoff, self.scale,
                quota=stack.quota, live=live, reach=self.reach,
            )  # fmt: skip
            rows.add(stack, stack.own(), found.centre, group=found.label)
        return rows.mean()

    def out_count(self, n: int, budget: int | None) -> tuple[int, bool]:
        """Exact with a budget, else a bound."""
        return (n, False) if budget is None else (min(n, budget), True)
