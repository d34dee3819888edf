"""All arithmetic on timestamps, exact: whole numbers of one unit a file.

    raw pts x time base ──▶ seconds of the container ──▶ minus zero, plus re-basing ──▶ media time

The unit is 1 / ``scale`` s, where the scale is a common multiple of every time base and sample
rate in the file, so nothing is ever rounded.

Zero is the container's start time if positive, else 0. Timestamps that jump back by more than
``RESET`` seconds (concatenated files, reset encoders), or forward past everything the file can
hold, start a new epoch that continues where the last one ended; both streams share the epochs,
so audio and video stay together.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from fractions import Fraction

#: A step back of more than this many seconds is a reset, a smaller one is disorder.
RESET = 1
#: Gap in seconds allowed in a file whose duration is unknown.
LONGEST_GAP = 6 * 3600
#: A header duration beyond this many seconds (a month) is not believed.
LONGEST_DURATION = 31 * 24 * 3600
#: Units a second before a file's own rates are multiplied in: microseconds, and half ticks for
#: filters that double the time base.
_BASE_SCALE = 2_000_000


def common_scale(rates: Iterable[int]) -> int:
    """Units a second in which ticks of all these rates (hertz) are whole numbers."""
    return math.lcm(_BASE_SCALE, *(2 * rate for rate in rates if rate > 0))


@dataclass(slots=True)
class Timeline:
    """The clock of one file, shared by its streams. All times are whole numbers of units.

    Attributes:
        scale: Units a second.
        zero: Container time that counts as 0.
        limit: Latest media time that is believable, None when the header does not tell.
        offsets: Units added in each epoch.
        end: Latest end of anything placed so far.
    """

    scale: int = _BASE_SCALE
    zero: int = 0
    limit: int | None = None
    offsets: list[int] = field(default_factory=lambda: [0])
    end: int = 0

    @property
    def resets(self) -> int:
        """How often timestamps were re-based."""
        return len(self.offsets) - 1

    def units(self, seconds: Fraction | int) -> int:
        """Seconds as units, to the nearest."""
        return round(seconds * self.scale)

    def seconds(self, units: int) -> float:
        """Units as float seconds."""
        return units / self.scale

    def stream(self, time_base: Fraction) -> StreamClock:
        """The clock of one stream."""
        return StreamClock(self, time_base, self.units(time_base))

    def absurd(self, t: int, last_end: int) -> bool:
        """``t`` lies further ahead than this file can reach."""
        if self.limit is not None:
            return t > max(self.limit, last_end) + RESET * self.scale
        return t > last_end + LONGEST_GAP * self.scale


@dataclass(slots=True)
class StreamClock:
    """Places one stream's timestamps on the file's timeline, in presentation order.

    Attributes:
        tick: Units of one tick of ``time_base``.
        last: Media time of the newest placed item, None before the first.
        end: End of the newest placed item.
        disordered: Items that stepped back a little.
    """

    timeline: Timeline
    time_base: Fraction
    tick: int
    epoch: int = 0
    last: int | None = None
    end: int = 0
    disordered: int = 0

    def ticks_to_units(self, ticks: int, time_base: Fraction | None = None) -> int:
        """Ticks of ``time_base`` (default the stream's own) as units."""
        if time_base is None or time_base == self.time_base:
            return ticks * self.tick
        return self.timeline.units(ticks * Fraction(time_base))

    def place(self, pts: int | None, duration: int, time_base: Fraction | None = None) -> int:
        """Media time in units.

        Args:
            pts: Raw timestamp, None continues at the end of the previous item.
            duration: Units the item lasts, 0 when unknown.
            time_base: Of ``pts`` when it differs from the stream's.
        """
        line = self.timeline
        if pts is None:
            t = self.end
        else:
            raw = self.ticks_to_units(pts, time_base) - line.zero
            t = raw + line.offsets[self.epoch]
            before = self.last if self.last is not None else t
            if t < before - RESET * line.scale or line.absurd(t, self.end):
                t = self._next_epoch(raw)
        if self.last is not None and t < self.last:
            self.disordered += 1
        self.last = t
        self.end = max(self.end, t + duration)
        line.end = max(line.end, self.end)
        return t

    def _next_epoch(self, raw: int) -> int:
        line = self.timeline
        while self.epoch + 1 < len(line.offsets):
            # Another stream met the reset first: join its epoch when that is plausible.
            self.epoch += 1
            t = raw + line.offsets[self.epoch]
            if t >= self.end - RESET * line.scale and not line.absurd(t, self.end):
                return t
        line.offsets.append(line.end - raw)
        if line.limit is not None:
            line.limit = max(line.limit, line.end + line.limit)
        self.epoch = len(line.offsets) - 1
        return line.end


@dataclass(slots=True)
class FrameRanks:
    """Rank of each frame's pts among the displayable packets, without a scan of the file.

    Packets are added in file order; a decoder hands a frame out only after every packet with a
    smaller pts went in, so the packets still waiting below a frame's pts are those before it.
    """

    waiting: list[tuple[int, int]] = field(default_factory=list)
    count: int = 0
    epoch: int = 0
    last: int | None = None
    frame_epoch: int = 0
    frame_last: int | None = None
    reset_ticks: int = 1 << 62

    @staticmethod
    def for_stream(time_base: Fraction) -> FrameRanks:
        """Ranks of a stream with this time base."""
        return FrameRanks(reset_ticks=int(RESET / time_base))

    def add(self, pts: int | None, dts: int | None) -> None:
        """Note a displayable packet; a reset shows in the decoding times, which never step back."""
        if pts is None:
            return
        order = pts if dts is None else dts
        if self.last is not None and order < self.last - self.reset_ticks:
            self.epoch += 1
        self.last = order
        heapq.heappush(self.waiting, (self.epoch, pts))

    def rank(self, pts: int | None) -> int:
        """Rank of a frame, -1 when it or the packets carry no pts."""
        if pts is None or self.last is None:
            return -1
        if self.frame_last is not None and pts < self.frame_last - self.reset_ticks:
            self.frame_epoch += 1
        self.frame_last = pts
        while self.waiting and self.waiting[0] < (self.frame_epoch, pts):
            heapq.heappop(self.waiting)
            self.count += 1
        return self.count


def believable_duration(seconds: Fraction | float | None, size: int) -> float | None:
    """A header's duration in seconds, or None where it is missing, negative or absurd.

    More than a month, or fewer than 8 bytes a minute, is not believed.
    """
    if seconds is None or not 0 < seconds <= LONGEST_DURATION:
        return None
    return float(seconds) if size * 60 >= 8 * seconds else None
