"""Keep the tokens with the highest score or attention.

Source: FasterVLM (Zhang et al., 2024, arXiv:2412.01818, section 3.3) with class attention; FastV
(Chen et al., ECCV 2024, arXiv:2403.06764) with the attention of the last prompt token; any column.
Differs: ties go to the lower index, NaN comes last.

Shapes: N tokens; keeps min(budget, N), in the order they come. Cost: O(N log N).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from tokpipe.budget import largest_remainder
from tokpipe.errors import RecipeError
from tokpipe.frames import frames_of
from tokpipe.spec import Layout, Where
from tokpipe.tensors import Query, TokenBatch, TokenMap


@dataclass(frozen=True, slots=True, kw_only=True)
class TopK:
    """The highest values of one column.

    Attributes:
        by: ``score``, or the name of an extra column [N]; [N, H] is averaged over heads.
        keep: Tokens kept of each frame or of the video when no budget is given, 1 or more; None
            keeps everything.
        scope: The highest of each frame, or of the whole video.

    Example:
        >>> score = torch.tensor([0.1, 0.9, 0.5])
        >>> tokens = TokenBatch.build(torch.zeros(3, 1), torch.zeros(3).double(), score=score)
        >>> TopK().decide(tokens, budget=2).anchor.tolist()
        [1, 2]
    """

    source: ClassVar[str] = "arXiv:2412.01818, section 3.3"
    modalities: ClassVar[tuple[str, ...]] = ("video", "audio")
    causal: ClassVar[bool] = False
    layouts: ClassVar[tuple[Layout, ...]] = ("ragged",)
    default_needs: ClassVar[tuple[str, ...]] = ("score",)
    scale_free: ClassVar[bool] = True
    version: ClassVar[int] = 1
    gives: ClassVar[tuple[str, ...]] = ("score",)
    exact: ClassVar[bool] = True
    where: ClassVar[Where] = "outputs"
    golden: ClassVar[tuple[str, ...]] = ("fastervlm", "fastv")

    by: Annotated[str, Field(min_length=1)] = "score"
    keep: Annotated[int, Field(ge=1)] | None = None
    scope: Literal["frame", "video"] = "video"

    @property
    def needs(self) -> tuple[str, ...]:
        """The column it looks at."""
        return (self.by,)

    def decide(
        self, tokens: TokenBatch, budget: int | None, query: Query | None = None
    ) -> TokenMap:
        """Keep the ``budget`` highest, shared over the frames where each is by itself.

        Returns:
            The kept tokens in the order they come; ``score`` is the column.

        Raises:
            RecipeError: The column is not there, is not [N] or [N, H], or holds no number at all.
        """
        n = len(tokens)
        if self.out_count(n, budget) == (n, True):
            return TokenMap.identity(n, tokens.data.device)
        value = self._column(tokens)
        missing = value.isnan()
        order = torch.argsort(value.masked_fill(missing, -torch.inf), descending=True, stable=True)
        # Stable again by "is missing": a token at -inf still comes before NaN.
        order = order[torch.argsort(missing[order].byte(), stable=True)]
        index = self._highest(tokens, order, budget).sort().values
        return TokenMap.keep(index, n, score=value[index])

    def out_count(self, n: int, budget: int | None) -> tuple[int, bool]:
        """Rows for ``n`` tokens, exact; a bound for ``keep`` of each of unknown frames."""
        if budget is not None:
            return min(n, budget), True
        if self.keep is not None and self.scope == "frame":
            return n, n <= self.keep
        return n if self.keep is None else min(n, self.keep), True

    def _highest(self, tokens: TokenBatch, order: Tensor, budget: int | None) -> Tensor:
        """The kept of ``order``, tokens from the highest to the lowest."""
        if self.scope == "video":
            return order[: self.out_count(len(tokens), budget)[0]]
        found = frames_of(tokens)
        counts = found.counts
        if budget is None:
            quota = counts.clamp(max=self.keep)
        else:
            sizes = counts.tolist()
            rows = largest_remainder(min(budget, len(tokens)), sizes, caps=sizes)
            quota = torch.tensor(rows, device=counts.device)
        order = order[torch.argsort(found.index[order], stable=True)]
        frame = found.index[order]
        rank = torch.arange(len(tokens), device=order.device) - (counts.cumsum(0) - counts)[frame]
        return order[rank < quota[frame]]

    def _column(self, tokens: TokenBatch) -> Tensor:
        value = tokens.score if self.by == "score" else tokens.extras.get(self.by)
        if value is None or value.ndim > 2:
            listed = ", ".join(["score", *(k for k, v in tokens.extras.items() if v.ndim <= 2)])
            raise RecipeError(
                f"`top-k` finds no column `{self.by}`",
                hint=f"columns of these tokens: {listed}",
                code="recipe.needs",
            )
        value = value.float()
        value = value.mean(1) if value.ndim == 2 else value
        if bool(value.isnan().all()):
            raise RecipeError(
                f"`top-k`: no token has a value in `{self.by}`",
                hint="put a step before it that scores tokens, such as `temporal-drop`",
                code="recipe.needs",
            )
        return value
