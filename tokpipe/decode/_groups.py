"""Packets of one video stream, gathered into groups of pictures that decode on their own.

A group starts at a key packet. Nothing is decoded here, and no more than one group is held; where
packets do not say enough, or a decoder could not start at their keys, :class:`Unsafe` is raised and
the file is read from end to end instead.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tokpipe.decode._demux import frame_step, lacks_pts
from tokpipe.spec import MediaInfo

if TYPE_CHECKING:
    from tokpipe.decode._timeline import Timeline

#: A longer group is cut: packets and bytes of one piece.
LONGEST, HEAVIEST = 3000, 64 << 20
#: Seconds of pictures that stand on their own which are gathered to one group.
_RUN = 2
#: Codecs whose groups are known to decode alike alone and in their place.
_GROUPED = frozenset(
    ("h264", "hevc", "vp8", "vp9", "av1", "mpeg1video", "mpeg2video", "mpeg4")
)  # fmt: skip
#: Of these, those with pictures that are never shown and serve many others.
_UNEVEN = frozenset(("vp8", "vp9", "av1"))
#: Of these, those in which pictures shown before a key may follow it, and no later one needs them.
_LEADING = frozenset(("hevc", "mpeg1video", "mpeg2video"))
#: NAL unit types of pictures that decoding can start at: H.264's IDR, HEVC's random access points.
_STARTS = {"h264": range(5, 6), "hevc": range(16, 24)}


class Unsafe(Exception):
    """This file cannot be read in part; says why in a few words."""


@dataclass(slots=True)
class Group:
    """Packets in decoding order, and what they say. All lists have one entry a packet.

    Attributes:
        raw: Presentation times as the container has them, in its ticks.
        t, duration: Units of the timeline.
        size: Bytes.
        hidden: Packets that show no picture of their own, or one that needs the group before.
        packets: Empty where only their headers are wanted.
        alone: Every picture decodes on its own.
        uneven: Its codec spends much on few pictures, out of sight, also where nothing changes.
        layered: Pictures that nothing in their layer refers to may serve higher layers.
        opens, closes: The group begins at a key, and nothing of it follows; a long one is cut.
        next_t: Time of the picture after it, None at the end.
    """

    raw: list[int] = field(default_factory=list)
    t: list[int] = field(default_factory=list)
    duration: list[int] = field(default_factory=list)
    size: list[int] = field(default_factory=list)
    hidden: list[bool] = field(default_factory=list)
    packets: list[Any] = field(default_factory=list)
    alone: bool = True
    layered: bool = False
    uneven: bool = False
    opens: bool = True
    closes: bool = True
    next_t: int | None = None

    def __len__(self) -> int:
        """Packets."""
        return len(self.t)


class GroupCollector:
    """Takes the packets of the video stream in file order, gives back whole groups.

    Attributes:
        clock: Places packets; shared with whoever else needs the times.
    """

    def __init__(self, box: Any, info: MediaInfo, timeline: Timeline, *, keep: bool) -> None:
        """Look at what the header says.

        Args:
            box: Open container.
            info: As :func:`tokpipe.decode.probe` described it.
            timeline: The file's clock.
            keep: Hold on to the packets, for decoding.

        Raises:
            Unsafe: Not a file to read in part.
        """
        video = info.video
        assert video is not None  # noqa: S101 - only made when there is one
        stream = box.streams[video.index]
        codec = stream.codec_context.codec
        self.codec = codec.canonical_name
        if not codec.intra_only and self.codec not in _GROUPED:
            raise Unsafe(f"{self.codec} is read from end to end")
        if video.interlaced:
            raise Unsafe("interlaced")
        if lacks_pts(box, stream):
            raise Unsafe("no presentation times")
        self.clock = timeline.stream(stream.time_base)
        self.timeline, self.keep = timeline, keep
        self.step = frame_step(video, timeline)
        self.units = _Units(self.codec, stream.codec_context.extradata)
        self.run = timeline.units(_RUN)
        self.group: Group | None = None
        self.seen: set[int] = set()
        self.bytes = 0
        self.latest = -1

    def push(self, packet: Any) -> Group | None:
        """The group that this packet ends, if any.

        Raises:
            Unsafe: Not a file to read in part.
        """
        t, duration, key = self._checked(packet)
        done = self._ended_by(t, key) if self.group is not None else None
        group = self.group
        if group is None:
            if not key and self.latest < 0:
                raise Unsafe("no key picture at the start")
            group = self.group = Group(opens=key, uneven=self.codec in _UNEVEN)
        early = bool(group.t) and group.opens and t < group.t[0]
        if t <= self.latest or (early and self.codec not in _LEADING):
            raise Unsafe("pictures before their key")
        if t in self.seen:
            raise Unsafe("two pictures at one time")
        self.seen.add(t)
        group.raw.append(packet.pts)
        group.t.append(t)
        group.duration.append(duration)
        group.size.append(packet.size)
        group.hidden.append(early or (self.codec == "vp8" and not memoryview(packet)[0] & 0x10))
        if not key:
            group.alone = False
        if self.units.layer > 0:
            group.layered = True
        self.bytes += packet.size
        if self.keep:
            group.packets.append(packet)
        return done

    def finish(self) -> Group | None:
        """The last group."""
        return self._close(None)

    def _checked(self, packet: Any) -> tuple[int, int, bool]:
        """Time, span and key flag of a packet that is as it should be."""
        if packet.is_discard:
            raise Unsafe("an edit list hides pictures")
        if packet.is_corrupt:
            raise Unsafe("damage")
        if packet.pts is None:
            raise Unsafe("packets without times")
        span, key = packet.duration, packet.is_keyframe
        duration = span * self.clock.tick if span else self.step
        t = self.clock.place_packet(packet.pts, packet.dts, duration)
        if len(self.timeline.offsets) > 1:
            raise Unsafe("timestamps restart")
        if t < 0:
            raise Unsafe("pictures before the start")
        if key and packet.has_sidedata("new_extradata"):
            raise Unsafe("the decoder's set-up changes")
        if self.codec == "hevc":
            self.units.look(packet)
        # A key that decoding cannot start at is a picture like others.
        return t, duration, key and self.units.starts(packet)

    def _ended_by(self, t: int, key: bool) -> Group | None:
        group = self.group
        assert group is not None  # noqa: S101 - asked only while one is open
        if key and group.alone and group.opens and t - group.t[0] < self.run and t > group.t[-1]:
            return None
        if not key and group.alone and len(group) > 1:
            return self._part(group)
        if key:
            if t <= max(group.t):
                raise Unsafe("groups that overlap")
            return self._close(t)
        if len(group.t) >= LONGEST or self.bytes >= HEAVIEST:
            # Cut where nothing later is shown earlier, as far as this packet tells.
            return self._close(t, closes=False) if t > max(group.t) else None
        return None

    def _part(self, group: Group) -> Group:
        """Leave the last key of a run of keys to the pictures that follow it."""
        last = Group(uneven=group.uneven)
        for name in ("raw", "t", "duration", "size", "hidden", "packets"):
            values = getattr(group, name)
            setattr(last, name, values[-1:])
            del values[-1:]
        group.next_t = last.t[0]
        self.group, self.seen, self.bytes = last, set(last.t), last.size[0]
        self.latest = max(group.t)
        return group

    def _close(self, t: int | None, *, closes: bool = True) -> Group | None:
        group, self.group = self.group, None
        if group is not None:
            group.closes, self.latest = closes, max(group.t)
            group.next_t = t
            if not closes and t is not None:
                # What follows in time may come after this packet.
                last = group.t.index(self.latest)
                group.next_t = min(t, self.latest + (group.duration[last] or t))
        self.seen, self.bytes = set(), 0
        return group


class _Units:
    """What the header of a packet's first slice tells, for codecs made of NAL units.

    Attributes:
        layer: Of the newest packet looked at; HEVC's temporal layer.
    """

    def __init__(self, codec: str, extradata: bytes | None) -> None:
        self.codec, self.starting = codec, _STARTS.get(codec)
        self.layer = 0
        # Units follow their lengths where the header is a record, else start codes.
        place = 4 if codec == "h264" else 21
        record = extradata is not None and len(extradata) > place and extradata[0] == 1
        self.prefix = (extradata[place] & 3) + 1 if record and extradata else 0

    def starts(self, packet: Any) -> bool:
        """Decoding can start at this key packet."""
        if self.starting is None:
            return True
        kind = self._first_slice(packet)
        return kind is not None and kind in self.starting

    def look(self, packet: Any) -> None:
        """Find the layer of a packet."""
        self._first_slice(packet)

    def _first_slice(self, packet: Any) -> int | None:
        data = memoryview(packet)
        for place in self._places(data):
            if self.codec == "h264":
                kind = data[place] & 31
                if 1 <= kind <= 5:
                    return kind
            elif place + 1 < len(data) and (kind := data[place] >> 1 & 63) < 32:
                self.layer = (data[place + 1] & 7) - 1
                return kind
        return None

    def _places(self, data: memoryview) -> Iterator[int]:
        """Where units begin."""
        place, prefix = 0, self.prefix
        if prefix:
            while place + prefix < len(data):
                yield place + prefix
                place += prefix + int.from_bytes(data[place : place + prefix], "big")
            return
        whole = data.tobytes()
        while (place := whole.find(b"\0\0\1", place)) >= 0 and place + 3 < len(whole):
            place += 3
            yield place
