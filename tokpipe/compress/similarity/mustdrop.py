"""Average windows of the picture whose tokens are all alike.

Source: Liu et al., "Multi-Stage Vision Token Dropping: Towards Efficient Multimodal Large Language
Model" (MustDrop), arXiv:2411.10803, section 3.2 (local spatial merging, stage 1).
Differs: runs on encoder outputs, in the paper after the first encoder layer; border windows may be
smaller; means are weighted by mass; the released code cuts a batch to the smallest number of
windows, here every frame has its own. With a budget the most alike windows are merged, the last
one only in part, in wider windows where the given ones cannot save enough.

Shapes: data [N, D]; rows of a frame: tokens without a cell, then windows by falling similarity,
then single tokens as they come. Cost: O(N D): the mean cosine of a window follows from the sum of
its unit rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from tokpipe.budget import largest_remainder
from tokpipe.frames import Frames, frames_of
from tokpipe.spec import Layout, Scope, Where
from tokpipe.tensors import Query, TokenBatch, TokenMap


@dataclass(frozen=True, slots=True, kw_only=True)
class Mustdrop:
    """Means of windows of cells whose mean cosine over different members is high.

    Tokens without a cell (-1), such as a class token, stay as they are and come first.

    Attributes:
        window: Cells per side of a window, 2 or more.
        threshold: Mean cosine from which a window is merged, -1 to 1; without a budget.

    Example:
        >>> cell = torch.tensor([[0, 0, 0], [0, 0, 1], [0, 0, 2]]).int()
        >>> data = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
        >>> tokens = TokenBatch.build(data, torch.zeros(3).double(), cell=cell)
        >>> Mustdrop(window=2).decide(tokens, None).dst.tolist()
        [0, 0, 1]
    """

    source: ClassVar[str] = "arXiv:2411.10803, section 3.2"
    scope: ClassVar[Scope] = "frame"
    needs: ClassVar[tuple[str, ...]] = ()
    modalities: ClassVar[tuple[str, ...]] = ("video",)
    causal: ClassVar[bool] = False
    layouts: ClassVar[tuple[Layout, ...]] = ("ragged",)
    where: ClassVar[Where] = "encoder"
    golden: ClassVar[tuple[str, ...]] = ("mustdrop_spatial",)
    scale_free: ClassVar[bool] = True
    version: ClassVar[int] = 1
    exact: ClassVar[bool] = True

    window: Annotated[int, Field(ge=2)] = 3
    threshold: Annotated[float, Field(ge=-1, le=1)] = 0.8

    def decide(
        self, tokens: TokenBatch, budget: int | None, query: Query | None = None
    ) -> TokenMap:
        """Merge windows above ``threshold``, or as many as the budget needs."""
        n, device = len(tokens), tokens.data.device
        if n == 0 or (budget is not None and budget >= n):
            return TokenMap.identity(n, device)
        found = frames_of(tokens)
        if budget is None:
            side = torch.full((len(found),), self.window, device=device)
            return _Windows(tokens, found, side).merged(tokens, self.threshold, None)
        counts = found.counts.tolist()
        quota = torch.tensor(largest_remainder(budget, counts, caps=counts), device=device)
        windows = _fitting(tokens, found, quota, self.window)
        return windows.merged(tokens, self.threshold, quota)

    def out_count(self, n: int, budget: int | None) -> tuple[int, bool]:
        """Exact with a budget, else a bound."""
        return (n, False) if budget is None else (min(n, budget), True)


def _fitting(tokens: TokenBatch, found: Frames, quota: Tensor, window: int) -> _Windows:
    """Windows of each frame, no wider than needed to get down to ``quota`` [T] rows."""
    side = torch.full_like(quota, window)
    windows = _Windows(tokens, found, side)
    widest = int((tokens.cell[:, 1:].amax(0) - tokens.cell[:, 1:].amin(0)).max()) + 1
    while bool((short := (windows.fewest > quota) & (side < widest)).any()):
        side = side + short.long()
        windows = _Windows(tokens, found, side)
    return windows


class _Windows:
    """Tokens of every frame by window of its own ``side`` [T]."""

    def __init__(self, tokens: TokenBatch, found: Frames, side: Tensor) -> None:
        self.found = found
        y, x = tokens.cell[:, 1].long(), tokens.cell[:, 2].long()
        self.inside = (y >= 0) & (x >= 0)
        here = side[found.index]
        rows, cols = (int(v.clamp(min=0).max()) + 1 for v in (y, x))
        key = (found.index * rows + y.clamp(min=0) // here) * cols + x.clamp(min=0) // here
        key = key * (int(tokens.tile.max()) + 1) + tokens.tile
        key = torch.where(self.inside, key, -1 - torch.arange(len(tokens), device=key.device))
        unique, inverse, counts = torch.unique(key, return_inverse=True, return_counts=True)
        self.of: Tensor = inverse
        self.size: Tensor = counts
        self.frame = torch.empty_like(unique).scatter_(0, self.of, found.index)
        self.fewest = torch.bincount(self.frame, minlength=len(found))

    def likeness(self, tokens: TokenBatch) -> Tensor:
        """Mean cosine [W] of different tokens of each window, -inf where there is one."""
        data = tokens.data.float()
        length = torch.linalg.vector_norm(data, dim=1)
        inverse = torch.where(length > 0, 1 / length.clamp(min=1e-12), 0.0)
        order = torch.argsort(self.of, stable=True)
        start = torch.cumsum(self.size, 0) - self.size
        total: Tensor = torch.nn.functional.embedding_bag(
            order, data, start, mode="sum", per_sample_weights=inverse[order]
        )
        own = torch.zeros_like(total[:, 0]).index_add_(0, self.of, (length > 0).float())
        pairs = (self.size * (self.size - 1)).clamp(min=1)
        value: Tensor = (total.square_().sum(1) - own) / pairs
        return value.masked_fill(self.size < 2, -torch.inf)

    def merged(self, tokens: TokenBatch, threshold: float, quota: Tensor | None) -> TokenMap:
        """The map that merges windows from ``threshold`` up, or down to ``quota`` [T] rows."""
        value = self.likeness(tokens)
        order = torch.argsort(value, descending=True, stable=True)
        order = order[torch.argsort(self.frame[order], stable=True)]
        if quota is None:
            joined = torch.where(value >= threshold, self.size, 1)
        else:
            home = self.frame[order]
            saves = (self.size - 1)[order]
            before = torch.cumsum(saves, 0) - saves
            before = before - before[torch.cumsum(self.fewest, 0) - self.fewest][home]
            left = (self.found.counts - quota)[home] - before
            joined = torch.ones_like(order)
            joined[order] += torch.minimum(saves, left.clamp(min=0))
        place = torch.empty_like(order)
        place[order] = torch.arange(order.shape[0], device=order.device)
        member = (self._rank() < joined[self.of]) & (joined > 1)[self.of]
        return self._map(tokens, member, place, quota)

    def _rank(self) -> Tensor:
        """Place int64 [N] of each token within its window."""
        order = torch.argsort(self.of, stable=True)
        start = torch.cumsum(self.size, 0) - self.size
        rank = torch.empty_like(order)
        rank[order] = torch.arange(order.shape[0], device=order.device)
        return rank - start[self.of]

    def _map(
        self, tokens: TokenBatch, member: Tensor, place: Tensor, quota: Tensor | None
    ) -> TokenMap:
        """Rows by frame: without a cell, windows by ``place`` [W], then singles as they come."""
        n = len(tokens)
        own = torch.arange(n, device=member.device)
        kind = torch.where(member, 1, torch.where(self.inside, 2, 0))
        key = (self.found.index * 3 + kind) * n + torch.where(member, place[self.of], own)
        unique, group = torch.unique(key, return_inverse=True)
        if quota is not None:
            # Only tokens without a cell, or many tiles, can leave more rows than the quota.
            frame = unique // (3 * n)
            rows = torch.bincount(frame, minlength=quota.shape[0])
            rank = torch.arange(frame.shape[0], device=frame.device)
            stays = rank - (torch.cumsum(rows, 0) - rows)[frame] < quota[frame]
            group = torch.where(stays, torch.cumsum(stays, 0) - 1, -1)[group]
            unique = unique[stays]
        return TokenMap.mass_mean(group, unique.shape[0], tokens.mass)
