"""Keep the most attended tokens and, of the others, those that repeat each other least.

Source: Zhang et al., "Beyond Text-Visual Attention: Exploiting Visual Cues for Effective Token
Pruning in VLMs" (VisPruner), ICCV 2025, arXiv:2412.01818, section 3.
Differs: an odd number of left-over tokens works (the released code stops with an error); ties go
to the lower rank; similarities are computed once and looked up in every round.

Shapes: N tokens of a frame, attention [N] or [N, H]; min(budget, N) rows in ascending order.
Passes: 1 N x N once, then (N - K) / 8 rounds of O(N^2 / 4) look-ups. Beyond 2896 left-over tokens
nothing is kept and every round is 1/4 N x N in tiles: memory stays bounded, time is cubic.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from tokpipe.compress._absorb import best_first
from tokpipe.compress._columns import head_mean
from tokpipe.compress._neighbors import BLOCK, most_alike, unit_rows
from tokpipe.frames import each_frame
from tokpipe.spec import Layout, Scope, Where
from tokpipe.tensors import Query, TokenBatch, TokenMap


@dataclass(frozen=True, slots=True, kw_only=True)
class VisPruner:
    """Important tokens by attention, diverse ones by repeated removal of duplicates.

    Attributes:
        keep: Tokens kept of a frame when no budget is given, 1 or more; None keeps everything.
        important: Part of the kept that attention chooses, 0 to 1, rounded down.
        step: Duplicates removed in a round, 1 or more.

    Example:
        >>> data = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]])
        >>> tokens = TokenBatch.build(data, torch.zeros(3).double())
        >>> tokens = tokens.with_extras(attention=torch.tensor([0.5, 0.3, 0.2]))
        >>> VisPruner(important=1.0).decide(tokens, budget=2).anchor.tolist()
        [0, 1]
    """

    source: ClassVar[str] = "arXiv:2412.01818, section 3"
    scope: ClassVar[Scope] = "frame"
    needs: ClassVar[tuple[str, ...]] = ("attention",)
    modalities: ClassVar[tuple[str, ...]] = ("video",)
    causal: ClassVar[bool] = False
    layouts: ClassVar[tuple[Layout, ...]] = ("ragged",)
    scale_free: ClassVar[bool] = True
    version: ClassVar[int] = 1
    gives: ClassVar[tuple[str, ...]] = ("score",)
    exact: ClassVar[bool] = True
    where: ClassVar[Where] = "outputs"
    golden: ClassVar[tuple[str, ...]] = ("vispruner",)

    keep: Annotated[int, Field(ge=1)] | None = None
    important: Annotated[float, Field(ge=0, le=1)] = 0.5
    step: Annotated[int, Field(ge=1)] = 8

    def decide(
        self, tokens: TokenBatch, budget: int | None, query: Query | None = None
    ) -> TokenMap:
        """Keep ``budget`` tokens, shared over the frames.

        Returns:
            Kept tokens of each frame in ascending order; ``score`` is the attention.

        Raises:
            RecipeError: ``attention`` is missing.
        """
        return each_frame(tokens, budget, self._one)

    def out_count(self, n: int, budget: int | None) -> tuple[int, bool]:
        """Rows for ``n`` tokens: exact with a budget, else a bound."""
        if budget is None:
            return n, self.keep is None or n <= self.keep
        return min(n, budget), True

    def _one(self, tokens: TokenBatch, budget: int | None) -> TokenMap:
        attention = head_mean(tokens, "attention", "vispruner")
        n = len(tokens)
        wanted = self.keep if budget is None else budget
        count = n if wanted is None else min(n, wanted)
        order = best_first(attention)
        important = int(count * self.important) if count < n else n
        index = order[:important]
        if important < count:
            left = order[important:]
            kept = least_repeated(tokens.data, count - important, self.step, rows=left)
            index = torch.cat([index, kept])
        index = index.sort().values
        return TokenMap.keep(index, n, score=attention[index])


def least_repeated(data: Tensor, count: int, step: int, *, rows: Tensor | None = None) -> Tensor:
    """Rows int64 [count] of ``data`` float [N, D] left when the most repeated are removed.

    In every round the rows at even places of the list ``rows`` int64 [M] (None: all) are compared
    with those at odd places and at most ``step`` most similar of them go; the rest, by decreasing
    similarity, go before the odd ones in the next list. 1 <= count <= M.
    """
    left = torch.arange(data.shape[0], device=data.device) if rows is None else rows
    size, known = left.shape[0], None
    if size * size <= BLOCK:
        unit = unit_rows(data[left])
        known = unit @ unit.T if count < size else None
    place = torch.arange(size, device=left.device)
    while place.shape[0] > count:
        even, odd = place[::2], place[1::2]
        if known is None:
            alike = most_alike(data, left[even], left[odd])[0]
        else:
            alike = known[even[:, None], odd[None, :]].amax(1)
        order = torch.argsort(alike, descending=True, stable=True)
        gone = min(step, place.shape[0] - count, even.shape[0])
        place = torch.cat([even[order[gone:]], odd])
    return left[place]
