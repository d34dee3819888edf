"""Average what stays still over each scene, then cluster still and moving tokens.

Source: Huang et al., "PruneVid: Visual Token Pruning for Efficient Video Large Language Models",
Findings of ACL 2025, arXiv:2412.16117, section 3.2 (spatial-temporal token merging).
Differs: no random noise on the density, ties go to the lower index; a clip of fewer frames than
neighbours or segments is taken as it is; the pruning by attention inside the language model is
left out. With a budget every group of tokens, small ones too, gets its part of it in proportion.

Shapes: T frames of C tokens. Frame means are clustered by density peaks and the labels cleaned to
segments; a place is still where the mean cosine between all its frames in the segment is above
``tau``. Rows: segment by segment the still clusters, then the moving ones of each frame, best
first. Cost: O(T C^2 D). Passes: 3/2 N x N, 1 N x K of one frame, beyond 2896 tokens in tiles.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from tokpipe.compress._cluster import averaged, density_peaks, peaks_of_each
from tokpipe.compress._segment import Segments, frame_means, lengths, refine_labels, runs
from tokpipe.compress._windows import Rows, chosen, kept, quotas, segment_rows
from tokpipe.frames import equal_frames
from tokpipe.spec import Layout, Scope, Where
from tokpipe.tensors import Query, TokenBatch, TokenMap


@dataclass(frozen=True, slots=True, kw_only=True)
class PruneVid:
    """Scene by scene: still tokens once, moving tokens frame by frame, both clustered.

    Attributes:
        segments: Segments sought, as a part of the frames, above 0 to 1 (rounded down).
        tau: Mean cosine above which a place is still, -1 to 1.
        ratio: Clusters of a group as a part of its tokens, above 0 to 1 (rounded down).
        small: Groups of at most this many tokens are not clustered, 0 or more.
        k: Neighbours in the density, 2 or more.
    """

    source: ClassVar[str] = "arXiv:2412.16117, section 3.2"
    scope: ClassVar[Scope] = "video"
    needs: ClassVar[tuple[str, ...]] = ()
    modalities: ClassVar[tuple[str, ...]] = ("video",)
    causal: ClassVar[bool] = False
    layouts: ClassVar[tuple[Layout, ...]] = ("ragged",)
    where: ClassVar[Where] = "outputs"
    golden: ClassVar[tuple[str, ...]] = ("prunevid",)
    version: ClassVar[int] = 1
    exact: ClassVar[bool] = False

    segments: Annotated[float, Field(gt=0, le=1)] = 0.25
    tau: Annotated[float, Field(ge=-1, le=1)] = 0.8
    ratio: Annotated[float, Field(gt=0, le=1)] = 0.5
    small: Annotated[int, Field(ge=0)] = 14
    k: Annotated[int, Field(ge=2)] = 7

    def decide(
        self, tokens: TokenBatch, budget: int | None, query: Query | None = None
    ) -> TokenMap:
        """Cluster to ``budget`` rows, or by ``ratio``.

        Raises:
            RecipeError: The frames are not all of one size.
        """
        steps, size = equal_frames(tokens, "prunevid")
        if not steps or (budget is not None and budget >= len(tokens)):
            return TokenMap.identity(len(tokens), tokens.data.device)
        data = tokens.data.reshape(steps, size, -1)
        found = runs(refine_labels(self.frame_labels(data)))
        still, means = still_places(data, found, self.tau)
        moving = torch.cat([~still[i].expand(b - a, size) for i, (a, b) in enumerate(found)])
        counts = torch.cat([still.sum(1), moving.sum(1)]).tolist()
        rows = [self._clusters(c) for c in counts] if budget is None else quotas(budget, counts)
        split = len(found)
        return segment_rows(
            found, size, self._group(means, still, counts[:split], rows[:split]),
            self._group(data, moving, counts[split:], rows[split:]),
        )  # fmt: skip

    def frame_labels(self, data: Tensor) -> list[int]:
        """Cluster of each frame of data [T, C, D] by its mean token, before the clean-up."""
        steps, _, dim = data.shape
        count = max(1, int(steps * self.segments))
        peaks = density_peaks(frame_means(data) / dim**0.5, count, min(self.k, steps))
        found: list[int] = peaks.label.tolist()
        return found

    def _clusters(self, count: int) -> int:
        """Clusters of a group of ``count`` tokens."""
        return count if count <= self.small else max(1, int(self.ratio * count))

    def _group(self, data: Tensor, mask: Tensor, counts: list[int], rows: list[int]) -> Rows:
        """Rows of the places of mask bool [B, C] of data [B, C, D]: clusters where too many."""
        wanted = torch.tensor(rows, device=mask.device)
        whole = wanted == torch.tensor(counts, device=mask.device)
        if counts == rows:
            return kept(mask)
        peaks = peaks_of_each(data, wanted, self.k, valid=mask & ~whole[:, None])
        merged = Rows(peaks.label, peaks.centre, averaged(peaks.label, peaks.centre))
        return chosen(whole, kept(mask & whole[:, None]), merged)

    def out_count(self, n: int, budget: int | None) -> tuple[int, bool]:
        """Most rows for ``n`` tokens; the count depends on what stays still."""
        return (n, n <= 1) if budget is None else (min(n, budget), budget >= n)


def still_places(data: Tensor, segments: Segments, tau: float) -> tuple[Tensor, Tensor]:
    """Where each segment stays still, and what it looks like on average.

    Args:
        data: float [T, C, D].
        segments: Of the T frames.
        tau: Least mean cosine between the frames of a still place.

    Returns:
        (bool [S, C], never in a segment of one frame; float32 means [S, C, D]).
    """
    _, size, dim = data.shape
    still = torch.zeros((len(segments), size), dtype=torch.bool, device=data.device)
    means = torch.zeros((len(segments), size, dim), device=data.device)
    scale = (1 / lengths(data))[..., None]
    for i, (a, b) in enumerate(segments):
        frames = b - a
        if frames == 1:
            continue
        total = torch.zeros((size, dim), device=data.device)
        for t in range(a, b):
            frame = data[t].float()
            total.addcmul_(frame, scale[t])
            means[i].add_(frame, alpha=1 / frames)
        # The sum over all pairs of frames is the squared length of the sum of unit vectors.
        alike = (total.square().sum(1) - frames) / (frames * (frames - 1))
        still[i] = alike > tau
    return still, means
