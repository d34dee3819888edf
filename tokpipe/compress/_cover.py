"""Cover by density: dense tokens become centres, everything near a centre needs none.

Letters: T frames, C tokens of a frame.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tokpipe.compress._cosine import Cosines, nearest_of
from tokpipe.compress._neighbors import BLOCK

#: Halvings of the cutoff's range [0, 2].
_STEPS = 12
#: One centre in so many may be too many when the halving stops.
_SPARE = 64
#: Open tokens a walk through one large frame looks at together.
_AHEAD = 1024


@dataclass(frozen=True, slots=True)
class Cover:
    """Centres and who belongs to them.

    Attributes:
        centre: bool [T, C].
        label: int64 [T, C] the centre's own index, -1 nobody's.
    """

    centre: Tensor
    label: Tensor


def density(cosines: Cosines, scale: float, live: Tensor | None = None) -> Tensor:
    """Sum over a frame's (live) tokens of exp(-(d / scale)^2), d = max(0, 1 - cos), [T, C]."""
    out = torch.empty(cosines.shape, device=cosines.data.device)
    for a, b, block in cosines.blocks(own=True):
        near = block.neg_().add_(1).clamp_(min=0).square_().mul_(-1 / scale**2).exp_()
        out[:, a:b] = near.sum(2) if live is None else (near @ live.float()[..., None])[..., 0]
        del block, near
    return out


def densest_first(value: Tensor) -> Tensor:
    """Tokens int64 [T, C] of each frame by decreasing ``value``, of equal ones the lower first."""
    return torch.argsort(value, dim=1, descending=True, stable=True)


def cover(
    cosines: Cosines, cutoff: float, scale: float, *,
    quota: Tensor | None = None, live: Tensor | None = None, reach: float = 1.0,
) -> Cover:  # fmt: skip
    """Greedy cover: densest first, a token farther than ``cutoff`` from all centres is one.

    Args:
        cosines: Of T frames of C tokens.
        cutoff: Largest distance 1 - cosine that is near.
        scale: Of the density.
        quota: int64 [T] centres wanted, 1 .. live tokens; the cutoff is then one that gives at
            least as many, found by halving, and the densest of those centres stay.
        live: bool [T, C] tokens that are clustered; default all. The others join a centre within
            ``reach`` cutoffs, else nobody.
        reach: Factor of the cutoff, 0 or more.

    Returns:
        Every live token belongs to its nearest centre, a centre to itself.
    """
    order = densest_first(density(cosines, scale, live))
    closed = torch.zeros_like(order, dtype=torch.bool) if live is None else ~live
    if quota is None:
        radius = torch.full((order.shape[0],), cutoff, device=order.device)
        centre = Walk(cosines, order)(radius, closed)
    else:
        centre, radius = _halved(cosines, order, quota, closed)
    value, label = nearest_of(cosines, centre)
    own = torch.arange(label.shape[1], device=label.device).expand_as(label)
    label = torch.where(centre, own, label)
    if live is not None:
        label = torch.where(live | (1 - value <= radius[:, None] * reach), label, -1)
    return Cover(centre, label)


class Walk:
    """Greedy walks through the tokens of frames in one order, for any cutoff.

    Where the cosines are kept, the rows are put in order once for all walks. Else, in one large
    frame, a walk makes the rows of the tokens it takes and no others: of the next open ones those
    near each other are found first.
    """

    def __init__(self, cosines: Cosines, order: Tensor, group: Tensor | None = None) -> None:
        """Prepare walks.

        Args:
            cosines: Of T frames of C tokens.
            order: int64 [T, C] tokens of each frame.
            group: int64 [T, C]; only tokens of one group can be near. None is one group.
        """
        self._cosines, self._order, self._group = cosines, order, group
        self._apart = None if cosines.dense is None else self._rows(order)

    def __call__(self, cutoff: Tensor, closed: Tensor, most: Tensor | None = None) -> Tensor:
        """Take each token that is farther than ``cutoff`` from all taken before.

        Args:
            cutoff: float32 [T] largest distance 1 - cosine that is near.
            closed: bool [T, C] tokens never taken.
            most: int64 [T]; a walk may stop when it has taken more.

        Returns:
            Taken tokens, bool [T, C] (in the tokens' own places).
        """
        covered, taken = closed.clone(), torch.zeros_like(closed)
        if self._apart is None and closed.shape[0] == 1:
            return self._sparse(cutoff, covered, taken, most)
        limit = cutoff[:, None, None]
        for a, b in self._cosines.ranges():
            index = self._order[:, a:b]
            apart = self._rows(index) if self._apart is None else self._apart[:, a:b]
            near = apart <= limit
            del apart
            for r, row in enumerate(near.unbind(1)):
                token = index[:, r : r + 1]
                free = covered.gather(1, token).logical_not_()
                taken.scatter_(1, token, free)
                covered.logical_or_(row.logical_and_(free))
        return taken

    def _sparse(
        self, cutoff: Tensor, covered: Tensor, taken: Tensor, most: Tensor | None
    ) -> Tensor:
        """The walk of one large frame; writes to ``covered`` and ``taken`` bool [1, C]."""
        order, size, start = self._order[0], covered.shape[1], 0
        step = max(1, BLOCK // size)
        while start < size:
            free = torch.nonzero(~covered[0, order[start:]]).flatten()[:_AHEAD]
            if not free.shape[0]:
                break
            index = order[start + free]
            start += int(free[-1]) + 1
            index = index[self._apart_from_each_other(index, cutoff)]
            taken[0, index] = True
            for part in torch.split(index, step):
                covered |= (self._rows(part[None]) <= cutoff).any(1)
            if most is not None and bool(taken.sum(1) > most):
                break
        return taken

    def _apart_from_each_other(self, index: Tensor, cutoff: Tensor) -> Tensor:
        """Which of open tokens int64 [M], in this order, the walk takes: bool [M]."""
        inner = Cosines(self._cosines.data[:, index], pairs=index.shape[0] ** 2).part(0, len(index))
        near = 1 - inner[0] <= cutoff
        if self._group is not None:
            near &= self._group[0, index, None] == self._group[0, index]
        gone = torch.zeros_like(index, dtype=torch.bool)
        free = torch.zeros_like(gone)
        for r, row in enumerate(near.unbind()):
            free[r] = ~gone[r]
            gone |= row & free[r]
        return free

    def _rows(self, index: Tensor) -> Tensor:
        """Distances [T, R, C] from tokens ``index`` [T, R]; infinite between groups."""
        apart = self._cosines.rows(index).neg_().add_(1)
        if self._group is not None:
            other = self._group.gather(1, index)[..., None] != self._group[:, None]
            apart.masked_fill_(other, torch.inf)
        return apart


def _halved(
    cosines: Cosines, order: Tensor, quota: Tensor, closed: Tensor
) -> tuple[Tensor, Tensor]:
    """Exactly ``quota`` centres [T, C] and the cutoff [T] that gives them, found by halving."""
    low = torch.zeros(quota.shape, device=quota.device)
    high = torch.full_like(low, 2.0)
    best, walk = ~closed, Walk(cosines, order)
    for _ in range(_STEPS):
        # Few too many are near enough: the least dense of them go.
        open_ = best.sum(1) > quota + quota // _SPARE
        if not bool(open_.any()):
            break
        middle = (low + high) / 2
        found = walk(middle, closed, quota + quota // _SPARE)
        enough = open_ & (found.sum(1) >= quota)
        best = torch.where(enough[:, None], found, best)
        # A frame that has its count stays as it is, whatever the frames beside it need.
        low, high = torch.where(enough, middle, low), torch.where(enough, high, middle)
    ranked = best.gather(1, order)
    ranked &= ranked.cumsum(1) <= quota[:, None]
    return torch.zeros_like(best).scatter_(1, order, ranked), low
