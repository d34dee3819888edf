"""Quadtrees of frames: cells that resemble all their children stand for them.

Level 0 is the grid of tokens. Each level above halves both sides, up; of an odd side the first
row or column is alone and the rest are pairs. Letters: B frames, H W cells of a side, D width,
M nodes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

#: Smallest product of lengths that a cosine is divided by.
_TINY = 1e-12


@dataclass(frozen=True, slots=True)
class Nodes:
    """Final cells of some frames in (t, y0, x0) order.

    Attributes:
        feature: float32 [M, D].
        first: int64 [M] flat token at the node's top left corner.
        owner: int64 [B x H x W] node of each token.
        part: float32 [B x H x W] coefficient of each token in its node's feature; they sum to 1.
    """

    feature: Tensor
    first: Tensor
    owner: Tensor
    part: Tensor


def levels(rows: int, cols: int) -> list[tuple[int, int]]:
    """Sizes of the levels, the tokens' own first, halved until a side is 2."""
    sizes = [(rows, cols)]
    while min(sizes[-1]) > 2:
        sizes.append((-(-sizes[-1][0] // 2), -(-sizes[-1][1] // 2)))
    return sizes


def quadtree(data: Tensor, mass: Tensor | None, threshold: float, top: int, border: bool) -> Nodes:
    """Cut frames into cells from level ``top`` down.

    A cell is final where its cosine with every child is ``threshold`` or more, else its children
    are looked at; tokens are final.

    Args:
        data: float32 [B, H, W, D].
        mass: float32 [B, H, W] weights of the means; None means each child counts the same.
        threshold: Cosine.
        top: Level that begins, 0 keeps every token.
        border: Children that an odd side lacks are taken from the frame's first cell.
    """
    data = data if mass is None else data * mass[..., None]
    pyramid, agree = [data], []
    for _ in range(top):
        parent, children = _pooled(pyramid[-1], mean=mass is None)
        agree.append(_agree(pyramid[-1], parent, children, threshold, border))
        pyramid.append(parent)
    final: list[Tensor] = []
    live = torch.ones(pyramid[-1].shape[:3], dtype=torch.bool, device=data.device)
    for level in range(top, 0, -1):
        ok = agree[level - 1]
        final.insert(0, live & ok)
        y, x = _parents(pyramid[level - 1], ok.device)
        live = (live & ~ok)[:, y][:, :, x]
    return _nodes(pyramid, [live, *final], mass)


def _slots(child: Tensor, parent: Tensor) -> Iterator[tuple[Tensor, tuple[slice, slice]]]:
    """The children [B, h, w, ...] in each of the four slots and the parents that have them."""
    odd_y, odd_x = child.shape[1] % 2, child.shape[2] % 2
    for a in range(2):
        for b in range(2):
            rows = slice(1 if odd_y and not a else 0, parent.shape[1])
            cols = slice(1 if odd_x and not b else 0, parent.shape[2])
            yield child[:, a ^ odd_y :: 2, b ^ odd_x :: 2], (rows, cols)


def _pooled(child: Tensor, *, mean: bool) -> tuple[Tensor, Tensor]:
    """Means (or sums) of children [B, h, w, D] and how many each cell has, [h, w]."""
    steps, rows, cols, width = child.shape
    size = (-(-rows // 2), -(-cols // 2))
    parent = torch.zeros((steps, *size, width), device=child.device)
    count = torch.zeros(size, device=child.device)
    for part, (y, x) in _slots(child, parent):
        parent[:, y, x] += part
        count[y, x] += 1
    return (parent.div_(count[..., None]) if mean else parent), count


def _agree(
    child: Tensor, parent: Tensor, children: Tensor, threshold: float, border: bool
) -> Tensor:
    """Mask [B, h, w] of the cells that resemble all their children."""
    length = torch.linalg.vector_norm(parent, dim=3)
    own = torch.linalg.vector_norm(child, dim=3)
    ok = torch.ones(length.shape, dtype=torch.bool, device=child.device)
    for (part, (y, x)), (norm, _) in zip(_slots(child, parent), _slots(own, parent), strict=True):
        dot = torch.linalg.vecdot(part, parent[:, y, x])
        ok[:, y, x] &= dot >= threshold * (norm * length[:, y, x]).clamp(min=_TINY)
    if border:
        dot = (parent @ child[:, 0, 0, :, None].unsqueeze(1))[..., 0]
        corner = dot >= threshold * (length * own[:, :1, :1]).clamp(min=_TINY)
        ok &= corner | (children == 4)
    return ok


def _parents(child: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """Parent row of each row int64 [h] and parent column of each column int64 [w]."""
    rows, cols = child.shape[1:3]
    y = (torch.arange(rows, device=device) + rows % 2) // 2
    return y, (torch.arange(cols, device=device) + cols % 2) // 2


def _nodes(pyramid: list[Tensor], final: list[Tensor], mass: Tensor | None) -> Nodes:
    steps, rows, cols, width = pyramid[0].shape
    device = pyramid[0].device
    place = torch.arange(steps * rows * cols, device=device).reshape(steps, rows, cols)
    corner, part = place, torch.ones_like(pyramid[0][..., 0])
    y, x = torch.arange(rows, device=device), torch.arange(cols, device=device)
    coefficient, corners = torch.ones(rows, cols, device=device), [place]
    for level in range(1, len(pyramid)):
        up, left = _parents(pyramid[level - 1], device)
        y, x = up[y], left[x]
        h, w = pyramid[level].shape[1:3]
        siblings = torch.bincount(up, minlength=h)[:, None] * torch.bincount(left, minlength=w)
        coefficient = coefficient / siblings[y][:, x]
        # The first token of each cell: where its number appears first along both sides.
        top = torch.searchsorted(y, torch.arange(h, device=device))
        side = torch.searchsorted(x, torch.arange(w, device=device))
        corners.append(place[:, top][:, :, side])
        inside = final[level][:, y][:, :, x]
        corner = torch.where(inside, corners[level][:, y][:, :, x], corner)
        part = torch.where(inside, coefficient, part)
    begins = (corner == place).flatten()
    number = torch.cumsum(begins, 0) - 1
    first = torch.nonzero(begins).flatten()
    owner = number[corner.flatten()]
    feature = torch.empty((first.shape[0], width), device=device)
    for level, cells in enumerate(pyramid):
        chosen = torch.nonzero(final[level].flatten()).flatten()
        node = number[corners[level].flatten()[chosen]]
        feature[node] = cells.reshape(-1, width).index_select(0, chosen)
    if mass is not None:
        total = torch.zeros_like(feature[:, 0]).index_add_(0, owner, mass.flatten())
        feature = feature / total[:, None].clamp(min=_TINY)
        part = mass / total[owner].reshape(mass.shape).clamp(min=_TINY)
    return Nodes(feature, first, owner, part.flatten())
