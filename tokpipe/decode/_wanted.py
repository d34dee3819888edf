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
    from tokpipe.spec import MediaInfo, VideoInfo

Effort = Literal["fast", "balanced", "thorough"]
EFFORTS: tuple[Effort, ...] = ("fast", "balanced", "thorough")

#: A change has so many times the bytes of its neighbours (their 90th percentile) and this part of
#: the group's key. Measured on lectures: lines of text 3.9 times and 0.085, slides 17 and 0.4,
#: ordinary packets up to 2.9 and 0.07; on film, cuts 4 times and 0.5.
_ABOVE, _PART = 3.0, 0.05
#: Packets on both sides that count as neighbours, where one in four is large, or one in sixteen.
_NEAR, _FAR = 30, 48
#: Bytes since the last chosen picture, in keys, at which another one is due: in a group that is
#: active, and in another.
_NEWS, _QUIET = 0.3, 1.0
#: A group is active with so many keys' bytes a second, and so many bits a pixel: a speaker in the
#: corner of a slide has 0.3 and 0.003, a film 2.6 and 0.09, a camera in motion 0.6 and 0.04.
_KEYS, _BITS = 0.6, 0.02
#: Part of an active group's packets that may be decoded for pictures between key and changes, for
#: small pictures and for those of ``_LARGE`` pixels, where decoding outweighs all else: in a film,
#: and in a take that has gone on for ``_TAKE`` seconds without a change.
_FILM, _ACTION = (0.06, 0.4), (0.15, 0.9)
_LARGE, _TAKE = 1280 * 720, 20.0
#: A cut has so many times the bytes of the largest among so many packets on both sides, and this
#: part of the key.
_SHARP, _FEW, _CUT = 2.0, 8, 0.15
#: Packets are still below this part of the usual one, in a row of so many.
_HALT, _HALTED = 0.2, 4
#: Seconds after the last picture at which it is worth decoding on for another.
_APART = 1.0
#: Share from which a take is action.
_DENSE = 0.4
#: Packets that may be saved up for later groups, or owed for changes.
_SAVED, _OWED = 250, 500
#: A change that lasts into the next key is left to it where that comes within this part of the
#: time that would be decoded for the change, and so many seconds; within a tick at any rate.
_WAIT, _LATE = 0.2, 1.5
#: Seconds of media, and pixels of all its pictures, below which reading in part saves too little.
SHORT = 15.0
SMALL = 1.2e9
#: Bytes below which a file of unknown length is taken for a short one.
UNKNOWN = 4 << 20
#: Seconds after which a picture is due even where nothing seems to happen.
GAP = 20.0
#: Packets that a picture is coded before others that are shown before it, from which on a stream
#: has few large ones.
_AHEAD = 5
#: Sizes of earlier packets remembered.
_REMEMBERED = 60
#: Part of its size by which a key must differ from the one before to count as a change.
_OTHER_KEY = 0.1
#: Part below which it shows the same again, in a group of so few bits a pixel: it is passed over
#: where nothing else is wanted of its group and another picture comes within ``GAP``.
_SAME_KEY, _STILL = 0.01, 0.005


@dataclass(slots=True)
class Wanted:
    """The chosen pictures of one group.

    Attributes:
        places: Their packets in the group, in presentation order.
        marked: Of each, whether it shows a change, or is the last.
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
        (known is None and info.size < UNKNOWN, "too small to save anything"),
        (known is not None and _pixels(video, known) < SMALL, "too small to save anything"),
    )
    return next((why for seen, why in checks if seen), None)


def _pixels(video: VideoInfo, seconds: float) -> float:
    """Pixels of all pictures, as the header tells."""
    rate = float(video.frame_rate) if video.frame_rate else math.inf
    return seconds * rate * video.width * video.height


class Chooser:
    """Chooses pictures group by group, in file order.

    fast: key pictures and changes. balanced: also pictures on the sampler's ticks, as many as the
    bytes since the last one deserve and as a part of the group's packets allows; changes come
    first. Where the stream goes on for ``GAP`` seconds without any, one is chosen anyway. In both,
    a change soon followed by a key is shown by the key, and a key like the last one may be passed
    over; where something else of its group is decoded, it is chosen as well.
    thorough: all pictures on ticks; the reader looks at every picture for changes.
    """

    def __init__(self, effort: Effort, fps: float, timeline: Timeline, video: VideoInfo) -> None:
        """Start before the first group; ``fps`` is the sampler's ticks a second."""
        self.effort, self.fps, self.timeline = effort, fps, timeline
        self.pixels = max(video.width * video.height, 1)
        self.large = min(1.0, self.pixels / _LARGE)
        self.origin: float | None = None
        self.tick = 0
        self.sizes: list[int] = []
        self.key = 0
        self.allowed = 0.0
        self.last = self.change = 0.0
        self.owed = False
        self.shown = 0

    def choose(self, group: Group) -> Wanted:
        """The pictures of the next group that are wanted."""
        scale = self.timeline.scale
        order = np.argsort(np.array(group.t), kind="stable")
        shown = order[~np.array(group.hidden)[order]]
        # By Python's own division, as the reader's times.
        at = np.array([t / scale for t in group.t])
        here = _Here(group, np.array(group.size, dtype=np.int64), shown, at)
        here.ticks = self._on_ticks(here)
        picked = self._alone(here) if group.alone else self._grouped(here)
        if group.next_t is None and not group.alone and self.effort != "thorough":
            # The last picture stands for all that follows, which no tick of its own may tell.
            last = max(
                picked, key=lambda i: group.t[i], default=int(shown[0]) if len(shown) else -1
            )
            picked |= {last: True} if last >= 0 else {}
        places = sorted(picked, key=lambda i: group.t[i])
        return Wanted(places, [picked[i] for i in places], 1 + max(places, default=-1))

    def _alone(self, here: _Here) -> dict[int, bool]:
        """Pictures that each stand on their own: those on ticks are enough, and cost no more."""
        self.key = int(here.size[-1])
        self.last = float(here.at[-1])
        return dict.fromkeys(here.ticks, False)

    def _grouped(self, here: _Here) -> dict[int, bool]:
        group, picked = here.group, dict[int, bool]()
        before, inter = self.key, here.size
        if group.opens:
            self.key, inter = int(here.size[0]), here.size[1:]
            other = abs(self.key - before) > _OTHER_KEY * max(self.key, before)
            picked[0] = (bool(before) and other) or self.owed
            self.owed = False
        if self.effort == "thorough":
            picked |= {i: picked.get(i, False) for i in here.ticks}
        else:
            first = len(group) - len(inter)
            changes = [i + first for i in self._changes(here, inter)]
            changes = [i for i in changes if not group.hidden[i]]
            picked |= dict.fromkeys(self._kept(here, changes), True)
            if self.effort == "balanced":
                self._spread(here, inter, picked)
            if changes:
                self.change = float(here.at[changes].max())
            if group.opens and picked == {0: False} and self._again(here):
                del picked[0]
        if group.opens and 0 in picked:
            self.shown = self.key
        self.sizes = [*self.sizes, *inter.tolist()][-_REMEMBERED:]
        if picked:
            self.last = float(here.at[list(picked)].max())
        return picked

    def _again(self, here: _Here) -> bool:
        """Little moves, the key is as large as the last one decoded, and none is due so soon."""
        soon = float(here.at.max()) - self.last < GAP
        still = 8 * float(here.size[1:].sum()) < _STILL * self.pixels * len(here.group)
        return soon and still and abs(self.key - self.shown) <= _SAME_KEY * self.shown

    def _kept(self, here: _Here, changes: list[int]) -> list[int]:
        """The changes without the last one, where the next key shows the same soon enough."""
        group, scale = here.group, self.timeline.scale
        if not changes or group.next_t is None or not group.closes:
            return changes
        last = max(changes, key=lambda i: group.t[i])
        others = [i for i in changes if i != last]
        decoded = (group.t[last] - max((group.t[i] for i in others), default=group.t[0])) / scale
        wait = (group.next_t - group.t[last]) / scale
        # A later picture that must be decoded anyway passes by this one.
        if max(others, default=0) > last or wait > max(
            min(_WAIT * decoded, _LATE), min(1 / self.fps, 1.0)
        ):
            return changes
        self.owed = True
        return others

    def _changes(self, here: _Here, inter: NDArray[np.int64]) -> list[int]:
        """Packets far above their neighbours."""
        # Where pictures are coded far ahead of the others, or unseen, one in many is large.
        moved = np.abs(here.shown - np.arange(len(here.shown))).max(initial=0)
        uneven = here.group.uneven or moved >= _AHEAD
        if not len(inter):
            return []
        every = np.concatenate([np.array(self.sizes, dtype=np.int64), inter])
        offset = len(self.sizes)
        floor = max(_PART * self.key, _ABOVE * float(np.median(every)))
        found = []
        for i in np.flatnonzero(inter >= floor).tolist():
            at, span = i + offset, _FAR if uneven else _NEAR
            near = np.sort(every[max(0, at - span) : at + span + 1])
            # Itself and two more may be changes. Where few are near, nothing else may be as large.
            below = 3 if uneven else len(near) // 10
            usual = near[max(len(near) - 1 - max(below, 1), 0)]
            if inter[i] >= _ABOVE * usual or (not uneven and self._peak(every, at)):
                found.append(i)
        return sorted({*found, *self._halts(every, offset)})

    def _halts(self, every: NDArray[np.int64], offset: int) -> list[int]:
        """Packets after which all at once nothing moves: a card or a slide between moving scenes.

        The first picture of such a state may be no larger than those of the motion before.
        """
        low = every < _HALT * np.median(every)
        edge = np.flatnonzero(~low[:-1] & low[1:])
        runs = [i for i in edge.tolist() if low[i + 1 : i + 1 + _HALTED].sum() == _HALTED]
        floor = _PART * self.key
        return [i - offset for i in runs if i >= offset and every[i] >= floor]

    def _peak(self, every: NDArray[np.int64], at: int) -> bool:
        """A cut to a scene that is no harder to code: it stands out among the next few."""
        few = np.sort(every[max(0, at - _FEW) : at + _FEW + 1])
        alone = len(few) > _FEW and every[at] == few[-1] and few[-1] >= _SHARP * few[-2]
        return bool(alone and every[at] >= _CUT * self.key)

    def _spread(self, here: _Here, inter: NDArray[np.int64], picked: dict[int, bool]) -> None:
        """Add pictures on ticks: what the bytes deserve, as far as the allowance goes."""
        start, end = float(here.at.min()), float(here.at.max())
        share = self._share(inter, len(here.group), start, end)
        reach = max(picked, default=0)
        self.allowed = min(self.allowed + share * len(here.group), _SAVED)
        self.allowed = max(self.allowed - reach, -_OWED)
        apart = min(_APART, (end - start) / 2)
        needed = self.key * (_NEWS if share >= _FILM[0] * (1 + self.large) else _QUIET)
        bytes_till = np.zeros(len(here.group), dtype=np.int64)
        bytes_till[here.shown] = np.cumsum(here.size[here.shown])
        seen, last = 0, self.last
        for i in sorted({*here.ticks, *picked}, key=lambda i: here.group.t[i]):
            at, news = float(here.at[i]), int(bytes_till[i]) - seen
            if i not in picked:
                cost = max(0, i - reach)
                # Decoding up to a change passes by others, which then cost nothing.
                worth = cost == 0 or (cost <= self.allowed and at - last >= apart)
                if at - last < GAP and not (news >= needed and worth):
                    continue
                picked[i] = False
                self.allowed = max(self.allowed - cost, -_OWED)
                reach = max(reach, i)
            seen, last = int(bytes_till[i]), at
        if start - self.change >= _TAKE and share > _DENSE:
            # Nothing else is new in a long take: what decoding passes by is shown as well.
            picked |= {i: picked.get(i, False) for i in here.ticks if i <= reach}

    def _share(self, inter: NDArray[np.int64], packets: int, start: float, end: float) -> float:
        """Part of the group's packets that may be decoded for pictures on ticks."""
        total = float(inter.sum())
        pace = total / max(self.key, 1) / max(end - start, 1e-3)
        film, action = (low + (high - low) * self.large for low, high in (_FILM, _ACTION))
        take = min(1.0, max(0.0, start - self.change) / _TAKE)
        bits = 8 * total / packets / self.pixels
        active = min(1.0, pace / _KEYS) * min(1.0, bits / _BITS)
        return active * (film + (action - film) * take)

    def _on_ticks(self, here: _Here) -> list[int]:
        """Places of the pictures that come first after the sampler's ticks, as it counts them."""
        shown = here.shown
        if not len(shown):
            return []
        start = here.at[shown]
        if self.origin is None:
            self.origin = float(start[0])
        now = np.floor((start - self.origin) * self.fps + 1e-6).astype(np.int64)
        before = np.maximum.accumulate(np.append(self.tick - 1, now))
        self.tick = int(before[-1]) + 1
        found: list[int] = shown[now > before[:-1]].tolist()
        return found


@dataclass(slots=True)
class _Here:
    """A group as arrays: bytes int64 and seconds float64 of each packet, places in time order."""

    group: Group
    size: NDArray[np.int64]
    shown: NDArray[np.intp]
    at: NDArray[np.float64]
    ticks: list[int] = field(default_factory=list)
