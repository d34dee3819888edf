"""Which pictures are sent at a finer grid than the video's, when the budget has room for it."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from tokpipe.compress._moments import Moments
from tokpipe.compress._two_pass import Ids
from tokpipe.spec import TEXT_RICH

#: Pictures nearer than this show the same: one of them is raised.
_SAME = 0.05


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
    moments: Moments, text: NDArray[np.float32], finest: Ids, room: int
) -> Finer:  # fmt: skip
    """Raise pictures rich in text as far as ``room`` tokens allow: all of them once before twice.

    Those that stay longest and hold most text go first.

    Args:
        text, finest: Of every frame [T], see ``CoverageUpdates.inform``.
    """
    out, cells = Finer(), moments.rows * moments.cols
    for moment in _candidates(moments, text, finest):
        out.times[moment] = 1
    for times in (2, 4):
        for moment, now in list(out.times.items()):
            added = cells * (times**2 - (now**2 if now > 1 else 0))
            if finest[moments.number[moment]] >= times and added <= room:
                out.times[moment] = times
                room -= added
    out.times = {moment: times for moment, times in out.times.items() if times > 1}
    out.extra = sum(cells * (times**2 - 1) for times in out.times.values())
    return out


def _candidates(moments: Moments, text: NDArray[np.float32], finest: Ids) -> list[int]:
    """Moments that can be finer, the most worthwhile first; of those that look alike one."""
    able = (finest[moments.number] > 1) & (text[moments.number] >= TEXT_RICH)
    index = np.flatnonzero(able)
    if not len(index):
        return []
    apart = np.linalg.norm(moments.place[:, None] - moments.place[index][None], axis=2)
    nearest = index[apart.argmin(1)]
    stays = np.bincount(nearest, moments.seconds, minlength=len(moments))
    worth = text[moments.number] * np.sqrt(stays)
    kept: list[int] = []
    for moment in index[np.argsort(-worth[index], kind="stable")].tolist():
        near = np.linalg.norm(moments.place[kept] - moments.place[moment], axis=1)
        if not kept or near.min() >= _SAME:
            kept.append(moment)
    return kept
