"""Average every few consecutive tokens.

Source: Chu et al., "Qwen2-Audio Technical Report", arXiv:2407.10759, section 2 (pooling with
stride two after the encoder); the ladder of rates of Llama-MTSK (arXiv:2503.06362).
Differs: the tail may also be kept; with a budget the tokens fall into that many bins of even
length, and none is dropped.

Shapes: [N, D] in order of time to [N // size, D]. Cost: O(N D).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field

from tokpipe.spec import KIND_POOLED, Layout, Scope, Where
from tokpipe.tensors import Query, TokenBatch, TokenMap


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool1d:
    """Plain means of consecutive tokens; a row takes the place of its first token.

    Attributes:
        size: Tokens of a row when no budget is given, 1 to 4096.
        tail: ``drop`` the tokens that fill no row, or ``keep`` the mean of those there are.

    Example:
        >>> tokens = TokenBatch.build(torch.arange(5.0)[:, None], torch.arange(5).double())
        >>> tokens.reduce(Pool1d().decide(tokens, None)).data.tolist()
        [[0.5], [2.5]]
    """

    source: ClassVar[str] = "arXiv:2407.10759, section 2"
    scope: ClassVar[Scope] = "video"
    needs: ClassVar[tuple[str, ...]] = ()
    modalities: ClassVar[tuple[str, ...]] = ("audio",)
    causal: ClassVar[bool] = False
    layouts: ClassVar[tuple[Layout, ...]] = ("ragged",)
    version: ClassVar[int] = 1
    exact: ClassVar[bool] = True
    where: ClassVar[Where] = "outputs"
    golden: ClassVar[tuple[str, ...]] = ("pool_stack_window",)

    size: Annotated[int, Field(ge=1, le=4096)] = 2
    tail: Literal["drop", "keep"] = "drop"

    def decide(
        self, tokens: TokenBatch, budget: int | None, query: Query | None = None
    ) -> TokenMap:
        """Average windows, or ``budget`` even bins.

        Returns:
            Rows in order of time.
        """
        n, device = len(tokens), tokens.data.device
        rows, _ = self.out_count(n, budget)
        if rows >= n:
            return TokenMap.identity(n, device)
        place = torch.arange(n, device=device)
        if budget is None:
            group = torch.div(place, self.size, rounding_mode="floor")
            group = torch.where(group < rows, group, -1)
        else:
            group = torch.div(place * rows, n, rounding_mode="floor")
        kind = torch.full((rows,), KIND_POOLED, dtype=torch.uint8, device=device)
        return replace(TokenMap.mean(group, rows), kind=kind)

    def out_count(self, n: int, budget: int | None) -> tuple[int, bool]:
        """Rows for ``n`` tokens, exact."""
        if budget is not None:
            return min(n, budget), True
        return (n // self.size if self.tail == "drop" else -(-n // self.size)), True
