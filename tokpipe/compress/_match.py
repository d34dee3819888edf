"""Balanced bipartite matching: one round of token merging, in many groups of one size at once.

Letters: G groups (frames, clips), N tokens of each, K rows of each, D width. Of every few tokens
the last is a destination, the others are sources; every source finds its best destination.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tokpipe.compress._neighbors import blocks, products, row_lengths

#: Likeness float32 [G, R, C] of the tokens at some positions with those at others.
Score = Callable[[slice, slice], Tensor]


@dataclass(frozen=True, slots=True)
class Protected:
    """Tokens at the front that stay as they are.

    Attributes:
        class_token: Token 0, a source that never moves; the unmerged then keep their order.
        distill_token: Token 1, a destination that receives nothing.
    """

    class_token: bool = False
    distill_token: bool = False


@dataclass(frozen=True, slots=True)
class Pairs:
    """The best destination of each source.

    Attributes:
        source: int64 [S] positions that may move.
        target: int64 [N - S] positions that receive.
        best: float32 [G, S] likeness, -inf where the source is protected.
        where: int64 [G, S] rank of the destination among the targets.
        order: int64 [G, S] ranks of the sources by decreasing likeness, ties by position.
    """

    source: Tensor
    target: Tensor
    best: Tensor
    where: Tensor
    order: Tensor

    def of(self, group: int) -> Pairs:
        """The pairs of one group."""
        part = slice(group, group + 1)
        return Pairs(self.source, self.target, self.best[part], self.where[part], self.order[part])


@dataclass(frozen=True, slots=True)
class Matching:
    """Where each token of one round goes.

    Attributes:
        group: int64 [G, N] row of each token.
        anchor: int64 [G, K] the token whose place each row takes.
    """

    group: Tensor
    anchor: Tensor


def cosine(values: Tensor) -> Score:
    """Cosine of rows [G, N, D]; a zero row resembles nothing.

    Rows are not copied to be normalised: the products are divided by the lengths.
    """
    scale = 1 / row_lengths(values).clamp(min=1e-12)

    def score(rows: slice, cols: slice) -> Tensor:
        product = products(values[:, rows].float(), values[:, cols])
        return product.mul_(scale[:, rows, None]).mul_(scale[:, None, cols])

    return score


def nearness(values: Tensor) -> Score:
    """Minus the distance of single numbers [G, N, 1]."""
    number = values[:, :, 0].float()
    return lambda rows, cols: (number[:, rows, None] - number[:, None, cols]).abs_().neg_()


def mixture(parts: Sequence[tuple[float, Score]]) -> Score:
    """Weighted sum of likenesses."""

    def score(rows: slice, cols: slice) -> Tensor:
        weight, first = parts[0]
        total = first(rows, cols).mul_(weight)
        for weight, other in parts[1:]:
            total.add_(other(rows, cols), alpha=weight)
        return total

    return score


def removable(n: int, every: int = 2, protected: int = 0) -> int:
    """Most tokens one round can merge away: all but one in ``every`` of the unprotected."""
    free = max(0, n - protected)
    return free - -(-free // min(every, max(1, free)))


def best_pairs(
    score: Score,
    groups: int,
    n: int,
    device: torch.device | str,
    *,
    every: int = 2,
    protected: Protected = Protected(),
) -> Pairs:
    """Find the best destination of every source, in blocks of bounded memory.

    Args:
        score: Likeness of tokens.
        groups: G.
        n: N, 2 or more.
        device: Where the tokens are.
        every: The last of so many consecutive tokens is a destination, 2 or more; those after
            the last destination are sources.
        protected: Tokens that stay as they are.
    """
    every = max(2, min(every, n))
    position = torch.arange(n, device=device)
    takes = position % every == every - 1
    source, target = position[~takes], position[takes]
    # Slices are views, so sources and destinations are compared without copying them.
    cols = slice(every - 1, n, every)
    value = torch.empty((groups, n), device=device)
    where = torch.empty((groups, n), dtype=torch.int64, device=device)
    for first in range(every - 1):
        count = len(range(first, n, every))
        for a, b in blocks(count, groups * target.shape[0]):
            rows = slice(first + a * every, first + b * every, every)
            found = score(rows, cols)
            if protected.distill_token and every == 2 and n > 1:
                found[:, :, 0] = -torch.inf
            top = found.max(2)
            value[:, rows], where[:, rows] = top.values, top.indices
            del found  # else the next block is made beside it
    value, where = value[:, source], where[:, source]
    fixed = (source == 0) & protected.class_token | (source == 1) & protected.distill_token
    value = value.masked_fill(fixed, -torch.inf)
    order = torch.argsort(value, dim=1, descending=True, stable=True)
    return Pairs(source, target, value, where, order)


def merge_best(
    pairs: Pairs, remove: int, *, protected: Protected = Protected(), raster: bool = False
) -> Matching:
    """Merge the ``remove`` sources that resemble their destination most.

    Returns:
        Unmerged sources by decreasing likeness (ascending with a class token), then the
        destinations; ties go to the lower index. With ``raster`` all in their own order.
    """
    groups, device = pairs.order.shape[0], pairs.order.device
    n = pairs.source.shape[0] + pairs.target.shape[0]
    merged, rest = pairs.order[:, :remove], pairs.order[:, remove:]
    if protected.class_token:
        rest = rest.sort(1).values
    target = pairs.target.expand(groups, -1)
    anchor = torch.cat([pairs.source[rest], target], 1)
    kept = rest.shape[1]
    if protected.distill_token and kept:
        parts = [anchor[:, :1], target[:, :1], anchor[:, 1:kept], target[:, 1:]]
        anchor = torch.cat(parts, 1)
    if raster:
        anchor = anchor.sort(1).values
    rows = torch.arange(anchor.shape[1], device=device).expand(groups, -1)
    group = torch.empty((groups, n), dtype=torch.int64, device=device).scatter_(1, anchor, rows)
    taken = group.gather(1, pairs.target[pairs.where.gather(1, merged)])
    return Matching(group.scatter_(1, pairs.source[merged], taken), anchor)
