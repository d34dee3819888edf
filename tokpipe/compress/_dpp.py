"""Greedy choice of a determinantal point process: relevant rows that differ from each other.

The kernel is diag(r) S diag(r) with S the cosines. Each pick has the largest gain in the
determinant: its squared length outside the span of the picks before (an incremental Cholesky
factorisation, which is Gram-Schmidt on the rows). Letters: T frames, N rows, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tokpipe.compress._neighbors import BLOCK

#: A row whose squared length left outside the span is below this part of it counts as spanned.
EPS = 1e-5


def dpp_picks(unit: Tensor, relevance: Tensor, count: int) -> Tensor:
    """Pick rows greedily.

    Args:
        unit: float32 [N, D], rows of length 1 (or 0: never picked). Rows of other lengths serve
            as well where ``relevance`` is divided by them.
        relevance: float32 [N], any sign; 0 is never picked.
        count: Most picks, 0 .. N.

    Returns:
        int64 [<= count] in pick order, fewer where the rest lies in the span of the picks. Ties
        go to the lower index. Memory O(N + D^2) where N x N would be large.
    """
    if unit.shape[0] ** 2 <= BLOCK:
        picks = dpp_picks_each(unit[None], relevance[None], count)[0]
    else:
        picks = _by_basis(unit, relevance, min(count, unit.shape[0]))
    return picks[picks >= 0]


def dpp_picks_each(unit: Tensor, relevance: Tensor, count: int) -> Tensor:
    """Pick rows of every frame by itself.

    Args:
        unit: float32 [T, N, D], as above; T x N x N is materialised.
        relevance: float32 [T, N].
        count: Picks of each frame, 0 .. N.

    Returns:
        int64 [T, count] in pick order, -1 after the last.
    """
    steps, n, _ = unit.shape
    kernel = torch.bmm(unit, unit.mT)
    kernel.mul_(relevance[:, :, None]).mul_(relevance[:, None, :])
    gain = kernel.diagonal(dim1=1, dim2=2).clone()
    floor = gain * EPS
    gain.masked_fill_(gain <= floor, -torch.inf)
    factor = torch.empty((steps, count, n), device=unit.device)
    frame = torch.arange(steps, device=unit.device)
    picks, gains = _room(steps, count, unit.device)
    for i in range(count):
        best, row = gain.max(1)
        picks[:, i], gains[:, i] = row, best
        edge = kernel[frame, row]
        if i:
            known = factor[frame, :i, row]
            edge = torch.baddbmm(edge[:, None], known[:, None], factor[:, :i], alpha=-1)[:, 0]
        edge = edge / best.clamp(min=1e-30).sqrt()[:, None]
        factor[:, i] = edge
        gain = gain - edge.square()
        gain.scatter_(1, row[:, None], -torch.inf)
        # Written so that what follows a frame's last pick, possibly NaN, stays out.
        gain = torch.where(gain > floor, gain, -torch.inf)
    return torch.where(gains > -torch.inf, picks, -1)


def _by_basis(unit: Tensor, relevance: Tensor, count: int) -> Tensor:
    """The same picks from an orthonormal basis of the picked rows instead of the kernel."""
    width = unit.shape[1]
    square = relevance.square()
    gain = square * torch.linalg.vector_norm(unit, dim=1).square()
    floor = gain * EPS
    gain.masked_fill_(gain <= floor, -torch.inf)
    # No more directions than the width: after that every row is spanned.
    basis = torch.zeros((min(count, width), width), device=unit.device)
    picks, gains = _room(1, basis.shape[0], unit.device)
    for i in range(basis.shape[0]):
        best, row = gain.max(0)
        picks[0, i], gains[0, i] = row, best
        rest = unit[row]
        # Twice is enough for orthogonality to rounding.
        for _ in range(2):
            rest = rest - basis[:i].T @ (basis[:i] @ rest)
        basis[i] = rest / torch.linalg.vector_norm(rest).clamp(min=1e-30)
        gain = gain - square * (unit @ basis[i]).square()
        gain.scatter_(0, row[None], -torch.inf)
        gain = torch.where(gain > floor, gain, -torch.inf)
    return torch.where(gains > -torch.inf, picks, -1)[0]


def _room(steps: int, count: int, device: torch.device) -> tuple[Tensor, Tensor]:
    picks = torch.zeros((steps, count), dtype=torch.int64, device=device)
    return picks, torch.full((steps, count), -torch.inf, device=device)
