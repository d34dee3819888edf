"""Draw frames evenly from the distribution that their scores make (inverse transform).

Source: Liu et al., "BOLT: Boost Large Vision-Language Model Without Training for Long-form Video
Understanding", CVPR 2025, arXiv:2503.21483, section 3.2.
Differs: a frame drawn twice is kept once and the best of the others take the empty places; one
frame alone is the median of the distribution. ``compat="released"`` leaves the places empty and
takes the last quantile. Equal scores count as equal weights.

Shapes: N tokens of T frames; keeps whole frames, at most ``frames``. Weight (score moved to
0..1)^power; quantiles 1/n .. 1 - 1/n. Cost: O(N E + T).
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
class Bolt:
    """Even quantiles of the scores.

    Attributes:
        frames: Most frames to keep, 1 or more; None is 16, or as many as the budget pays.
        power: Sharpens the scores, above 0 to 100; None leaves them as they are.
        score: What frames are judged by: ``query``, ``novelty`` or ``column`` (the tokens' score).
        compat: ``released`` keeps fewer frames where one is drawn twice.

    Example:
        >>> score = torch.tensor([0.0, 0.0, 1.0, 0.0, 1.0])
        >>> tokens = TokenBatch.build(torch.zeros(5, 2), torch.arange(5.0).double(), score=score)
        >>> Bolt(score="column", frames=2).decide(tokens, None).anchor.tolist()
        [2, 4]
    """

    source: ClassVar[str] = "arXiv:2503.21483, section 3.2"
    scope: ClassVar[Scope] = "video"
    modalities: ClassVar[tuple[str, ...]] = ("video",)
    causal: ClassVar[bool] = False
    layouts: ClassVar[tuple[Layout, ...]] = ("frames", "ragged")
    default_needs: ClassVar[tuple[str, ...]] = ("query",)
    version: ClassVar[int] = 1
    exact: ClassVar[bool] = False
    where: ClassVar[Where] = "pixels"
    golden: ClassVar[tuple[str, ...]] = ("bolt",)
    gives: ClassVar[tuple[str, ...]] = ("score",)

    frames: Annotated[int, Field(ge=1)] | None = None
    power: Annotated[float, Field(gt=0, le=100)] | None = 3.0
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
        wanted = self.frames or (16 if budget is None else None)
        return select(
            tokens, budget, wanted,
            lambda found: frame_scores(tokens, found, self.score, query, "bolt"),
            self._choose,
        )  # fmt: skip

    def _choose(self, score: Tensor, count: int) -> Tensor:
        drawn = self.draw(score, count)
        return drawn if self.compat == "released" else topped_up(drawn, score, count)

    def draw(self, score: Tensor, count: int) -> Tensor:
        """Frames int64 [count] at even quantiles of ``score`` float [T]; some may come twice."""
        weight = spread(score.double())
        if not bool(weight.any()):
            weight = torch.ones_like(weight)
        if self.power is not None:
            weight = weight**self.power
        total = weight.cumsum(0)
        if count == 1 and self.compat == "paper":
            quantile = total.new_tensor([0.5])
        else:
            # From the first to the last, also where there is only the first.
            quantile = torch.linspace(
                1 / count, 1 - 1 / count, count, dtype=torch.float64, device=total.device
            )
        return torch.searchsorted(total / total[-1], quantile).clamp(max=score.shape[0] - 1)

    def out_count(self, n: int, budget: int | None) -> tuple[int, bool]:
        """Most rows for ``n`` tokens; the size of the frames is not known."""
        return (n, False) if budget is None else (min(n, budget), False)
