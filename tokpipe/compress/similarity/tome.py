"""Merge the most similar tokens by balanced bipartite matching.

Source: Bolya et al., "Token Merging: Your ViT But Faster", ICLR 2023, arXiv:2210.09461, section 3
and appendix D (k-th partition). On video also in AuroraCap (arXiv:2410.03051), VideoChat-Flash
(arXiv:2501.00574), LongVLM (arXiv:2404.03384), AIM (arXiv:2412.03248) and FastAST: presets.
Differs: on encoder outputs, as many rounds as the budget needs happen in one call, each on the
merged metric; ties go to the lower index; zero rows resemble nothing; with ``every`` above 2 the
trailing tokens are sources instead of being dropped; with ``rounds`` the remainder goes to the
first ones.

Shapes: data [N, D]; result min(budget, N) rows, each round at most halves (every = 2).
Cost: O(C^2 D / 4) for the first round of a group of C tokens.
Passes: 1/3 N x N in blocks of rows, over all rounds; half of the rows, averaged, are held.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from tokpipe.compress._match import Protected
from tokpipe.compress._merge_rounds import Groups, Plan, Rule, groups_of, merge_groups
from tokpipe.compress._metric import keys_or_data
from tokpipe.spec import Layout, Where
from tokpipe.tensors import Query, TokenBatch, TokenMap


@dataclass(frozen=True, slots=True, kw_only=True)
class ToMe:
    """Bipartite soft matching; a row takes the place of its destination.

    The metric is the extra ``keys`` ([N, D'], or [N, heads, D'] averaged over heads) where the
    encoder offers it, else the data. Without a budget, of ``schedule``, ``keep``, ``per_frame``
    and ``r`` the first that is given decides.

    Attributes:
        r: Tokens to merge away in one round, 0 or more.
        schedule: Tokens to merge away round by round, each 0 or more.
        keep: Share of a group's tokens that stay, rounded up, above 0 and at most 1.
        per_frame: Tokens that stay per frame of a group, 1 or more.
        rounds: Spread the merging to a count evenly over so many rounds; 0 takes as few as
            possible.
        every: One destination in so many tokens, 2 or more.
        class_token: Token 0 of a group is a class token and stays as it is.
        distill_token: Token 1 of a group is a distillation token and stays as it is.
        weighting: Means by ``mass``, or ``plain`` means of every round.
        head_width: The metric is the data averaged over heads of so many channels, 0 or more;
            0, or a width that does not divide D, takes whole rows. Keys are taken as they are.
        scope: Merge within a frame, or over the video.
        clip: With scope video, merge within so many consecutive frames, 0 within all.

    Example:
        >>> import torch
        >>> data = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
        >>> tokens = TokenBatch.build(data, torch.zeros(3).double())
        >>> ToMe().decide(tokens, budget=2).dst.tolist()
        [1, 1, 0]
    """

    source: ClassVar[str] = "arXiv:2210.09461, section 3"
    needs: ClassVar[tuple[str, ...]] = ()
    modalities: ClassVar[tuple[str, ...]] = ("video", "audio")
    causal: ClassVar[bool] = False
    layouts: ClassVar[tuple[Layout, ...]] = ("ragged",)
    scale_free: ClassVar[bool] = True
    version: ClassVar[int] = 2
    exact: ClassVar[bool] = True
    where: ClassVar[Where] = "encoder"
    golden: ClassVar[tuple[str, ...]] = ("tome", "tome:video")

    r: Annotated[int, Field(ge=0)] = 0
    schedule: tuple[Annotated[int, Field(ge=0)], ...] = ()
    keep: Annotated[float, Field(gt=0, le=1)] | None = None
    per_frame: Annotated[int, Field(ge=1)] | None = None
    rounds: Annotated[int, Field(ge=0, le=1000)] = 0
    every: Annotated[int, Field(ge=2)] = 2
    class_token: bool = False
    distill_token: bool = False
    weighting: Literal["mass", "plain"] = "mass"
    head_width: Annotated[int, Field(ge=0)] = 0
    scope: Literal["frame", "video"] = "frame"
    clip: Annotated[int, Field(ge=0)] = 0

    def __post_init__(self) -> None:
        """Check what makes sense only together."""
        if self.distill_token and not self.class_token:
            raise ValueError("distill_token needs class_token")
        if self.clip and self.scope != "video":
            raise ValueError("clip needs scope video")

    def decide(
        self, tokens: TokenBatch, budget: int | None, query: Query | None = None
    ) -> TokenMap:
        """Merge every group down to its part of ``budget``.

        Returns:
            Rows group after group, in the paper's order of the last round: unmerged sources by
            decreasing similarity (ascending with a class token), then destinations. Where
            protected tokens leave nothing to merge, the last rows are dropped.
        """
        groups = groups_of(tokens, 1 if self.scope == "frame" else self.clip)
        return merge_groups(
            tokens, groups, self._plans(groups, budget),
            [keys_or_data(tokens, self.head_width)], self._rule(),
        )  # fmt: skip

    def out_count(self, n: int, budget: int | None) -> tuple[int, bool]:
        """Rows for ``n`` tokens of one group; a bound where the count depends on the frames."""
        if budget is not None:
            return min(n, budget), True
        if self.clip or self.per_frame is not None:
            return n, False
        return self._plan(n, 1, None).rows, True

    def _rule(self) -> Rule:
        return Rule(
            every=self.every, protected=Protected(self.class_token, self.distill_token),
            plain=self.weighting == "plain",
        )  # fmt: skip

    def _plans(self, groups: Groups, budget: int | None) -> list[Plan]:
        quotas = groups.quotas(budget)
        return [
            self._plan(size, frames, quota)
            for size, frames, quota in zip(groups.sizes, groups.frames, quotas, strict=True)
        ]

    def _plan(self, n: int, frames: int, quota: int | None) -> Plan:
        rule = self._rule()
        if quota is not None:
            return Plan(n, self._down_to(n, quota) if quota else (), quota)
        if self.schedule:
            found = rule.clipped(n, self.schedule)
        elif self.keep is not None:
            # Less than a millionth of a token above a whole number is rounding, not a token.
            found = self._down_to(n, math.ceil(n * self.keep - 1e-6))
        elif self.per_frame is not None:
            found = self._down_to(n, self.per_frame * frames)
        else:
            found = rule.clipped(n, (self.r,))
        return Plan(n, found, n - sum(found))

    def _down_to(self, n: int, target: int) -> tuple[int, ...]:
        rule, total = self._rule(), max(0, n - target)
        if not self.rounds:
            return rule.halvings(n, target)
        each, more = divmod(total, self.rounds)
        spread = rule.clipped(n, [each + (i < more) for i in range(self.rounds)])
        return spread + rule.halvings(n - sum(spread), target)
