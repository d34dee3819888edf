"""Keep the tokens with the highest score or attention.

Source: FasterVLM (Zhang et al., 2024, arXiv:2412.01818, section 3.3) with class attention; FastV
(Chen et al., ECCV 2024, arXiv:2403.06764) with text attention; any column works.
Differs: ties go to the lower index, NaN comes last.

Shapes: N tokens; keeps min(budget, N), in the order they come. Cost: O(N log N).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from tokpipe.errors import RecipeError
from tokpipe.spec import Layout, Scope
from tokpipe.tensors import Query, TokenBatch, TokenMap


@dataclass(frozen=True, slots=True, kw_only=True)
class TopK:
    """The highest values of one column.

    Attributes:
        by: ``score``, or the name of an extra column [N].
        keep: Tokens kept when no budget is given, 1 or more; None keeps everything.

    Example:
        >>> score = torch.tensor([0.1, 0.9, 0.5])
        >>> tokens = TokenBatch.build(torch.zeros(3, 1), torch.zeros(3).double(), score=score)
        >>> TopK().decide(tokens, budget=2).anchor.tolist()
        [1, 2]
    """

    source: ClassVar[str] = "arXiv:2412.01818, section 3.3"
    scope: ClassVar[Scope] = "video"
    modalities: ClassVar[tuple[str, ...]] = ("video", "audio")
    causal: ClassVar[bool] = False
    layouts: ClassVar[tuple[Layout, ...]] = ("ragged",)
    version: ClassVar[int] = 1
    gives: ClassVar[tuple[str, ...]] = ("score",)
    exact: ClassVar[bool] = True

    by: Annotated[str, Field(min_length=1)] = "score"
    keep: Annotated[int, Field(ge=1)] | None = None

    @property
    def needs(self) -> tuple[str, ...]:
        """The column it looks at."""
        return (self.by,)

    def decide(
        self, tokens: TokenBatch, budget: int | None, query: Query | None = None
    ) -> TokenMap:
        """Keep the ``budget`` highest; the map's ``score`` is the column.

        Raises:
            RecipeError: The column is not there, is not [N], or holds no number at all.
        """
        n = len(tokens)
        count, _ = self.out_count(n, budget)
        if count >= n:
            return TokenMap.identity(n, tokens.data.device)
        value = self._column(tokens)
        missing = value.isnan()
        order = torch.argsort(value.masked_fill(missing, -torch.inf), descending=True, stable=True)
        # Stable again by "is missing": a token at -inf still comes before NaN.
        order = order[torch.argsort(missing[order].byte(), stable=True)]
        index = order[:count].sort().values
        return TokenMap.keep(index, n, score=value[index])

    def out_count(self, n: int, budget: int | None) -> tuple[int, bool]:
        """Rows for ``n`` tokens, exact."""
        wanted = self.keep if budget is None else budget
        return n if wanted is None else min(n, wanted), True

    def _column(self, tokens: TokenBatch) -> Tensor:
        value = tokens.score if self.by == "score" else tokens.extras.get(self.by)
        if value is None or value.ndim != 1:
            listed = ", ".join(["score", *(k for k, v in tokens.extras.items() if v.ndim == 1)])
            raise RecipeError(
                f"`top-k` finds no column `{self.by}`",
                hint=f"columns of these tokens: {listed}",
                code="recipe.needs",
            )
        if bool(value.isnan().all()):
            raise RecipeError(
                f"`top-k`: no token has a value in `{self.by}`",
                hint="put a step before it that scores tokens, such as `temporal-drop`",
                code="recipe.needs",
            )
        return value.float()
