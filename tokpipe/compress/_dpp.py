"""Greedy choice of a determinantal point process: relevant rows that differ from each other.

The kernel is diag(r) S diag(r) with S the cosines. Each pick has the largest gain in the
determinant: its squared length outside the span of the picks before (an incremental Cholesky
factorisation, which is Gram-Schmidt on the rows). Letters: T frames, N rows, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tokpipe.compress._neighbors import BLOCK, blocks, row_lengths

#: A row whose squared length left outside the span is below this part of it counts as spanned.
EPS = 1e-5
#: Rows whose gains follow every pick, and picks after which all others follow.
_POOL, _WAIT = 1024, 128


def dpp_picks(unit: Tensor, relevance: Tensor, count: int) -> Tensor:
    """Pick rows greedily.

    Args:
        unit: float [N, D], rows of length 1 (or 0: never picked). Rows of other lengths serve
            as well where ``relevance`` is divided by them.
        relevance: float32 [N], any sign; 0 is never picked.
        count: Most picks, 0 .. N.

    Returns:
        int64 [<= count] in pick order, fewer where the rest lies in the span of the picks. Ties
        go to the lower index. Beyond 2896 rows nothing of N x N or N x D is held.
    """
    if unit.shape[0] ** 2 <= BLOCK:
        picks = dpp_picks_each(unit.float()[None], relevance[None], count)[0]
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


def _by_basis(data: Tensor, relevance: Tensor, count: int) -> Tensor:
    """The same picks from an orthonormal basis of the picked rows instead of the kernel.

    Gains only fall, so old ones bound new ones. On a processor those of the best few follow every
    pick; the others wait, and follow many picks at once when the few no longer hold the best.
    """
    n, width, device = data.shape[0], data.shape[1], data.device
    square = relevance.square()
    gain = square * row_lengths(data).square()
    floor = gain * EPS
    gain.masked_fill_(gain <= floor, -torch.inf)
    # No more directions than the width: after that every row is spanned.
    basis = torch.zeros((min(count, width), width), device=device)
    picks, gains = _room(1, basis.shape[0], device)
    few = min(n - 1, _POOL) if device.type == "cpu" else n
    done, pool = 0, torch.arange(n, device=device)
    local, rows, bound = gain, data, gain.new_tensor(-torch.inf)
    for i in range(basis.shape[0]):
        if few < n and (not i or i - done > _WAIT or not bool(local.max() > bound)):
            if i:
                _follow(gain, data, square, basis[done:i])
            gain[picks[0, :i]] = -torch.inf
            gain = torch.where(gain > floor, gain, -torch.inf)
            order, done = torch.argsort(gain, descending=True, stable=True), i
            pool, bound = order[:few].sort().values, gain[order[few]]
            local, rows = gain[pool], data[pool].float()
        best, at = local.max(0)
        if few < n and bool(best == -torch.inf):
            break
        picks[0, i], gains[0, i] = pool[at], best
        basis[i] = _residue(rows[at].float(), basis[:i])
        local = local.clone() if local is gain else local
        _follow(local, rows, square[pool], basis[i : i + 1])
        local.scatter_(0, at[None], -torch.inf)
        local = torch.where(local > floor[pool], local, -torch.inf)
    return torch.where(gains > -torch.inf, picks, -1)[0]


def _follow(gain: Tensor, data: Tensor, square: Tensor, basis: Tensor) -> None:
    """Take from ``gain`` float32 [N] what the rows lie along ``basis`` float32 [M, D]."""
    for a, b in blocks(data.shape[0], max(data.shape[1], basis.shape[0])):
        along = data[a:b].float() @ basis.T
        gain[a:b] -= square[a:b] * along.square_().sum(1)


def _residue(row: Tensor, basis: Tensor) -> Tensor:
    """The direction of ``row`` outside the span of the orthonormal ``basis``."""
    # Twice is enough for orthogonality to rounding.
    for _ in range(2):
        row = row - basis.T @ (basis @ row)
    length: Tensor = torch.linalg.vector_norm(row)
    return row / length.clamp(min=1e-30)


def _room(steps: int, count: int, device: torch.device) -> tuple[Tensor, Tensor]:
    picks = torch.zeros((steps, count), dtype=torch.int64, device=device)
    return picks, torch.full((steps, count), -torch.inf, device=device)
