"""Merge neighbours that resemble the whole group before them, then prune for diversity.

Source: SA-MAP (formerly Samp), preprint 202606.0741; code: AngelSlim, branch SA-MAP.
Differs: where merging leaves fewer groups than asked for, those groups are the result (the
released code repeats rows); picks end where the determinant is used up and the rest is taken by
attention (the released code takes the root of a negative number). With a budget the threshold is
raised until there are enough groups.

Shapes: N tokens in order of time; rows in order of time. Cost: O(N D) for merging, O(G K (D + K))
for pruning G groups to K.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from tokpipe.compress._adjacent import grown, weighted_groups
from tokpipe.compress._columns import column
from tokpipe.compress._dpp import dpp_picks
from tokpipe.compress._neighbors import unit_rows
from tokpipe.errors import RecipeError
from tokpipe.maps import TokenMap
from tokpipe.spec import Layout, Scope, Where
from tokpipe.tensors import Query, TokenBatch

#: Halvings of the threshold's range when merging leaves too few groups.
_STEPS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class SaMap:
    """Similarity-aware merging, then attention-weighted diverse pruning.

    A token joins the group before it while its mean cosine to the group's members reaches the
    threshold; a group is the mean weighted by the attention received. Groups are then picked
    greedily for the largest determinant of cosines weighted by self-attention. Both weights come
    from the extra ``attention_rows``, see ``attention_weights``.

    Attributes:
        threshold: Smallest mean cosine to a group's members that joins it, -1 .. 1.
        keep: Part of the tokens kept when no budget is given, 0 .. 1; at least 2 tokens.

    Example:
        >>> data = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]])
        >>> tokens = TokenBatch.build(data, torch.arange(3).double())
        >>> tokens = tokens.with_extras(attention_rows=torch.full((3, 1, 3), 1 / 3))
        >>> SaMap().decide(tokens, 2).anchor.tolist()
        [0, 2]
    """

    source: ClassVar[str] = "preprint 202606.0741"
    scope: ClassVar[Scope] = "video"
    needs: ClassVar[tuple[str, ...]] = ("attention_rows",)
    modalities: ClassVar[tuple[str, ...]] = ("audio",)
    causal: ClassVar[bool] = False
    layouts: ClassVar[tuple[Layout, ...]] = ("ragged",)
    version: ClassVar[int] = 1
    exact: ClassVar[bool] = False
    where: ClassVar[Where] = "outputs"
    golden: ClassVar[tuple[str, ...]] = ("samap_suite", "samap_underflow")
    gives: ClassVar[tuple[str, ...]] = ("score",)

    threshold: Annotated[float, Field(ge=-1, le=1)] = 0.85
    keep: Annotated[float, Field(ge=0, le=1)] = 0.6

    def decide(
        self, tokens: TokenBatch, budget: int | None, query: Query | None = None
    ) -> TokenMap:
        """Merge, then prune.

        Returns:
            Rows in order of time, fewer than asked for where too few tokens differ. ``score`` is
            the mean self-attention of the group.

        Raises:
            RecipeError: ``attention_rows`` is missing, or not of whole items.
        """
        n = len(tokens)
        target, _ = self.out_count(n, budget)
        if n < 2 or (budget is not None and budget >= n):
            return TokenMap.identity(n, tokens.data.device)
        received, own = attention_weights(column(tokens, "attention_rows", "sa-map"))
        if received.shape[0] != n:
            raise RecipeError(
                "`sa-map` needs the attention of whole items",
                hint="put it before the steps that drop or merge tokens",
                code="recipe.needs",
            )
        group = grown(tokens.data, self.threshold)
        if budget is not None and int(group[-1]) + 1 < target:
            group = self._finer(tokens.data, target)
        rows = int(group[-1]) + 1
        merged = weighted_groups(group, rows, received)
        score = TokenMap.mean(group, rows)
        value = torch.zeros(rows, device=own.device).index_add_(0, group, own * score.weight)
        if rows > target:
            # Only the vectors are wanted here, not the columns.
            means = TokenBatch.build(tokens.data, tokens.at).reduce(merged).data
            kept = _diverse(means, value, target)
        else:
            kept = torch.arange(rows, device=own.device)
        return merged.then(TokenMap.keep(kept, rows, score=value[kept]))

    def out_count(self, n: int, budget: int | None) -> tuple[int, bool]:
        """Most rows for ``n`` tokens."""
        return min(n, max(round(n * self.keep), 2) if budget is None else budget), False

    def _finer(self, data: Tensor, target: int) -> Tensor:
        """Groups at the lowest threshold found that leaves ``target`` of them."""
        low, high = self.threshold, 1.0
        group = grown(data, high)
        for _ in range(_STEPS):
            middle = (low + high) / 2
            found = grown(data, middle)
            if int(found[-1]) + 1 < target:
                low = middle
            else:
                high, group = middle, found
        return group


def attention_weights(rows: Tensor) -> tuple[Tensor, Tensor]:
    """How much attention each token receives and pays to itself.

    Args:
        rows: float32 [N, H, M], attention of each token to the M tokens of its item, item after
            item; or [N, R, H, R x M] where each token was pooled from R positions of the encoder
            (Qwen2-Audio: R = 2): then means over its R queries and sums over R keys are taken.

    Returns:
        (received, own) float32 [N]: mean over queries of the largest head; mean head of its own
        key. Of another length where N is no multiple of M.
    """
    if rows.ndim == 3:
        rows = rows[:, None]
    count, size = rows.shape[1], max(1, rows.shape[3] // rows.shape[1])
    items = rows.shape[0] // size
    shape = (items, size, size, count)
    rows = rows[: items * size]
    largest = rows.amax(2).mean(1).reshape(shape).sum(3)
    mean = rows.mean((1, 2)).reshape(shape).sum(3)
    return largest.mean(1).flatten(), mean.diagonal(dim1=1, dim2=2).flatten()


def _diverse(data: Tensor, relevance: Tensor, count: int) -> Tensor:
    """Picks in order of time; where the determinant is used up, by relevance."""
    picks = dpp_picks(unit_rows(data), relevance, count)
    left = relevance.clone()
    left[picks] = -torch.inf
    rest = torch.argsort(left, descending=True, stable=True)[: count - picks.shape[0]]
    return torch.cat([picks, rest]).sort().values
