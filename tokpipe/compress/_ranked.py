"""The best of each group, as many as each is given."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def best_of_each(score: Tensor, owner: Tensor, quota: Sequence[int]) -> Tensor:
    """Indices of the best scored tokens of each group, ascending; ties to the lower index.

    Args:
        score: float32 [N].
        owner: int64 [N] group of each token, 0 .. G - 1.
        quota: G counts; a group smaller than its count gives what it has.
    """
    order = torch.argsort(score, descending=True, stable=True)
    order = order[torch.argsort(owner[order], stable=True)]
    counts = torch.bincount(owner, minlength=len(quota))
    first = counts.cumsum(0) - counts
    rank = torch.arange(order.shape[0], device=order.device) - first[owner[order]]
    most = torch.tensor(quota, dtype=torch.int64, device=order.device)
    return order[rank < most[owner[order]]].sort().values
