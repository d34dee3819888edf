"""Cover the tokens by dense centres no farther than a cutoff, and average around them.

Source: Dhouib et al., "PACT: Pruning and Clustering-Based Token Reduction for Faster Visual
Language Models", CVPR 2025, arXiv:2504.08966, section 3.2 (distance bounded density peaks).
Differs: the released recursion with a sequential tail is written as what it amounts to, a greedy
walk by falling density; of equally dense tokens the lower index comes first. The paper has no
budget form; here the cutoff is widened by halving to where it gives at least as many centres as
wanted, and the densest of those stay.

Shapes: data [N, D]; K rows in the tokens' own order. d = 1 - cos; density = sum of
exp(-(d / 2)^2).
Passes: 1 N x N, 13 N x K: densities, up to 12 walks (one without a budget) and labels. Cosines are
kept up to 4096 tokens; beyond, in blocks of rows, and a walk makes those of its centres alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field

from tokpipe.compress._cosine import DENSE, Cosines
from tokpipe.compress._cover import cover
from tokpipe.compress._stacks import Rows, stacks
from tokpipe.spec import Layout, Where
from tokpipe.tensors import Query, TokenBatch, TokenMap


@dataclass(frozen=True, slots=True, kw_only=True)
class PactDbdpc:
    """Means around density-ordered centres, each at its centre's place.

    Tokens are compared by the extra ``keys`` ([N, D'] or [N, H, D'], heads side by side) where
    the encoder offers it, else by the data. An extra ``pruned`` [N], where there is one, marks
    with values above 0 the tokens a step before gave up: they make no cluster, and join one only
    within ``reach`` cutoffs.

    Attributes:
        cutoff: Largest distance 1 - cosine to a centre, 0 to 2; without a budget.
        scale: Distance in units of which the density falls, 1e-6 to 1e6.
        reach: Part of the cutoff within which pruned tokens are recovered, 0 or more.
        scope: Cluster within a frame, or over the whole video.

    Example:
        >>> import torch
        >>> data = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]])
        >>> tokens = TokenBatch.build(data, torch.zeros(3).double())
        >>> PactDbdpc().decide(tokens, None).dst.tolist()
        [0, 0, 1]
    """

    source: ClassVar[str] = "arXiv:2504.08966, section 3.2"
    needs: ClassVar[tuple[str, ...]] = ()
    modalities: ClassVar[tuple[str, ...]] = ("video", "audio")
    causal: ClassVar[bool] = False
    layouts: ClassVar[tuple[Layout, ...]] = ("ragged",)
    where: ClassVar[Where] = "llm"
    golden: ClassVar[tuple[str, ...]] = ("pact_dbdpc",)
    version: ClassVar[int] = 1
    exact: ClassVar[bool] = True

    cutoff: Annotated[float, Field(ge=0, le=2)] = 0.21
    scale: Annotated[float, Field(ge=1e-6, le=1e6)] = 2.0
    reach: Annotated[float, Field(ge=0)] = 1.5
    scope: Literal["frame", "video"] = "frame"

    def decide(
        self, tokens: TokenBatch, budget: int | None, query: Query | None = None
    ) -> TokenMap:
        """Cluster by ``cutoff``, or into ``budget`` clusters.

        Returns:
            Plain means in the order of the centres' places. Where pruned tokens leave fewer
            than ``budget``, the rows are fewer.
        """
        n, device = len(tokens), tokens.data.device
        if budget is not None and budget >= n:
            return TokenMap.identity(n, device)
        keys = tokens.extras.get("keys", tokens.data).flatten(1)
        pruned = tokens.extras.get("pruned")
        rows = Rows(n, device)
        for stack in stacks(tokens, budget, self.scope, DENSE):
            live = None if pruned is None else stack.of(pruned) <= 0
            quota = stack.quota
            if live is not None:
                # A frame with nothing left is clustered as if nothing had been pruned.
                live = live | ~live.any(1, keepdim=True)
                quota = None if quota is None else torch.minimum(quota, live.sum(1))
            found = cover(
                Cosines(stack.of(keys)), self.cutoff, self.scale,
                quota=quota, live=live, reach=self.reach,
            )  # fmt: skip
            rows.add(stack, stack.own(), found.centre, group=found.label)
        return rows.mean()

    def out_count(self, n: int, budget: int | None) -> tuple[int, bool]:
        """Exact with a budget, else a bound."""
        return (n, False) if budget is None else (min(n, budget), True)
