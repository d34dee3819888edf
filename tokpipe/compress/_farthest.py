"""Farthest first: always the token that is farthest from everything picked so far.

Letters: T frames, C tokens of a frame, R picks.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tokpipe.compress._cosine import Cosines, nearest_other
from tokpipe.compress._neighbors import blocks

#: Tokens whose distances follow every pick, and picks after which all others follow.
_POOL, _WAIT = 1024, 128
#: Distances this near count as equal in the first pick: rounding must not choose.
_TIE = 1e-6


def farthest_first(
    cosines: Cosines, count: int, *, place: Tensor | None = None, first: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Pick ``count`` tokens of each frame greedily by distance 1 - cosine.

    Args:
        cosines: Of T frames of C tokens.
        count: R, 1 .. C.
        place: float32 [T, C, P] coordinates; half their squared distance is added. Lengths joined
            with unit rows give exactly that: |a - b|^2 / 2 = 1 - cos + |p - q|^2 / 2.
        first: int64 [T, M] the first picks, M >= 1; default the token farthest from its nearest
            other.

    Returns:
        (picks int64 [T, R], least distance to earlier picks float32 [T, R], never rising). Of
        equally far ones the lower index is picked, and nothing twice.
    """
    (steps, size), device = cosines.shape, cosines.data.device
    if first is None:
        first = _loneliest(cosines, place) if size > 1 else torch.zeros(steps, device=device).long()
        first = first[:, None]
    pool = steps == 1 and cosines.dense is None and size > _POOL and device.type == "cpu"
    walk = _pooled if pool else _stepwise
    picks, apart = walk(cosines, count, place, first)
    if place is not None:
        apart[:, 0] = torch.inf if count < 2 else apart[:, 1]
    return picks, apart.cummin(1).values


def _stepwise(
    cosines: Cosines, count: int, place: Tensor | None, first: Tensor
) -> tuple[Tensor, Tensor]:
    """Every token's least distance follows every pick."""
    steps, size = cosines.shape
    given = first.shape[1]
    picks, apart = _room(first, count)
    least = torch.full((steps, size), torch.inf, device=first.device)
    for i in range(1, count):
        last = picks[:, i - 1 : i]
        now = cosines.rows(last)[:, 0].neg_().add_(1)
        if place is not None:
            here = place.gather(1, last[..., None].expand(-1, -1, place.shape[2]))
            now += (place - here).square_().sum(2) / 2
        torch.minimum(least, now, out=least)
        least.scatter_(1, last, -torch.inf)
        if i >= given:
            best = least.max(1)
            picks[:, i], apart[:, i] = best.indices, best.values
    return picks, apart


def _pooled(
    cosines: Cosines, count: int, place: Tensor | None, first: Tensor
) -> tuple[Tensor, Tensor]:
    """The same picks of one large frame, with few reads of all of its tokens.

    Least distances only fall, so old ones bound new ones. Those of the farthest few follow every
    pick; the others wait, and follow many picks at once when the few no longer hold the farthest.
    """
    size = cosines.shape[1]
    picks, apart = _room(first, count)
    least = torch.full((size,), torch.inf)
    done = 0  # picks that every least distance has followed
    pool, inside, local, bound = picks[0, :0], None, least[:0], torch.tensor(-torch.inf)
    for i in range(first.shape[1], count):
        if inside is not None:
            near = inside.to(cosines.data[:, picks[0, i - 1 : i]].float())[0, 0]
            torch.minimum(local, _joined(near, place, picks[0, i - 1], pool), out=local)
            local[pool == picks[0, i - 1]] = -torch.inf
        if inside is None or i - done > _WAIT or not bool(local.max() > bound):
            for a, b in blocks(size, max(i - done, cosines.data.shape[2])):
                near = cosines.rows(picks[:, done:i], (a, b))[0]
                for row, pick in zip(near, picks[0, done:i], strict=True):
                    far = _joined(row, place, pick, torch.arange(a, b))
                    torch.minimum(least[a:b], far, out=least[a:b])
            least[picks[0, :i]] = -torch.inf
            done = i
            order = torch.argsort(least, descending=True, stable=True)
            pool = order[:_POOL].sort().values
            bound, local = least[order[_POOL]], least[pool].clone()
            inside = Cosines(cosines.data[:, pool], pairs=0)
        best = local.max(0)
        # All least distances are -inf or tied with the bound: the lower index is picked.
        picks[0, i], apart[0, i] = pool[best.indices], best.values
    return picks, apart


def _room(first: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Picks int64 [T, count] that begin with ``first``, and distances of 2."""
    picks = first[:, :1].repeat(1, count)
    picks[:, : first.shape[1]] = first[:, :count]
    return picks, torch.full(picks.shape, 2.0, device=first.device)


def _joined(near: Tensor, place: Tensor | None, pick: Tensor, of: Tensor) -> Tensor:
    """Distances [m] of the tokens ``of`` [m] to ``pick``, from their cosines."""
    if place is None:
        return 1 - near
    return 1 - near + (place[0, of] - place[0, pick]).square().sum(1) / 2


def _loneliest(cosines: Cosines, place: Tensor | None) -> Tensor:
    """The token int64 [T] whose nearest other is farthest."""
    if place is None:
        return _first_highest(-nearest_other(cosines))
    near = torch.empty(cosines.shape, device=place.device)
    for a, b, block in cosines.blocks():
        apart = torch.cdist(place[:, a:b], place).square_().div_(2)
        apart.sub_(block).add_(1)
        apart.diagonal(offset=a, dim1=1, dim2=2).fill_(torch.inf)
        near[:, a:b] = apart.amin(2)
        del apart, block  # else the next block is made beside them
    return _first_highest(near)


def _first_highest(value: Tensor) -> Tensor:
    """The first of the highest [T] of ``value`` [T, C]; two tokens nearest to each other tie."""
    top = value.amax(1, keepdim=True)
    return (value >= top - _TIE).byte().argmax(1)
