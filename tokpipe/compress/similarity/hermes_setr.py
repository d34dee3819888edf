"""Merge whole frames into the most similar of every few.

Source: Faure et al., "HERMES: temporal-coHERent long-forM understanding with Episodes and
Semantics", ICCV 2025, arXiv:2408.17443, section 3 (SeTR).
Differs: frames after the last destination are merged like the others;
``compat="released"`` drops them, as the released code. With a budget as many destinations are
taken as fit whole frames, and the frames least like one stay by themselves while there is room; a
budget below one frame goes on to merge tokens within it by the same matching.

A frame is one vector of C x D numbers. Frames k-1, 2k-1, ... are destinations, the others join
the most similar one; a row is the plain mean of the tokens at its position.

Shapes: N = T x C tokens in whole frames; result max(1, T // k) frames without a budget.
Cost: O(T^2 C D / k); memory bounded by blocks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field

from tokpipe.compress._match import best_pairs, cosine, merge_best
from tokpipe.compress._merge_rounds import Groups, Rule, merge_groups
from tokpipe.frames import equal_frames
from tokpipe.spec import Layout, Scope, Where
from tokpipe.tensors import Query, TokenBatch, TokenMap


@dataclass(frozen=True, slots=True, kw_only=True)
class HermesSeTR:
    """Bipartite matching of frames, every k-th one a destination.

    Attributes:
        k: One destination in so many frames when no budget is given, 2 or more.
        compat: ``released`` drops the frames after the last destination.
    """

    source: ClassVar[str] = "arXiv:2408.17443, section 3"
    scope: ClassVar[Scope] = "video"
    needs: ClassVar[tuple[str, ...]] = ()
    modalities: ClassVar[tuple[str, ...]] = ("video",)
    causal: ClassVar[bool] = False
    layouts: ClassVar[tuple[Layout, ...]] = ("frames",)
    scale_free: ClassVar[bool] = True
    version: ClassVar[int] = 1
    exact: ClassVar[bool] = False
    where: ClassVar[Where] = "outputs"
    golden: ClassVar[tuple[str, ...]] = ("hermes_semantics",)

    k: Annotated[int, Field(ge=2)] = 4
    compat: Literal["paper", "released"] = "paper"

    def decide(
        self, tokens: TokenBatch, budget: int | None, query: Query | None = None
    ) -> TokenMap:
        """Merge frames.

        Returns:
            Frames that stay by decreasing similarity, then the destinations, each a whole frame.

        Raises:
            RecipeError: The frames are not whole or not of one size.
        """
        steps, size = equal_frames(tokens, "hermes-setr")
        n = len(tokens)
        if n == 0 or (budget is not None and budget >= n):
            return TokenMap.identity(n, tokens.data.device)
        if budget is None:
            every, rows = min(self.k, steps), max(1, steps // self.k)
        else:
            rows = max(1, budget // size)
            every = steps // (rows + 1) + 1
        decision = self._frames(tokens, steps, every, rows)
        if budget is None or len(decision) <= budget:
            return decision
        within, rule = tokens.reduce(decision), Rule()
        alone = Groups([size], [1], None)
        return decision.then(
            merge_groups(within, alone, rule.plans(alone, budget), [within.data], rule)
        )

    def out_count(self, n: int, budget: int | None) -> tuple[int, bool]:
        """At most ``budget`` rows; without one the frames decide."""
        return n if budget is None else min(n, budget), False

    def _frames(self, tokens: TokenBatch, steps: int, every: int, rows: int) -> TokenMap:
        """Merge ``steps`` frames down to ``rows``."""
        size, device = len(tokens) // steps, tokens.data.device
        if steps == rows:
            return TokenMap.identity(len(tokens), device)
        whole = steps - steps % every if self.compat == "released" else steps
        frames = tokens.data.reshape(1, steps, -1)[:, :whole]
        pairs = best_pairs(cosine(frames), 1, whole, device, every=every)
        match = merge_best(pairs, max(0, whole - rows))
        place = torch.arange(size, device=device)
        group = torch.full((steps, size), -1, dtype=torch.int64, device=device)
        group[:whole] = match.group[0][:, None] * size + place
        anchor = (match.anchor[0][:, None] * size + place).flatten()
        return TokenMap.mean(group.flatten(), anchor.shape[0], anchor=anchor)
