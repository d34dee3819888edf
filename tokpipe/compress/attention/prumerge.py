"""Keep the tokens the class token attends to most; each takes in its neighbours, one row the rest.

Source: Shang et al., "LLaVA-PruMerge: Adaptive Token Reduction for Efficient Large Multimodal
Models", ICCV 2025, arXiv:2403.15388, sections 3.2 to 3.4 (PruMerge+: section 3.5).
Differs: a row is the average of its token and its neighbours weighted by attention, as the paper
says; the released code adds the neighbours weighted by raw attention, which barely moves the token
(``compat="released"``). The number of outliers is found per frame, not over the batch. Evenly
spaced samples cover any number of tokens and never repeat a kept one. With a budget the last row
counts too, and PruMerge+ halves the rest between attention and even spacing.

Shapes: N tokens of a frame, attention [N] or [N, H], keys [N, D']; n + 1 rows. Passes: 1 N x K
of keys, in blocks of rows.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from tokpipe.compress._absorb import best_first, flat_keys, nearest_others, others, spread
from tokpipe.compress._columns import head_mean
from tokpipe.frames import each_frame
from tokpipe.spec import Layout, Scope, Where
from tokpipe.tensors import Query, TokenBatch, TokenMap

#: Least weight in an average, so that tokens without any attention still count alike.
_LEAST = 1e-12


@dataclass(frozen=True, slots=True, kw_only=True)
class PruMerge:
    """Attention outliers, their neighbours by the similarity of keys, one row for what is left.

    Attributes:
        ratio: Part of the tokens kept by attention when no budget is given, above 0 to 1; None
            is the part of outliers: attention above Q3 + 1.5 (Q3 - Q1).
        neighbours: Tokens that each kept one takes in, 0 or more.
        spatial: Keep evenly spaced tokens as well (PruMerge+).
        compat: ``released`` merges, counts outliers over all frames and samples as the authors'
            code does, repeats and lost low indices included.

    Example:
        >>> tokens = TokenBatch.build(torch.eye(3), torch.zeros(3).double())
        >>> tokens = tokens.with_extras(attention=torch.tensor([0.1, 0.7, 0.2]), keys=torch.eye(3))
        >>> PruMerge(neighbours=0).decide(tokens, budget=2).anchor.tolist()
        [1, 2]
    """

    source: ClassVar[str] = "arXiv:2403.15388, section 3"
    scope: ClassVar[Scope] = "frame"
    needs: ClassVar[tuple[str, ...]] = ("attention", "keys")
    modalities: ClassVar[tuple[str, ...]] = ("video",)
    causal: ClassVar[bool] = False
    layouts: ClassVar[tuple[Layout, ...]] = ("ragged",)
    scale_free: ClassVar[bool] = True
    version: ClassVar[int] = 1
    gives: ClassVar[tuple[str, ...]] = ("score",)
    exact: ClassVar[bool] = True
    where: ClassVar[Where] = "outputs"
    golden: ClassVar[tuple[str, ...]] = ("prumerge", "prumerge_plus")

    ratio: Annotated[float, Field(gt=0, le=1)] | None = None
    neighbours: Annotated[int, Field(ge=0)] = 32
    spatial: bool = False
    compat: Literal["paper", "released"] = "paper"

    def decide(
        self, tokens: TokenBatch, budget: int | None, query: Query | None = None
    ) -> TokenMap:
        """Reduce each frame to its outliers, or to its part of the budget.

        Returns:
            Per frame the kept tokens by decreasing attention, then the evenly spaced ones, then
            the row of all others at the most attended of them; ``score`` is the attention.

        Raises:
            RecipeError: ``attention`` or ``keys`` is missing.
        """
        ratio = self.ratio
        if ratio is None and budget is None and self.compat == "released" and len(tokens):
            ratio = outlier_ratio(head_mean(tokens, "attention", "prumerge"))
        return each_frame(tokens, budget, lambda part, rows: self._one(part, rows, ratio))

    def out_count(self, n: int, budget: int | None) -> tuple[int, bool]:
        """Rows for ``n`` tokens: exact with a budget, else a bound."""
        if budget is None:
            return n + (n if self.spatial and self.compat == "released" else 0), False
        return min(n, budget), True

    def _one(self, tokens: TokenBatch, budget: int | None, ratio: float | None) -> TokenMap:
        attention = head_mean(tokens, "attention", "prumerge")
        n, device = len(tokens), attention.device
        order = best_first(attention)
        if n < 2 or (budget is not None and budget >= n):
            return replace(TokenMap.identity(n, device), score=attention)
        if budget is None:
            ratio = outlier_ratio(attention) if ratio is None else ratio
            kept = self._official(order, ratio)
        else:
            kept = self._spread_over(order, budget - 1)
        rest = self._left(kept, n)
        return self._merged(attention, flat_keys(tokens, "prumerge"), kept, rest)

    def _official(self, order: Tensor, ratio: float) -> Tensor:
        """Kept tokens by a ratio, with the evenly spaced ones of PruMerge+."""
        n, device = order.shape[0], order.device
        top = order[: int(n * ratio)]
        if not self.spatial:
            return top
        step = int(1 / ratio) if ratio > 0 else n
        if self.ratio is None:
            samples = torch.arange(0, n, max(1, step // 3), device=device)
        else:
            samples = torch.arange(step // 2, n, step, device=device)
        if self.compat == "released":
            samples = samples[samples < n - 1]
            if self.ratio is not None:
                return torch.cat([top, samples])
        return torch.cat([top, samples[~torch.isin(samples, top)]])

    def _spread_over(self, order: Tensor, count: int) -> Tensor:
        """``count`` kept tokens, half of them evenly spaced over the others in PruMerge+."""
        even = count // 2 if self.spatial else 0
        top, rest = order[: count - even], order[count - even :].sort().values
        place = (
            (2 * torch.arange(even, device=order.device) + 1) * rest.shape[0] // max(1, 2 * even)
        )
        return torch.cat([top, rest[place]])

    def _left(self, kept: Tensor, n: int) -> Tensor:
        """Tokens that are not kept; as released, each repeat of a kept one loses a low index."""
        rest = others(n, kept)
        if self.compat == "released":
            repeats = kept.shape[0] - (n - rest.shape[0])
            return rest[repeats:]
        return rest

    def _merged(self, attention: Tensor, keys: Tensor, kept: Tensor, rest: Tensor) -> TokenMap:
        n, count = attention.shape[0], kept.shape[0]
        rows = torch.arange(count, device=kept.device)
        if self.compat == "released":
            # Released: neighbours are looked for among the kept, repeats included, and the rest.
            known = torch.cat([kept, rest])
            most = min(self.neighbours, len(known) - 1)
            row, near = nearest_others(keys, kept, most, rest=rest)
            near = known[near]
        else:
            row, near = nearest_others(keys, kept, min(self.neighbours, n - 1))
        src, dst, anchor = torch.cat([kept, near]), torch.cat([rows, row]), kept
        if rest.shape[0]:
            src, dst = torch.cat([src, rest]), torch.cat([dst, torch.full_like(rest, count)])
            anchor = torch.cat([kept, rest[attention[rest].argmax()].reshape(1)])
        part = attention[src].clamp(min=_LEAST)
        if self.compat == "released":
            weight = attention[src]
            weight[:count] = 1.0
        else:
            total = torch.zeros(anchor.shape[0], device=part.device).index_add_(0, dst, part)
            weight = part / total[dst]
        own = anchor.clone()
        own[count:] = -1
        made = spread(src, dst, part, weight, own, n)
        return replace(made, anchor=anchor, score=attention[anchor])


def outlier_ratio(attention: Tensor) -> float:
    """Part of the values float32 [N], N >= 1, above Q3 + 1.5 (Q3 - Q1), linear quartiles."""
    value = attention.double()
    low, high = torch.quantile(value, torch.tensor([0.25, 0.75], device=value.device).double())
    return int((value > high + 1.5 * (high - low)).sum()) / value.shape[0]
