"""Frames compared with a reference frame: what to keep where not even the references fit.

Letters: N tokens, T frames.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tokpipe.budget import largest_remainder
from tokpipe.compress._tracks import NOTHING, Tracks, cosines, lowest_of_each


def compared(data: Tensor, tracks: Tracks, reference: Tensor) -> Tensor:
    """Cosine float32 [N] with the same place of each frame's reference; -2 where there is none.

    Args:
        data: [N, D].
        tracks: Of these tokens.
        reference: int64 [T] earlier frame each is compared with, itself for none.
    """
    return cosines(data, tracks.reference(reference), tracks.size)


def few_of_heads(data: Tensor, tracks: Tracks, head: Tensor, budget: int) -> Tensor:
    """Mask bool [N] of ``budget`` tokens of the reference frames ``head`` bool [T] alone.

    Each gives its part: the tokens least like the reference frame before it; where nothing is
    before, tokens spread evenly.
    """
    index = torch.arange(head.shape[0], device=head.device)
    heads = index[head]
    before = index.clone()
    before[heads[1:]] = heads[:-1]
    alike = compared(data, tracks, before)
    quota = shares(tracks.counts, head, budget)
    even = spread(tracks.frame, tracks.counts, quota)
    first = torch.where(even & (alike == NOTHING), NOTHING - 1, alike)
    return lowest_of_each(first, tracks.frame, quota)


def shares(counts: Tensor, mask: Tensor, budget: int) -> Tensor:
    """Quota int64 [T] that splits ``budget`` over the frames of ``mask`` by their tokens."""
    caps = torch.where(mask, counts, 0).tolist()
    parts = largest_remainder(min(budget, sum(caps)), caps, caps=caps)
    return torch.tensor(parts, dtype=torch.int64, device=counts.device)


def spread(frame: Tensor, counts: Tensor, quota: Tensor) -> Tensor:
    """Mask bool [N] of ``quota`` int64 [T] tokens of each frame at equal steps."""
    order = torch.argsort(frame, stable=True)
    starts = counts.cumsum(0) - counts
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order), device=order.device)
    rank = rank - starts[frame]
    return (rank * quota[frame]) % counts[frame] < quota[frame]
