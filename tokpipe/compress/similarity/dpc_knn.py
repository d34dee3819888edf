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

from pydantic import Field

from tokpipe.compress._cluster import density_peaks
from tokpipe.frames import each_frame
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
        if self.scope == "frame":
            return each_frame(tokens, budget, self._cluster)
        return self._cluster(tokens, budget)

    def _cluster(self, tokens: TokenBatch, budget: int | None) -> TokenMap:
        n = len(tokens)
        count, _ = self.out_count(n, budget)
        if count >= n:
            return TokenMap.identity(n, tokens.data.device)
        if self.k == "clusters":
            k = max(2, count)
        else:
            k = self.k if self.k <= count else max(2, min(3, count // 2))
        unit = tokens.data.shape[1] ** 0.5 * self.scale
        peaks = density_peaks(tokens.data, count, min(k, n), unit=unit)
        merged = TokenMap.mean(peaks.label, count, anchor=peaks.centre)
        return replace(merged, score=peaks.score)

    def out_count(self, n: int, budget: int | None) -> tuple[int, bool]:
        """Rows for ``n`` tokens, exact."""
        wanted = self.clusters if budget is None else budget
        return n if wanted is None else min(n, wanted), True
