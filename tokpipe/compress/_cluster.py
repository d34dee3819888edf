"""Density peaks: cluster centres are dense and far from anything denser.

One cloud (``density_peaks``), or many at once (``peaks_of_each``); clouds of more than 2896 rows
are worked on tile by tile, in bounded memory. Letters: N n rows, B clouds, K clusters, D width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tokpipe.compress._large_cluster import LargeCloud, large_peaks
from tokpipe.compress._neighbors import BLOCK

#: Distances of clouds this small, or this narrow, are taken from differences: exact zeros.
_SMALL, _NARROW = 25, 32
#: Elements of squared distances worked on at a time; on a processor what its cache holds.
_CHUNK = {"cpu": 1 << 19}


@dataclass(frozen=True, slots=True)
class Peaks:
    """Clusters in decreasing order of their centre's score; of B clouds with a dimension more.

    Attributes:
        centre: int64 [K] the token at the heart of each cluster.
        label: int64 [N] cluster of each token.
        score: float32 [K] natural logarithm of density x separation.
    """

    centre: Tensor
    label: Tensor
    score: Tensor


@dataclass(frozen=True, slots=True)
class EachPeaks:
    """Clusters of each of B clouds.

    Attributes:
        centre: int64 [B, K] centres, -1 where a cloud has fewer clusters.
        label: int64 [B, n] cluster of each row, -1 where a row takes no part.
        score: float64 [B, n] logarithm of density x separation, -inf where it takes no part.
    """

    centre: Tensor
    label: Tensor
    score: Tensor


def density_peaks(data: Tensor, count: int, neighbours: int, *, unit: float = 1.0) -> Peaks:
    """Cluster by density peaks with a k-nearest-neighbour density.

    Scores are compared as logarithms: the same order as their product, without underflow where
    distances are large. Of two equally dense tokens the lower index counts as denser.

    Args:
        data: float [N, D].
        count: Clusters, 1 .. N.
        neighbours: Tokens in the density, the token itself included, 1 .. N.
        unit: The distance that counts as 1, above 0: sqrt(D) and any scale.
    """
    n = data.shape[0]
    if n * n <= BLOCK:
        found = density_peaks_of(data[None], count, neighbours, unit=unit)
        return Peaks(found.centre[0], found.label[0], found.score[0])
    centre, label, score = large_peaks(LargeCloud(data, None, unit**2), count, neighbours)
    return Peaks(centre, label, _finite(score[centre]))


def density_peaks_of(data: Tensor, count: int, neighbours: int, *, unit: float = 1.0) -> Peaks:
    """What :func:`density_peaks` finds in each of B clouds of one size.

    Args:
        data: float [B, N, D].
        count: Clusters of each, 1 .. N.
        neighbours: Tokens in the density, the token itself included, 1 .. N.
        unit: The distance that counts as 1, above 0.

    Returns:
        centre int64 [B, K], label int64 [B, N], score float32 [B, K].
    """
    n = data.shape[1]
    if n * n <= BLOCK:
        found = peaks_of_each(data.float() / unit, count, neighbours, width=1)
        return Peaks(found.centre, found.label, _finite(found.score.gather(1, found.centre)))
    each = [density_peaks(cloud, count, neighbours, unit=unit) for cloud in data]
    return Peaks(
        *(torch.stack([getattr(p, f) for p in each]) for f in ("centre", "label", "score"))
    )


def _finite(score: Tensor) -> Tensor:
    return score.clamp(min=torch.finfo(torch.float32).min).float()


def peaks_of_each(
    data: Tensor,
    count: int | Tensor,
    neighbours: int | Tensor,
    *,
    valid: Tensor | None = None,
    by_index: bool = False,
    lower: bool = False,
    width: int | None = None,
) -> EachPeaks:
    """Cluster every cloud by density peaks; distances count in units of sqrt(D).

    Args:
        data: float [B, n, D], as it is.
        count: Clusters, or int64 [B]; at most the valid rows, 0 gives none.
        neighbours: Rows in the density, the row itself included, or int64 [B]; cut to the valid.
        valid: bool [B, n] rows that take part; None all.
        by_index: Centres in ascending order instead of decreasing score.
        lower: Separation from the nearest less dense row (StreamingTOM's released comparison).
        width: What squared distances are divided by, default D.

    Returns:
        K is the largest count.
    """
    (size, n, dim), device = data.shape, data.device
    present, wanted, near, sizes = _sizes(data, count, neighbours, valid)
    centre = torch.full((size, max(sizes[1], default=0)), -1, dtype=torch.int64, device=device)
    label = torch.full((size, n), -1, dtype=torch.int64, device=device)
    score = torch.full((size, n), -torch.inf, dtype=torch.float64, device=device)
    chunk = _CHUNK.get(device.type, BLOCK)
    step = max(1, min(chunk // max(1, n * n), BLOCK // max(1, n * dim)))
    for a, b in ((a, min(size, a + step)) for a in range(0, size, step)):
        rows, k, m = (max(part[a:b]) for part in sizes)
        if rows == 0:
            continue
        order = None
        if valid is not None and min(sizes[0][a:b]) < n:
            order = torch.argsort(valid[a:b].logical_not().byte(), dim=1, stable=True)[:, :rows]
        if rows * rows > BLOCK:
            inner = torch.arange(n, device=device) if order is None else order[0]
            cloud = LargeCloud(data[a], inner, float(width or dim))
            found = large_peaks(cloud, k, m, by_index=by_index, lower=lower)
            centre[a, :k], label[a, inner], score[a, inner] = inner[found[0]], *found[1:]
            continue
        square = _squares(data[a:b], order).div_(width or dim)
        fewer = min(sizes[0][a:b]) < rows
        inside = torch.arange(rows, device=device) < present[a:b, None] if fewer else None
        made = _scores(square, near[a:b], m, inside, lower)
        hearts = _centres(made, wanted[a:b], k, by_index)
        which = _nearest(square, hearts, inside)
        if order is None:
            score[a:b], label[a:b], centre[a:b, :k] = made, which, hearts
        else:
            score[a:b].scatter_(1, order, made)
            label[a:b].scatter_(1, order, which)
        if order is not None and k:
            centre[a:b, :k] = torch.where(hearts < 0, -1, order.gather(1, hearts.clamp(min=0)))
    return EachPeaks(centre, label, score)


def _sizes(
    data: Tensor, count: int | Tensor, neighbours: int | Tensor, valid: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, list[list[int]]]:
    """Rows that take part, clusters and rows in the density of each cloud, int64 [B]; as lists."""
    size, n, _ = data.shape
    present = torch.full((size,), n, device=data.device) if valid is None else valid.sum(1)
    wanted = torch.as_tensor(count, device=data.device).expand(size)
    near = torch.as_tensor(neighbours, device=data.device).expand(size)
    wanted, near = torch.minimum(wanted, present), torch.minimum(near, present).clamp(min=1)
    if valid is None and isinstance(count, int) and isinstance(neighbours, int):
        sizes = [[part] * size for part in (n, min(count, n), max(1, min(neighbours, n)))]
    else:
        # One transfer for all sizes that shapes depend on.
        sizes = torch.stack([present, wanted, near]).tolist()
    return present, wanted, near, sizes


def _squares(data: Tensor, order: Tensor | None) -> Tensor:
    """Squared distances float32 [B, m, m] of the rows ``order`` int64 [B, m] of data [B, n, D]."""
    source = data
    if order is not None:
        size, n, dim = data.shape
        flat = order + n * torch.arange(size, device=data.device)[:, None]
        data = data.reshape(-1, dim)[flat]
    data = data.float()
    mean = data.mean(1, keepdim=True)
    data = data - mean if data is source else data.sub_(mean)
    if data.shape[1] <= _SMALL or data.shape[2] <= _NARROW:
        mode = "donot_use_mm_for_euclid_dist"
        return torch.cdist(data, data, compute_mode=mode).square_()
    product = data @ data.transpose(1, 2)
    # Lengths from the product's own diagonal: equal rows come out at distance zero, or nearly.
    length = product.diagonal(dim1=1, dim2=2).clone()
    product.mul_(-2).add_(length[:, :, None]).add_(length[:, None, :]).clamp_(min=0)
    product.diagonal(dim1=1, dim2=2).zero_()
    return product


def _scores(square: Tensor, near: Tensor, most: int, inside: Tensor | None, lower: bool) -> Tensor:
    """Logarithm float64 [B, m] of density x separation; fills ``square`` outside with inf."""
    size, rows, _ = square.shape
    if inside is None:
        widest = square.amax((1, 2))
    else:
        outside = ~inside
        widest = (
            square.masked_fill_(outside[:, None, :], 0).amax(2).masked_fill_(outside, 0).amax(1)
        )
        square.masked_fill_(outside[:, None, :], torch.inf)
    closest = square.topk(most, dim=2, largest=False).values.double().cumsum(2)
    at = (near - 1)[:, None, None].expand(size, rows, 1)
    density = -closest.gather(2, at)[:, :, 0] / near[:, None]
    if inside is not None:
        density = density.masked_fill(~inside, -torch.inf)
    order = torch.argsort(density, dim=1, descending=True, stable=True)
    rank = torch.empty_like(order)
    rank.scatter_(1, order, torch.arange(rows, device=order.device).expand(size, rows))
    rank = -rank.to(torch.int32) if lower else rank.to(torch.int32)
    ahead = rank[:, None, :] < rank[:, :, None]
    apart = torch.where(ahead, square, torch.inf).amin(2)
    apart = torch.where(apart.isinf(), widest[:, None], apart)
    score = density + 0.5 * apart.double().log()
    return score if inside is None else score.masked_fill(~inside, -torch.inf)


def _centres(score: Tensor, wanted: Tensor, most: int, by_index: bool) -> Tensor:
    """The ``wanted`` int64 [B] best rows of each cloud, int64 [B, most], -1 beyond."""
    best = torch.argsort(score, dim=1, descending=True, stable=True)[:, :most]
    beyond = torch.arange(most, device=best.device) >= wanted[:, None]
    if by_index:
        best = best.masked_fill(beyond, score.shape[1]).sort(1).values
    return best.masked_fill(beyond, -1)


def _nearest(square: Tensor, centre: Tensor, inside: Tensor | None) -> Tensor:
    """Cluster int64 [B, m] of the nearest centre, the first of equals; -1 without one."""
    size, rows, _ = square.shape
    most = centre.shape[1]
    if not most:
        return torch.full((size, rows), -1, dtype=torch.int64, device=square.device)
    column = centre.clamp(min=0)[:, None, :].expand(size, rows, most)
    apart = square.gather(2, column).masked_fill_((centre < 0)[:, None, :], torch.inf)
    label = apart.argmin(2)
    label = label.masked_fill(centre[:, :1] < 0, -1)
    if inside is not None:
        label = label.masked_fill(~inside, -1)
    # Centres are their own; the extra column takes the writes of absent ones.
    padded = torch.cat([label, label.new_zeros(size, 1)], 1)
    slot = torch.arange(most, device=label.device).expand(size, most)
    return padded.scatter_(1, torch.where(centre < 0, rows, centre), slot)[:, :rows]


def members(label: Tensor, clusters: int) -> Tensor:
    """Rows int64 [B, K] in each cluster of label int64 [B, n] (-1 none)."""
    held = torch.zeros((label.shape[0], clusters + 1), dtype=torch.int64, device=label.device)
    held.scatter_add_(1, torch.where(label < 0, clusters, label), torch.ones_like(label))
    return held[:, :clusters]


def mixed(label: Tensor, centre: Tensor, beta: float) -> Tensor:
    """Weights float32 [B, n] of rows in beta x centre + (1 - beta) x mean of the others.

    A centre alone keeps weight 1. ``label`` int64 [B, n] and ``centre`` int64 [B, K] are those of
    ``EachPeaks``; weight 0 where a row takes no part.
    """
    size, n = label.shape
    if not centre.shape[1]:
        return torch.zeros((size, n), device=label.device)
    others = (members(label, centre.shape[1]) - 1).gather(1, label.clamp(min=0))
    heart = torch.zeros((size, n + 1), dtype=torch.bool, device=label.device)
    heart.scatter_(1, torch.where(centre < 0, n, centre), True)
    alone = torch.where(others > 0, beta, 1.0)
    weight = torch.where(heart[:, :n], alone, (1 - beta) / others.clamp(min=1))
    return weight.masked_fill(label < 0, 0).float()


def averaged(label: Tensor, centre: Tensor) -> Tensor:
    """Weights float32 [B, n] of rows in the mean of their cluster, 0 where a row has none."""
    if not centre.shape[1]:
        return torch.zeros(label.shape, device=label.device)
    count = members(label, centre.shape[1]).gather(1, label.clamp(min=0))
    return (1 / count.clamp(min=1)).masked_fill(label < 0, 0).float()
