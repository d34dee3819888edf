"""Links between neighbours in time: how alike they are, which to merge, what the rows become.

Link i joins tokens i and i + 1. Letters: N tokens, K rows, D width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from tokpipe.compress._neighbors import unit_rows
from tokpipe.maps import TokenMap
from tokpipe.tensors import TokenBatch

#: Elements of one block of rows compared with their neighbours (16 MB in float32).
_BLOCK = 1 << 22


def metric_of(tokens: TokenBatch, heads: Literal["mean", "joined"]) -> Tensor:
    """The extra ``keys`` as [N, D'], heads averaged or put end to end, else the data."""
    keys = tokens.extras.get("keys", tokens.data)
    if keys.ndim == 3:
        return keys.float().mean(1) if heads == "mean" else keys.flatten(1)
    return keys


def adjacent_cosine(metric: Tensor) -> Tensor:
    """Cosine float32 [N - 1] of each row of ``metric`` [N, D] with the next; 0 for zero rows."""
    n, width = metric.shape
    step = max(1, _BLOCK // max(1, width))
    parts = []
    for a in range(0, max(0, n - 1), step):
        rows = metric[a : min(a + step, n - 1) + 1].float()
        length = torch.linalg.vector_norm(rows, dim=1).clamp(min=1e-12)
        product = torch.einsum("nd,nd->n", rows[:-1], rows[1:])
        parts.append(product / length[:-1] / length[1:])
    return torch.cat(parts) if parts else metric.new_zeros(0, dtype=torch.float32)


def ranks(links: Tensor) -> Tensor:
    """Rank int64 of each link, 0 the largest, of equal ones the earlier."""
    place = torch.arange(links.shape[0], device=links.device)
    rank = torch.empty_like(place)
    rank[torch.argsort(links, descending=True, stable=True)] = place
    return rank


def joined(mask: Tensor) -> Tensor:
    """Row int64 [N] of each token when the links of ``mask`` bool [N - 1] are closed."""
    begins = torch.ones(mask.shape[0] + 1, dtype=torch.int64, device=mask.device)
    begins[1:] = ~mask
    return begins.cumsum(0) - 1


def every_other(mask: Tensor) -> Tensor:
    """Links 0, 2, 4.. of each run of marked links: what pairing from left to right merges."""
    place = torch.arange(mask.shape[0], device=mask.device)
    last_open = torch.cummax(torch.where(mask, -1, place), 0).values if len(place) else place
    return mask & ((place - last_open) % 2 == 1)


def greedy_pairs(rank: Tensor) -> Tensor:
    """Mask of the links taken in order of ``rank``, skipping those that touch a taken one.

    On a path a link is taken exactly when no stronger neighbour is. Between a peak and the next
    valley the links alternate; a valley is taken when neither side is. No loop over links.
    """
    count = rank.shape[0]
    place = torch.arange(count, device=rank.device)
    edge = torch.full_like(rank[:1], count)
    stronger_left = torch.cat([edge, rank])[:-1] < rank
    stronger_right = torch.cat([rank, edge])[1:] < rank
    # Distance to the peak each slope comes down from.
    left = torch.cummax(torch.where(stronger_left, -1, place), 0).values
    flipped = torch.where(stronger_right, -1, place).flip(0)
    # In the flipped order places fall, so the nearest peak to the right is the smallest above.
    right = torch.cummin(torch.where(flipped < 0, count, flipped), 0).values.flip(0)
    from_left, from_right = (place - left) % 2 == 0, (right - place) % 2 == 0
    valley = stronger_left & stronger_right
    slope = torch.where(stronger_left, from_left, from_right)
    return torch.where(valley, from_left & from_right, slope)


def weighted_groups(group: Tensor, rows: int, weight: Tensor) -> TokenMap:
    """Means of each group weighted by ``weight`` float32 [N] >= 0; plain where it sums to 0."""
    total = torch.zeros(rows, device=weight.device).index_add_(0, group, weight)
    empty = total[group] <= 0
    return TokenMap.mass_mean(group, rows, torch.where(empty, 1.0, weight))


def merge_rounds(
    tokens: TokenBatch,
    metric: Tensor,
    target: int,
    choose: Callable[[Tensor, int], Tensor],
    *,
    rounds: int | None = None,
    size_weighted: bool = False,
) -> TokenMap:
    """Merge neighbours round by round down to ``target`` rows.

    Args:
        tokens: N tokens in order of time.
        metric: [N, D'] what is compared; merged like the tokens after each round.
        target: Rows wanted, 1 .. N.
        choose: Given the links' cosines and how many tokens to remove, the mask of links to
            close, no two of them touching; nothing chosen ends the rounds.
        rounds: Most rounds; None as many as it takes.
        size_weighted: Means weighted by mass; else the plain mean of the two rows of each round.

    Returns:
        Rows in order of time; ``target`` of them as long as ``choose`` finds links.
    """
    group = torch.arange(len(tokens), device=tokens.data.device)
    weight = tokens.mass.clone() if size_weighted else torch.ones_like(tokens.mass)
    mass, size = weight, len(tokens)
    while size > target and (rounds is None or rounds > 0):
        rounds = None if rounds is None else rounds - 1
        step = joined(choose(adjacent_cosine(metric), size - target))
        rows = int(step[-1]) + 1
        if rows == size:
            break
        total = mass.new_zeros(rows).index_add_(0, step, mass)
        part = mass / total[step]
        if rows > target and rounds != 0:
            metric = _folded(metric, step, part, rows)
        weight = weight * part[group] if not size_weighted else weight
        mass = total if size_weighted else torch.ones_like(total)
        group, size = step[group], rows
    made = TokenMap.mean(group, size)
    if size_weighted:
        return TokenMap.mass_mean(group, size, tokens.mass)
    return replace(made, weight=weight[made.src])


def _folded(metric: Tensor, group: Tensor, part: Tensor, rows: int) -> Tensor:
    """Rows float32 [rows, D] summed from ``metric`` [N, D] by ``part`` [N], block by block."""
    out = metric.new_zeros((rows, metric.shape[1]), dtype=torch.float32)
    block = max(1, _BLOCK // max(1, metric.shape[1]))
    for a in range(0, metric.shape[0], block):
        b = a + block
        out.index_add_(0, group[a:b], metric[a:b].float() * part[a:b, None])
    return out


def grown(data: Tensor, threshold: float) -> Tensor:
    """Row int64 [N] of each token when it joins the group before it by its mean cosine.

    Token j joins while the mean over the group's members of their cosine with j is at least
    ``threshold``. Each answer hangs on the one before, so one walk on the host, in blocks: the
    mean is one product with the sum of the members' unit vectors.
    """
    n = data.shape[0]
    begins = np.zeros(n, dtype=np.int64)
    total, count = np.zeros(data.shape[1], dtype=np.float32), 0
    step = max(1, _BLOCK // max(1, data.shape[1]))
    for a in range(0, n, step):
        for j, row in enumerate(unit_rows(data[a : a + step]).cpu().numpy(), a):
            if count and float(row @ total) >= threshold * count:
                total += row
                count += 1
            else:
                begins[j] = j > 0
                total, count = row.copy(), 1
    return torch.from_numpy(begins.cumsum()).to(data.device)
