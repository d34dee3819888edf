"""Whether a file is plain enough for a decoder that shows nothing of what is odd in it.

torchcodec hands out pictures and their times, but no flags: not that a picture is interlaced, of
another transfer function, concealed or beyond an edit list. So the packets and about one key
picture a second are looked at here first, and what would come out wrong is refused.
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
#: Pixel formats whose conversion on a GPU is the reference reader's.
_ON_GPU = {"yuv420p"}
#: Seconds between the key pictures that are looked at.
_LOOK = 1


@dataclass(frozen=True, slots=True)
class Shown:
    """The pictures a plain file shows, in order, on the reader's clock.

    Attributes:
        pts, duration: int64 [T] units of the timeline, see ``_timeline``.
    """

    pts: NDArray[np.int64]
    duration: NDArray[np.int64]


def refusal(path: Path, why: str) -> UnsupportedMedia:
    """The error for a file that is not plain."""
    return UnsupportedMedia(
        f"torchcodec would not read `{path.name}` rightly: {why}",
        hint="use --decoder pyav, which reads it",
    )


def odd_header(info: MediaInfo, device: str) -> str | None:
    """What the header says that rules torchcodec out on a device (``cpu`` or ``cuda``)."""
    video = info.video
    assert video is not None  # noqa: S101 - asked for video only
    gpu = device != "cpu"
    checks = (
        (info.container not in _INDEXED, f"{info.container} cannot be searched exactly"),
        (video.hdr, f"HDR ({video.transfer}) would not be tone-mapped"),
        (video.interlaced, "its fields would not be joined"),
        (gpu and video.rotation != 0, "turned pictures are not checked on a GPU"),
        (
            gpu and video.pixel_format not in _ON_GPU,
            f"pixel format {video.pixel_format} is not checked on a GPU",
        ),
    )
    return next((why for seen, why in checks if seen), None)


def look(path: Path, info: MediaInfo, device: str) -> Shown:
    """Read all packet headers and some key pictures.

    Memory: 16 bytes a picture.

    Raises:
        UnsupportedMedia: The file is not plain, with what is odd about it.
    """
    assert info.video is not None  # noqa: S101 - asked for video only
    if (why := odd_header(info, device)) is not None:
        raise refusal(path, why)
    failures: list[str] = []
    with open_container(path) as box:
        timeline = open_timeline(box, info)
        packets = _Packets(path, box, info.video, timeline)
        for packet in read_packets(box, [packets.stream], failures.append):
            packets.push(packet)
        packets.pictures.finish()
    if failures:
        raise refusal(path, failures[0])
    if timeline.resets:
        raise refusal(path, "its timestamps restart")
    if packets.hidden and device != "cpu":
        raise refusal(path, "its edit list is not checked on a GPU")
    pts = np.array(packets.pts, dtype=np.int64)
    order = np.argsort(pts, kind="stable")
    pts = pts[order]
    if (np.diff(pts) <= 0).any():
        raise refusal(path, "two pictures have one time")
    return Shown(pts, np.array(packets.duration, dtype=np.int64)[order])


class _Packets:
    """Times of all packets of the video, and what rules the file out."""

    def __init__(self, path: Path, box: Any, video: VideoInfo, timeline: Timeline) -> None:
        self.path = path
        self.stream = open_stream(box, video.index)
        self.clock = timeline.stream(self.stream.time_base)
        self.step = frame_step(video, timeline)
        self.pts, self.duration = array("q"), array("q")
        self.hidden = 0
        self.pictures = _KeyPictures(path, self.stream, video)
        self.apart = timeline.units(_LOOK)
        self.looked: int | None = None

    def push(self, packet: Any) -> None:
        if packet.is_corrupt:
            raise refusal(self.path, "a packet is cut off or broken")
        if packet.is_discard:
            self.hidden += 1
            return
        if packet.pts is None:
            raise refusal(self.path, "its packets carry no presentation times")
        span = packet.duration
        duration = span * self.clock.tick if span else self.step
        t = self.clock.place_packet(packet.pts, packet.dts, duration)
        if t < 0:
            raise refusal(self.path, "pictures lie before its start")
        self.pts.append(t)
        self.duration.append(duration)
        if packet.is_keyframe and (self.looked is None or t >= self.looked + self.apart):
            self.looked = t
            self.pictures.push(packet)


class _KeyPictures:
    """Decodes key packets alone and compares each picture with the header."""

    def __init__(self, path: Path, stream: Any, video: VideoInfo) -> None:
        self.path, self.stream, self.video = path, stream, video
        stream.codec_context.skip_frame = "NONKEY"

    def push(self, packet: Any) -> None:
        try:
            frames = packet.decode()
        except av.FFmpegError as error:
            raise refusal(self.path, "a key picture is damaged") from error
        for frame in frames:
            self._check(frame)

    def finish(self) -> None:
        try:
            frames = self.stream.decode(None)
        except av.FFmpegError as error:
            raise refusal(self.path, "a key picture is damaged") from error
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
                raise refusal(self.path, why)
