"""Connected components of graphs of alike tokens, exact, block by block.

Letters: N nodes, T frames, C nodes of a frame, E edges, K components, D width.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from tokpipe.compress._neighbors import BLOCK

#: Most entries of one block of the adjacency; several masks of that size live at once.
_ENTRIES = BLOCK // 4


@dataclass(frozen=True, slots=True)
class Components:
    """Components in ascending order of their root.

    Attributes:
        group: int64 [N] component of each node.
        root: int64 [K] the node with most neighbours, of equal ones the lowest.
    """

    group: Tensor
    root: Tensor


def connected(label: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Join the components that edges connect.

    Args:
        label: int64 [N] the lowest node of each node's component so far.
        left: int64 [E] one end of each edge.
        right: int64 [E] the other end.

    Returns:
        int64 [N], as ``label``, after joining.
    """
    left, right = label[left], label[right]
    while True:
        differ = left != right
        left, right = left[differ], right[differ]
        if not left.shape[0]:
            return label
        low, high = torch.minimum(left, right), torch.maximum(left, right)
        label = label.scatter_reduce(0, high, low, "amin")
        while not torch.equal(label, higher := label[label]):
            label = higher
        left, right = label[left], label[right]


def alike_frames(data: Tensor, threshold: float) -> Components:
    """Components of every frame's graph of nodes with a cosine above ``threshold``.

    Args:
        data: float [T, C, D].
        threshold: Cosine, -1 to 1.

    Returns:
        Over the T x C nodes, frame after frame. One pass of products, memory bounded by blocks.
    """
    steps, size, width = data.shape
    label = torch.arange(steps * size, device=data.device)
    degree = torch.zeros(steps * size, dtype=torch.int64, device=data.device)
    frames = max(1, _ENTRIES // max(1, size * max(size, width)))
    side = max(1, min(size, math.isqrt(_ENTRIES)))
    for t in range(0, steps, frames):
        block = data[t : t + frames]
        # Products are scaled, not rows: fewer passes over the data, and no copy of it.
        length = torch.linalg.vector_norm(block, dim=2, dtype=torch.float32)
        scale = 1 / length.clamp(min=1e-12)
        first = torch.arange(t, t + block.shape[0], device=data.device)[:, None] * size
        for a, c in itertools.product(range(0, size, side), repeat=2):
            if c > a:
                continue
            b, d = min(size, a + side), min(size, c + side)
            cosine = torch.bmm(block[:, a:b].float(), block[:, c:d].float().mT)
            near = cosine.mul_(scale[:, a:b, None]).mul_(scale[:, None, c:d]) > threshold
            here = first + torch.arange(a, b, device=data.device)
            there = first + torch.arange(c, d, device=data.device)
            degree[here] += near.sum(2)
            if c < a:
                degree[there] += near.sum(1)
            label = _join(label, near, here, there)
    return _ordered(label, degree)


def _join(label: Tensor, near: Tensor, here: Tensor, there: Tensor) -> Tensor:
    """Labels after the edges of blocks bool [T, R, S] between nodes [T, R] and [T, S]."""
    none = label.shape[0]
    # First each node to its lowest neighbour: what dense clusters then leave over is little.
    lowest = torch.where(near, label[there].int()[:, None], none).amin(2).long()
    lowest = torch.minimum(lowest, label[here])
    label = connected(label, here.flatten(), lowest.flatten())
    left = near & (label[here].int()[:, :, None] != label[there].int()[:, None])
    frame, row, col = torch.nonzero(left, as_tuple=True)
    return connected(label, here[frame, row], there[frame, col])


def _ordered(label: Tensor, degree: Tensor) -> Components:
    n = label.shape[0]
    node = torch.arange(n, device=label.device)
    most = torch.zeros_like(degree).scatter_reduce(0, label, degree, "amax")
    top = degree == most[label]
    root = torch.full_like(node, n).scatter_reduce(0, label[top], node[top], "amin")[label]
    is_root = root == node
    return Components((torch.cumsum(is_root, 0) - 1)[root], torch.nonzero(is_root).flatten())


def group_means(data: Tensor, group: Tensor, count: int) -> Tensor:
    """Means float32 [K, D] of the rows of each group; every group has a row.

    Args:
        data: float [N, D].
        group: int64 [N], 0 .. K - 1.
        count: K.
    """
    order = torch.argsort(group, stable=True)
    start = torch.zeros(count + 1, dtype=torch.int64, device=data.device)
    start[1:] = torch.cumsum(torch.bincount(group, minlength=count), 0)
    return torch.nn.functional.embedding_bag(
        order, data.float(), start, mode="mean", include_last_offset=True
    )
