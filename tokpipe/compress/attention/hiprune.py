"""Keep what middle layers look at, its neighbours, and what the last layer looks at.

Source: Liu et al., "HiPrune: Training-Free Visual Token Pruning via Hierarchical Attention in
Vision-Language Models", 2025, arXiv:2508.00553, section 3.
Differs: neighbours are those of the cell; the released code takes the index before and after, also
across the ends of rows (``compat="released"``). Where anchors and neighbours alone exceed the
count, anchors come first, then neighbours by attention of the last layer.

Shapes: N tokens of a frame, received and received_middle [N]; min(budget, N) rows in ascending
order. Cost: O(N log N).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from tokpipe.compress._absorb import best_first
from tokpipe.compress._columns import head_mean
from tokpipe.frames import each_frame
from tokpipe.spec import Layout, Scope, Where
from tokpipe.tensors import Query, TokenBatch, TokenMap


@dataclass(frozen=True, slots=True, kw_only=True)
class HiPrune:
    """Anchors of a middle layer, the cells around them, registers of the last layer.

    Attributes:
        keep: Tokens kept of a frame when no budget is given, 1 or more; None keeps everything.
        alpha: Part of the kept meant for anchors and their four neighbours, 0 to 1: a fifth of
            it, rounded half to even, is the number of anchors.
        compat: ``released`` takes neighbours by index and grid width.

    Example:
        >>> tokens = TokenBatch.build(torch.eye(3), torch.zeros(3).double())
        >>> seen = torch.tensor([0.1, 0.2, 0.7])
        >>> tokens = tokens.with_extras(received=seen, received_middle=seen)
        >>> HiPrune().decide(tokens, budget=2).anchor.tolist()
        [1, 2]
    """

    source: ClassVar[str] = "arXiv:2508.00553, section 3"
    scope: ClassVar[Scope] = "frame"
    needs: ClassVar[tuple[str, ...]] = ("received", "received_middle")
    modalities: ClassVar[tuple[str, ...]] = ("video",)
    causal: ClassVar[bool] = False
    layouts: ClassVar[tuple[Layout, ...]] = ("ragged",)
    version: ClassVar[int] = 1
    gives: ClassVar[tuple[str, ...]] = ("score",)
    exact: ClassVar[bool] = True
    where: ClassVar[Where] = "outputs"
    golden: ClassVar[tuple[str, ...]] = ("hiprune",)

    keep: Annotated[int, Field(ge=1)] | None = None
    alpha: Annotated[float, Field(ge=0, le=1)] = 0.1
    compat: Literal["paper", "released"] = "paper"

    def decide(
        self, tokens: TokenBatch, budget: int | None, query: Query | None = None
    ) -> TokenMap:
        """Keep ``budget`` tokens, shared over the frames.

        Returns:
            Kept tokens of each frame in ascending order; ``score`` is the last layer's attention.

        Raises:
            RecipeError: ``received`` or ``received_middle`` is missing.
        """
        return each_frame(tokens, budget, self._one)

    def out_count(self, n: int, budget: int | None) -> tuple[int, bool]:
        """Rows for ``n`` tokens: exact with a budget, else a bound."""
        if budget is None:
            return n, self.keep is None or n <= self.keep
        return min(n, budget), True

    def _one(self, tokens: TokenBatch, budget: int | None) -> TokenMap:
        deep = head_mean(tokens, "received", "hiprune")
        middle = head_mean(tokens, "received_middle", "hiprune")
        n = len(tokens)
        wanted = self.keep if budget is None else budget
        if wanted is None or wanted >= n:
            return replace(TokenMap.identity(n, deep.device), score=deep)
        anchors = best_first(middle)[: round(wanted * self.alpha / 5)]
        tier = torch.zeros(n, dtype=torch.uint8, device=deep.device)
        tier[self._around(tokens, anchors)] = 1
        tier[anchors] = 2
        order = best_first(deep)
        order = order[torch.argsort(tier[order], descending=True, stable=True)]
        index = order[:wanted].sort().values
        return TokenMap.keep(index, n, score=deep[index])

    def _around(self, tokens: TokenBatch, anchors: Tensor) -> Tensor:
        """Tokens beside ``anchors``, repeats included."""
        y, x = tokens.cell[:, 1].long(), tokens.cell[:, 2].long()
        if self.compat == "released":
            width = int(x.max()) + 1
            steps = torch.tensor([-1, 1, -width, width], device=y.device)
            return (anchors[:, None] + steps).flatten().clamp(0, len(tokens) - 1)
        # One border of empty cells on every side stops at the ends of rows and of tiles.
        y, x, tile = y - y.min() + 1, x - x.min() + 1, tokens.tile.long()
        rows, cols = int(y.max()) + 2, int(x.max()) + 2
        place = (tile * rows + y) * cols + x
        size = (int(tile.max()) + 1) * rows * cols
        at = torch.full((size,), len(tokens), dtype=torch.int64, device=y.device)
        index = torch.arange(len(tokens), device=y.device)
        at = at.scatter_reduce(0, place, index, "amin")
        steps = torch.tensor([-1, 1, -cols, cols], device=y.device)
        near = at[(place[anchors, None] + steps).flatten()]
        return near[near < len(tokens)]
