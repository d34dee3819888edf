"""What a file will show, from its packets alone: times, spans and sizes without decoding.

``plan`` runs a recipe's own sampler over these light frames and so knows the very count of a run:
over all of them, or over those that the reader will decode.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tokpipe.decode._demux import frame_step, lacks_pts, open_timeline, read_packets
from tokpipe.decode._groups import Group, GroupCollector, Unsafe
from tokpipe.decode._probe import open_container
from tokpipe.decode._wanted import Chooser, Effort, reads_whole
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
        wanted: Of each picture, whether a reader of this effort decodes it: 0 no, 1 yes, 2 it shows
            a change; uint8 [T], None where all are decoded.
        whole: Why all are decoded, where an effort was asked for.
    """

    pts: NDArray[np.float64]
    duration: NDArray[np.float64]
    key: NDArray[np.bool_]
    size: NDArray[np.int64]
    audio_end: float = 0.0
    failures: int = 0
    wanted: NDArray[np.uint8] | None = None
    whole: str | None = None

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
        marked: It shows a change.
    """

    pts: float
    duration: float
    index: int
    marked: bool = False
    usable: bool = True
    corrupt: bool = False


def scan_packets(
    path: Path, info: MediaInfo, effort: Effort | None = None, fps: float = 2.0
) -> PacketScan:
    """Read every packet header of the chosen streams; damaged reads are counted and passed over.

    Args:
        path: The file.
        info: As :func:`tokpipe.decode.probe` described it.
        effort: Also find what a reader of this effort would decode; None looks at times only.
        fps: Ticks a second of the sampler that chooses from it.

    Raises:
        MediaNotFound, UnsupportedMedia: As they say.
    """
    failures: list[str] = []
    with open_container(path) as box:
        timeline = open_timeline(box, info)
        video = _VideoPackets(box, info, timeline) if info.video is not None else None
        audio = box.streams[info.audio.index] if info.audio is not None else None
        chosen = None if effort is None else _Chosen(box, info, effort, fps)
        clock = timeline.stream(audio.time_base) if audio is not None else None
        streams = [s for s in (video and video.stream, audio) if s is not None]
        for packet in read_packets(box, streams, failures.append):
            if chosen is not None and video is not None and packet.stream_index == video.index:
                chosen.push(packet)
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
    whole = None if chosen is None else chosen.finish(failures, timeline.resets)
    wanted = None if chosen is None or whole is not None else chosen.wanted(pts)
    return PacketScan(
        pts=pts, duration=np.array(video.duration)[order],
        key=np.array(video.key, dtype=np.bool_)[order], size=np.array(video.size)[order],
        audio_end=end, failures=len(failures), wanted=wanted, whole=whole,
    )  # fmt: skip


def frames_of(scan: PacketScan) -> Iterator[ScannedFrame]:
    """Light frames for a sampler, in presentation order: of the pictures that are decoded."""
    wanted = scan.wanted
    for index in range(len(scan)) if wanted is None else np.flatnonzero(wanted).tolist():
        marked = wanted is not None and int(wanted[index]) > 1
        yield ScannedFrame(float(scan.pts[index]), float(scan.duration[index]), index, marked)


class _Chosen:
    """Follows the reader's choice, as long as it can be followed.

    The timeline is its own: the choice stops where timestamps restart, and the times go on.
    """

    def __init__(self, box: Any, info: MediaInfo, effort: Effort, fps: float) -> None:
        self.timeline = open_timeline(box, info)
        self.pts, self.mark = array("d"), array("b")
        self.collector: GroupCollector | None = None
        self.whole = reads_whole(info)
        if self.whole is None and info.video is not None:
            self.chooser = Chooser(effort, fps, self.timeline, info.video)
            try:
                self.collector = GroupCollector(box, info, self.timeline, keep=False)
            except Unsafe as why:
                self.whole = str(why)

    def push(self, packet: Any) -> None:
        if self.collector is not None:
            try:
                self._note(self.collector.push(packet))
            except Unsafe as why:
                self.collector, self.whole = None, str(why)

    def finish(self, failures: list[str], resets: int) -> str | None:
        """Why all is read, None where only some is."""
        if self.collector is not None:
            self._note(self.collector.finish())
        restarted = "timestamps restart" if resets else None
        return self.whole or ("damage" if failures else restarted)

    def wanted(self, pts: NDArray[np.float64]) -> NDArray[np.uint8]:
        """The choice as a column beside the times of all pictures."""
        out = np.zeros(len(pts), dtype=np.uint8)
        out[np.searchsorted(pts, np.array(self.pts))] = 1 + np.array(self.mark, dtype=np.uint8)
        return out

    def _note(self, group: Group | None) -> None:
        if group is None:
            return
        wanted = self.chooser.choose(group)
        for i, marked in zip(wanted.places, wanted.marked, strict=True):
            self.pts.append(self.timeline.seconds(group.t[i]))
            self.mark.append(marked)


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
