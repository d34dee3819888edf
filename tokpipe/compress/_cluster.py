"""Density peaks: cluster centres are dense and far from anything denser."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tokpipe.compress._neighbors import blocks, distances


@dataclass(frozen=True, slots=True)
class Peaks:
    """Clusters in decreasing order of their centre's score.

    Attributes:
        centre: int64 [K] the token at the heart of each cluster.
        label: int64 [N] cluster of each token.
        score: float32 [K] natural logarithm of density x separation.
    """

    centre: Tensor
    label: Tensor
    score: Tensor


def density_peaks(data: Tensor, count: int, neighbours: int) -> Peaks:
    """Cluster by density peaks with a k-nearest-neighbour density.

    Scores are compared as logarithms: the same order as their product, without underflow where
    distances are large. Of two equally dense tokens the lower index counts as denser.

    Args:
        data: float32 [N, D], already divided by sqrt(D) and by the unit of distance.
        count: Clusters, 1 .. N.
        neighbours: Tokens in the density, the token itself included, 1 .. N.
    """
    n, device = data.shape[0], data.device
    data = data - data.mean(0, keepdim=True)
    log_density, widest = _log_density(data, neighbours)
    separation = _separation(data, log_density, widest)
    score = log_density + separation.double().log()
    centre = torch.argsort(score, descending=True, stable=True)[:count]
    label = torch.empty(n, dtype=torch.int64, device=device)
    for a, b in blocks(n, count):
        label[a:b] = distances(data[a:b], data[centre]).argmin(1)
    label[centre] = torch.arange(count, device=device)
    lowest = torch.finfo(torch.float32).min
    return Peaks(centre, label, score[centre].clamp(min=lowest).float())


def _log_density(data: Tensor, neighbours: int) -> tuple[Tensor, Tensor]:
    """Minus the mean squared distance to the nearest, float64 [N], and the widest distance."""
    n = data.shape[0]
    out = torch.empty(n, dtype=torch.float64, device=data.device)
    widest = torch.zeros((), device=data.device)
    for a, b in blocks(n, n):
        apart = distances(data[a:b], data)
        apart[:, a:b].fill_diagonal_(0)
        near = apart.topk(neighbours, dim=1, largest=False).values
        out[a:b] = -near.double().square().mean(1)
        widest = torch.maximum(widest, apart.max())
    return out, widest


def _separation(data: Tensor, log_density: Tensor, widest: Tensor) -> Tensor:
    """Distance float32 [N] to the nearest denser token; the densest gets the widest distance."""
    n = data.shape[0]
    order = torch.argsort(log_density, descending=True, stable=True)
    ranked = data[order]
    out = torch.empty(n, device=data.device)
    for a, b in blocks(n, n):
        apart = distances(ranked[a:b], ranked[:b])
        upper = torch.ones((b - a, b - a), dtype=torch.bool, device=data.device).triu()
        apart[:, a:b].masked_fill_(upper, torch.inf)
        out[a:b] = apart.amin(1)
    out[:1] = widest
    result = torch.empty_like(out)
    result[order] = out
    return result
