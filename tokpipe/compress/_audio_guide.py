"""Sound that guides the compression of pictures: absorbing anchors, drop rates, frame picks.

Letters: N tokens, R sound tokens left over, C tokens of a frame, G groups, D width.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from tokpipe.compress._neighbors import BLOCK, blocks, most_alike, unit_rows

#: Bounds of a group's drop rate, and what a fully kept sound takes off the upper one.
LEAST, MOST, SWING = 0.35, 0.75, 0.4


@dataclass(frozen=True, slots=True)
class Absorbed:
    """Anchors and what they take in.

    Attributes:
        anchor: int64 [A] the anchors.
        member, into: int64 [M] an absorbed token and its anchor, anchor after anchor, the best
            member first.
        weight: float32 [M] the member's part among its anchor's members, summing to 1.
    """

    anchor: Tensor
    member: Tensor
    into: Tensor
    weight: Tensor


def absorb(data: Tensor, rest: Tensor, guide: Tensor, anchors: int, most: int) -> Absorbed:
    """Choose evenly spaced anchors of ``rest`` and give each its best followers.

    A token follows the anchor it resembles most; an anchor takes in the followers that resemble
    any token of ``guide`` most (the anchor itself where there is no guide).

    Args:
        data: float [N, D].
        rest: int64 [R], ascending.
        guide: int64 [V].
        anchors: 0 .. R.
        most: Members of an anchor at most.
    """
    none = rest[:0]
    if anchors < 1:
        return Absorbed(none, none, none, data.new_zeros(0, dtype=torch.float32))
    place = torch.arange(anchors, device=rest.device) * (rest.shape[0] // anchors)
    anchor = rest[place]
    left = torch.ones(rest.shape[0], dtype=torch.bool, device=rest.device)
    left[place] = False
    others = rest[left]
    if not len(others) or most < 1:
        return Absorbed(anchor, none, none, data.new_zeros(0, dtype=torch.float32))
    value, owner = most_alike(data, others, anchor)
    if len(guide):
        value = most_alike(data, others, guide)[0]
    order = torch.argsort(value, descending=True, stable=True)
    order = order[torch.argsort(owner[order], stable=True)]
    counts = torch.bincount(owner, minlength=anchors)
    first = (counts.cumsum(0) - counts)[owner[order]]
    order = order[torch.arange(order.shape[0], device=order.device) - first < most]
    part, owner = value[order].exp(), owner[order]
    total = part.new_zeros(anchors).index_add_(0, owner, part)
    return Absorbed(anchor, others[order], anchor[owner], part / total[owner])


def drop_rates(retention: Tensor, sizes: Tensor, target: float) -> list[float]:
    """Part of each group's picture to drop.

    The less sound stays, the more picture goes. With more than two groups the first smallest and
    first largest rate hold and the others are scaled to reach ``target``, clipped, moved once by
    what is missing on average, and clipped again; so the target may be missed.

    Args:
        retention: float64 [G] share of the sound kept, NaN without sound: then the rate is
            ``target``.
        sizes: int64 [G] picture tokens of each group.
        target: 0 .. 1.
    """
    rates = (MOST - SWING * retention).clamp(LEAST, MOST)
    paired = ~retention.isnan() & (sizes > 0)
    out = torch.where(paired, rates, target)
    rates, count = rates[paired], sizes[paired].double()
    if len(rates) > 2:
        free = torch.ones_like(rates, dtype=torch.bool)
        free[rates.argmin()] = free[rates.argmax()] = False
        wanted = target * count.sum() - (rates * count)[~free].sum()
        rest, size = rates[free], count[free]
        rest = (rest * (wanted / (rest * size).sum())).clamp(LEAST, MOST)
        rest = (rest + (wanted - (rest * size).sum()) / size.sum()).clamp(LEAST, MOST)
        rates[free] = rest
        out[paired] = rates
    return [float(rate) for rate in out.tolist()]


def frame_picks(
    data: Tensor, frame: Tensor, before: Tensor | None, count: int, neighbours: int
) -> Tensor:
    """Tokens int64 [count] of a frame that stay, ascending.

    Args:
        data: float [N, D].
        frame: int64 [C] the frame's tokens.
        before: Those of the frame before: what resembles the same place there least stays. None,
            or a frame of another size: density peaks stay.
        count: 0 .. C.
        neighbours: Tokens in the density, the token itself not counted.
    """
    size = frame.shape[0]
    if count >= size or count < 1:
        return frame if count else frame[:0]
    if before is not None and before.shape == frame.shape:
        value = torch.empty(size, device=data.device)
        for a, b in blocks(size, data.shape[1]):
            pair = unit_rows(data[frame[a:b]]).mul_(unit_rows(data[before[a:b]]))
            value[a:b] = -pair.sum(1)
    else:
        value = _peak_score(data, frame, min(neighbours, size - 1))
    return frame[torch.argsort(value, descending=True, stable=True)[:count].sort().values]


def _peak_score(data: Tensor, frame: Tensor, neighbours: int) -> Tensor:
    """Density times distance to the nearest denser token, float32 [C]; of cosine distances."""
    size = frame.shape[0]
    density, top = torch.empty(size, device=data.device), torch.zeros(size, device=data.device)
    for a, b, apart in _apart(data, frame):
        top[a:b] = apart.amax(1)
        apart.diagonal(a).fill_(torch.inf)
        density[a:b] = (-apart.topk(neighbours, dim=1, largest=False).values.mean(1)).exp()
    place = torch.arange(size, device=data.device)
    rank = torch.empty_like(place)
    rank[torch.argsort(density, descending=True, stable=True)] = place
    nearest = torch.empty_like(density)
    for a, b, apart in _apart(data, frame):
        nearest[a:b] = apart.masked_fill_(rank[None, :] >= rank[a:b, None], torch.inf).amin(1)
    return density * torch.where(rank == 0, top, nearest)


def _apart(data: Tensor, frame: Tensor) -> Iterator[tuple[int, int, Tensor]]:
    """Ranges of tokens int64 [C] and their cosine distances [R, C] from all, row by row."""
    size, width = frame.shape[0], data.shape[1]
    step = max(1, BLOCK // 4 // max(1, width))
    for a, b in blocks(size, 2 * max(size, width)):
        left, out = unit_rows(data[frame[a:b]]), torch.empty((b - a, size), device=data.device)
        for c in range(0, size, step):
            out[:, c : c + step] = left @ unit_rows(data[frame[c : c + step]]).T
        yield a, b, out.neg_().add_(1)
