"""How much the mean query attends to each token, times the token's length.

Letters: T frames, C tokens of a frame, H heads, D' width of a head.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tokpipe.compress._neighbors import blocks, row_lengths


def mean_query_saliency(queries: Tensor, keys: Tensor, data: Tensor) -> Tensor:
    """Saliency of each token among those of its frame, float32 [T, C].

    Args:
        queries: float [T, C, D'] or [T, C, H, D'], before any rotation by position.
        keys: The same shape.
        data: float [T, C, D] whose length weighs.
    """
    if queries.ndim == 3:
        queries, keys = queries[:, :, None], keys[:, :, None]
    mean = queries.float().mean(1)
    logits = torch.empty((mean.shape[0], mean.shape[1], keys.shape[1]), device=keys.device)
    for a, b in blocks(keys.shape[1], mean.numel()):
        logits[..., a:b] = torch.einsum("thd,tchd->thc", mean, keys[:, a:b].float())
    logits /= mean.shape[-1] ** 0.5
    length = row_lengths(data)
    attention: Tensor = logits.softmax(2).mean(1)
    return attention * length
