"""Merge tokens by matching folded upon itself, in their own order.

Source: Wang et al., "FOLDER: Accelerating Multi-modal Large Language Models with Enhanced
Performance", ICCV 2025, arXiv:2501.02430, section 3; the simple form of the released code.
Differs: ``compat="released"`` multiplies rows by 1 + ln(size), as the code does when it folded
more than once or when r is below half of the rows kept, and leaves the last pair of a frame
without class token unmerged; the default does neither.

Shapes: data [N, D]; min(budget, N) rows in raster order, as many rounds ("folds") as needed.
Cost: O(C^2 D / 4) for the first round of a group of C tokens.
Passes: 1/3 N x N in blocks of rows, over all rounds; half of the rows, averaged, are held.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field

from tokpipe.compress._match import Protected
from tokpipe.compress._merge_rounds import Plan, Rule, groups_of, merge_groups
from tokpipe.spec import Layout, Where
from tokpipe.tensors import Query, TokenBatch, TokenMap


@dataclass(frozen=True, slots=True, kw_only=True)
class Folder:
    """Repeated bipartite matching on the data; rows stay in the order of their places.

    Attributes:
        r: Tokens of a frame to merge away when no budget is given, 0 or more.
        class_token: Token 0 of a frame is a class token and stays as it is.
        scope: Merge within a frame, or over the whole video.
        compat: ``released`` rescales rows and ends one pair early, as the released code.
    """

    source: ClassVar[str] = "arXiv:2501.02430, section 3"
    needs: ClassVar[tuple[str, ...]] = ()
    modalities: ClassVar[tuple[str, ...]] = ("video", "audio")
    causal: ClassVar[bool] = False
    layouts: ClassVar[tuple[Layout, ...]] = ("ragged",)
    scale_free: ClassVar[bool] = True
    version: ClassVar[int] = 1
    exact: ClassVar[bool] = True
    where: ClassVar[Where] = "outputs"
    golden: ClassVar[tuple[str, ...]] = ("folder",)

    r: Annotated[int, Field(ge=0)] = 0
    class_token: bool = False
    scope: Literal["frame", "video"] = "frame"
    compat: Literal["paper", "released"] = "paper"

    def decide(
        self, tokens: TokenBatch, budget: int | None, query: Query | None = None
    ) -> TokenMap:
        """Fold every frame down to its part of ``budget``; rows in raster order."""
        groups = groups_of(tokens, 1 if self.scope == "frame" else 0)
        rule = self._rule()
        quotas = groups.quotas(budget)
        plans = [self._plan(n, quota) for n, quota in zip(groups.sizes, quotas, strict=True)]
        decision = merge_groups(tokens, groups, plans, [tokens.data], rule)
        return decision if self.compat == "paper" else _rescaled(decision, tokens, plans)

    def out_count(self, n: int, budget: int | None) -> tuple[int, bool]:
        """Rows for ``n`` tokens of one frame, exact."""
        return self._plan(n, budget).rows, True

    def _rule(self) -> Rule:
        return Rule(
            protected=Protected(self.class_token), raster=True, spare=self.compat == "released"
        )

    def _plan(self, n: int, quota: int | None) -> Plan:
        if quota is not None:
            return self._rule().plan(n, quota)
        rounds = self._rule().halvings(n, max(0, n - self.r))
        return Plan(n, rounds, n - sum(rounds))


def _rescaled(decision: TokenMap, tokens: TokenBatch, plans: list[Plan]) -> TokenMap:
    """Rows of frames that meet the released condition times 1 + ln of their mass."""
    scaled = []
    for plan in plans:
        left = 0 if len(plan.rounds) > 1 else sum(plan.rounds)
        scaled += [bool(plan.rounds) and left < plan.rows // 2] * plan.rows
    mass = torch.zeros(len(decision), device=decision.weight.device)
    mass.index_add_(0, decision.dst, decision.share * tokens.mass[decision.src])
    chosen = torch.tensor(scaled, device=mass.device)
    factor = torch.where(chosen, 1 + mass.clamp(min=1e-12).log(), torch.ones_like(mass))
    return replace(decision, weight=decision.weight * factor[decision.dst])
