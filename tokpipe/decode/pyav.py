"""Reference reader: PyAV, one demuxer, video and audio interleaved on one clock.

Decoders run with one thread: threaded decoding of damaged streams is not repeatable, and one
thread costs less CPU. Sampling happens on what this yields, by pts. A bad packet is skipped and
counted; nothing a header says is used to allocate.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import av
import torch
from av.video.reformatter import VideoReformatter

from tokpipe.decode._audio import RATE, AudioPlacer
from tokpipe.decode._damage import GroupDamage
from tokpipe.decode._deinterlace import Deinterlacer
from tokpipe.decode._demux import flush, frame_step, lacks_pts, open_timeline, read_packets
from tokpipe.decode._picture import DecodedPicture
from tokpipe.decode._probe import SAMPLE_RATES, open_container, open_stream, reason
from tokpipe.decode._timeline import FrameRanks, Timeline
from tokpipe.errors import DecodeError
from tokpipe.protocols import Picture
from tokpipe.spec import MediaInfo
from tokpipe.tensors import AudioChunk

#: Seconds, or two hundredths of the promise, that may be missing before a file counts as cut off.
_SHORT = 0.5


@dataclass(slots=True)
class DecodeReport:
    """What happened while a file was read.

    Attributes:
        frames: Pictures decoded and shown.
        damaged: Packets that did not decode, pictures flagged corrupt, or failed reads.
        video_end, audio_end: Media seconds where each stream really ended.
        notes: ``(code, message)`` of everything that was normalised.
    """

    frames: int = 0
    damaged: int = 0
    video_end: float = 0.0
    audio_end: float = 0.0
    notes: list[tuple[str, str]] = field(default_factory=list)

    def note(self, code: str, message: str) -> None:
        """Record a normalisation once per code."""
        if all(code != known for known, _ in self.notes):
            self.notes.append((code, message))


class StreamReader(Protocol):
    """Turns the packets of one stream, in file order, into pictures or sound."""

    def push(self, packet: Any) -> Iterable[Any]:
        """What is ready after this packet."""
        ...

    def finish(self) -> Iterable[Any]:
        """What is left at the end."""
        ...


class MediaSource:
    """An open media file; iterate :meth:`read` once.

    Attributes:
        info: What the header says.
        report: Filled while reading.
        whole: Why it is read from end to end where less was asked for.
    """

    def __init__(self, path: Path, info: MediaInfo, *, strict: bool = False) -> None:
        """Open nothing yet."""
        self.path = path
        self.info = info
        self.strict = strict
        self.report = DecodeReport()
        self.whole: str | None = None

    def read(self) -> Iterator[Picture | AudioChunk]:
        """Pictures in presentation order and audio blocks, as the file interleaves them.

        Raises:
            DecodeError: Nothing could be decoded, or damage under ``strict``.
        """
        with open_container(self.path) as box:
            timeline = open_timeline(box, self.info)
            readers: dict[int, StreamReader] = {}
            if self.info.video is not None:
                readers[self.info.video.index] = self._pictures(box, timeline)
            if self.info.audio is not None:
                readers[self.info.audio.index] = _AudioReader(self, box, timeline)
            streams = [box.streams[i] for i in readers]
            for packet in read_packets(box, streams, self.damage):
                yield from readers[packet.stream_index].push(packet)
            for reader in readers.values():
                yield from reader.finish()
            self._conclude(timeline)

    def _pictures(self, box: Any, timeline: Timeline) -> StreamReader:
        """What turns the packets of the video stream into pictures."""
        return _VideoReader(self, box, timeline)

    def damage(self, what: str) -> None:
        """Count damage; raise under ``strict``."""
        self.report.damaged += 1
        if self.strict:
            raise DecodeError(
                f"damage in `{self.path.name}`: {what}",
                hint="leave --strict out to go on past damage",
            )

    def _promised(self) -> float | None:
        """Seconds the header promises of the streams that are read."""
        info = self.info
        if not info.other_streams:
            return info.duration
        # The container may owe its length to a stream that is left out.
        chosen = [stream for stream in (info.video, info.audio) if stream is not None]
        ends = [
            (s.start or 0.0) - info.zero + s.duration for s in chosen if s.duration is not None
        ]  # fmt: skip
        return min(info.duration, max(ends)) if info.duration is not None and ends else None

    def _conclude(self, timeline: Timeline) -> None:
        report = self.report
        if timeline.resets:
            text = f"timestamps restarted {timeline.resets} times; later parts follow on"
            report.note("timestamp-reset", text)
        if report.damaged:
            report.note("damaged", f"{report.damaged} damaged packets or pictures were skipped")
        end, promised = max(report.video_end, report.audio_end), self._promised()
        if promised is not None and end < promised - max(_SHORT, 0.02 * promised):
            text = f"holds {end:.3f} s of the {promised:.3f} s its header promises"
            report.note("truncated", text)
            if self.strict:
                raise DecodeError(
                    f"`{self.path.name}` is cut off at {end:.3f} s",
                    hint="leave --strict out to use what is there",
                )
        if report.frames == 0 and report.audio_end == 0:
            raise DecodeError(
                f"nothing in `{self.path.name}` could be decoded",
                hint="check that it plays elsewhere; a recording that was cut off may hold no data",
            )


class _VideoReader:
    def __init__(self, source: MediaSource, box: Any, timeline: Timeline) -> None:
        assert source.info.video is not None  # noqa: S101 - only made when there is one
        self.source, self.info = source, source.info.video
        self.stream = open_stream(box, self.info.index)
        self.time_base = self.stream.time_base
        self.packets = timeline.stream(self.time_base)
        self.clock = timeline.stream(self.time_base)
        #: Times of packets whose frames are to come, where the frames' own are no good.
        self.due: deque[int] | None = deque() if lacks_pts(box, self.stream) else None
        self.ranks = FrameRanks()
        self.groups = GroupDamage()
        self.reformatter = VideoReformatter()
        self.deinterlacer = Deinterlacer()
        self.turns = (-self.info.rotation // 90) % 4
        self.step = frame_step(self.info, timeline)
        self.size: tuple[int, int] | None = None
        self.shown = -1

    def push(self, packet: Any) -> Iterator[DecodedPicture]:
        if packet.is_discard:
            text = "pictures outside the edit list are not shown"
            self.source.report.note("edit-list", text)
        else:
            self._note_packet(packet)
        try:
            frames = packet.decode()
        except av.FFmpegError as error:
            self.groups.hit()
            if self.due:
                self.due.pop()
            self.source.damage(f"video packet: {reason(error)}")
            return
        for frame in frames:
            yield from self._frame(frame)

    def finish(self) -> Iterator[DecodedPicture]:
        for frame in flush(self.stream):
            yield from self._frame(frame)
        for frame, corrupt in self.deinterlacer.finish():
            yield from self._place(frame, corrupt)
        yield from _settled(self.groups.finish())
        if self.clock.disordered:
            text = f"{self.clock.disordered} pictures were out of order"
            self.source.report.note("damaged", text)
        if self.source.report.frames == 0:
            self.source.report.note("damaged", "no picture of the video could be decoded")

    def _note_packet(self, packet: Any) -> None:
        corrupt = packet.is_corrupt
        pts = packet.pts if self.due is None else packet.dts
        span = packet.duration
        duration = span * self.packets.tick if span else self.step
        t = self.packets.place_packet(pts, packet.dts, duration)
        if pts is not None and t >= 0:
            self.ranks.add(t)
        if self.due is not None:
            self.due.append(t)
        self.groups.packet(t, key=packet.is_keyframe)
        if corrupt:
            self.groups.hit()
            self.source.damage("video packet cut off or broken")

    def _frame(self, frame: Any) -> Iterator[DecodedPicture]:
        corrupt = frame.is_corrupt
        if corrupt:
            self.source.damage("picture flagged as corrupt")
        size = (frame.width, frame.height)
        if size != self.size:
            if self.size is not None:
                text = f"picture size changes to {size[0]}x{size[1]}; the first size's grid is kept"
                self.source.report.note("size-change", text)
            self.size = size
        for shown, flag in self.deinterlacer.push(frame, corrupt):
            yield from self._place(shown, flag)

    def _place(self, frame: Any, corrupt: bool) -> Iterator[DecodedPicture]:
        clock, report = self.clock, self.source.report
        # Only a filter's frames have a time base of their own.
        time_base = frame.time_base if self.deinterlacer.active else None
        span, pts = frame.duration, frame.pts
        duration = clock.ticks_to_units(span, time_base) if span else self.step
        t = self.due.popleft() if self.due else clock.place(pts, duration, time_base)
        if t <= self.shown:
            return
        self.shown = t
        seconds = clock.timeline.seconds
        report.frames += 1
        report.video_end = max(report.video_end, seconds(t + duration))
        if self.deinterlacer.active:
            report.note("interlaced", "interlaced; fields are joined by bwdif")
        picture = DecodedPicture(
            frame=frame, reformatter=self.reformatter, pts=seconds(t), duration=seconds(duration),
            index=self.ranks.rank(t) if pts is not None and self.ranks.known else -1,
            usable=not corrupt, corrupt=corrupt,
            rotation=self.turns, transfer=self.info.transfer,
        )  # fmt: skip
        yield from _settled(self.groups.frame(picture, t, corrupt=corrupt))


def _settled(pictures: Iterator[tuple[DecodedPicture, bool]]) -> Iterator[DecodedPicture]:
    for picture, damaged in pictures:
        if damaged:
            picture.usable = False
        yield picture


class _AudioReader:
    def __init__(self, source: MediaSource, box: Any, timeline: Timeline) -> None:
        assert source.info.audio is not None  # noqa: S101 - only made when there is one
        self.source = source
        self.stream = open_stream(box, source.info.audio.index)
        self.packets = timeline.stream(self.stream.time_base)
        self.clock = timeline.stream(self.stream.time_base)
        self.placer = AudioPlacer(timeline.scale)
        self.sent = 0

    def push(self, packet: Any) -> list[AudioChunk]:
        if not packet.is_discard:
            span = (packet.duration or 0) * self.packets.tick
            self.packets.place_packet(packet.pts, packet.dts, span)
        if packet.is_corrupt:
            self.source.damage("audio packet cut off or broken")
        try:
            frames = packet.decode()
        except av.FFmpegError as error:
            self.source.damage(f"audio packet: {reason(error)}")
            return []
        return self._frames(frames)

    def finish(self) -> list[AudioChunk]:
        out = self._frames(flush(self.stream))
        out += map(self._chunk, self.placer.finish())
        report, placer = self.source.report, self.placer
        report.audio_end = self.sent / RATE
        if placer.gaps:
            seconds = placer.gaps / RATE
            report.note("audio-gap", f"{seconds:.3f} s of holes in the audio were filled")
        if placer.overlaps:
            seconds = placer.overlaps / RATE
            report.note("audio-overlap", f"{seconds:.3f} s of overlapping audio were dropped")
        if not placer.started:
            report.note("damaged", "nothing of the audio could be decoded")
        return out

    def _frames(self, frames: Iterable[Any]) -> list[AudioChunk]:
        out: list[AudioChunk] = []
        scale = self.clock.timeline.scale
        for frame in frames:
            rate, samples = frame.sample_rate, frame.samples
            if not samples:
                continue
            if rate not in SAMPLE_RATES:
                self.source.damage(f"sound at {rate} Hz")
                continue
            start = self.clock.place(frame.pts, samples * scale // rate)
            try:
                if blocks := self.placer.push(frame, start):
                    out.extend(map(self._chunk, blocks))
            except (av.FFmpegError, ValueError) as error:
                self.source.damage(f"sound that cannot be resampled: {reason(error)}")
        return out

    def _chunk(self, block: Any) -> AudioChunk:
        at, self.sent = self.sent, self.sent + len(block)
        samples = torch.from_numpy(block)[None]
        return AudioChunk(samples=samples, pts=at / RATE, sample_rate=RATE, index=at)
