"""Which pictures of a group are worth decoding, from what its packets say.

Encoders spend bytes where something is new. A packet far above its neighbours is a change: a new
slide, a line of text, a cut. Many bytes over a stretch are a slow change: scrolling, a pan, action.
Statistics are those of one group and of a short history, so that the choice needs no look at the
whole file and depends on nothing else: no budget, no thread, no batch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np

from tokpipe.decode._groups import Group

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tokpipe.decode._timeline import Timeline
    from tokpipe.spec import MediaInfo

Effort = Literal["fast", "balanced", "thorough"]
EFFORTS: tuple[Effort, ...] = ("fast", "balanced", "thorough")

#: A change has so many times the bytes of its neighbours (their 90th percentile) and this part of
#: the group's key. Measured on lectures: lines of text 3.9 times and 0.085, slides 17 and 0.4,
#: ordinary packets up to 2.9 and 0.07; on film, cuts 4 times and 0.5.
_ABOVE, _PART = 3.0, 0.05
#: Packets on both sides that count as neighbours, and how many make a percentile.
_NEAR, _FEW = 30, 8
#: Bytes since the last chosen picture, in keys, at which another one is due.
_NEWS = 1.0
#: Part of a group's packets that may be decoded for pictures between key and changes: for a still
#: group, and for one with as many bytes a second as this many keys.
_SHARE, _MOST, _ACTIVE = 0.2, 0.5, 8.0
#: Packets that may be saved up for later groups, or owed for changes.
_SAVED, _OWED = 250, 500
#: Seconds of media below which reading in part saves too little.
SHORT = 15.0
#: Seconds after which a picture is due even where nothing seems to happen.
GAP = 20.0
#: Sizes of earlier packets remembered.
_REMEMBERED = 60
#: Part of its size by which a key must differ from the one before to count as a change.
_OTHER_KEY = 0.1


@dataclass(slots=True)
class Wanted:
    """The chosen pictures of one group.

    Attributes:
        places: Their packets in the group, in presentation order.
        marked: Of each, whether it shows a change.
        reach: Packets that must be fed at most.
    """

    places: list[int] = field(default_factory=list)
    marked: list[bool] = field(default_factory=list)
    reach: int = 0


def reads_whole(info: MediaInfo, *, strict: bool = False) -> str | None:
    """Why a file is read from end to end whatever the effort, as far as its header tells."""
    video = info.video
    if video is None:
        return "no video"
    known = video.duration if video.duration is not None else info.duration
    checks = (
        (strict, "strict: all is looked at for damage"),
        (known is not None and known < SHORT, "too short to save anything"),
    )
    return next((why for seen, why in checks if seen), None)


class Chooser:
    """Chooses pictures group by group, in file order.

    fast: key pictures and changes. balanced: also pictures on the sampler's ticks, as many as the
    bytes since the last one deserve and as a part of the group's packets allows; changes come
    first. Where the stream goes on for ``GAP`` seconds without any, one is chosen anyway.
    thorough: all pictures on ticks; the reader looks at every picture for changes.
    """

    def __init__(self, effort: Effort, fps: float, timeline: Timeline) -> None:
        """Start before the first group; ``fps`` is the sampler's ticks a second."""
        self.effort, self.fps, self.timeline = effort, fps, timeline
        self.origin: int | None = None
        self.tick = 0
        self.sizes: list[int] = []
        self.key = 0
        self.allowed = 0.0
        self.last = 0.0

    def choose(self, group: Group) -> Wanted:
        """The pictures of the next group that are wanted."""
        size = np.array(group.size, dtype=np.int64)
        order = np.argsort(np.array(group.t), kind="stable").tolist()
        shown = [i for i in order if not group.hidden[i]]
        ticks = self._on_ticks(group, shown)
        if group.alone:
            picked = self._alone(group, ticks)
        else:
            picked = self._grouped(group, size, shown, ticks)
        places = sorted(picked, key=lambda i: group.t[i])
        return Wanted(places, [picked[i] for i in places], 1 + max(places, default=-1))

    def _alone(self, group: Group, ticks: list[int]) -> dict[int, bool]:
        """Pictures that each stand on their own: those on ticks are enough, and cost no more."""
        self.key = group.size[-1]
        self.last = self.timeline.seconds(group.t[-1])
        return dict.fromkeys(ticks, False)

    def _grouped(
        self, group: Group, size: NDArray[np.int64], shown: list[int], ticks: list[int]
    ) -> dict[int, bool]:
        picked: dict[int, bool] = {}
        before, inter = self.key, size
        if group.opens:
            self.key, inter = int(size[0]), size[1:]
            other = abs(self.key - before) > _OTHER_KEY * max(self.key, before)
            picked[0] = bool(before) and other
        if self.effort == "thorough":
            picked |= {i: picked.get(i, False) for i in ticks}
        else:
            first = len(size) - len(inter)
            changes = [int(i) + first for i in self._changes(inter)]
            picked |= {i: True for i in changes if not group.hidden[i]}
            if self.effort == "balanced":
                self._spread(group, size, shown, ticks, picked)
        self.sizes = [*self.sizes, *inter.tolist()][-_REMEMBERED:]
        if picked:
            self.last = self.timeline.seconds(max(group.t[i] for i in picked))
        return picked

    def _changes(self, inter: NDArray[np.int64]) -> NDArray[np.intp]:
        """Packets far above their neighbours."""
        if not len(inter):
            return np.zeros(0, dtype=np.intp)
        every = np.concatenate([np.array(self.sizes, dtype=np.int64), inter])
        offset = len(self.sizes)
        floor = max(_PART * self.key, _ABOVE * float(np.median(every)))
        found = []
        for i in np.flatnonzero(inter >= floor):
            at = int(i) + offset
            near = np.sort(every[max(0, at - _NEAR) : at + _NEAR + 1])
            # Too few to tell a tail: then nothing else may come near it.
            usual = np.quantile(near, 0.9) if len(near) > _FEW else near[max(len(near) - 2, 0)]
            if inter[i] >= _ABOVE * usual:
                found.append(i)
        return np.array(found, dtype=np.intp)

    def _spread(
        self, group: Group, size: NDArray[np.int64], shown: list[int], ticks: list[int],
        picked: dict[int, bool],
    ) -> None:  # fmt: skip
        """Add pictures on ticks: what the bytes deserve, as far as the allowance goes."""
        seconds = self.timeline.seconds
        span = max(seconds(max(group.t) - min(group.t)), 1e-3)
        first = 1 if group.opens else 0
        pace = float(size[first:].sum()) / max(self.key, 1) / span
        share = _SHARE + (_MOST - _SHARE) * min(1.0, pace / _ACTIVE)
        reach = max(picked, default=-1)
        self.allowed = min(self.allowed + share * len(size), _SAVED)
        self.allowed = max(self.allowed - max(reach, 0), -_OWED)
        due, news, last = set(ticks), 0, self.last
        for i in shown:
            at = seconds(group.t[i])
            if i in picked:
                news, last = 0, at
                continue
            news += int(size[i])
            if i not in due:
                continue
            cost = max(0, i - reach)
            bored = at - last >= GAP
            if bored or (news >= _NEWS * self.key and cost <= self.allowed):
                picked[i] = False
                self.allowed = max(self.allowed - cost, -_OWED)
                reach, news, last = max(reach, i), 0, at

    def _on_ticks(self, group: Group, shown: list[int]) -> list[int]:
        """Places of the pictures that are on screen at the sampler's ticks, as it counts them."""
        seconds, found = self.timeline.seconds, []
        if shown and self.origin is None:
            self.origin = group.t[shown[0]]
        zero = seconds(self.origin or 0)
        for i, after in zip(shown, [*shown[1:], None], strict=True):
            if after is not None:
                stop = seconds(group.t[after])
            elif group.next_t is not None:
                stop = seconds(group.next_t)
            else:
                stop = seconds(group.t[i]) + max(seconds(group.duration[i]), 1e-3)
            due = math.ceil((stop - zero) * self.fps - 1e-6)
            if due > self.tick:
                found.append(i)
                self.tick = due
        return found
