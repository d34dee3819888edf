"""In groups of four frames keep one whole, and of the others what differs most from it.

Source: Tao et al., "DyCoke: Dynamic Compression of Tokens for Fast Video Large Language Models",
CVPR 2025, arXiv:2411.15024, section 3.2 (token temporal merging).
Differs: the released code drops (the paper says merge); here a dropped token is stood for by the
last kept one of its place. The released code spares the third frame of the last group, loses an
odd last frame and fails on four frames or fewer: ``compat="released"`` does so too (and drops
what it loses); the default treats all groups alike, a short last one as the beginning of a group.

Shapes: tokens of T frames, any places. Of each group the first frame is whole; the second is
compared with the first, the fourth with the third, the third with the first (original tokens).
Rows: frame by frame; in a compared frame by rising similarity. With a budget the compared frames
share what the whole frames leave; where those do not fit, each keeps its part, least like the one
before. Cost: O(N D).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from tokpipe.compress._heads import compared, few_of_heads, shares
from tokpipe.compress._tracks import Tracks, keep_first, lowest_of_each
from tokpipe.errors import RecipeError
from tokpipe.spec import Layout, Scope, Where
from tokpipe.tensors import Query, TokenBatch, TokenMap


@dataclass(frozen=True, slots=True, kw_only=True)
class DyCoke:
    """Token temporal merging.

    Attributes:
        merging_ratio: Part of a compared frame that goes, 0 to 1; int((1 - ratio) C) tokens stay.
        compat: ``released`` for the released code's treatment of the last frames.

    Example:
        >>> data = torch.eye(2).repeat(3, 1)
        >>> at = torch.arange(3).double().repeat_interleave(2)
        >>> DyCoke(merging_ratio=0.5).decide(TokenBatch.build(data, at), None).anchor.tolist()
        [0, 1, 2, 4]
    """

    source: ClassVar[str] = "arXiv:2411.15024, section 3.2"
    scope: ClassVar[Scope] = "video"
    needs: ClassVar[tuple[str, ...]] = ()
    modalities: ClassVar[tuple[str, ...]] = ("video",)
    causal: ClassVar[bool] = True
    layouts: ClassVar[tuple[Layout, ...]] = ("ragged",)
    scale_free: ClassVar[bool] = True
    version: ClassVar[int] = 1
    exact: ClassVar[bool] = True
    where: ClassVar[Where] = "outputs"
    golden: ClassVar[tuple[str, ...]] = ("dycoke",)

    merging_ratio: Annotated[float, Field(ge=0, le=1)] = 0.7
    compat: Literal["paper", "released"] = "paper"

    def decide(
        self, tokens: TokenBatch, budget: int | None, query: Query | None = None
    ) -> TokenMap:
        """Keep whole frames and the least similar tokens of the others.

        Raises:
            RecipeError: ``compat="released"`` and four frames or fewer.
        """
        if not len(tokens):
            return TokenMap.identity(0, tokens.data.device)
        tracks = Tracks.of(tokens)
        reference, lost = self._reference(tracks.counts)
        head = reference == torch.arange(len(lost), device=lost.device)
        alike = compared(tokens.data, tracks, reference)
        quota = torch.where(head, tracks.counts, self._kept(tracks.counts))
        if budget is not None:
            budget = min(budget, len(tokens))
            left = budget - int(tracks.counts[head & ~lost].sum())
            quota = torch.where(head, tracks.counts, 0) + shares(tracks.counts, ~head, max(0, left))
        if budget is not None and left < 0:
            keep = few_of_heads(tokens.data, tracks, head & ~lost, budget)
        else:
            keep = lowest_of_each(alike, tracks.frame, torch.where(lost, 0, quota))
        rows = torch.argsort(alike, stable=True)
        rows = rows[torch.argsort(tracks.frame[rows], stable=True)]
        return keep_first(tracks.latest(keep), rows[keep[rows]], lost=lost[tracks.frame])

    def _reference(self, counts: Tensor) -> tuple[Tensor, Tensor]:
        """Frame int64 [T] each is compared with, and the frames bool [T] that are lost."""
        t = counts.shape[0]
        index = torch.arange(t, device=counts.device)
        place = index % 4
        third = place == 2
        if self.compat == "released":
            if t <= 4:
                raise RecipeError(
                    f"`dycoke` as released fails on {t} frames", hint="leave `compat` out"
                )
            third &= index - 2 < t - 4
        lost = (index == t - 1) & (t % 2 == 1) & (self.compat == "released")
        return index - (place % 2) - 2 * third.long(), lost

    def _kept(self, counts: Tensor) -> Tensor:
        return (counts.double() * (1 - self.merging_ratio)).long()

    def out_count(self, n: int, budget: int | None) -> tuple[int, bool]:
        """Most rows for ``n`` tokens, exact with a budget."""
        return (n, False) if budget is None else (min(n, budget), self.compat == "paper")
