"""Give dropped tokens to the kept ones they resemble: who takes whom, and what rows they make.

Letters: N tokens, K rows, R tokens given away, D width, M entries of a map.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from tokpipe.compress._columns import column
from tokpipe.compress._neighbors import blocks, inverse_lengths, products, unit_rows
from tokpipe.tensors import TokenBatch, TokenMap

#: ``mean``: a row is the mean of its place and what it takes. ``added``: its place plus the mean
#: of what it takes, about twice as long.
Combine = Literal["mean", "added"]


def flat_keys(tokens: TokenBatch, operator: str) -> Tensor:
    """The column ``keys`` float [N, D'], averaged over heads where it has them."""
    keys = column(tokens, "keys", operator, own=True)
    return keys.mean(1, dtype=torch.float32) if keys.ndim == 3 else keys


def best_first(score: Tensor) -> Tensor:
    """Indices int64 [N] by decreasing score; ties in their own order."""
    return torch.argsort(score, descending=True, stable=True)


def others(n: int, *parts: Tensor, distinct: bool = False) -> Tensor:
    """Indices int64 of 0 .. N - 1 that are in none of ``parts``, ascending.

    Where the parts hold every index once, ``distinct`` saves waiting for the device to count.
    """
    taken = torch.zeros(n, dtype=torch.uint8, device=parts[0].device)
    for part in parts:
        taken.index_fill_(0, part, 1)
    if distinct:
        return torch.argsort(taken, stable=True)[: n - sum(part.shape[0] for part in parts)]
    return torch.nonzero(taken == 0).flatten()


def owners(data: Tensor, kept: Tensor, rest: Tensor) -> Tensor:
    """Position in ``kept`` int64 [R] of the kept token of highest cosine with each of ``rest``.

    Ties go to the earlier one; memory is that of the kept rows and of one block.

    Args:
        data: floating [N, D].
        kept: int64 [K], K >= 1.
        rest: int64 [R].
    """
    unit = unit_rows(data[kept])
    found = [rest[:0]]
    # The length of a token does not change which kept one it is closest to.
    for a, b in blocks(rest.shape[0], max(kept.shape[0], data.shape[1])):
        found.append((data[rest[a:b]].float() @ unit.T).argmax(1))
    return torch.cat(found)


def absorb(
    group: Tensor, anchor: Tensor, combine: Combine = "mean", *, whole: bool = False
) -> TokenMap:
    """Rows made of a kept token and the tokens given to it, each source in one row.

    Args:
        group: int64 [N] row of each token, -1 dropped.
        anchor: int64 [K] the kept token of each row.
        combine: How a row's data is made.
        whole: No token is dropped.
    """
    merged = TokenMap.mean(group, anchor.shape[0], anchor=anchor, whole=whole)
    if combine == "mean":
        return merged
    own = merged.src == anchor[merged.dst]
    taken = torch.zeros_like(anchor).index_add_(0, merged.dst, torch.ones_like(merged.dst)) - 1
    weight = torch.where(own, 1.0, 1.0 / taken[merged.dst].clamp(min=1))
    return replace(merged, weight=weight)


def nearest_others(
    data: Tensor, kept: Tensor, count: int, *, rest: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The ``count`` rows of highest cosine with each kept row, itself left out.

    Args:
        data: float [N, D].
        kept: int64 [K].
        count: Neighbours, 0 .. N - 1.
        rest: Look only among the kept rows and these, int64 [R], and count places in that list;
            None among all.

    Returns:
        (row int64 [M] of ``kept``, neighbour int64 [M]) with M = K x count, row after row,
        neighbours ascending; of equal ones the lower index is taken.
    """
    rows, found = [], []
    inverse = inverse_lengths(data)
    listed = None if rest is None else torch.cat([kept, rest])
    own = kept if rest is None else torch.arange(kept.shape[0], device=kept.device)
    for a, b in blocks(kept.shape[0] if count else 0, data.shape[0]):
        alike = products(unit_rows(data[kept[a:b]])[None], data[None])[0].mul_(inverse)
        alike = alike if listed is None else alike[:, listed]
        alike.scatter_(1, own[a:b, None], -torch.inf)
        least = alike.topk(count, dim=1).values[:, -1:]
        above, equal = alike > least, alike == least
        room = count - above.sum(1, keepdim=True)
        row, index = torch.nonzero(
            above | (equal & (equal.cumsum(1, dtype=torch.int32) <= room)), as_tuple=True
        )
        rows.append(row + a)
        found.append(index)
        del alike, above, equal  # else the next block is made beside them
    if not rows:
        return kept[:0], kept[:0]
    return torch.cat(rows), torch.cat(found)


def spread(
    src: Tensor, dst: Tensor, part: Tensor, weight: Tensor, anchor: Tensor, num_sources: int
) -> TokenMap:
    """Rows made of any entries; who stands for whom follows from them.

    A source at the place of a row stands for that row alone, whatever else it adds to; every
    other source splits its share in proportion to its parts, evenly where all of them are 0.

    Args:
        src: int64 [M] source of each entry.
        dst: int64 [M] row of each entry.
        part: float32 [M] how much of the source goes there, 0 or more.
        weight: float32 [M] what it counts in the row's data.
        anchor: int64 [K] the source at the place of each row, -1 where a row is nobody's own.
        num_sources: N.
    """
    placed = torch.zeros(num_sources, dtype=torch.bool, device=src.device)
    placed[anchor[anchor >= 0]] = True
    least = torch.finfo(torch.float32).tiny
    part = torch.where(placed[src], (src == anchor[dst]).float(), part.clamp(min=least))
    total = torch.zeros(num_sources, device=src.device).index_add_(0, src, part)
    share = part / total[src]
    return TokenMap(
        src=src, dst=dst, weight=weight, share=share, anchor=anchor, num_sources=num_sources
    )
