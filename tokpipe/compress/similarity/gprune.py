"""Keep the tokens that gather most when importance flows along a graph of similar tokens.

Source: Jiang et al., "What Kind of Visual Tokens Do We Need? Training-free Visual Token Pruning for
Multi-modal Large Language Models from the Perspective of Graph", AAAI 2025, arXiv:2501.02268,
section 3 (G-Prune).
Differs: the power of the transition matrix is taken vector by vector; a zero row keeps a loop to
itself; ties go to the lower index. Pairs near the threshold make the rule sensitive by nature.

Shapes: data [N, D]; keeps min(budget, N) tokens in the order they come.
Passes: 5 N x N, one for every step of the flow (at least one) where cosines are not kept, beyond
4096 tokens: in blocks of rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from tokpipe.compress._cosine import DENSE, Cosines
from tokpipe.compress._stacks import Rows, stacks
from tokpipe.spec import Layout, Where
from tokpipe.tensors import Query, TokenBatch, TokenMap


@dataclass(frozen=True, slots=True, kw_only=True)
class Gprune:
    """Top tokens of a flow that starts from lengths and is divided by degrees once.

    Attributes:
        threshold: Cosine from which two tokens are linked, above 0 to 1; it shapes the graph,
            counts come from ``keep`` or the budget.
        temperature: Of the softmax over links, above 0.
        steps: Steps of the flow, 0 or more.
        keep: Part of the tokens kept without a budget, above 0 to 1 (rounded down, at least one).
        scope: A graph per frame, or one of the whole video.
    """

    source: ClassVar[str] = "arXiv:2501.02268, section 3"
    needs: ClassVar[tuple[str, ...]] = ()
    modalities: ClassVar[tuple[str, ...]] = ("video", "audio")
    causal: ClassVar[bool] = False
    layouts: ClassVar[tuple[Layout, ...]] = ("ragged",)
    where: ClassVar[Where] = "outputs"
    golden: ClassVar[tuple[str, ...]] = ("gprune",)
    gives: ClassVar[tuple[str, ...]] = ("score",)
    scale_free: ClassVar[bool] = True
    version: ClassVar[int] = 1
    exact: ClassVar[bool] = True

    threshold: Annotated[float, Field(gt=0, le=1)] = 0.5
    temperature: Annotated[float, Field(gt=0)] = 0.03
    steps: Annotated[int, Field(ge=0, le=1000)] = 5
    keep: Annotated[float, Field(gt=0, le=1)] = 0.5
    scope: Literal["frame", "video"] = "frame"

    def decide(
        self, tokens: TokenBatch, budget: int | None, query: Query | None = None
    ) -> TokenMap:
        """Keep the ``budget`` best; the map's ``score`` is what they gather by their degree."""
        n, device = len(tokens), tokens.data.device
        if budget is not None and budget >= n:
            return TokenMap.identity(n, device)
        rows = Rows(n, device)
        for stack in stacks(tokens, budget, self.scope, DENSE):
            score, _ = self.flow(Cosines(stack.of(tokens.data)))
            order = torch.argsort(score, dim=1, descending=True, stable=True)
            count = self._own(order.shape[1]) if stack.quota is None else stack.most
            kept = torch.zeros_like(score, dtype=torch.bool)
            kept.scatter_(1, order[:, :count], stack.within(count))
            rows.add(stack, stack.own(), kept, score=score)
        return rows.keep()

    def out_count(self, n: int, budget: int | None) -> tuple[int, bool]:
        """Rows for ``n`` tokens, exact."""
        return (self._own(n) if budget is None else min(n, budget)), True

    def _own(self, n: int) -> int:
        return min(n, max(1, int(n * self.keep)))

    def flow(self, cosines: Cosines) -> tuple[Tensor, Tensor]:
        """Score float32 [T, C] and degree int64 [T, C] (itself included) of each token."""
        flow = cosines.length()
        degree = torch.ones(cosines.shape, dtype=torch.int64, device=flow.device)
        held = None
        for step in range(max(1, self.steps)):
            moved = torch.zeros_like(flow)
            blocks = self._links(cosines) if held is None else iter(held)
            if held is None and cosines.dense is not None:
                blocks = iter(held := list(blocks))
            for a, b, link, links in blocks:
                if step == 0:
                    degree[:, a:b] = links
                part = flow[:, a:b] / link.sum(2)
                moved += (part[:, None] @ link)[:, 0]
                del link  # else the next block is made beside it
            flow = moved if self.steps else flow
        return flow / degree, degree

    def _links(self, cosines: Cosines) -> Iterator[tuple[int, int, Tensor, Tensor]]:
        """Ranges of rows, their exp(cosine / temperature) [T, R, C] up to a factor, degrees."""
        for a, b, block in cosines.blocks(own=True):
            near = block >= self.threshold
            near.diagonal(offset=a, dim1=1, dim2=2).fill_(True)
            block.sub_(1).mul_(1 / self.temperature).exp_().mul_(near)
            # Only a zero row's loop is not e^0 already; its factor is free.
            block.diagonal(offset=a, dim1=1, dim2=2).clamp_(min=1)
            links = near.sum(2)
            del near
            yield a, b, block, links
            del block
