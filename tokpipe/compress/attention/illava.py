"""Average the least attended tokens of a frame into one.

Source: Hu et al., "iLLaVA: An Image is Worth Fewer Than 1/3 Input Tokens in Large Multimodal
Models", 2024, arXiv:2412.06263, section 3.
Differs: runs on the encoder's output, not inside four of its layers; no rounding to float16. As in
the released code the least attended token weighs most: weights r + 1, r, .. 1.

Shapes: N tokens of a frame, received [N]; N - r rows in ascending order, r = N - budget with a
budget. Cost: O(N log N).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field

from tokpipe.compress._absorb import others
from tokpipe.compress._columns import head_mean
from tokpipe.frames import each_frame
from tokpipe.spec import Layout, Scope, Where
from tokpipe.tensors import Query, TokenBatch, TokenMap


@dataclass(frozen=True, slots=True, kw_only=True)
class ILlava:
    """The r + 1 tokens that receive the least attention become one row, at the last of them.

    Attributes:
        r: Tokens to remove from a frame when no budget is given, 0 or more; at most all but one.

    Example:
        >>> tokens = TokenBatch.build(torch.eye(3), torch.zeros(3).double())
        >>> tokens = tokens.with_extras(received=torch.tensor([0.1, 0.7, 0.2]))
        >>> ILlava(r=1).decide(tokens, None).anchor.tolist()
        [1, 2]
    """

    source: ClassVar[str] = "arXiv:2412.06263, section 3"
    scope: ClassVar[Scope] = "frame"
    needs: ClassVar[tuple[str, ...]] = ("received",)
    modalities: ClassVar[tuple[str, ...]] = ("video",)
    causal: ClassVar[bool] = False
    layouts: ClassVar[tuple[Layout, ...]] = ("ragged",)
    version: ClassVar[int] = 1
    gives: ClassVar[tuple[str, ...]] = ("score",)
    exact: ClassVar[bool] = True
    where: ClassVar[Where] = "encoder"
    golden: ClassVar[tuple[str, ...]] = ("illava",)

    r: Annotated[int, Field(ge=0)] = 92

    def decide(
        self, tokens: TokenBatch, budget: int | None, query: Query | None = None
    ) -> TokenMap:
        """Remove ``r`` tokens of each frame, or what its part of the budget leaves no room for.

        Returns:
            Rows of each frame in ascending order of their place; ``score`` is the attention the
            place receives.

        Raises:
            RecipeError: ``received`` is missing.
        """
        return each_frame(tokens, budget, self._one)

    def out_count(self, n: int, budget: int | None) -> tuple[int, bool]:
        """Rows for ``n`` tokens: exact with a budget, else a bound for unknown frames."""
        if budget is None:
            return n, self.r == 0
        return min(n, budget), True

    def _one(self, tokens: TokenBatch, budget: int | None) -> TokenMap:
        received = head_mean(tokens, "received", "illava")
        n, device = len(tokens), received.device
        remove = min(self.r, max(0, n - 1)) if budget is None else max(0, n - budget)
        lowest = torch.argsort(received, stable=True)[: remove + 1]
        kept = others(n, lowest[:-1], distinct=True)
        row = torch.empty(n, dtype=torch.int64, device=device)
        row[kept] = torch.arange(kept.shape[0], device=device)
        row[lowest] = row[lowest[-1:]]
        weight = torch.ones(n, device=device)
        falling = torch.arange(lowest.shape[0], 0, -1, device=device).float()
        weight[lowest] = falling / falling.sum()
        return TokenMap(
            src=torch.arange(n, device=device), dst=row, weight=weight,
            share=torch.ones(n, device=device), anchor=kept, num_sources=n,
            score=received[kept],
        )  # fmt: skip
