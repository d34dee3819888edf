"""Average cosine k-means clusters: a codebook of the video.

Source: Zhang and Fu, "Token Dynamics / VQToken: Neural Discrete Token Representation Learning for
Extreme Token Reduction in Video Large Language Models", arXiv:2503.16980, section 3 (codebook).
Differs: the codebook alone, without the trained attention module. Seeds are drawn farthest first
from the token nearest the mean direction, not at random; a seed stays in its own cluster, so that
none is empty; the number of clusters is given, not searched.

Shapes: data [N, D]; min(budget, N) rows in the order of their seeds.
Passes: 4 N x K with three rounds: one for the seeds and one a round, in blocks of rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from tokpipe.compress._cosine import Cosines
from tokpipe.compress._farthest import farthest_first
from tokpipe.compress._neighbors import blocks
from tokpipe.frames import each_frame
from tokpipe.spec import Layout, Where
from tokpipe.tensors import Query, TokenBatch, TokenMap


@dataclass(frozen=True, slots=True, kw_only=True)
class VqtokenKmeans:
    """Means of k-means clusters on the sphere, each at its seed's place.

    Attributes:
        clusters: Clusters without a budget, 1 or more.
        rounds: Most rounds of assignment and update, 1 or more.
        scope: One codebook of the whole video, or one per frame.

    Example:
        >>> data = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]])
        >>> tokens = TokenBatch.build(data, torch.zeros(3).double())
        >>> VqtokenKmeans().decide(tokens, budget=2).dst.tolist()
        [0, 0, 1]
    """

    source: ClassVar[str] = "arXiv:2503.16980, section 3"
    needs: ClassVar[tuple[str, ...]] = ()
    modalities: ClassVar[tuple[str, ...]] = ("video", "audio")
    causal: ClassVar[bool] = False
    layouts: ClassVar[tuple[Layout, ...]] = ("ragged",)
    where: ClassVar[Where] = "outputs"
    golden: ClassVar[tuple[str, ...]] = ()
    version: ClassVar[int] = 1
    exact: ClassVar[bool] = True

    clusters: Annotated[int, Field(ge=1)] = 32
    rounds: Annotated[int, Field(ge=1, le=1000)] = 10
    scope: Literal["frame", "video"] = "video"

    def decide(
        self, tokens: TokenBatch, budget: int | None, query: Query | None = None
    ) -> TokenMap:
        """Average ``budget`` clusters."""
        if self.scope == "frame":
            return each_frame(tokens, budget, self._cluster)
        return self._cluster(tokens, budget)

    def out_count(self, n: int, budget: int | None) -> tuple[int, bool]:
        """Rows for ``n`` tokens, exact."""
        return min(n, self.clusters if budget is None else budget), True

    def _cluster(self, tokens: TokenBatch, budget: int | None) -> TokenMap:
        n = len(tokens)
        count, _ = self.out_count(n, budget)
        if count >= n:
            return TokenMap.identity(n, tokens.data.device)
        seed, label = spherical_means(tokens.data, count, self.rounds)
        return TokenMap.mean(label, count, anchor=seed)


def spherical_means(data: Tensor, count: int, rounds: int) -> tuple[Tensor, Tensor]:
    """Seeds int64 [count] and clusters int64 [N] of cosine k-means on ``data`` float [N, D].

    Ties go to the earlier cluster; zero rows join the first.
    """
    cosines = Cosines(data[None], pairs=0)
    weight = 1 / cosines.length()[0].clamp(min=1e-12)
    middle = cosines.unit_sum().float()[:, None]
    first = cosines.to(middle)[0].argmax(1)
    seed = farthest_first(cosines, count, first=first[:, None])[0][0]
    centre = data[seed].float() * weight[seed, None]
    label = torch.zeros(data.shape[0], dtype=torch.int64, device=data.device)
    own = torch.arange(count, device=data.device)
    for i in range(rounds):
        before = label.clone()
        for a, b in blocks(data.shape[0], max(count, data.shape[1])):
            part = data[a:b].float()
            # Lengths of the tokens do not change which centre is nearest.
            label[a:b] = (part @ centre.T).argmax(1)
        label[seed] = own
        if i + 1 == rounds or torch.equal(label, before):
            break
        total = torch.zeros_like(centre)
        for a, b in blocks(data.shape[0], data.shape[1]):
            total.index_add_(0, label[a:b], data[a:b] * weight[a:b, None])
        centre = torch.nn.functional.normalize(total, dim=1)
    return seed, label
