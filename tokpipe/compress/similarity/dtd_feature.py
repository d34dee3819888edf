"""Drop tokens that resemble the token before them at the same place.

Source: Yao et al., "TimeChat-Online: 80% Visual Tokens are Naturally Redundant in Streaming
Videos", arXiv:2504.17343, section 3 (Differential Token Dropping, feature level).
Differs: a dropped token is stood for by the last kept one of its place, so masses and times stay
whole; ``reference="kept"`` compares with that one instead of the frame before, so that slow drift
is seen (the paper compares with the frame before, kept or not, and is blind to it); items of a
batch may keep different counts.

Shapes: tokens of T frames, any places; kept tokens stay in their order. A token without one
before it is always kept. With a budget the least similar tokens are kept, first ones before all
others. Cost: O(N D).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from tokpipe.compress._tracks import (
    NOTHING,
    Tracks,
    cosines,
    highest,
    keep_first,
    lowest_of_each,
)
from tokpipe.spec import Layout, Scope, Where
from tokpipe.tensors import Query, TokenBatch, TokenMap


@dataclass(frozen=True, slots=True, kw_only=True)
class DtdFeature:
    """Differential token dropping on features.

    Attributes:
        threshold: Cosine above which a token counts as a repeat, -1 to 1.
        relative: Part of each frame to drop instead, its most similar tokens, 0 to 1.
        reference: Compare with the ``previous`` frame, or with the last ``kept`` token.

    Example:
        >>> data = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
        >>> tokens = TokenBatch.build(data, torch.arange(3).double())
        >>> DtdFeature().decide(tokens, None).anchor.tolist()
        [0, 2]
    """

    source: ClassVar[str] = "arXiv:2504.17343, section 3"
    scope: ClassVar[Scope] = "video"
    needs: ClassVar[tuple[str, ...]] = ()
    modalities: ClassVar[tuple[str, ...]] = ("video",)
    causal: ClassVar[bool] = True
    layouts: ClassVar[tuple[Layout, ...]] = ("ragged",)
    scale_free: ClassVar[bool] = True
    version: ClassVar[int] = 1
    exact: ClassVar[bool] = True
    where: ClassVar[Where] = "outputs"
    golden: ClassVar[tuple[str, ...]] = ("dtd__feature",)
    gives: ClassVar[tuple[str, ...]] = ("score",)

    threshold: Annotated[float, Field(ge=-1, le=1)] = 0.5
    relative: Annotated[float, Field(ge=0, le=1)] | None = None
    reference: Literal["previous", "kept"] = "previous"

    def decide(
        self, tokens: TokenBatch, budget: int | None, query: Query | None = None
    ) -> TokenMap:
        """Keep what differs from before; ``score`` is 1 - cosine, 3 where nothing is before."""
        n = len(tokens)
        if n == 0:
            return TokenMap.identity(0, tokens.data.device)
        tracks = Tracks.of(tokens)
        if self.reference == "previous":
            alike = cosines(tokens.data, tracks.previous(), tracks.size)
        else:
            alike = self._against_kept(tokens.data, tracks)
        if budget is not None:
            keep = highest(-alike, min(budget, n))
        elif self.relative is None:
            keep = alike <= self.threshold
        else:
            quota = tracks.counts - (tracks.counts.double() * self.relative).long()
            keep = lowest_of_each(alike, tracks.frame, quota) | (alike == NOTHING)
        rows = torch.nonzero(keep).flatten()
        return keep_first(tracks.latest(keep), rows, score=1 - alike)

    def _against_kept(self, data: Tensor, tracks: Tracks) -> Tensor:
        """Cosine float32 [N] with the last token of the track that the rule itself keeps."""
        place = torch.empty_like(tracks.order)
        place[tracks.order] = tracks.start
        held = torch.full_like(place, -1)
        alike = torch.full(place.shape, NOTHING, device=data.device)
        by_frame = torch.argsort(tracks.frame, stable=True)
        for rows in torch.split(by_frame, tracks.counts.tolist()):
            there = held[place[rows]]
            found = _compare(data[rows], data[there.clamp(min=0)])
            found = torch.where(there >= 0, found, NOTHING)
            alike[rows] = found
            keep = found <= self.threshold
            if self.relative is not None:
                drop = int(rows.shape[0] * self.relative)
                keep = highest(-found, rows.shape[0] - drop) | (there < 0)
            held[place[rows]] = torch.where(keep, rows, there)
        return alike

    def out_count(self, n: int, budget: int | None) -> tuple[int, bool]:
        """Most rows for ``n`` tokens, exact with a budget."""
        return (n, False) if budget is None else (min(n, budget), True)


def _compare(left: Tensor, right: Tensor) -> Tensor:
    """Cosine float32 [M] of rows [M, D] pair by pair."""
    left, right = left.float(), right.float()
    length = torch.linalg.vector_norm(left, dim=1) * torch.linalg.vector_norm(right, dim=1)
    found: Tensor = (left * right).sum(1) / length.clamp(min=1e-12)
    return found
