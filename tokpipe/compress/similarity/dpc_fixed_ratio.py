"""Cluster around a fixed share of density peaks; labels pass from denser neighbours.

Source: Rodriguez and Laio, "Clustering by fast search and find of density peaks", Science 2014, as
the baseline of PACT (Dhouib et al., CVPR 2025, arXiv:2504.08966, section 4).
Differs: of equally dense tokens the lower index counts as denser; scores are compared as such, and
a densest token that is no centre joins its nearest centre.

Shapes: data [N, D]; min(budget, N) rows in the tokens' own order. d = 1 - cos; density = sum of
exp(-(d / 2)^2); separation = least d to a denser token; centres are the largest products of the
two; every token takes the label of its nearest denser token.
Passes: 2 N x N, 1 N x K. Cosines are kept up to 4096 tokens, beyond in blocks of rows (32 MB).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from tokpipe.compress._cosine import DENSE, Cosines, nearest_of
from tokpipe.compress._cover import densest_first, density
from tokpipe.compress._stacks import Rows, stacks
from tokpipe.spec import Layout, Where
from tokpipe.tensors import Query, TokenBatch, TokenMap


@dataclass(frozen=True, slots=True, kw_only=True)
class DpcFixedRatio:
    """Means of density-peak clusters, each at its centre's place.

    Attributes:
        ratio: Clusters as a part of the tokens without a budget, above 0 to 1 (rounded down, at
            least one).
        scale: Distance in units of which the density falls, 1e-6 to 1e6.
        scope: Cluster within a frame, or over the whole video.

    Example:
        >>> import torch
        >>> data = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]])
        >>> tokens = TokenBatch.build(data, torch.zeros(3).double())
        >>> DpcFixedRatio().decide(tokens, budget=2).dst.tolist()
        [0, 0, 1]
    """

    source: ClassVar[str] = "arXiv:2504.08966, section 4"
    needs: ClassVar[tuple[str, ...]] = ()
    modalities: ClassVar[tuple[str, ...]] = ("video", "audio")
    causal: ClassVar[bool] = False
    layouts: ClassVar[tuple[Layout, ...]] = ("ragged",)
    where: ClassVar[Where] = "llm"
    golden: ClassVar[tuple[str, ...]] = ("dpc_fixed_ratio",)
    gives: ClassVar[tuple[str, ...]] = ("score",)
    version: ClassVar[int] = 1
    exact: ClassVar[bool] = True

    ratio: Annotated[float, Field(gt=0, le=1)] = 0.2
    scale: Annotated[float, Field(ge=1e-6, le=1e6)] = 2.0
    scope: Literal["frame", "video"] = "frame"

    def decide(
        self, tokens: TokenBatch, budget: int | None, query: Query | None = None
    ) -> TokenMap:
        """Average ``budget`` clusters; ``score`` is density x separation of the centre."""
        n, device = len(tokens), tokens.data.device
        if budget is not None and budget >= n:
            return TokenMap.identity(n, device)
        rows = Rows(n, device)
        for stack in stacks(tokens, budget, self.scope, DENSE):
            cosines = Cosines(stack.of(tokens.data))
            rho = density(cosines, self.scale)
            apart, denser = _nearest_denser(cosines, rho)
            score = rho * apart
            order = densest_first(score)
            count = self._own(order.shape[1]) if stack.quota is None else stack.most
            centre = torch.zeros_like(rho, dtype=torch.bool)
            centre.scatter_(1, order[:, :count], stack.within(count))
            label = _inherited(centre, denser, nearest_of(cosines, centre)[1])
            rows.add(stack, stack.own(), centre, score=score, group=label)
        return rows.mean()

    def out_count(self, n: int, budget: int | None) -> tuple[int, bool]:
        """Rows for ``n`` tokens, exact."""
        return (self._own(n) if budget is None else min(n, budget)), True

    def _own(self, n: int) -> int:
        return min(n, max(1, int(n * self.ratio)))


def _nearest_denser(cosines: Cosines, rho: Tensor) -> tuple[Tensor, Tensor]:
    """Least distance [T, C] to a denser token and which, itself and the widest for the densest."""
    rank = torch.empty_like(rho, dtype=torch.int64)
    own = torch.arange(rho.shape[1], device=rho.device).expand_as(rank)
    rank.scatter_(1, densest_first(rho), own)
    apart, denser = torch.empty_like(rho), torch.empty_like(rank)
    widest = torch.zeros(rho.shape[0], device=rho.device)
    small = rank.to(torch.int32)
    for a, b, block in cosines.blocks(own=True):
        widest = torch.maximum(widest, (1 - block.amin((1, 2))).clamp(min=0))
        below = small[:, None] >= small[:, a:b, None]
        best = block.masked_fill_(below, -torch.inf).max(2)
        apart[:, a:b], denser[:, a:b] = (1 - best.values).clamp(min=0), best.indices
        del block, below
    top = rank == 0
    return torch.where(top, widest[:, None], apart), torch.where(top, own, denser)


def _inherited(centre: Tensor, denser: Tensor, nearest: Tensor) -> Tensor:
    """The centre int64 [T, C] found by going from denser to denser token; else ``nearest``."""
    size = centre.shape[1]
    own = torch.arange(size, device=centre.device).expand_as(denser)
    step = torch.where(centre, own, denser)
    for _ in range(max(1, size - 1).bit_length()):
        step = step.gather(1, step)
    return torch.where(centre.gather(1, step), step, nearest)
