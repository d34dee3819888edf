"""Keep the sound patches that the class token attends to most, strongest first.

Source: Lee et al., "Token Pruning in Audio Transformers: Optimizing Performance and Decoding Patch
Importance", 2025, arXiv:2504.01690, section 3.
Differs: runs once on the given tokens instead of in several blocks; ties go to the lower index.

Shapes: N tokens, attention [N] or [N, H] of the class token; S special tokens as they are, then
ceil(ratio (N - S)) patches by decreasing attention. Cost: O(N log N).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field

from tokpipe.compress._absorb import best_first
from tokpipe.compress._columns import head_mean
from tokpipe.spec import Layout, Scope, Where
from tokpipe.tensors import Query, TokenBatch, TokenMap


@dataclass(frozen=True, slots=True, kw_only=True)
class AstTopK:
    """The most attended patches of a clip, in order of attention.

    Attributes:
        ratio: Part of the patches kept when no budget is given, above 0 to 1, rounded up.
        special: The first so many tokens are class tokens and stay, 0 or more; 2 in AST when
            they are part of the sequence.

    Example:
        >>> tokens = TokenBatch.build(torch.eye(3), torch.arange(3).double(), modality=1)
        >>> tokens = tokens.with_extras(attention=torch.tensor([0.2, 0.1, 0.7]))
        >>> AstTopK().decide(tokens, budget=2).anchor.tolist()
        [2, 0]
    """

    source: ClassVar[str] = "arXiv:2504.01690, section 3"
    scope: ClassVar[Scope] = "video"
    needs: ClassVar[tuple[str, ...]] = ("attention",)
    modalities: ClassVar[tuple[str, ...]] = ("audio",)
    causal: ClassVar[bool] = False
    layouts: ClassVar[tuple[Layout, ...]] = ("ragged",)
    version: ClassVar[int] = 1
    gives: ClassVar[tuple[str, ...]] = ("score",)
    exact: ClassVar[bool] = True
    where: ClassVar[Where] = "encoder"
    golden: ClassVar[tuple[str, ...]] = ("ast_topk_prune",)

    ratio: Annotated[float, Field(gt=0, le=1)] = 0.7
    special: Annotated[int, Field(ge=0)] = 0

    def decide(
        self, tokens: TokenBatch, budget: int | None, query: Query | None = None
    ) -> TokenMap:
        """Keep the special tokens and the most attended patches.

        Returns:
            Special tokens in their order, then patches by decreasing attention; ``score`` is the
            attention.

        Raises:
            RecipeError: ``attention`` is missing.
        """
        attention = head_mean(tokens, "attention", "ast-topk")
        n = len(tokens)
        count, _ = self.out_count(n, budget)
        special = min(self.special, count)
        first = torch.arange(special, device=attention.device)
        patches = best_first(attention[special:])[: count - special] + special
        index = torch.cat([first, patches])
        return TokenMap.keep(index, n, score=attention[index])

    def out_count(self, n: int, budget: int | None) -> tuple[int, bool]:
        """Rows for ``n`` tokens, exact."""
        if budget is not None:
            return min(n, budget), True
        special = min(self.special, n)
        return special + math.ceil(self.ratio * (n - special)), True
