"""Balanced bipartite matching: one round of token merging."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tokpipe.compress._neighbors import most_similar, unit_rows


@dataclass(frozen=True, slots=True)
class Matching:
    """Where each token of one round goes.

    Attributes:
        group: int64 [N] row of each token.
        anchor: int64 [K] the token whose place each row takes.
    """

    group: Tensor
    anchor: Tensor


def removable(n: int, every: int = 2, protected: int = 0) -> int:
    """Most tokens one round can merge away: all but one in ``every`` of the unprotected."""
    free = max(0, n - protected)
    return free - -(-free // min(every, max(1, free)))


def bipartite(
    metric: Tensor,
    remove: int,
    *,
    every: int = 2,
    class_token: bool = False,
    distill_token: bool = False,
) -> Matching:
    """Merge the ``remove`` tokens that resemble a destination most, each into its best one.

    The last of each ``every`` consecutive tokens is a destination, the others are sources.

    Args:
        metric: float [N, D], compared by cosine; N >= 2.
        remove: Tokens to merge away, 0 .. ``removable``.
        every: 2 alternates sources and destinations.
        class_token: Token 0 stays as it is, and the unmerged keep their order.
        distill_token: Token 1 stays as it is (only beside a class token).

    Returns:
        Unmerged sources by decreasing similarity (ascending with a class token), then the
        destinations; ties go to the lower index.
    """
    n, device = metric.shape[0], metric.device
    every = max(2, min(every, n))
    position = torch.arange(n, device=device)
    takes = position % every == every - 1
    source, target = position[~takes], position[takes]
    unit = unit_rows(metric)
    blocked = 0 if distill_token and every == 2 and n > 1 else None
    best, where = most_similar(unit[source], unit[target], without=blocked)
    protected = (source == 0) & class_token | (source == 1) & distill_token
    best = best.masked_fill(protected, -torch.inf)
    order = torch.argsort(best, descending=True, stable=True)
    merged, rest = order[:remove], order[remove:]
    if class_token:
        rest = rest.sort().values
    anchor = torch.cat([source[rest], target])
    if blocked is not None and rest.shape[0]:
        kept, taking = anchor[: rest.shape[0]], anchor[rest.shape[0] :]
        anchor = torch.cat([kept[:1], taking[:1], kept[1:], taking[1:]])
    group = torch.empty(n, dtype=torch.int64, device=device)
    group[anchor] = torch.arange(anchor.shape[0], device=device)
    group[source[merged]] = group[target[where[merged]]]
    return Matching(group, anchor)


def fold(values: Tensor, mass: Tensor, match: Matching) -> tuple[Tensor, Tensor]:
    """Mass-weighted means [K, D] and mass sums [K] of float32 values [N, D] and mass [N]."""
    k = match.anchor.shape[0]
    total = torch.zeros(k, device=mass.device).index_add_(0, match.group, mass)
    out = torch.zeros((k, values.shape[1]), device=values.device)
    out.index_add_(0, match.group, values * mass[:, None])
    return out / total.clamp(min=1e-12)[:, None], total
