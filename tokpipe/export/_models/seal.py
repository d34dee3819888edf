"""A quick sum over all of a tower's weights: it tells whether they changed since their digest.

Counters of changes (``Tensor._version``) and addresses do not: fused optimizers, writes to
``.data`` and a projector swapped for another leave them as they were. Every byte is read instead,
where the weights are: 12 GB/s on one CPU core, which is 6 times as fast as the digest itself.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_WIDE = 256


def seal_of(tensors: Sequence[Tensor]) -> tuple[object, ...]:
    """Equal for equal tensors; other values or another order of them give another one.

    Args:
        tensors: On any devices, which are waited for once each.

    Returns:
        dtypes, shapes and 64-bit sums, to be compared alone.
    """
    sums: dict[torch.device, list[Tensor]] = {}
    for tensor in tensors:
        sums.setdefault(tensor.device, []).extend(_sums(tensor.detach()))
    found = tuple(n for made in sums.values() for n in torch.stack(made).tolist())
    return (tuple((str(t.dtype), tuple(t.shape)) for t in tensors), found)


def _sums(tensor: Tensor) -> list[Tensor]:
    """Weighted sums of 8-byte words by row and by column, and of the bytes that are left."""
    raw = tensor.contiguous().reshape(-1).view(torch.uint8)
    if raw.storage_offset() % 8:
        raw = raw.clone()
    whole = len(raw) // (8 * _WIDE) * _WIDE
    words = raw[: 8 * whole].view(torch.int64).view(-1, _WIDE)
    return [_weighted(words.sum(1)), _weighted(words.sum(0)), _weighted(raw[8 * whole :].long())]


def _weighted(numbers: Tensor) -> Tensor:
    """Sum of the numbers, each times one that looks drawn by chance for its place; it runs over."""
    mixed = torch.arange(1, len(numbers) + 1, device=numbers.device) * 0x1E3779B97F4A7C15
    # Simply rising weights would let changes of neighbours cancel out.
    mixed = (mixed ^ (mixed >> 27)) * 0x3F58476D1CE4E5B9
    return (numbers * (mixed ^ (mixed >> 31))).sum()
