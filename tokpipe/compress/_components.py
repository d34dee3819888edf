"""Connected components of graphs of alike tokens, exact, block by block.

Letters: N nodes, T frames, C nodes of a frame, E edges, K components, D width.
"""

from __future__ import annotations

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


class Means:
    """Weighted sums of groups of rows, made whenever some of them are asked for.

    Attributes:
        shape: (1, K, D), as one frame of K rows.
        device: Where they are made.
    """

    def __init__(
        self, data: Tensor, group: Tensor, count: int, weight: Tensor | None = None
    ) -> None:
        """Prepare ``count`` sums of data float [N, D] by ``group`` int64 [N].

        Args:
            data: Rows.
            group: 0 .. count - 1.
            count: K.
            weight: float32 [N] of each row in its sum; default one over the group's size.
        """
        self.shape, self.device = (1, count, data.shape[1]), data.device
        size = torch.bincount(group, minlength=count)
        self._data, self._group = data, group
        self._weight = (1 / size[group]).float() if weight is None else weight
        self._order = torch.argsort(group, stable=True)
        self._start = [0, *torch.cumsum(size, 0).tolist()]

    def rows(self, a: int, b: int) -> Tensor:
        """Sums a .. b, float32 [b - a, D]."""
        out = torch.zeros((b - a, self.shape[2]), device=self.device)
        member = self._order[self._start[a] : self._start[b]]
        for part in torch.split(member, max(1, BLOCK // 4 // max(1, self.shape[2]))):
            rows = self._data[part].float().mul_(self._weight[part, None])
            out.index_add_(0, self._group[part] - a, rows)
        return out


def alike_frames(data: Tensor | Means, threshold: float) -> Components:
    """Components of every frame's graph of nodes with a cosine above ``threshold``.

    Args:
        data: float [T, C, D], or means that make one frame.
        threshold: Cosine, -1 to 1.

    Returns:
        Over the T x C nodes, frame after frame. Half a pass of products, memory bounded by tiles.
    """
    steps, size, width = data.shape
    label = torch.arange(steps * size, device=data.device)
    degree = torch.zeros(steps * size, dtype=torch.int64, device=data.device)
    frames = max(1, _ENTRIES // max(1, size * max(size, width)))
    side = max(1, min(size, math.isqrt(_ENTRIES)))
    for t in range(0, steps, frames):
        last = min(steps, t + frames)
        first = torch.arange(t, last, device=data.device)[:, None] * size
        for a in range(0, size, side):
            b = min(size, a + side)
            left, here = _tile(data, t, last, a, b), first + torch.arange(a, b, device=data.device)
            for c in range(0, a + 1, side):
                d = min(size, c + side)
                right = left if c == a else _tile(data, t, last, c, d)
                # Products are scaled, not rows: fewer passes over the data, and no copy of it.
                cosine = torch.bmm(left[0], right[0].mT)
                near = cosine.mul_(left[1][:, :, None]).mul_(right[1][:, None]) > threshold
                there = first + torch.arange(c, d, device=data.device)
                degree[here] += near.sum(2)
                if c < a:
                    degree[there] += near.sum(1)
                label = _join(label, near, here, there)
    return _ordered(label, degree)


def _tile(data: Tensor | Means, t: int, last: int, a: int, b: int) -> tuple[Tensor, Tensor]:
    """Rows a .. b of frames t .. last, float32 [T, R, D], and one over their lengths [T, R]."""
    rows = data.rows(a, b)[None] if isinstance(data, Means) else data[t:last, a:b].float()
    return rows, 1 / torch.linalg.vector_norm(rows, dim=2).clamp(min=1e-12)


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
