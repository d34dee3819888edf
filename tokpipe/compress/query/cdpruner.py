"""Keep tokens that are relevant to the query and differ from each other (greedy DPP).

Source: Zhang et al., "Beyond Attention or Similarity: Maximizing Conditional Diversity for Token
Pruning in MLLMs" (CDPruner), NeurIPS 2025, arXiv:2506.10967, section 3.
Differs: a token is relevant when it resembles the text, judged frame by frame; the released code
negates the cosine and shares minimum and maximum over its batch (``compat="released"``). Relevance
may come from any score, or be the same for all (diversity alone). Picks stop where the rest lies
in the span of what is picked; then the most relevant fill up.

Shapes: data [N, D] decides the diversity; keeps min(budget, N) in the order they come.
Passes: 1 N x N, the kernel, for frames of up to 2896 tokens, side by side. Larger ones are lazy and
cost less: rows are compared with the directions of the picks, O(K N D) in all, and the gains of
most rows wait to follow many picks at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from tokpipe.budget import largest_remainder
from tokpipe.compress._columns import compared
from tokpipe.compress._dpp import dpp_picks, dpp_picks_each
from tokpipe.compress._neighbors import BLOCK, row_lengths
from tokpipe.compress._relevance import spread, text_cosines
from tokpipe.errors import RecipeError
from tokpipe.frames import Frames, frames_of
from tokpipe.spec import Layout, Where
from tokpipe.tensors import Query, TokenBatch, TokenMap


@dataclass(frozen=True, slots=True, kw_only=True)
class CDPruner:
    """Conditional diversity: a determinantal point process with kernel r_i r_j cos(i, j).

    Attributes:
        ratio: Part of each frame kept when no budget is given, above 0 to 1 (rounded half to
            even, at least one).
        relevance: Where r comes from: the ``query``, the column ``score`` (NaN is the lowest),
            or ``uniform``.
        scope: Diversity within a frame, or over the whole video.
        compat: ``released`` negates the cosine and spreads it over all tokens at once.

    Example:
        >>> data = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]])
        >>> tokens = TokenBatch.build(data, torch.zeros(3).double())
        >>> CDPruner(relevance="uniform").decide(tokens, budget=2).anchor.tolist()
        [0, 2]
    """

    source: ClassVar[str] = "arXiv:2506.10967, section 3"
    modalities: ClassVar[tuple[str, ...]] = ("video", "audio")
    causal: ClassVar[bool] = False
    layouts: ClassVar[tuple[Layout, ...]] = ("ragged",)
    default_needs: ClassVar[tuple[str, ...]] = ("query",)
    scale_free: ClassVar[bool] = True
    version: ClassVar[int] = 1
    gives: ClassVar[tuple[str, ...]] = ("score",)
    exact: ClassVar[bool] = True
    where: ClassVar[Where] = "outputs"
    golden: ClassVar[tuple[str, ...]] = ("cdpruner",)

    ratio: Annotated[float, Field(gt=0, le=1)] = 1.0
    relevance: Literal["query", "score", "uniform"] = "query"
    scope: Literal["frame", "video"] = "frame"
    compat: Literal["paper", "released"] = "paper"

    @property
    def needs(self) -> tuple[str, ...]:
        """What the relevance comes from."""
        return () if self.relevance == "uniform" else (self.relevance,)

    def decide(
        self, tokens: TokenBatch, budget: int | None, query: Query | None = None
    ) -> TokenMap:
        """Keep ``budget`` tokens, shared over the frames in proportion.

        Returns:
            Rows in the order they come; ``score`` is the relevance, above 0 to 1.

        Raises:
            RecipeError: There is no query, a column is missing, or no score is a number.
        """
        n = len(tokens)
        if n == 0:
            return TokenMap.identity(0, tokens.data.device)
        frames = frames_of(tokens)
        if self.scope == "video":
            frames = Frames(torch.zeros_like(frames.index), frames.counts.sum()[None])
        wide = self.compat == "released"
        relevance = spread(self._value(tokens, query), None if wide else frames)
        counts = frames.counts.tolist()
        if budget is None:
            quota = [max(1, round(self.ratio * count)) for count in counts]
        else:
            quota = list(largest_remainder(min(budget, n), counts, caps=counts))
        if sum(quota) >= n:
            return TokenMap.identity(n, tokens.data.device)
        index = _chosen(tokens.data, relevance, frames, quota).sort().values
        return TokenMap.keep(index, n, score=relevance[index])

    def out_count(self, n: int, budget: int | None) -> tuple[int, bool]:
        """Rows for ``n`` tokens of one frame, exact."""
        if budget is None:
            return min(n, max(1, round(self.ratio * n))), True
        return min(n, budget), True

    def cosines(self, tokens: TokenBatch, query: Query | None) -> Tensor:
        """Cosine float32 [N, M] of each token with each text segment."""
        vectors, asked = compared(tokens, query, "cdpruner")
        return text_cosines(vectors, asked.pooled)

    def _value(self, tokens: TokenBatch, query: Query | None) -> Tensor:
        if self.relevance == "uniform":
            return torch.ones_like(tokens.mass)
        if self.relevance == "query":
            value = self.cosines(tokens, query).mean(1)
            return -value if self.compat == "released" else value
        missing = tokens.score.isnan()
        if bool(missing.all()):
            raise RecipeError(
                "`cdpruner` finds no score on these tokens",
                hint='put a scorer before it, or set relevance = "uniform"', code="recipe.needs",
            )  # fmt: skip
        lowest = tokens.score.masked_fill(missing, torch.inf).min()
        return torch.where(missing, lowest, tokens.score)


def _chosen(data: Tensor, relevance: Tensor, frames: Frames, quota: list[int]) -> Tensor:
    """Tokens int64 [K] kept, frames of one size side by side."""
    device, width = data.device, data.shape[1]
    order = torch.argsort(frames.index, stable=True)
    start = torch.cumsum(frames.counts, 0) - frames.counts
    wanted = torch.tensor(quota, device=device)
    kept = []
    for size in torch.unique(frames.counts).tolist():
        alike = torch.nonzero((frames.counts == size) & (wanted > 0)).flatten()
        step = max(1, BLOCK // max(1, size * max(size, width)))
        for a in range(0, alike.shape[0], step):
            chosen = alike[a : a + step]
            place = order[start[chosen][:, None] + torch.arange(size, device=device)]
            most = int(wanted[chosen].max())
            near = relevance[place]
            rows = _rows(data, place)
            # Scaling the kernel is cheaper than making unit rows.
            length = row_lengths(rows)
            scaled = torch.where(length > 0, near / length.clamp(min=1e-12), 0.0)
            if size * size <= BLOCK:
                picks = dpp_picks_each(rows.float(), scaled, most)
            else:
                picks = dpp_picks(rows[0], scaled[0], most)[None]
            mask = _filled(picks, near, wanted[chosen])
            kept.append(place[mask])
    return torch.cat(kept) if kept else order[:0]


def _rows(data: Tensor, place: Tensor) -> Tensor:
    """Tokens [T, C, D] at ``place`` int64 [T, C], a view where they lie side by side."""
    first, count = int(place[0, 0]), place.numel()
    run = torch.arange(first, first + count, device=place.device)
    if torch.equal(place.flatten(), run):
        return data[first : first + count].reshape(*place.shape, data.shape[1])
    return data[place]


def _filled(picks: Tensor, relevance: Tensor, quota: Tensor) -> Tensor:
    """Mask bool [T, C]: the first ``quota`` [T] of the picks [T, P], then of the most relevant."""
    steps, size = relevance.shape
    # Relevance ends near 1, so picks come before all others; -1 falls into a spare column.
    key = torch.cat([relevance, relevance.new_zeros((steps, 1))], 1)
    place = torch.where(picks >= 0, picks, size)
    rank = torch.arange(picks.shape[1], 0, -1, device=picks.device) + 2.0
    key.scatter_(1, place, rank.to(key.dtype).expand_as(place))
    order = torch.argsort(key[:, :size], dim=1, descending=True, stable=True)
    position = torch.empty_like(order)
    position.scatter_(1, order, torch.arange(size, device=order.device).expand_as(order))
    return position < quota[:, None]
