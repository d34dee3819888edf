"""Keep the frames nearest to the query, the same number in every part of the video.

Source: Tang et al., "Adaptive Keyframe Sampling for Long Video Understanding", CVPR 2025,
arXiv:2502.21271, section 3.3 (ADA).
Differs: the video is halved only as often as every part still gets a frame, and frames that do
not divide evenly go to the best of the rest; the released code loses both (``compat="released"``).
Equal scores are no trouble. Scores may be novelty or a column instead of a text tower's.

Shapes: N tokens of T frames; keeps whole frames, at most ``frames``. A part is halved until
``depth``, unless the mean of its ``frames`` best scores is more than ``gap`` above its mean.
Cost: O(N E + T log T).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from tokpipe.maps import TokenMap
from tokpipe.sample._select import ScoreKind, frame_scores, needs_of, select, spread, topped_up
from tokpipe.spec import Layout, Scope, Where
from tokpipe.tensors import Query, TokenBatch


@dataclass(frozen=True, slots=True, kw_only=True)
class Aks:
    """Stratified best frames.

    Attributes:
        frames: Most frames to keep, 1 or more; None is 64, or as many as the budget pays.
        gap: Lead of the best scores, on scores moved to 0..1, above which a part is not halved.
        spread: Least standard deviation of such a part; the released value lets all pass.
        depth: Most halvings.
        score: What frames are judged by: ``query``, ``novelty`` or ``column`` (the tokens' score).
        compat: ``released`` halves to ``depth`` always and drops what does not divide evenly.

    Example:
        >>> score = torch.tensor([0.1, 0.9, 0.8, 0.2])
        >>> tokens = TokenBatch.build(torch.zeros(4, 2), torch.arange(4.0).double(), score=score)
        >>> Aks(score="column", frames=2).decide(tokens, None).anchor.tolist()
        [1, 2]
    """

    source: ClassVar[str] = "arXiv:2502.21271, section 3.3"
    scope: ClassVar[Scope] = "video"
    modalities: ClassVar[tuple[str, ...]] = ("video",)
    causal: ClassVar[bool] = False
    layouts: ClassVar[tuple[Layout, ...]] = ("frames", "ragged")
    default_needs: ClassVar[tuple[str, ...]] = ("query",)
    version: ClassVar[int] = 1
    exact: ClassVar[bool] = False
    where: ClassVar[Where] = "pixels"
    golden: ClassVar[tuple[str, ...]] = ("aks",)
    gives: ClassVar[tuple[str, ...]] = ("score",)

    frames: Annotated[int, Field(ge=1)] | None = None
    gap: Annotated[float, Field(ge=0, le=1)] = 0.8
    spread: Annotated[float, Field(ge=-100, le=1)] = -100.0
    depth: Annotated[int, Field(ge=0, le=30)] = 5
    score: ScoreKind = "query"
    compat: Literal["paper", "released"] = "paper"

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
        wanted = self.frames or (64 if budget is None else None)
        return select(
            tokens, budget, wanted,
            lambda found: frame_scores(tokens, found, self.score, query, "aks"),
            self.choose,
        )  # fmt: skip

    def choose(self, score: Tensor, count: int) -> Tensor:
        """Choose ``count`` frames by ``score`` float [T]; int64, ascending, all where T < count."""
        if score.shape[0] < count:
            return torch.arange(score.shape[0], device=score.device)
        parts = self.segments(score, count)
        picks = []
        for start, stop, depth in parts:
            best = torch.argsort(score[start:stop], descending=True, stable=True)
            picks.append(start + best[: count >> depth])
        chosen = torch.cat(picks).sort().values
        return chosen if self.compat == "released" else topped_up(chosen, score, count)

    def segments(self, score: Tensor, count: int) -> list[tuple[int, int, int]]:
        """Parts (start, stop, depth) that are not halved further, least deep first.

        Args:
            score: float [T], of any range.
            count: Frames wanted; none where there are fewer frames than that.
        """
        if score.shape[0] < count:
            return []
        level = spread(score.double()).cpu()
        deepest = self.depth
        if self.compat == "paper":
            deepest = min(self.depth, count.bit_length() - 1)
        done: list[tuple[int, int, int]] = []
        todo = [(0, score.shape[0], 0)]
        while todo:
            start, stop, depth = todo.pop(0)
            part = level[start:stop]
            best = part.sort(descending=True).values[:count]
            lead, deviation = float(best.mean() - part.mean()), float(part.std(correction=0))
            if depth == deepest or len(part) < 2 or (lead > self.gap and deviation > self.spread):
                done.append((start, stop, depth))
            else:
                middle = start + len(part) // 2
                todo += [(start, middle, depth + 1), (middle, stop, depth + 1)]
        return done

    def out_count(self, n: int, budget: int | None) -> tuple[int, bool]:
        """Most rows for ``n`` tokens; the size of the frames is not known."""
        return (n, False) if budget is None else (min(n, budget), False)
