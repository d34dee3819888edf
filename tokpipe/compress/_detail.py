"""Which pictures are sent at a finer grid than the video's, when the budget has room for it."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from tokpipe.compress._cell_distance import cell_change
from tokpipe.compress._moments import Moments, between
from tokpipe.compress._two_pass import Ids
from tokpipe.spec import TEXT_RICH

#: Pictures of which less than this part of the cells differs show the same: one is raised.
_SAME = 0.1


@dataclass(slots=True)
class Finer:
    """Pictures to be sent finer.

    Attributes:
        times: Moment to how many times each side of its grid is multiplied by.
        extra: Tokens this costs beyond one whole picture each.
    """

    times: dict[int, int] = field(default_factory=dict)
    extra: int = 0


def refine(
    moments: Moments, text: NDArray[np.float32], finest: Ids, room: int, *, most: int = 4
) -> Finer:
    """Raise pictures rich in text as far as ``room`` tokens allow: all of them once before twice.

    Those that stay longest and hold most text go first.

    Args:
        text, finest: Of every frame [T], see ``Facts``.
        most: Times each side of the grid at most, 2 or 4.
    """
    out, cells = Finer(), moments.rows * moments.cols
    for moment in _candidates(moments, text, finest):
        out.times[moment] = 1
    for times in (2, 4):
        for moment, now in list(out.times.items()):
            added = cells * (times**2 - (now**2 if now > 1 else 0))
            if times <= most and finest[moments.number[moment]] >= times and added <= room:
                out.times[moment] = times
                room -= added
    out.times = {moment: times for moment, times in out.times.items() if times > 1}
    out.extra = sum(cells * (times**2 - 1) for times in out.times.values())
    return out


def _candidates(moments: Moments, text: NDArray[np.float32], finest: Ids) -> list[int]:
    """Moments that can be finer, the most worthwhile first; of those that look alike the first.

    What is shown finely stays so, so that the first serves longest.
    """
    able = (finest[moments.number] > 1) & (text[moments.number] >= TEXT_RICH)
    left = np.flatnonzero(able)
    if not len(left):
        return []
    apart = between(moments.place, moments.place[left])
    stays = np.bincount(left[apart.argmin(1)], moments.seconds, minlength=len(moments))
    found: list[tuple[float, int]] = []
    while len(left):
        first = int(left[0])
        changed = (cell_change(moments.data[left], moments.data[first]) >= 1).mean(1)
        alike = left[changed < _SAME]
        found.append((float(text[moments.number[first]] * np.sqrt(stays[alike].sum())), first))
        left = left[changed >= _SAME]
    return [moment for _, moment in sorted(found, key=lambda pair: -pair[0])]
