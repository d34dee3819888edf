"""Spread redundant tokens over the tokens they correlate with most.

Source: Han et al., "Filter, Correlate, Compress: Training-Free Token Reduction for MLLM
Acceleration" (FiCoCo-V), 2024, arXiv:2411.17686, section 3.
Differs: receivers are tokens that stay, found by their own index, and rows keep the order of the
picture. In the released code receivers may be removed tokens or the class token, an index into the
picture is used as one into a reordered list, and the class token ends last
(``compat="released"``). The code also keeps a map of scores from one image to the next; here every
frame starts fresh.

Shapes: N tokens of a frame (token 0 the class token), queries and keys [N, D'] or [N, H, D'],
scaled as in the attention; N - r rows.
Passes: 1 N x K of queries with keys, in blocks of rows.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from tokpipe.compress._absorb import spread
from tokpipe.compress._columns import column, head_mean
from tokpipe.compress._neighbors import blocks
from tokpipe.frames import each_frame
from tokpipe.spec import Layout, Scope, Where
from tokpipe.tensors import Query, TokenBatch, TokenMap


@dataclass(frozen=True, slots=True, kw_only=True)
class FiCoCoV:
    """The tokens that say least go into those they look at most, in softmax parts.

    A token's score is ``beta`` x its attention from the class token - (1 - ``beta``) x its mean
    logit, both as vectors of length 1; the lowest of each window counts as lower still (half if
    above 0, twice if below).

    Attributes:
        r: Tokens to remove from a frame when no budget is given, 0 or more.
        beta: Part of the class token's attention in the score, 0 to 1.
        quantile: A removed token goes to those whose logits are above this quantile of its row,
            0 to 1.
        window: Side of a window in cells, 1 or more.
        class_token: Token 0 of each frame is the class token, and the column ``attention`` is
            not looked at.
        compat: ``released`` scatters and orders rows as the authors' code does.

    Example:
        >>> tokens = TokenBatch.build(torch.eye(3), torch.zeros(3).double())
        >>> seen = torch.tensor([0.1, 0.2, 0.7])
        >>> tokens = tokens.with_extras(attention=seen, queries=torch.eye(3), keys=torch.eye(3))
        >>> FiCoCoV(r=1).decide(tokens, None).anchor.tolist()
        [1, 2]
    """

    source: ClassVar[str] = "arXiv:2411.17686, section 3"
    scope: ClassVar[Scope] = "frame"
    needs: ClassVar[tuple[str, ...]] = ("attention", "queries", "keys")
    modalities: ClassVar[tuple[str, ...]] = ("video",)
    causal: ClassVar[bool] = False
    layouts: ClassVar[tuple[Layout, ...]] = ("ragged",)
    version: ClassVar[int] = 1
    gives: ClassVar[tuple[str, ...]] = ("score",)
    exact: ClassVar[bool] = True
    where: ClassVar[Where] = "encoder"
    golden: ClassVar[tuple[str, ...]] = ("ficoco_v",)

    r: Annotated[int, Field(ge=0)] = 42
    beta: Annotated[float, Field(ge=0, le=1)] = 0.35
    quantile: Annotated[float, Field(ge=0, le=1)] = 0.998
    window: Annotated[int, Field(ge=1)] = 2
    class_token: bool = False
    compat: Literal["paper", "released"] = "paper"

    def decide(
        self, tokens: TokenBatch, budget: int | None, query: Query | None = None
    ) -> TokenMap:
        """Remove ``r`` tokens of each frame, or what its part of the budget leaves no room for.

        Returns:
            Rows of each frame in the order of their places, the class token first (as released:
            by rising score, the class token last); ``score`` is the method's.

        Raises:
            RecipeError: ``attention``, ``queries`` or ``keys`` is missing.
        """
        return each_frame(tokens, budget, self._one)

    def out_count(self, n: int, budget: int | None) -> tuple[int, bool]:
        """Rows for ``n`` tokens: exact with a budget, else a bound for unknown frames."""
        if budget is None:
            return n, self.r == 0
        return min(n, budget), True

    def _one(self, tokens: TokenBatch, budget: int | None) -> TokenMap:
        queries = column(tokens, "queries", "ficoco-v").flatten(1)
        keys = column(tokens, "keys", "ficoco-v")
        heads = keys.shape[1] if keys.ndim == 3 else 1
        keys = keys.flatten(1) / heads
        n = len(tokens)
        most = max(0, n - (2 if self.class_token else 1))
        remove = min(self.r, most) if budget is None else max(0, n - budget)
        if not remove:
            return TokenMap.identity(n, keys.device)
        score = self._score(tokens, queries, keys)
        order = torch.argsort(score, stable=True)
        gone, stays = order[:remove], order[remove:]
        if self.compat == "paper":
            stays = stays.sort().values
        src, dst, part = self._spread(queries, keys, gone, stays)
        rows = torch.arange(stays.shape[0], device=keys.device)
        total = torch.ones_like(rows, dtype=torch.float32).index_add_(0, dst, part)
        src, dst = torch.cat([stays, src]), torch.cat([rows, dst])
        part = torch.cat([torch.ones_like(total), part])
        made = spread(src, dst, part, part / total[dst], stays, n)
        return replace(made, score=score[stays])

    def _score(self, tokens: TokenBatch, queries: Tensor, keys: Tensor) -> Tensor:
        """How much each token says [N]; the class token says most."""
        first = int(self.class_token)
        if self.class_token:
            seen = keys[1:] @ queries[0]
        else:
            seen = head_mean(tokens, "attention", "ficoco-v")
        said = queries[first:] @ keys.mean(0)
        score = self.beta * _unit(seen) - (1 - self.beta) * _unit(said)
        low = self._lowest(tokens.take(slice(first, None)), score)
        score[low] = torch.where(score[low] > 0, score[low] / 2, score[low] * 2)
        return torch.cat([score.new_full((first,), torch.inf), score])

    def _lowest(self, tokens: TokenBatch, score: Tensor) -> Tensor:
        """The token of lowest score in every window, ties to the lower index."""
        place = torch.cat([tokens.tile[:, None], tokens.cell[:, 1:] // self.window], 1)
        _, index, sizes = torch.unique(place, dim=0, return_inverse=True, return_counts=True)
        order = torch.argsort(score, stable=True)
        order = order[torch.argsort(index[order], stable=True)]
        return order[sizes.cumsum(0) - sizes]

    def _spread(
        self, queries: Tensor, keys: Tensor, gone: Tensor, stays: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Entries (removed token, row, part) of what goes where; a token's parts sum to 1."""
        n, device = keys.shape[0], keys.device
        if self.compat == "released":
            target = torch.arange(n, device=device)
            # Released: a place in the picture is taken for one in the reordered list.
            row = torch.where(target < stays.shape[0], target, target - gone.shape[0])
        else:
            row = torch.arange(stays.shape[0], device=device)
            if self.class_token and stays.shape[0] > 1:
                row = row[1:]
            target = stays[row]
        entries = []
        for a, b in blocks(gone.shape[0], target.shape[0]):
            logits = queries[gone[a:b]] @ keys[target].T
            mine, into = self._receivers(logits)
            part = _softmax(logits[mine, into], mine, b - a)
            entries.append((gone[a + mine], row[into], part))
        src, dst, part = (torch.cat(column) for column in zip(*entries, strict=True))
        return src, dst, part

    def _receivers(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Row and column of the logits [R, N] above their row's quantile, at least one a row."""
        level = torch.quantile(logits, self.quantile, dim=1, keepdim=True)
        chosen = logits > level
        if self.compat == "released":
            # Released: every token goes to as many as the one with most does.
            most = int(chosen.sum(1).max())
            into = logits.topk(most, dim=1).indices
            mine = torch.arange(logits.shape[0], device=logits.device)[:, None].expand_as(into)
            return mine.flatten(), into.flatten()
        chosen |= logits == logits.amax(1, keepdim=True)
        mine, into = torch.nonzero(chosen, as_tuple=True)
        return mine, into


def _unit(value: Tensor) -> Tensor:
    length: Tensor = torch.linalg.vector_norm(value)
    return value / length.clamp(min=1e-12)


def _softmax(value: Tensor, row: Tensor, count: int) -> Tensor:
    """Softmax of float32 [M] over entries of the same row, of ``count`` rows."""
    top = torch.full((count,), -torch.inf, device=value.device)
    top = top.scatter_reduce(0, row, value, "amax")
    part = torch.exp(value - top[row])
    return part / torch.zeros_like(top).index_add_(0, row, part)[row]
