"""Whether a file is plain enough for a decoder that shows nothing of what is odd in it.

torchcodec and decord hand out pictures and their times, but no flags: not that a picture is
interlaced, of another transfer function, concealed or beyond an edit list. So the packets and some
key pictures are looked at here first, and what would come out wrong is refused.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import av
import numpy as np

from tokpipe.decode._demux import frame_step, open_timeline, read_packets
from tokpipe.decode._probe import open_container, open_stream
from tokpipe.errors import UnsupportedMedia
from tokpipe.spec import MediaInfo, VideoInfo

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tokpipe.decode._timeline import Timeline

#: Containers with an index: in others a search may land on another picture.
_INDEXED = {"mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm"}


@dataclass(frozen=True, slots=True)
class Shown:
    """The pictures a plain file shows, in order, on the reader's clock.

    Attributes:
        pts, duration: int64 [T] units of the timeline, see ``_timeline``.
    """

    pts: NDArray[np.int64]
    duration: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Reach:
    """How far beyond plain files a reader is right: each text says why it refuses, empty if not.

    Attributes:
        name: The reader.
        formats: Pixel formats whose conversion is the reference's, None for all.
        unchecked: What is said of the others.
        turned: Pictures turned for display.
        hidden: Pictures outside an edit list.
        several: More than one video stream.
        leading: Pictures that are shown before the first key picture.
        apart: Seconds between the key pictures that are looked at.
    """

    name: str
    formats: frozenset[str] | None = None
    unchecked: str = "is not checked"
    turned: str = ""
    hidden: str = ""
    several: str = ""
    leading: str = ""
    apart: int = 1

    def refusal(self, path: Path, why: str) -> UnsupportedMedia:
        """The error for a file that is not plain."""
        return UnsupportedMedia(
            f"{self.name} would not read `{path.name}` rightly: {why}",
            hint="use --decoder pyav, which reads it",
        )

    def odd_header(self, info: MediaInfo) -> str | None:
        """What the header says that rules the reader out."""
        video = info.video
        assert video is not None  # noqa: S101 - asked for video only
        odd_format = self.formats is not None and video.pixel_format not in self.formats
        checks = (
            (info.container not in _INDEXED, f"{info.container} cannot be searched exactly"),
            (video.hdr, f"HDR ({video.transfer}) would not be tone-mapped"),
            (video.interlaced, "its fields would not be joined"),
            (video.rotation != 0, self.turned),
            (odd_format, f"pixel format {video.pixel_format} {self.unchecked}"),
        )
        return next((why for seen, why in checks if seen and why), None)


def look(path: Path, info: MediaInfo, reach: Reach) -> Shown:
    """Read all packet headers and some key pictures.

    Memory: 16 bytes a picture.

    Raises:
        UnsupportedMedia: The file is not plain, with what is odd about it.
    """
    assert info.video is not None  # noqa: S101 - asked for video only
    if (why := reach.odd_header(info)) is not None:
        raise reach.refusal(path, why)
    failures: list[str] = []
    with open_container(path) as box:
        timeline = open_timeline(box, info)
        packets = _Packets(path, box, info.video, timeline, reach)
        for packet in read_packets(box, [packets.stream], failures.append):
            packets.push(packet)
        packets.pictures.finish()
    checks = (
        (failures, failures and failures[0]),
        (timeline.resets, "its timestamps restart"),
        (packets.videos > 1, reach.several),
        (packets.hidden, reach.hidden),
        (packets.leading, reach.leading),
    )
    for seen, text in checks:
        if seen and text:
            raise reach.refusal(path, str(text))
    pts = np.array(packets.pts, dtype=np.int64)
    order = np.argsort(pts, kind="stable")
    pts = pts[order]
    if (np.diff(pts) <= 0).any():
        raise reach.refusal(path, "two pictures have one time")
    return Shown(pts, np.array(packets.duration, dtype=np.int64)[order])


class _Packets:
    """Times of all packets of the video, and what rules the file out."""

    def __init__(
        self, path: Path, box: Any, video: VideoInfo, timeline: Timeline, reach: Reach
    ) -> None:
        self.path, self.reach = path, reach
        self.stream = open_stream(box, video.index)
        self.clock = timeline.stream(self.stream.time_base)
        self.step = frame_step(video, timeline)
        self.pts, self.duration = array("q"), array("q")
        self.hidden, self.videos, self.leading = 0, len(box.streams.video), False
        self.pictures = _KeyPictures(path, self.stream, video, reach)
        self.apart = timeline.units(reach.apart)
        self.looked: int | None = None

    def push(self, packet: Any) -> None:
        if packet.is_corrupt:
            raise self.reach.refusal(self.path, "a packet is cut off or broken")
        if packet.is_discard:
            self.hidden += 1
            return
        if packet.pts is None:
            raise self.reach.refusal(self.path, "its packets carry no presentation times")
        span = packet.duration
        duration = span * self.clock.tick if span else self.step
        t = self.clock.place_packet(packet.pts, packet.dts, duration)
        if t < 0:
            raise self.reach.refusal(self.path, "pictures lie before its start")
        self.leading |= not packet.is_keyframe if not self.pts else t < self.pts[0]
        self.pts.append(t)
        self.duration.append(duration)
        if packet.is_keyframe and (self.looked is None or t >= self.looked + self.apart):
            self.looked = t
            self.pictures.push(packet)


class _KeyPictures:
    """Decodes key packets alone and compares each picture with the header."""

    def __init__(self, path: Path, stream: Any, video: VideoInfo, reach: Reach) -> None:
        self.path, self.stream, self.video, self.reach = path, stream, video, reach
        stream.codec_context.skip_frame = "NONKEY"

    def push(self, packet: Any) -> None:
        try:
            frames = packet.decode()
        except av.FFmpegError as error:
            raise self.reach.refusal(self.path, "a key picture is damaged") from error
        for frame in frames:
            self._check(frame)

    def finish(self) -> None:
        try:
            frames = self.stream.decode(None)
        except av.FFmpegError as error:
            raise self.reach.refusal(self.path, "a key picture is damaged") from error
        for frame in frames:
            self._check(frame)

    def _check(self, frame: Any) -> None:
        video = self.video
        turned = video.rotation % 180 == 90
        size = (video.height, video.width) if turned else (video.width, video.height)
        checks = (
            ((frame.width, frame.height) != size, "the picture size changes"),
            (bool(frame.interlaced_frame), "some of its pictures are interlaced"),
            (frame.is_corrupt, "a key picture is damaged"),
            (int(frame.color_trc or 0) in (16, 18), "some of its pictures are HDR"),
            (frame.format.name != video.pixel_format, "the pixel format changes"),
        )
        for seen, why in checks:
            if seen:
                raise self.reach.refusal(self.path, why)
