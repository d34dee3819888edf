"""How much the mean query attends to each token, times the token's length.

Letters: T frames, C tokens of a frame, H heads, D' width of a head.
"""

from __future__ import annotations

import torch
from torch import Tensor


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
    logits = torch.einsum("thd,tchd->thc", mean, keys.float()) / mean.shape[-1] ** 0.5
    length: Tensor = torch.linalg.vector_norm(data.float(), dim=2)
    attention: Tensor = logits.softmax(2).mean(1)
    return attention * length
