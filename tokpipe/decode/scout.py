"""What a file will show, from its packets alone: times, spans and sizes without decoding.

``plan`` runs a recipe's own sampler over these light frames and so knows the very count of a run.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tokpipe.decode._demux import frame_step, lacks_pts, open_timeline, read_packets
from tokpipe.decode._probe import open_container
from tokpipe.spec import MediaInfo

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tokpipe.decode._timeline import Timeline


@dataclass(frozen=True, slots=True)
class PacketScan:
    """The packets of a file that will be shown, in presentation order, on the reader's clock.

    Memory: 25 bytes a video packet.

    Attributes:
        pts, duration: float64 [T], seconds.
        key: bool [T], key packets.
        size: int64 [T], bytes.
        audio_end: Seconds where the last audio packet ends, 0 without audio.
        failures: Reads that failed.
    """

    pts: NDArray[np.float64]
    duration: NDArray[np.float64]
    key: NDArray[np.bool_]
    size: NDArray[np.int64]
    audio_end: float = 0.0
    failures: int = 0

    @property
    def video_end(self) -> float:
        """Seconds where the last picture ends, 0 without video."""
        return float((self.pts + self.duration).max()) if len(self.pts) else 0.0

    def __len__(self) -> int:
        """Pictures that will be shown."""
        return len(self.pts)


@dataclass(frozen=True, slots=True)
class ScannedFrame:
    """A picture that was not decoded; has what samplers look at.

    Attributes:
        pts, duration: Seconds.
        index: Rank in presentation order.
    """

    pts: float
    duration: float
    index: int
    usable: bool = True
    corrupt: bool = False


def scan_packets(path: Path, info: MediaInfo) -> PacketScan:
    """Read every packet header of the chosen streams; damaged reads are counted and passed over.

    Args:
        path: The file.
        info: As :func:`tokpipe.decode.probe` described it.

    Raises:
        MediaNotFound, UnsupportedMedia: As they say.
    """
    failures: list[str] = []
    with open_container(path) as box:
        timeline = open_timeline(box, info)
        video = _VideoPackets(box, info, timeline) if info.video is not None else None
        audio = box.streams[info.audio.index] if info.audio is not None else None
        clock = timeline.stream(audio.time_base) if audio is not None else None
        streams = [s for s in (video and video.stream, audio) if s is not None]
        for packet in read_packets(box, streams, failures.append):
            if packet.is_discard:
                continue
            if video is not None and packet.stream_index == video.index:
                video.push(packet)
            elif clock is not None:
                clock.place_packet(packet.pts, packet.dts, (packet.duration or 0) * clock.tick)
        end = timeline.seconds(clock.end) if clock is not None else 0.0
    if video is None:
        none = np.empty(0)
        return PacketScan(none, none, none > 0, np.empty(0, np.int64), end, len(failures))
    # By time; of packets with one time the first, as the reader shows it.
    pts, order = np.unique(np.array(video.pts), return_index=True)
    return PacketScan(
        pts=pts, duration=np.array(video.duration)[order],
        key=np.array(video.key, dtype=np.bool_)[order], size=np.array(video.size)[order],
        audio_end=end, failures=len(failures),
    )  # fmt: skip


def frames_of(scan: PacketScan) -> Iterator[ScannedFrame]:
    """Light frames for a sampler, in presentation order."""
    for index, (pts, duration) in enumerate(zip(scan.pts, scan.duration, strict=True)):
        yield ScannedFrame(float(pts), float(duration), index)


class _VideoPackets:
    def __init__(self, box: Any, info: MediaInfo, timeline: Timeline) -> None:
        assert info.video is not None  # noqa: S101 - only made when there is one
        self.index = info.video.index
        self.stream = box.streams[self.index]
        self.clock = timeline.stream(self.stream.time_base)
        self.step = frame_step(info.video, timeline)
        self.undated = lacks_pts(box, self.stream)
        self.pts, self.duration = array("d"), array("d")
        self.key, self.size = array("b"), array("q")

    def push(self, packet: Any) -> None:
        span, size = packet.duration, packet.size
        duration = span * self.clock.tick if span else self.step
        pts = packet.dts if self.undated else packet.pts
        t = self.clock.place_packet(pts, packet.dts, duration)
        if t >= 0:
            seconds = self.clock.timeline.seconds
            self.pts.append(seconds(t))
            self.duration.append(seconds(duration))
            self.key.append(packet.is_keyframe)
            self.size.append(size)
