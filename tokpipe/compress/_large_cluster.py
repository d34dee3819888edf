"""Density peaks of one large cloud, tile by tile: nothing of N x N or N x D is ever held.

Three rounds of tiles: densities from all pairs, separations from half of them (rows by falling
density), labels from rows and centres. Letters: N rows, K clusters, D width, R C rows of a tile.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from tokpipe.compress._neighbors import BLOCK, WIDE_BLOCK

#: Most rows of a side of a tile (4 MB of squared distances).
_SIDE = 1024
#: The same where launching work costs more than memory (144 MB; three of it are held at most).
_WIDE_SIDE = 6144
#: Up to this width distances are taken from differences: exact zeros for equal rows.
_NARROW = 32


class LargeCloud:
    """Squared distances among some rows of data, moved to their mean.

    Attributes:
        index: int64 [N] the rows.
    """

    def __init__(self, data: Tensor, index: Tensor | None, divisor: float) -> None:
        """Take rows ``index`` (None all) of data float [*, D]; ``divisor`` of squares."""
        self.index = torch.arange(len(data), device=data.device) if index is None else index
        self._data, self._divisor, width = data, divisor, data.shape[1]
        here = data.device.type == "cpu"
        most, block = (_SIDE, BLOCK) if here else (_WIDE_SIDE, WIDE_BLOCK)
        self.side = max(1, min(most, block // 4 // max(1, width)))
        total = torch.zeros(width, dtype=torch.float64, device=data.device)
        for part in torch.split(self.index, self.side):
            total += data[part].float().sum(0).double()
        self._mean = (total / max(1, len(self))).float()
        self._square = torch.empty(len(self), device=data.device)
        for a in range(0, len(self), self.side):
            rows = self.rows(slice(a, a + self.side))
            self._square[a : a + self.side] = torch.linalg.vecdot(rows, rows)

    def __len__(self) -> int:
        """Return N."""
        return int(self.index.shape[0])

    def rows(self, at: slice | Tensor) -> Tensor:
        """Rows ``at`` (ranks in the cloud), moved, float32 [R, D]."""
        return self._data[self.index[at]].float().sub_(self._mean)

    def tile(self, left: Tensor, here: slice | Tensor, there: slice | Tensor) -> Tensor:
        """Squared distances [R, C] of ``left``, the rows ``here``, from the rows ``there``."""
        right = self.rows(there)
        if left.shape[1] <= _NARROW:
            mode = "donot_use_mm_for_euclid_dist"
            return torch.cdist(left, right, compute_mode=mode).square_().div_(self._divisor)
        made = torch.addmm(self._square[there][None], left, right.T, alpha=-2)
        return made.add_(self._square[here, None]).clamp_(min=0).div_(self._divisor)

    def panels(self, rows: int, most: int | None = None) -> Iterator[tuple[int, int]]:
        """Ranges over ``rows`` rows, of one tile's side or ``most``."""
        step = self.side if most is None else max(1, min(self.side, most))
        for a in range(0, rows, step):
            yield a, min(rows, a + step)

    def density(self, near: int) -> tuple[Tensor, Tensor]:
        """Minus the mean of the ``near`` smallest squares float64 [N], and the largest of all."""
        out = torch.empty(len(self), dtype=torch.float64, device=self.index.device)
        widest = torch.zeros((), device=out.device)
        for a, b in self.panels(len(self), BLOCK // near):
            left, best = self.rows(slice(a, b)), None
            for c, d in self.panels(len(self)):
                apart = self.tile(left, slice(a, b), slice(c, d))
                low, high = max(a, c), min(b, d)
                if low < high:
                    apart[low - a : high - a, low - c : high - c].fill_diagonal_(0)
                widest = torch.maximum(widest, apart.max())
                least = apart.topk(min(near, d - c), dim=1, largest=False).values
                if best is not None:
                    least = torch.cat([best, least], 1)
                    least = least.topk(min(near, least.shape[1]), dim=1, largest=False).values
                best = least
            out[a:b] = -least.double().sum(1) / near
        return out, widest

    def separation(self, order: Tensor, widest: Tensor) -> Tensor:
        """Square float32 [N] to the nearest row earlier in ``order``; ``widest`` for the first."""
        out = torch.empty(len(self), device=order.device)
        for a, b in self.panels(len(self)):
            here = order[a:b]
            left, least = self.rows(here), torch.full((b - a,), torch.inf, device=order.device)
            for c, d in self.panels(b):
                apart = self.tile(left, here, order[c:d])
                if c == a:
                    later = torch.ones_like(apart, dtype=torch.bool).triu_()
                    apart.masked_fill_(later, torch.inf)
                least = torch.minimum(least, apart.amin(1))
            out[here] = least
        out[order[:1]] = widest
        return out

    def nearest(self, centre: Tensor) -> Tensor:
        """Which of the rows ``centre`` int64 [K] each row is nearest to, the first of equals."""
        label = torch.zeros(len(self), dtype=torch.int64, device=centre.device)
        for a, b in self.panels(len(self)):
            left, least = self.rows(slice(a, b)), self._square.new_full((b - a,), torch.inf)
            for c, d in self.panels(len(centre)):
                best = self.tile(left, slice(a, b), centre[c:d]).min(1)
                better = best.values < least
                least = torch.where(better, best.values, least)
                label[a:b] = torch.where(better, best.indices + c, label[a:b])
        label[centre] = torch.arange(len(centre), device=label.device)
        return label


def large_peaks(
    cloud: LargeCloud, count: int, near: int, *, by_index: bool = False, lower: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Cluster by density peaks.

    Args:
        cloud: N rows.
        count: K, 0 .. N; 0 gives only scores.
        near: Rows in the density, the row itself included, 1 .. N.
        by_index: Centres in ascending order instead of decreasing score.
        lower: Separation from the nearest less dense row.

    Returns:
        Centres int64 [K] and labels int64 [N] (ranks in the cloud, labels -1 without centres),
        and the logarithm float64 [N] of density x separation.
    """
    density, widest = cloud.density(near)
    order = torch.argsort(density, descending=True, stable=True)
    apart = cloud.separation(order.flip(0) if lower else order, widest)
    score = density + 0.5 * apart.double().log()
    if not count:
        return order[:0], torch.full_like(order, -1), score
    centre = torch.argsort(score, descending=True, stable=True)[:count]
    if by_index:
        centre = centre.sort().values
    return centre, cloud.nearest(centre), score
