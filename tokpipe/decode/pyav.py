"""Reference reader: PyAV, one demuxer, video and audio interleaved on one clock.

Decoders run with one thread: threaded decoding of damaged streams is not repeatable, and one
thread costs less CPU. Sampling happens on what this yields, by pts. A bad packet is skipped and
counted; nothing a header says is used to allocate.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import torch
from av.video.reformatter import VideoReformatter

from tokpipe.decode._audio import RATE, AudioPlacer
from tokpipe.decode._deinterlace import Deinterlacer
from tokpipe.decode._picture import DecodedPicture
from tokpipe.decode._probe import open_container, reason
from tokpipe.decode._timeline import FrameRanks, Timeline, common_scale
from tokpipe.errors import DecodeError
from tokpipe.spec import MediaInfo
from tokpipe.tensors import AudioChunk

#: Consecutive failed reads after which the rest of a file is given up.
_PATIENCE = 200


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


class MediaSource:
    """An open media file; iterate :meth:`read` once.

    Attributes:
        info: What the header says.
        report: Filled while reading.
    """

    def __init__(self, path: Path, info: MediaInfo, *, strict: bool = False) -> None:
        """Open nothing yet."""
        self.path = path
        self.info = info
        self.strict = strict
        self.report = DecodeReport()

    def read(self) -> Iterator[DecodedPicture | AudioChunk]:
        """Pictures in presentation order and audio blocks, as the file interleaves them.

        Raises:
            DecodeError: Nothing could be decoded, or damage under ``strict``.
        """
        with open_container(self.path) as box:
            timeline = self._timeline(box)
            readers: dict[int, _VideoReader | _AudioReader] = {}
            if self.info.video is not None:
                readers[self.info.video.index] = _VideoReader(self, box, timeline)
            if self.info.audio is not None:
                readers[self.info.audio.index] = _AudioReader(self, box, timeline)
            for packet in self._packets(box, [box.streams[i] for i in readers]):
                # The demuxer hands out a flush packet for streams that were not asked for, too.
                if packet.stream_index in readers:
                    yield from readers[packet.stream_index].push(packet)
            for reader in readers.values():
                yield from reader.finish()
            self._conclude(timeline)

    def _timeline(self, box: Any) -> Timeline:
        streams = [box.streams[i.index] for i in (self.info.video, self.info.audio) if i is not None]
        rates = [RATE, *(s.time_base.denominator for s in streams)]
        rates += [self.info.audio.sample_rate] if self.info.audio else []
        rates += [self.info.video.frame_rate.numerator] if self.info.video and self.info.video.frame_rate else []
        line = Timeline(scale=common_scale(rates))
        line.zero = line.units(max(Fraction(0), Fraction(box.start_time or 0, 1_000_000)))
        if self.info.duration:
            # Half as long again: headers of live recordings fall short of what follows.
            line.limit = line.units(int(self.info.duration * 1.5) + 60)
        return line

    def damage(self, what: str) -> None:
        """Count damage; raise under ``strict``."""
        self.report.damaged += 1
        if self.strict:
            raise DecodeError(f"damage in `{self.path.name}`: {what}", hint="leave --strict out to go on past damage")

    def _packets(self, box: Any, streams: list[Any]) -> Iterator[Any]:
        failures = 0
        packets = box.demux(*streams)
        while failures < _PATIENCE:
            try:
                packet = next(packets)
            except StopIteration:
                return
            except av.FFmpegError as error:
                failures += 1
                self.damage(f"the container cannot be read: {reason(error)}")
                if isinstance(error, av.EOFError):
                    return
                packets = box.demux(*streams)
                continue
            failures = 0
            yield packet

    def _conclude(self, timeline: Timeline) -> None:
        report = self.report
        if timeline.resets:
            report.note("timestamp-reset", f"timestamps restarted {timeline.resets} times; later parts follow on")
        if report.damaged:
            report.note("damaged", f"{report.damaged} damaged packets or pictures were skipped")
        end, promised = max(report.video_end, report.audio_end), self.info.duration
        if promised is not None and end < promised - max(1.0, 0.02 * promised):
            report.note("truncated", f"holds {end:.3f} s of the {promised:.3f} s its header promises")
            if self.strict:
                raise DecodeError(f"`{self.path.name}` is cut off at {end:.3f} s", hint="leave --strict out to use what is there")
        if report.frames == 0 and report.audio_end == 0:
            raise DecodeError(
                f"nothing in `{self.path.name}` could be decoded",
                hint="check that it plays elsewhere; a file cut off while recording may hold no data",
            )


class _VideoReader:
    def __init__(self, source: MediaSource, box: Any, timeline: Timeline) -> None:
        assert source.info.video is not None  # noqa: S101 - only made when there is one
        self.source, self.info = source, source.info.video
        self.stream = box.streams[self.info.index]
        self.stream.thread_type = "NONE"
        self.clock = timeline.stream(self.stream.time_base)
        self.ranks = FrameRanks.for_stream(self.stream.time_base)
        self.reformatter = VideoReformatter()
        self.deinterlacer = Deinterlacer()
        self.turns = (-self.info.rotation // 90) % 4
        self.step = timeline.units(1 / self.info.frame_rate) if self.info.frame_rate else 0
        self.tainted = False
        self.size: tuple[int, int] | None = None

    def push(self, packet: Any) -> Iterator[DecodedPicture]:
        if packet.size and packet.is_discard:
            self.source.report.note("edit-list", "pictures outside the edit list are not shown")
        elif packet.size:
            self.ranks.add(packet.pts, packet.dts)
        try:
            frames = packet.decode()
        except av.FFmpegError as error:
            self.source.damage(f"video packet: {reason(error)}")
            self.tainted = True
            return
        for frame in frames:
            yield from self._frame(frame)

    def finish(self) -> Iterator[DecodedPicture]:
        for frame, corrupt in self.deinterlacer.finish():
            yield from self._place(frame, corrupt)
        if self.clock.disordered:
            self.source.report.note("damaged", f"{self.clock.disordered} pictures were out of order")

    def _frame(self, frame: Any) -> Iterator[DecodedPicture]:
        corrupt = bool(frame.is_corrupt)
        if corrupt:
            self.source.damage("picture flagged as corrupt")
            self.tainted = True
        elif frame.key_frame:
            self.tainted = False
        if self.size not in (None, (frame.width, frame.height)):
            text = f"picture size changes to {frame.width}x{frame.height}; the first size's grid is kept"
            self.source.report.note("size-change", text)
        self.size = (frame.width, frame.height)
        for shown, flag in self.deinterlacer.push(frame, corrupt):
            yield from self._place(shown, flag)

    def _place(self, frame: Any, corrupt: bool) -> Iterator[DecodedPicture]:
        if self.deinterlacer.active:
            self.source.report.note("interlaced", "interlaced; fields are joined by bwdif")
        time_base = frame.time_base
        duration = self.clock.ticks_to_units(frame.duration, time_base) if frame.duration else self.step
        previous = self.clock.last
        t = self.clock.place(frame.pts, duration, time_base)
        if t < 0 or (previous is not None and t <= previous):
            return
        ticks = frame.pts
        if ticks is not None and time_base != self.clock.time_base:
            ticks = round(ticks * time_base / self.clock.time_base)
        report, seconds = self.source.report, self.clock.timeline.seconds
        report.frames += 1
        report.video_end = max(report.video_end, seconds(t + duration))
        yield DecodedPicture(
            frame=frame, reformatter=self.reformatter, pts=seconds(t), duration=seconds(duration),
            index=self.ranks.rank(ticks), usable=not (corrupt or self.tainted), corrupt=corrupt,
            rotation=self.turns, transfer=self.info.transfer,
        )  # fmt: skip


class _AudioReader:
    def __init__(self, source: MediaSource, box: Any, timeline: Timeline) -> None:
        assert source.info.audio is not None  # noqa: S101 - only made when there is one
        self.source = source
        self.stream = box.streams[source.info.audio.index]
        self.stream.thread_type = "NONE"
        self.clock = timeline.stream(self.stream.time_base)
        self.placer = AudioPlacer(timeline.scale)
        self.sent = 0

    def push(self, packet: Any) -> Iterator[AudioChunk]:
        try:
            frames = packet.decode()
        except av.FFmpegError as error:
            self.source.damage(f"audio packet: {reason(error)}")
            return
        for frame in frames:
            if frame.sample_rate and frame.samples:
                duration = frame.samples * self.clock.timeline.scale // frame.sample_rate
                start = self.clock.place(frame.pts, duration, frame.time_base)
                yield from self._chunks(self.placer.push(frame, start))

    def finish(self) -> Iterator[AudioChunk]:
        yield from self._chunks(self.placer.finish())
        report, placer = self.source.report, self.placer
        report.audio_end = self.sent / RATE
        if placer.gaps:
            report.note("audio-gap", f"{placer.gaps / RATE:.3f} s of holes in the audio were filled with silence")
        if placer.overlaps:
            report.note("audio-overlap", f"{placer.overlaps / RATE:.3f} s of overlapping audio were dropped")

    def _chunks(self, blocks: Iterator[Any]) -> Iterator[AudioChunk]:
        for block in blocks:
            samples = torch.from_numpy(block)[None]
            yield AudioChunk(samples=samples, pts=self.sent / RATE, sample_rate=RATE, index=self.sent)
            self.sent += len(block)
