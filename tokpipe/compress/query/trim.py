"""Keep the tokens nearest to the text and one mean of all others.

Source: Song et al., "Less is More: A Simple yet Effective Token Reduction Method for Efficient
Multi-modal LLMs" (TRIM), COLING 2025, arXiv:2409.10994, section 3.
Differs: likeness is the cosine and outliers are judged frame by frame; the released code takes
minus the unnormalised dot product and judges its batch at once (``compat="released"``). No mean is
made where nothing is dropped. Of several text segments the mean counts.

Shapes: tokens [N, E] in the text's space; of a frame of C tokens k kept, in the order they come,
then the mean of the other C - k. Cost: O(N M E + N log N).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from tokpipe.budget import largest_remainder
from tokpipe.compress._columns import compared
from tokpipe.compress._relevance import frame_rank, frame_softmax, text_cosines
from tokpipe.frames import Frames, frames_of
from tokpipe.spec import Layout, Scope, Where
from tokpipe.tensors import Query, TokenBatch, TokenMap


@dataclass(frozen=True, slots=True, kw_only=True)
class Trim:
    """Text-relevant tokens and a summary.

    The score is the softmax of the likeness over the tokens of a frame. Without a budget or a
    ratio, outliers are kept: scores above Q3 + 1.5 (Q3 - Q1). With a budget, the summary is one
    of its rows.

    Attributes:
        ratio: Part of each frame kept when no budget is given (rounded down), above 0 to 1; None
            keeps the outliers.
        summary: Add the mean of the dropped tokens of each frame.
        compat: ``released`` negates, does not normalise, and counts outliers over all frames.

    Example:
        >>> data = torch.tensor([[1.0, 0.0], [0.0, 2.0], [0.0, 4.0]])
        >>> tokens = TokenBatch.build(data, torch.zeros(3).double())
        >>> query = Query(text="a", pooled=torch.tensor([[1.0, 0.0]]))
        >>> tokens.reduce(Trim().decide(tokens, 2, query)).data.tolist()
        [[1.0, 0.0], [0.0, 3.0]]
    """

    source: ClassVar[str] = "arXiv:2409.10994, section 3"
    scope: ClassVar[Scope] = "frame"
    needs: ClassVar[tuple[str, ...]] = ("query",)
    modalities: ClassVar[tuple[str, ...]] = ("video", "audio")
    causal: ClassVar[bool] = False
    layouts: ClassVar[tuple[Layout, ...]] = ("ragged",)
    version: ClassVar[int] = 1
    gives: ClassVar[tuple[str, ...]] = ("score",)
    exact: ClassVar[bool] = True
    where: ClassVar[Where] = "outputs"
    golden: ClassVar[tuple[str, ...]] = ("trim",)

    ratio: Annotated[float, Field(gt=0, le=1)] | None = None
    summary: bool = True
    compat: Literal["paper", "released"] = "paper"

    def decide(
        self, tokens: TokenBatch, budget: int | None, query: Query | None = None
    ) -> TokenMap:
        """Keep the best of each frame, a budget shared over the frames in proportion.

        Returns:
            Frame after frame; ``score`` is the softmax, of a summary the sum of its members'.

        Raises:
            RecipeError: There is no query, or the tokens lack the column of its space.
        """
        n, device = len(tokens), tokens.data.device
        if n == 0 or (budget is not None and budget >= n):
            return TokenMap.identity(n, device)
        frames = frames_of(tokens)
        score = self.scores(tokens, query)
        counts = frames.counts.tolist()
        if budget is None:
            kept = self._kept(score, frames, counts)
            rows = [k + (self.summary and k < c) for k, c in zip(kept, counts, strict=True)]
        else:
            rows = list(largest_remainder(budget, counts, caps=counts))
            kept = [r - (self.summary and 0 < r < c) for r, c in zip(rows, counts, strict=True)]
        if sum(kept) == n:
            return TokenMap.identity(n, device)
        return _map(score, frames, kept, rows)

    def out_count(self, n: int, budget: int | None) -> tuple[int, bool]:
        """Rows for ``n`` tokens of one frame; exact, but where outliers are kept."""
        if budget is not None:
            return min(n, budget), True
        if self.ratio is None:
            return n, False
        kept = int(n * self.ratio)
        return kept + (self.summary and kept < n), True

    def scores(self, tokens: TokenBatch, query: Query | None) -> Tensor:
        """Softmax float32 [N] of the likeness to the text, over the tokens of each frame."""
        vectors, asked = compared(tokens, query, "trim")
        if self.compat == "released":
            value = -(vectors.float() @ asked.pooled.float().to(vectors.device).T).mean(1)
        else:
            value = text_cosines(vectors, asked.pooled).mean(1)
        return frame_softmax(value, frames_of(tokens))

    def _kept(self, score: Tensor, frames: Frames, counts: list[int]) -> list[int]:
        if self.ratio is not None:
            return [int(count * self.ratio) for count in counts]
        if self.compat == "released":
            ratio = int(_outliers(score[None])[0]) / score.shape[0]
            return [int(count * ratio) for count in counts]
        order = torch.argsort(frames.index, stable=True)
        if len(set(counts)) == 1:
            return [int(v) for v in _outliers(score[order].reshape(len(counts), -1)).tolist()]
        parts = torch.tensor_split(score[order], torch.cumsum(frames.counts, 0)[:-1].cpu())
        return [int(_outliers(part[None])[0]) for part in parts]


def _outliers(score: Tensor) -> Tensor:
    """Values of each row [T, C] above Q3 + 1.5 (Q3 - Q1), counted: int64 [T]."""
    # By hand: torch.quantile refuses more than 16 million values.
    order = score.sort(1).values
    low, high = (_quantile(order, part) for part in (0.25, 0.75))
    return (score > (high + 1.5 * (high - low))[:, None]).sum(1)


def _quantile(order: Tensor, part: float) -> Tensor:
    """Quantile [T] of ascending rows [T, C], linear between neighbours."""
    place = part * (order.shape[1] - 1)
    low = int(place)
    high = min(low + 1, order.shape[1] - 1)
    return torch.lerp(order[:, low], order[:, high], place - low)


def _map(score: Tensor, frames: Frames, kept: list[int], rows: list[int]) -> TokenMap:
    device, n = score.device, score.shape[0]
    quota = torch.tensor(kept, device=device)
    size = torch.tensor(rows, device=device)
    stays = frame_rank(score, frames) < quota[frames.index]
    order = torch.argsort(frames.index, stable=True)
    # Kept tokens counted frame after frame; a frame's rows begin where those before end.
    passed = torch.empty_like(order)
    passed[order] = torch.cumsum(stays[order], 0) - 1
    before = torch.cumsum(quota, 0) - quota
    begin = torch.cumsum(size, 0) - size
    own = passed - before[frames.index] + begin[frames.index]
    rest = torch.where(size > quota, begin + quota, -1)[frames.index]
    group = torch.where(stays, own, rest)
    made = TokenMap.mean(group, sum(rows))
    total = torch.zeros(sum(rows), device=device)
    live = group >= 0
    total.index_add_(0, group[live], score[live])
    return TokenMap(
        src=made.src, dst=made.dst, weight=made.weight, share=made.share, anchor=made.anchor,
        num_sources=n, score=total,
    )  # fmt: skip
