"""Keep frames like the query that are unlike each other, then fill the longest gaps.

Source: Cheng et al., "Scaling Video-Language Models to 10K Frames via Hierarchical Differential
Distillation" (ViLAMP), ICML 2025, arXiv:2504.02438, section 3.2 (differential keyframe selection).
Differs: frames that are not chosen are left out (ViLAMP keeps one token of each).

Frames are taken by falling score; each hides all frames whose cosine with it is above
``likeness``. Places still free cut the gaps between the chosen into even parts.

Shapes: N tokens of T frames; keeps whole frames, at most ``frames``. Cost: O(N E + k T E).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from tokpipe.frames import Frames
from tokpipe.maps import TokenMap
from tokpipe.sample._select import (
    ScoreKind,
    frame_embeddings,
    frame_scores,
    needs_of,
    select,
    unit,
)  # fmt: skip
from tokpipe.spec import Layout, Scope, Where
from tokpipe.tensors import Query, TokenBatch


@dataclass(frozen=True, slots=True, kw_only=True)
class Vilamp:
    """Key frames, then even gaps.

    Attributes:
        frames: Most frames to keep, 1 or more; None is 32, or as many as the budget pays.
        likeness: Cosine above which a frame is hidden by a chosen one, -1 to 1.
        least: Score a key frame must exceed, from -1, where all do.
        score: What frames are judged by: ``query``, ``novelty`` or ``column`` (the tokens' score).

    Example:
        >>> data = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0]])
        >>> score = torch.tensor([0.4, 0.9, 0.2, 0.1])
        >>> tokens = TokenBatch.build(data, torch.arange(4.0).double(), score=score)
        >>> Vilamp(score="column", frames=2).decide(tokens, None).anchor.tolist()
        [1, 2]
    """

    source: ClassVar[str] = "arXiv:2504.02438, section 3.2"
    scope: ClassVar[Scope] = "video"
    modalities: ClassVar[tuple[str, ...]] = ("video",)
    causal: ClassVar[bool] = False
    layouts: ClassVar[tuple[Layout, ...]] = ("frames", "ragged")
    default_needs: ClassVar[tuple[str, ...]] = ("query",)
    version: ClassVar[int] = 1
    exact: ClassVar[bool] = False
    where: ClassVar[Where] = "pixels"
    golden: ClassVar[tuple[str, ...]] = ("vilamp_dks",)
    gives: ClassVar[tuple[str, ...]] = ("score",)

    frames: Annotated[int, Field(ge=1)] | None = None
    likeness: Annotated[float, Field(ge=-1, le=1)] = 0.85
    least: Annotated[float, Field(ge=-1, le=1e6)] = -1.0
    score: ScoreKind = "query"

    @property
    def needs(self) -> tuple[str, ...]:
        """The query, where it is the score."""
        return needs_of(self.score)

    @property
    def drop(self) -> bool:
        """A number of frames that was asked for holds whatever the budget."""
        return self.frames is not None

    def decide(
        self, tokens: TokenBatch, budget: int | None, query: Query | None = None
    ) -> TokenMap:
        """Keep the chosen frames.

        Raises:
            RecipeError: What the scores need is missing.
        """
        space = query.space if self.score == "query" and query is not None else "data"
        held: list[Tensor] = []

        def score(found: Frames) -> Tensor:
            value = frame_scores(tokens, found, self.score, query, "vilamp")
            held.append(frame_embeddings(tokens, found, space))
            return value

        def choose(value: Tensor, count: int) -> Tensor:
            keys = self.key_frames(value, held[0], count)
            return torch.nonzero(fill_gaps(keys, count)).flatten()

        wanted = self.frames or (32 if budget is None else None)
        return select(tokens, budget, wanted, score, choose)

    def key_frames(self, score: Tensor, embedding: Tensor, count: int) -> Tensor:
        """Mask bool [T] of at most ``count`` frames by ``score`` [T] and ``embedding`` [T, E]."""
        # A frame at a time on the CPU: T is small, a look at the device for each is not.
        vectors = unit(embedding.float()).cpu()
        value = score.cpu()
        hidden = value <= self.least if self.least > -1 else torch.zeros_like(value).bool()
        mask = torch.zeros_like(hidden)
        left = count
        for frame in torch.argsort(value, descending=True, stable=True).tolist():
            if left == 0:
                break
            if not hidden[frame]:
                mask[frame] = hidden[frame] = True
                hidden |= vectors @ vectors[frame] > self.likeness
                left -= 1
        return mask

    def out_count(self, n: int, budget: int | None) -> tuple[int, bool]:
        """Most rows for ``n`` tokens; the size of the frames is not known."""
        return (n, False) if budget is None else (min(n, budget), False)


def fill_gaps(mask: Tensor, count: int) -> Tensor:
    """Add frames between the chosen ones until there are ``count``.

    Args:
        mask: bool [T], the chosen frames.
        count: Frames wanted in all, at most T.

    Returns:
        bool [T]. With D the least distance for which the cuts of all gaps, ceil(length / D) - 1
        each, are no more than the free places, a gap of k cuts has one every
        ceil(length / (k + 1)); what is left goes to the last free frames.
    """
    chosen = mask.tolist()
    free = max(0, min(count, len(chosen)) - sum(chosen))
    gaps, start = [], 0
    for i, taken in enumerate([*chosen, True]):
        if taken:
            if i > start:
                gaps.append((start, i - start))
            start = i + 1
    cuts = [0] * len(gaps)
    for distance in range(1, len(chosen) + 1):
        cuts = [-(-length // distance) - 1 for _, length in gaps]
        if sum(cuts) <= free:
            break
    for (first, length), k in zip(gaps, cuts, strict=True):
        step = -(-length // (k + 1))
        for i in range(1, k + 1):
            chosen[first + i * step] = True
    free -= sum(cuts)
    for i in reversed(range(len(chosen))):
        if free > 0 and not chosen[i]:
            chosen[i] = True
            free -= 1
    return torch.tensor(chosen, dtype=torch.bool, device=mask.device)
