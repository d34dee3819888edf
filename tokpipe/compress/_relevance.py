"""How much tokens have to do with a text, and ranks of tokens within their frames.

Letters: N tokens, T frames, M text segments, E width of the common space.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tokpipe.compress._neighbors import blocks, unit_rows
from tokpipe.frames import Frames


def text_cosines(vectors: Tensor, texts: Tensor) -> Tensor:
    """Cosines float32 [N, M] of token vectors [N, E] with texts [M, E]; zero rows give 0."""
    unit = unit_rows(texts.to(vectors.device)).T
    out = torch.empty(vectors.shape[0], unit.shape[1], device=vectors.device)
    for a, b in blocks(vectors.shape[0], vectors.shape[1]):
        part = vectors[a:b].float()
        length = torch.linalg.vector_norm(part, dim=1, keepdim=True)
        out[a:b] = part @ unit / length.clamp(min=1e-12)
    return out


def spread(value: Tensor, frames: Frames | None) -> Tensor:
    """Values float32 [N] brought to above 0 .. 1: (v - min + 1e-6) / (max - min).

    Args:
        value: float32 [N], no NaN.
        frames: Each frame has its own minimum and maximum; None: all tokens share theirs.

    Returns:
        1 throughout where all are equal.
    """
    if not value.shape[0]:
        return value
    if frames is None:
        low, high = value.min(), value.max()
    else:
        edge = value.new_full((len(frames),), torch.inf)
        low = edge.scatter_reduce(0, frames.index, value, "amin")[frames.index]
        high = (-edge).scatter_reduce(0, frames.index, value, "amax")[frames.index]
    width = high - low
    made = (value - low + 1e-6) / torch.where(width > 0, width, 1.0)
    return torch.where(width > 0, made, 1.0)


def frame_softmax(value: Tensor, frames: Frames) -> Tensor:
    """Softmax float32 [N] over the tokens of each frame."""
    edge = value.new_full((len(frames),), -torch.inf)
    high = edge.scatter_reduce(0, frames.index, value, "amax")
    part = (value - high[frames.index]).exp()
    total = torch.zeros_like(edge).index_add_(0, frames.index, part)
    return part / total[frames.index]


def frame_rank(value: Tensor, frames: Frames) -> Tensor:
    """Rank int64 [N] of each token in its frame, 0 the highest; ties go to the lower index."""
    order = torch.argsort(value, descending=True, stable=True)
    order = order[torch.argsort(frames.index[order], stable=True)]
    start = torch.cumsum(frames.counts, 0) - frames.counts
    rank = torch.empty_like(order)
    rank[order] = torch.arange(order.shape[0], device=order.device) - start[frames.index[order]]
    return rank
