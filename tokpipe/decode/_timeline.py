"""All arithmetic on timestamps, exact: whole numbers of one unit a file.

    raw pts x time base ──▶ seconds of the container ──▶ minus zero, plus re-basing ──▶ media time

The unit is 1 / ``scale`` s, where the scale is a common multiple of every time base and sample
rate in the file, so nothing is ever rounded.

Zero is the container's start time if positive, else 0. Timestamps that jump back by more than
``RESET`` seconds (concatenated files, reset encoders), or forward past everything the file can
hold, start a new epoch that continues where the last one ended; both streams share the epochs,
so audio and video stay together. Packets are placed when they are read, in decoding order, and
open the epochs; decoded frames follow them, so a decoder's delay changes no time.
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
#: Nor is one with fewer bytes a second than this.
_LEAST_BYTES = 8
#: Seconds that timestamps may exceed what the header or the file's size lets expect.
_SLACK = 60
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
        span: Longest media time that one epoch can believably reach, None when nothing tells.
        gap: Longest believable gap, None where ``span`` says enough.
        offsets: Units added in each epoch.
        end: Latest end of anything placed so far.
        base: Media time where the newest epoch begins.
    """

    scale: int = _BASE_SCALE
    zero: int = 0
    span: int | None = None
    gap: int | None = None
    offsets: list[int] = field(default_factory=lambda: [0])
    end: int = 0
    base: int = 0

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

    def expect(self, duration: float | None, size: int) -> None:
        """Set what is believable from the header's duration, or else from the file's bytes."""
        if duration is not None:
            # Half as long again: headers of live recordings fall short of what follows.
            self.span = self.units(int(duration * 1.5) + _SLACK)
        else:
            self.span = self.units(size // _LEAST_BYTES + _SLACK)
            self.gap = self.units(LONGEST_GAP)

    def stream(self, time_base: Fraction) -> StreamClock:
        """A clock for one stream."""
        return StreamClock(self, time_base, self.units(time_base))

    def absurd(self, t: int, last_end: int) -> bool:
        """``t`` lies further ahead than this file can reach."""
        slack = RESET * self.scale
        if self.span is not None and t > max(self.base + self.span, last_end) + slack:
            return True
        return self.gap is not None and t > last_end + self.gap


@dataclass(slots=True)
class StreamClock:
    """Places one stream's timestamps on the file's timeline.

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
        if time_base is None:
            return ticks * self.tick
        return self.timeline.units(ticks * Fraction(time_base))

    def place(self, pts: int | None, duration: int, time_base: Fraction | None = None) -> int:
        """Media time in units of the next item in presentation order.

        Args:
            pts: Raw timestamp, None continues at the end of the previous item.
            duration: Units the item lasts, 0 when unknown.
            time_base: Of ``pts`` when it differs from the stream's.
        """
        if pts is None:
            return self._note(self.end, self.end, duration)
        line = self.timeline
        raw = pts * self.tick if time_base is None else self.ticks_to_units(pts, time_base)
        raw -= line.zero
        t, last = raw + line.offsets[self.epoch], self.last
        # In step, as nearly always: neither back nor too far ahead.
        if t - self.end > RESET * line.scale or (last is not None and t < last):
            t = self._in_epoch(raw, raw)
            return self._note(t, t, duration)
        self.last = t
        self._reach(t + duration)
        return t

    def place_packet(self, pts: int | None, dts: int | None, duration: int) -> int:
        """Media time in units of the next packet in decoding order.

        A reset shows in the decoding times, which never step back otherwise; presentation times
        may step back by seconds where frames last seconds.
        """
        if pts is None and dts is None:
            return self._note(self.end, self.end, duration)
        line, last = self.timeline, self.last
        raw = (pts if pts is not None else dts or 0) * self.tick - line.zero
        offset = line.offsets[self.epoch]
        if dts is None:
            return self._note(self._in_epoch(raw, None), last, duration)
        order = dts * self.tick - line.zero
        t, placed = raw + offset, order + offset
        if t - self.end > RESET * line.scale or (last is not None and placed < last):
            t = self._in_epoch(raw, order)
            return self._note(t, t - raw + order, duration)
        self.last = placed
        self._reach(t + duration)
        return t

    def _in_epoch(self, raw: int, order: int | None) -> int:
        line = self.timeline
        offset = line.offsets[self.epoch]
        last = self.last
        back = order is not None and last is not None and order + offset < last - RESET * line.scale
        if back or line.absurd(raw + offset, self.end):
            return self._next_epoch(raw)
        return raw + offset

    def _note(self, t: int, order: int | None, duration: int) -> int:
        if order is not None:
            if self.last is not None and order < self.last:
                self.disordered += 1
            self.last = order
        self._reach(t + duration)
        return t

    def _reach(self, stop: int) -> None:
        if stop > self.end:
            self.end = stop
            self.timeline.end = max(self.timeline.end, stop)

    def _next_epoch(self, raw: int) -> int:
        line = self.timeline
        while self.epoch + 1 < len(line.offsets):
            # Another stream met the reset first: join its epoch when that is plausible.
            self.epoch += 1
            t = raw + line.offsets[self.epoch]
            if t >= self.end - RESET * line.scale and not line.absurd(t, self.end):
                return t
        line.offsets.append(line.end - raw)
        line.base = line.end
        self.epoch = len(line.offsets) - 1
        return line.end


@dataclass(slots=True)
class FrameRanks:
    """Rank of each frame among the displayable packets, without a scan of the file.

    Packets are added in file order; a decoder hands a frame out only after every packet with a
    smaller time went in, so the packets still waiting below a frame's time are those before it.

    Attributes:
        known: A packet had a time at all.
    """

    waiting: list[int] = field(default_factory=list)
    count: int = 0
    known: bool = False

    def add(self, t: int) -> None:
        """Note a displayable packet at media time ``t`` (any whole units)."""
        self.known = True
        heapq.heappush(self.waiting, t)

    def rank(self, t: int) -> int:
        """Packets before ``t``; times asked for must not step back."""
        waiting = self.waiting
        while waiting and waiting[0] < t:
            heapq.heappop(waiting)
            self.count += 1
        return self.count


def believable_duration(seconds: Fraction | float | None, size: int) -> float | None:
    """A header's duration in seconds, or None where it is missing, negative or absurd.

    More than a month, or fewer than 8 bytes a second, is not believed.
    """
    if seconds is None or not 0 < seconds <= LONGEST_DURATION:
        return None
    return float(seconds) if size >= _LEAST_BYTES * seconds else None
