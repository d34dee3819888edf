"""Average clusters around density peaks.

Source: Du et al., "Study on density peaks clustering based on k-nearest neighbors", KBS 2016, as
used by Chat-UniVi (Jin et al., CVPR 2024, arXiv:2311.08046, section 3.2), PruneVid, HoliTom.
Differs: no random noise on the density, ties go to the lower index; scores are compared as
logarithms (the same order, no underflow); at least 2 neighbours, as one makes all densities equal.

Shapes: data [N, D]; min(budget, N) clusters. d = |a - b| / (sqrt(D) scale); density exp(-mean of
the k smallest d^2, itself included); separation = least d to a denser token; centres are the
largest density x separation; every token joins its nearest centre.
Passes: 3/2 N x N, 1 N x K. Beyond 2896 tokens in tiles: densities from all pairs, separations from
half of them, labels from the centres.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field

from tokpipe.compress._cluster import density_peaks, density_peaks_of
from tokpipe.compress._stacks import equal_parts
from tokpipe.frames import one_item
from tokpipe.spec import Layout, Where
from tokpipe.tensors import Query, TokenBatch, TokenMap


@dataclass(frozen=True, slots=True, kw_only=True)
class DpcKnn:
    """Density-peak clusters, each averaged and placed at its centre.

    Attributes:
        k: Neighbours in the density, 2 or more; above the number of clusters c it becomes
            max(2, min(3, c // 2)). ``clusters`` takes as many as there are clusters, at least 2.
        clusters: Clusters when no budget is given, 1 or more; None keeps everything.
        scale: The distance per sqrt(D) that counts as 1, 1e-6 to 1e6: the method is not invariant
            to scale and assumes features of order 1.
        scope: Cluster within a frame, or over the whole video.

    Example:
        >>> import torch
        >>> data = torch.tensor([[0.0], [0.2], [5.0], [5.1], [5.2]])
        >>> tokens = TokenBatch.build(data, torch.zeros(5).double())
        >>> DpcKnn(k=2).decide(tokens, budget=2).dst.tolist()
        [1, 1, 0, 0, 0]
    """

    source: ClassVar[str] = "arXiv:2311.08046, section 3.2"
    needs: ClassVar[tuple[str, ...]] = ()
    modalities: ClassVar[tuple[str, ...]] = ("video", "audio")
    causal: ClassVar[bool] = False
    where: ClassVar[Where] = "outputs"
    golden: ClassVar[tuple[str, ...]] = ("dpc_knn", "sparsevlm_recycle")
    layouts: ClassVar[tuple[Layout, ...]] = ("ragged",)
    version: ClassVar[int] = 1
    gives: ClassVar[tuple[str, ...]] = ("score",)
    exact: ClassVar[bool] = True

    k: Annotated[int, Field(ge=2)] | Literal["clusters"] = 5
    clusters: Annotated[int, Field(ge=1)] | None = None
    scale: Annotated[float, Field(ge=1e-6, le=1e6)] = 1.0
    scope: Literal["frame", "video"] = "frame"

    def decide(
        self, tokens: TokenBatch, budget: int | None, query: Query | None = None
    ) -> TokenMap:
        """Average ``budget`` clusters, in decreasing order of the centre's score.

        Returns:
            Means of the members; ``score`` is the logarithm of density x separation.
        """
        if self.scope == "frame" and not one_item(tokens):
            return self._each(tokens, budget)
        return self._cluster(tokens, budget)

    def _cluster(self, tokens: TokenBatch, budget: int | None) -> TokenMap:
        n = len(tokens)
        count, _ = self.out_count(n, budget)
        if count >= n:
            return TokenMap.identity(n, tokens.data.device)
        peaks = density_peaks(tokens.data, count, self._near(n, count), unit=self._unit(tokens))
        merged = TokenMap.mean(peaks.label, count, anchor=peaks.centre)
        return replace(merged, score=peaks.score)

    def _each(self, tokens: TokenBatch, budget: int | None) -> TokenMap:
        """Frames that have one size and one count are clustered side by side."""
        n, device = len(tokens), tokens.data.device
        parts = equal_parts(tokens, budget, lambda size: self.out_count(size, None)[0])
        total = sum(len(part.base) * part.count for part in parts)
        group = torch.full((n,), -1, dtype=torch.int64, device=device)
        anchor = torch.empty(total, dtype=torch.int64, device=device)
        score = torch.full((total,), torch.nan, device=device)
        clustered = False
        for part in parts:
            rows = part.base[:, None] + torch.arange(part.count, device=device)
            if part.count >= part.index.shape[1]:
                anchor[rows], group[part.index] = part.index, rows
                continue
            near, unit = self._near(part.index.shape[1], part.count), self._unit(tokens)
            for a, b in part.stacks(tokens.data.shape[1]):
                here = part.index[a:b]
                peaks = density_peaks_of(tokens.data[here], part.count, near, unit=unit)
                group[here] = part.base[a:b, None] + peaks.label
                anchor[rows[a:b]] = here.gather(1, peaks.centre)
                score[rows[a:b]] = peaks.score
            clustered = True
        merged = TokenMap.mean(group, total, anchor=anchor)
        return replace(merged, score=score) if clustered else merged

    def _near(self, n: int, count: int) -> int:
        """Tokens in the density of ``count`` clusters among ``n`` tokens."""
        if self.k == "clusters":
            k = max(2, count)
        else:
            k = self.k if self.k <= count else max(2, min(3, count // 2))
        return min(k, n)

    def _unit(self, tokens: TokenBatch) -> float:
        return float(tokens.data.shape[1] ** 0.5 * self.scale)

    def out_count(self, n: int, budget: int | None) -> tuple[int, bool]:
        """Rows for ``n`` tokens, exact."""
        wanted = self.clusters if budget is None else budget
        return n if wanted is None else min(n, wanted), True
