"""Merge tokens matched by attended features, or by attention alone, into plain means.

Source: Cao, Paranjape and Hajishirzi, "PuMer: Pruning and Merging Tokens for Efficient Vision
Language Models", ACL 2023, arXiv:2305.17530, section 3.
Differs: on encoder outputs, as many rounds as the budget needs; means of a round are plain, so
sizes are ignored, as in the paper. The paper fine-tunes the model for this merging.

``match="metric"`` (images) compares the extra ``keys``, or the data, times the attention: as the
cosine does not see lengths, only attention of 0 (like nothing) or below changes the matching, in
the released code too. ``match="attention"`` (text) merges tokens of nearly equal attention.

Shapes: data [N, D]; min(budget, N) rows, each round at most halves a frame.
Cost: O(C^2 D / 4) for the first round of a group of C tokens.
Passes: 1/3 N x N in blocks of rows, over all rounds; half of the rows, averaged, are held.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import Field
from torch import Tensor

from tokpipe.compress._columns import head_mean
from tokpipe.compress._match import Protected, Score, cosine, nearness
from tokpipe.compress._merge_rounds import Rule, groups_of, merge_groups
from tokpipe.compress._metric import keys_or_data
from tokpipe.spec import Layout, Where
from tokpipe.tensors import Query, TokenBatch, TokenMap


@dataclass(frozen=True, slots=True, kw_only=True)
class PuMer:
    """Bipartite matching weighed by attention, plain means.

    Attributes:
        r: Tokens of a frame to merge away in one round when no budget is given, 0 or more.
        match: Compare ``metric`` x attention by cosine, or the ``attention`` alone.
        class_token: Token 0 of a frame is a class token and stays as it is.
        scope: Merge within a frame, or over the whole video.
    """

    source: ClassVar[str] = "arXiv:2305.17530, section 3"
    needs: ClassVar[tuple[str, ...]] = ("attention",)
    modalities: ClassVar[tuple[str, ...]] = ("video",)
    causal: ClassVar[bool] = False
    layouts: ClassVar[tuple[Layout, ...]] = ("ragged",)
    version: ClassVar[int] = 1
    exact: ClassVar[bool] = True
    where: ClassVar[Where] = "llm"
    golden: ClassVar[tuple[str, ...]] = ("pumer",)

    r: Annotated[int, Field(ge=0)] = 0
    match: Literal["metric", "attention"] = "metric"
    class_token: bool = False
    scope: Literal["frame", "video"] = "frame"

    def decide(
        self, tokens: TokenBatch, budget: int | None, query: Query | None = None
    ) -> TokenMap:
        """Merge every frame down to its part of ``budget``, rows as those of ToMe.

        Raises:
            RecipeError: The tokens carry no ``attention``.
        """
        groups = groups_of(tokens, 1 if self.scope == "frame" else 0)
        columns = [head_mean(tokens, "attention", "pumer")]
        if self.match == "metric":
            columns.append(keys_or_data(tokens))
        rule = self._rule()
        return merge_groups(tokens, groups, rule.plans(groups, budget, (self.r,)), columns, rule)

    def out_count(self, n: int, budget: int | None) -> tuple[int, bool]:
        """Rows for ``n`` tokens of one frame, exact."""
        return self._rule().plan(n, budget, (self.r,)).rows, True

    def _rule(self) -> Rule:
        return Rule(score=self._score, protected=Protected(self.class_token), plain=True)

    def _score(self, columns: list[Tensor]) -> Score:
        if self.match == "attention":
            return nearness(columns[0])
        sign = columns[0][:, :, 0].sign()
        alike = cosine(columns[1])
        return lambda rows, cols: (
            alike(rows, cols).mul_(sign[:, rows, None]).mul_(sign[:, None, cols])
        )
