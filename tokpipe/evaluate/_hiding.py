"""Hide known pictures inside a real video, never at a key frame, and make it as long as wanted.

The host is encoded once, small, in closed groups of 250 pictures of which only the first is a key
picture. Groups are then copied, packet by packet, over and over until the length is there; only a
group that takes a needle is decoded, painted over and encoded again with the same settings. Memory
is a group's packets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import IO, Any

import av
import numpy as np
from av.packet import Packet
from numpy.typing import NDArray

from tokpipe.decode import open_source
from tokpipe.errors import DecodeError, RecipeError
from tokpipe.evaluate._needle_pictures import Picture, Pictures, at_rate
from tokpipe.ingest import Progress
from tokpipe.spec import MediaInfo

#: Pictures of a group, at most, and between a needle and the borders of its group.
GROUP, MARGIN = 250, 12
#: Long side of the made video in pixels, and its pictures a second unless the host has fewer.
SIDE, FPS = 640, 10
_SETTINGS = {
    "preset": "ultrafast", "crf": "23", "threads": "1",
    "x264-params": f"keyint={GROUP}:min-keyint={GROUP}:scenecut=0:bframes=0:log-level=none",
}  # fmt: skip

Look = Callable[[Picture], NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class Hidden:
    """A needle and the host around it.

    Attributes:
        start, stop: Seconds it is on screen, half-open.
        like: Vectors float32 [2, E] of its first and last picture, before encoding.
        unlike: Vectors of the host's pictures just before and just after.
    """

    start: float
    stop: float
    like: NDArray[np.float32]
    unlike: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Made:
    """A video with needles in it.

    Attributes:
        path: An mp4.
        fps: Pictures a second.
        frames: Pictures in all.
        needles: By time.
    """

    path: Path
    fps: Fraction
    frames: int
    needles: tuple[Hidden, ...]


def made_fps(info: MediaInfo) -> Fraction:
    """Pictures a second of the made video: 10, or the host's where it has fewer."""
    rate = info.video.frame_rate if info.video is not None else None
    # Broken headers promise next to nothing; a needle must still fit into a group.
    return min(Fraction(FPS), max(Fraction(1), Fraction(rate or FPS)))


def made_size(info: MediaInfo) -> tuple[int, int]:
    """Width and height of the made video: even, 640 on the long side at most, square pixels."""
    assert info.video is not None  # noqa: S101 - the caller looked
    wide, high = info.video.display_size
    scale = min(1.0, SIDE / max(wide, high))
    return max(2, round(wide * scale / 2) * 2), max(2, round(high * scale / 2) * 2)


@dataclass(slots=True)
class Hiding:
    """How a video with needles is made.

    Attributes:
        size, fps: Of the made video, see :func:`made_size` and :func:`made_fps`.
        count: Needles.
        length: Pictures of one needle.
        seconds: Length of the result, None for that of the host.
        look: Vector float32 [E] of a picture.
    """

    size: tuple[int, int]
    fps: Fraction
    count: int
    length: int
    seconds: float | None
    seed: int
    look: Look
    progress: Progress | None = None
    _needles: list[Hidden] = field(default_factory=list)

    def make(self, host: Path, info: MediaInfo, target: Path, pictures: Pictures) -> Made:
        """Write the mp4 ``target``; a small file beside it comes and goes.

        Raises:
            RecipeError: The host is too short for so many needles of this length.
            DecodeError: The host shows no picture.
        """
        store = target.with_name(f".{target.name}.host")
        try:
            with store.open("w+b") as stream:
                groups = self._store_host(host, info, stream)
                order = self._order([len(group) for group in groups])
                places = self._places([len(groups[i]) for i in order])
                frames = self._join(stream, groups, order, places, target, pictures)
        finally:
            store.unlink(missing_ok=True)
        return Made(target, self.fps, frames, tuple(self._needles))

    def _store_host(self, host: Path, info: MediaInfo, stream: IO[bytes]) -> list[list[_Span]]:
        """Encode the host into ``stream``; returns where each packet of each group lies."""
        groups: list[list[_Span]] = []
        coder, place = self._coder(), 0
        for number, picture in enumerate(at_rate(open_source(host, info).read(), self.fps)):
            if number % GROUP == 0:
                place = _put(stream, coder.finish(), groups, place)
                coder = self._coder()
                groups.append([])
            place = _put(stream, coder.push(picture.rgb(*self.size)), groups, place)
            self._tell("shrink", picture.pts, info.duration)
        _put(stream, coder.finish(), groups, place)
        if not groups:
            raise DecodeError(
                f"no picture of `{host.name}` could be decoded", hint="name another host"
            )
        return groups

    def _order(self, sizes: Sequence[int]) -> list[int]:
        """Groups of the host, over and over, until the length is there."""
        wanted = sum(sizes) if self.seconds is None else max(1, round(self.seconds * self.fps))
        order: list[int] = []
        total = 0
        while total < wanted:
            order.append(len(order) % len(sizes))
            total += sizes[order[-1]]
        return order

    def _places(self, sizes: Sequence[int]) -> dict[int, list[int]]:
        """First picture of each needle in its group, by the group's number in the result."""
        pace = self.length + MARGIN
        slots = [
            (number, MARGIN + i * pace)
            for number, size in enumerate(sizes)
            for i in range(max(0, (size - MARGIN) // pace))
        ]
        if len(slots) < self.count:
            raise RecipeError(
                f"there is room for {len(slots)} needles of this length, not for {self.count}",
                hint="make the video longer with --hours, or ask for fewer or shorter needles"
                if slots
                else "take a longer host, or shorter needles",
            )
        rng = np.random.default_rng(self.seed)
        # One needle in each of as many equal parts, so that all of the video is tried.
        edges = [i * len(slots) // self.count for i in range(self.count + 1)]
        found: dict[int, list[int]] = {}
        for a, b in pairwise(edges):
            number, first = slots[int(rng.integers(a, b))]
            # Not on a grid of their own: even steps of a sampler must not fall in with it.
            found.setdefault(number, []).append(first + int(rng.integers(MARGIN // 2 + 1)))
        return found

    def _join(
        self, store: IO[bytes], groups: list[list[_Span]], order: list[int],
        places: dict[int, list[int]], target: Path, pictures: Pictures,
    ) -> int:  # fmt: skip
        base, total = 0, float(sum(len(groups[i]) for i in order) / self.fps)
        with av.open(str(target), "w", options={"fflags": "+bitexact"}) as box:
            stream: Any = box.add_stream("libx264", rate=self.fps, options=_SETTINGS)
            stream.width, stream.height = self.size
            stream.pix_fmt, stream.time_base = "yuv420p", 1 / self.fps
            box.start_encoding()
            for number, group in enumerate(order):
                packets = list(_get(store, groups[group]))
                if number in places:
                    packets = self._painted(packets, places[number], base, pictures)
                for i, data in enumerate(packets):
                    packet = Packet(data)
                    packet.stream, packet.time_base = stream, 1 / self.fps
                    packet.pts = packet.dts = base + i
                    packet.duration, packet.is_keyframe = 1, i == 0
                    box.mux(packet)
                base += len(packets)
                self._tell("hide", float(base / self.fps), total)
        return base

    def _painted(
        self, packets: Sequence[bytes], firsts: Sequence[int], base: int, pictures: Pictures
    ) -> list[bytes]:
        """A group again, with needles that begin at these of its pictures."""
        coder, out = self._coder(), list[bytes]()
        inside: dict[int, tuple[int, Iterator[Picture]]] = {}
        for first in firsts:
            shown = pictures.needle(len(self._needles) + len(inside) // self.length)
            inside |= dict.fromkeys(range(first, first + self.length), (first, shown))
        seen: dict[int, NDArray[np.float32]] = {}
        held: Picture | None = None
        for i, frame in enumerate(_decoded(packets)):
            picture: Any = frame.to_ndarray(format="rgb24")
            if i in inside:
                held = next(inside[i][1], held)
                assert held is not None  # noqa: S101 - a needle has one picture at least
                picture = held
            if any(i in (f - 1, f, f + self.length - 1, f + self.length) for f in firsts):
                seen[i] = self.look(picture)
            out += coder.push(picture if i in inside else frame)
        out += coder.finish()
        for first in firsts:
            last = first + self.length
            start, stop = float((base + first) / self.fps), float((base + last) / self.fps)
            like = np.stack([seen[first], seen[last - 1]])
            unlike = np.stack([seen[first - 1], seen[last]])
            self._needles.append(Hidden(start, stop, like, unlike))
        return out

    def _coder(self) -> _Coder:
        return _Coder(self.size, self.fps)

    def _tell(self, stage: str, at: float, total: float | None) -> None:
        if self.progress is not None:
            self.progress(stage, at, total)


#: Where a packet lies in the store: offset and size.
_Span = tuple[int, int]


class _Coder:
    """Encodes one closed group: pictures in, packets out, in the same order."""

    def __init__(self, size: tuple[int, int], fps: Fraction) -> None:
        context: Any = av.CodecContext.create("libx264", "w")
        context.width, context.height = size
        context.pix_fmt, context.time_base, context.framerate = "yuv420p", 1 / fps, fps
        context.options = dict(_SETTINGS)
        self._context, self._count = context, 0

    def push(self, picture: Picture | av.VideoFrame) -> list[bytes]:
        """Packets that are ready."""
        frame = (
            av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format="yuv420p")
            if isinstance(picture, np.ndarray)
            else picture
        )
        # The encoder would make a key picture wherever the decoder found one.
        frame.pict_type = av.video.frame.PictureType.NONE
        frame.pts, frame.time_base = self._count, self._context.time_base
        self._count += 1
        return [bytes(packet) for packet in self._context.encode(frame)]

    def finish(self) -> list[bytes]:
        """Packets that are left."""
        return [bytes(p) for p in self._context.encode(None)] if self._count else []


def _put(stream: IO[bytes], packets: Iterable[bytes], groups: list[list[_Span]], place: int) -> int:
    """Append packets to the last group; returns the end of the store."""
    for data in packets:
        stream.write(data)
        groups[-1].append((place, len(data)))
        place += len(data)
    return place


def _get(stream: IO[bytes], spans: Iterable[_Span]) -> Iterator[bytes]:
    for offset, size in spans:
        stream.seek(offset)
        yield stream.read(size)


def _decoded(packets: Iterable[bytes]) -> Iterator[av.VideoFrame]:
    context: Any = av.CodecContext.create("h264", "r")
    for data in packets:
        yield from context.decode(Packet(data))
    yield from context.decode(None)
