"""Merge tokens that are alike and near each other in space.

Source: Huang et al., "ToSA: Token Merging with Spatial Awareness", 2025, arXiv:2506.20066,
section 3.
Differs: on encoder outputs with one mix; the paper mixes per layer l with weight l / 25 for what
tokens look like, and runs a round in each.

The likeness is alpha cos(keys) + (1 - alpha) cos(spatial). The extra ``spatial`` is the encoder's:
a code of row, column and depth. It is merged beside the data by mass in later rounds.

Shapes: data [N, D]; min(budget, N) rows, each round at most halves a frame.
Cost: O(C^2 D / 4) for the first round of a group of C tokens.
Passes: 1/3 N x N in blocks of rows, over all rounds; half of the rows, averaged, are held.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import Field
from torch import Tensor

from tokpipe.compress._columns import column
from tokpipe.compress._match import Score, cosine, mixture
from tokpipe.compress._merge_rounds import Rule, groups_of, merge_groups
from tokpipe.compress._metric import keys_or_data
from tokpipe.spec import Layout, Where
from tokpipe.tensors import Query, TokenBatch, TokenMap


@dataclass(frozen=True, slots=True, kw_only=True)
class ToSA:
    """ToMe with a likeness in space; the metric is the extra ``keys``, else the data.

    Attributes:
        r: Tokens to merge away in one round when no budget is given, 0 or more.
        alpha: Weight of what tokens look like, 0 .. 1; the rest is for where they are.
        scope: Merge within a frame, or over the whole video.
    """

    source: ClassVar[str] = "arXiv:2506.20066, section 3"
    needs: ClassVar[tuple[str, ...]] = ("spatial",)
    modalities: ClassVar[tuple[str, ...]] = ("video",)
    causal: ClassVar[bool] = False
    layouts: ClassVar[tuple[Layout, ...]] = ("ragged",)
    scale_free: ClassVar[bool] = True
    version: ClassVar[int] = 1
    exact: ClassVar[bool] = True
    where: ClassVar[Where] = "encoder"
    golden: ClassVar[tuple[str, ...]] = ("tosa",)

    r: Annotated[int, Field(ge=0)] = 0
    alpha: Annotated[float, Field(ge=0, le=1)] = 0.5
    scope: Literal["frame", "video"] = "frame"

    def decide(
        self, tokens: TokenBatch, budget: int | None, query: Query | None = None
    ) -> TokenMap:
        """Merge every frame down to its part of ``budget``, rows as those of ToMe.

        Raises:
            RecipeError: The tokens carry no ``spatial``.
        """
        groups = groups_of(tokens, 1 if self.scope == "frame" else 0)
        rule = Rule(score=self._score)
        columns = [keys_or_data(tokens), column(tokens, "spatial", "tosa")]
        return merge_groups(tokens, groups, rule.plans(groups, budget, (self.r,)), columns, rule)

    def out_count(self, n: int, budget: int | None) -> tuple[int, bool]:
        """Rows for ``n`` tokens of one frame, exact."""
        return Rule().plan(n, budget, (self.r,)).rows, True

    def _score(self, columns: list[Tensor]) -> Score:
        keys, spatial = columns
        return mixture([(self.alpha, cosine(keys)), (1 - self.alpha, cosine(spatial))])
