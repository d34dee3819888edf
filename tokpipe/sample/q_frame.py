"""Rank frames by their likeness to the query, with chance, and keep the best in most detail.

Source: Zhang et al., "Q-Frame: Query-aware Frame Selection and Multi-Resolution Adaptation for
Video-LLMs", ICCV 2025, arXiv:2506.22139, section 3.
Differs: frames are made smaller by averaging their tokens, not by encoding a smaller picture.
Scores are plain products with the query, as released. Chance comes from a seed.

Ranking: by log softmax(score / tau) plus Gumbel noise. The first ``high`` frames are kept at half
the side, the next ``mid`` at a quarter, the next ``low`` at an eighth (at least one cell).

Shapes: N tokens of T frames; rows in the order of time. A budget scales the three numbers.
Cost: O(N E + T log T).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from tokpipe.frames import frames_of, stacked
from tokpipe.maps import TokenMap
from tokpipe.sample._select import ScoreKind, frame_scores, needs_of, smaller
from tokpipe.spec import Layout, Scope, Where
from tokpipe.tensors import Query, TokenBatch

_EPSILON = 1e-10


@dataclass(frozen=True, slots=True, kw_only=True)
class QFrame:
    """Three resolutions by rank.

    Attributes:
        high, mid, low: Frames at half, a quarter and an eighth of the side, 0 or more.
        tau: Temperature of the scores, above 0 to 100.
        seed: Of the noise, 0 to 2^63 - 1.
        score: What frames are judged by: ``query``, ``novelty`` or ``column`` (the tokens' score).

    Example:
        >>> uniform = torch.full((3,), 0.5)
        >>> QFrame().ranking(torch.tensor([0.1, 0.9, 0.5]), uniform).tolist()
        [1, 2, 0]
    """

    source: ClassVar[str] = "arXiv:2506.22139, section 3"
    scope: ClassVar[Scope] = "video"
    modalities: ClassVar[tuple[str, ...]] = ("video",)
    causal: ClassVar[bool] = False
    layouts: ClassVar[tuple[Layout, ...]] = ("ragged",)
    default_needs: ClassVar[tuple[str, ...]] = ("query",)
    version: ClassVar[int] = 1
    exact: ClassVar[bool] = False
    where: ClassVar[Where] = "pixels"
    golden: ClassVar[tuple[str, ...]] = ("qframe",)
    gives: ClassVar[tuple[str, ...]] = ("score",)

    high: Annotated[int, Field(ge=0)] = 6
    mid: Annotated[int, Field(ge=0)] = 6
    low: Annotated[int, Field(ge=0)] = 8
    tau: Annotated[float, Field(gt=0, le=100)] = 0.8
    seed: Annotated[int, Field(ge=0, le=(1 << 63) - 1)] = 0
    score: ScoreKind = "query"

    def __post_init__(self) -> None:
        """Check that some frame is kept."""
        if self.high + self.mid + self.low == 0:
            raise ValueError("high, mid and low are all 0: keep at least one frame")

    @property
    def needs(self) -> tuple[str, ...]:
        """The query, where it is the score."""
        return needs_of(self.score)

    @property
    def drop(self) -> bool:
        """Numbers of frames that were asked for hold whatever the budget."""
        return (self.high, self.mid, self.low) != (6, 6, 8)

    def decide(
        self, tokens: TokenBatch, budget: int | None, query: Query | None = None
    ) -> TokenMap:
        """Keep the ranked frames at their resolutions; with room for all tokens, keep them all.

        Raises:
            RecipeError: What the scores need is missing.
        """
        n, device = len(tokens), tokens.data.device
        if n == 0 or (budget is not None and budget >= n and not self.drop):
            return TokenMap.identity(n, device)
        found = frames_of(tokens)
        value = frame_scores(tokens, found, self.score, query, "q-frame", scaled=False)
        draw = torch.Generator().manual_seed(self.seed)
        uniform = torch.rand(len(found), generator=draw, dtype=torch.float64)
        order = self.ranking(value.cpu(), uniform).tolist()
        sizes = found.counts.tolist()
        plan = self._plan(max(sizes), len(order), budget)
        maps = []
        for rank, frame in sorted(enumerate(order[: len(plan)]), key=lambda pair: pair[1]):
            rows = min(plan[rank], max(1, sizes[frame] // 4))
            made = smaller(tokens, found.index == frame, rows)
            maps.append(replace(made, score=value[frame].float().expand(len(made)).clone()))
        return stacked(maps, n, device)

    def _plan(self, cells: int, frames: int, budget: int | None) -> list[int]:
        """Most rows of each ranked frame, best first, for frames of at most ``cells`` tokens."""
        sizes = [max(1, cells // part) for part in (4, 16, 64)]
        counts = (self.high, self.mid, self.low)

        def scaled(eighths: int) -> list[int]:
            rows = [size for size, count in zip(sizes, counts, strict=True)
                    for _ in range(count * eighths // 8)]  # fmt: skip
            return rows[:frames]

        if budget is None:
            return scaled(8)
        best = [min(budget, sizes[2])]
        for eighths in range(1, 8 * frames + 9):
            made = scaled(eighths)
            if sum(made) > budget:
                break
            best = made or best
            if made and made[-1] == sizes[0] and len(made) == frames:
                break
        return best

    def ranking(self, score: Tensor, uniform: Tensor) -> Tensor:
        """Frames int64 [T], best first, of ``score`` [T] and a draw ``uniform`` [T] in 0..1."""
        noise = -torch.log(-torch.log(uniform + _EPSILON) + _EPSILON)
        weight = torch.log_softmax(score.double() / self.tau, 0) + noise
        return torch.argsort(weight, descending=True, stable=True)

    def out_count(self, n: int, budget: int | None) -> tuple[int, bool]:
        """Most rows for ``n`` tokens; the size of the frames is not known."""
        return (n, False) if budget is None else (min(n, budget), not self.drop and budget >= n)
