"""Reader that decodes only the pictures that hold something new, group by group, in threads.

packets ─▶ groups ─▶ which pictures ─▶ decoders (one a thread, emptied between groups) ─▶ in order

What comes out has the times, ranks and pixels of a full sequential decode. Wherever that cannot be
kept, :class:`Unsafe` is raised from :meth:`SparseSource.read`, whatever came out before is to be
thrown away, and the file is read from end to end instead.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import av
from av.video.reformatter import VideoReformatter

from tokpipe.decode._groups import HEAVIEST, Group, GroupCollector, Unsafe
from tokpipe.decode._looking import Edge, Looker
from tokpipe.decode._picture import DecodedPicture
from tokpipe.decode._probe import open_container, open_stream
from tokpipe.decode._timeline import FrameRanks, Timeline
from tokpipe.decode._wanted import Chooser, Effort, Wanted
from tokpipe.decode.pyav import MediaSource, StreamReader
from tokpipe.protocols import Picture
from tokpipe.spec import MediaInfo
from tokpipe.tensors import AudioChunk

#: Pictures that may wait decoded, and groups decoded at once where nobody says.
_WAITING, _MOST_THREADS = 24, 8
#: Codecs whose decoders can leave out pictures that no other refers to, and tell them rightly.
_SKIPPING = frozenset(("h264", "hevc", "mpeg1video", "mpeg2video", "mpeg4"))


@dataclass(slots=True)
class _Piece:
    """A group on its way through a decoder.

    Attributes:
        before: Where the decoder is kept from, for a group that was cut.
    """

    group: Group
    wanted: Wanted
    before: Future[_Done] | None = None


@dataclass(slots=True)
class _Done:
    """What came of a piece.

    Attributes:
        frames: Those picked in presentation order, each with its time and whether it is marked.
        decoded: Pictures decoded for them.
        decoder: Left to the next piece of a group that was cut.
        edge: Where every picture is looked at, the ends of a whole group.
    """

    frames: list[tuple[Any, int, bool]] = field(default_factory=list)
    decoded: int = 0
    decoder: _Decoder | None = None
    edge: Edge | None = None


class SparseSource(MediaSource):
    """A media file read in part; the same interface as :class:`tokpipe.decode.pyav.MediaSource`.

    Attributes:
        seconds: Spent on choosing what to decode.
    """

    def __init__(
        self, path: Path, info: MediaInfo, *, effort: Effort, fps: float, threads: int | None = 1
    ) -> None:
        """Open nothing yet.

        Args:
            path: The file.
            info: As :func:`tokpipe.decode.probe` described it.
            effort: As :class:`tokpipe.decode._wanted.Chooser` takes it.
            fps: Ticks a second of the sampler that will choose from the pictures.
            threads: Groups decoded at once, None: a core each, at most 8; what comes out does not
                depend on it.
        """
        super().__init__(path, info)
        self.effort, self.fps = effort, fps
        self.threads = threads or min(_MOST_THREADS, _cores())
        self.seconds = 0.0
        self.closing = ExitStack()
        self._reader: _SparseReader | None = None

    def read(self) -> Iterator[Picture | AudioChunk]:
        """Chosen pictures in presentation order, and audio blocks.

        Raises:
            Unsafe: The file must be read from end to end; what came out before does not count.
            DecodeError: Nothing could be decoded.
        """
        with self.closing:
            try:
                yield from super().read()
            except Unsafe:
                # The reason is the first one in the file, however far the threads are.
                if self._reader is not None:
                    self._reader.settle()
                raise

    def _pictures(self, box: Any, timeline: Timeline) -> StreamReader:
        self._reader = _SparseReader(self, box, timeline)
        return self._reader

    def damage(self, what: str) -> None:
        """Leave damage to the reader that goes past it."""
        raise Unsafe("damage")


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


class _SparseReader:
    def __init__(self, source: SparseSource, box: Any, timeline: Timeline) -> None:
        info = source.info.video
        assert info is not None  # noqa: S101 - only made when there is one
        self.source, self.info, self.timeline = source, info, timeline
        self.collector = GroupCollector(box, source.info, timeline, keep=True)
        self.chooser = Chooser(source.effort, source.fps, timeline, info)
        self.decoders = _Decoders(source, box, timeline.scale)
        self.ranks = FrameRanks()
        self.reformatter = VideoReformatter()
        self.turns = (-info.rotation // 90) % 4
        self.waiting: deque[tuple[Future[_Done], int, int]] = deque()
        self.pictures = self.bytes = 0
        self.last: Future[_Done] | None = None
        self.edge: Edge | None = None
        self.size: tuple[int, int] | None = None

    def push(self, packet: Any) -> Iterable[DecodedPicture]:
        group = self.collector.push(packet)
        return () if group is None else self._give(group)

    def finish(self) -> Iterator[DecodedPicture]:
        group = self.collector.finish()
        if group is not None:
            yield from self._give(group)
        if self.timeline.resets:
            raise Unsafe("timestamps restart")
        while self.waiting:
            yield from self._take()
        if self.source.report.frames == 0:
            raise Unsafe("no picture")

    def settle(self) -> None:
        """Look at what is on its way, and raise what is wrong with it."""
        while self.waiting:
            for _ in self._take():
                pass

    def _give(self, group: Group) -> Iterator[DecodedPicture]:
        """Hand a group to the decoders, and take the oldest back once enough are on their way."""
        began = time.perf_counter()
        wanted = self.chooser.choose(group)
        self.source.seconds += time.perf_counter() - began
        for t in group.t:
            self.ranks.add(t)
        report, seconds = self.source.report, self.timeline.seconds
        ends = (t + span for t, span in zip(group.t, group.duration, strict=True))
        report.video_end = max(report.video_end, seconds(max(ends)))
        piece = _Piece(group, wanted, None if group.opens else self.last)
        self.last = self.decoders.submit(piece)
        pictures, weight = len(wanted.places), sum(group.size)
        self.waiting.append((self.last, pictures, weight))
        self.pictures += pictures
        self.bytes += weight
        # What is waited for depends on the file alone, so pictures and sound come in one order.
        while self.waiting and (
            len(self.waiting) > self.source.threads - 1
            or self.pictures > _WAITING
            or self.bytes > HEAVIEST
        ):
            yield from self._take()

    def _take(self) -> Iterator[DecodedPicture]:
        future, pictures, weight = self.waiting.popleft()
        self.pictures -= pictures
        self.bytes -= weight
        done = future.result()
        self.source.report.frames += done.decoded
        frames, done.frames = deque(done.frames), []
        before, self.edge = self.edge, done.edge
        if frames and before is not None and done.edge is not None and before.breaks(done.edge):
            # The key comes first of all that was picked.
            frames[0] = (*frames[0][:2], True)
        while frames:
            yield self._picture(*frames.popleft())

    def _picture(self, frame: Any, t: int, marked: bool) -> DecodedPicture:
        size = (frame.width, frame.height)
        if self.size is not None and size != self.size:
            raise Unsafe("the picture size changes")
        self.size = size
        line = self.timeline
        span = frame.duration
        duration = span * self.collector.clock.tick if span else self.collector.step
        return DecodedPicture(
            frame=frame, reformatter=self.reformatter, pts=line.seconds(t),
            duration=line.seconds(duration), index=self.ranks.rank(t), marked=marked,
            rotation=self.turns, transfer=self.info.transfer,
        )  # fmt: skip


class _Decoders:
    """Runs pieces, here or in threads, each of which has a decoder of its own."""

    def __init__(self, source: SparseSource, box: Any, scale: int) -> None:
        assert source.info.video is not None  # noqa: S101 - only made when there is one
        self.source, self.index, self.scale = source, source.info.video.index, scale
        self.own = threading.local()
        self.first: Any = None
        self.lock = threading.Lock()
        self.pool: ThreadPoolExecutor | None = None
        if source.threads > 1:
            self.pool = ThreadPoolExecutor(source.threads, "tokpipe-decode")
            source.closing.callback(self.pool.shutdown, cancel_futures=True)
        else:
            self.own.decoder = self._made(box)

    def submit(self, piece: _Piece) -> Future[_Done]:
        """What will come of the piece."""
        if self.first is None:
            self.first = piece.group.packets[0]
        if self.pool is not None:
            return self.pool.submit(self._run, piece)
        done: Future[_Done] = Future()
        done.set_result(self._run(piece))
        return done

    def _made(self, box: Any) -> _Decoder:
        looker = Looker() if self.source.effort == "thorough" else None
        return _Decoder(open_stream(box, self.index).codec_context, looker, self.scale)

    def _run(self, piece: _Piece) -> _Done:
        if piece.before is not None:
            before = piece.before.result()
            decoder, before.decoder = before.decoder, None
            assert decoder is not None  # noqa: S101 - the piece before left it
        elif (decoder := getattr(self.own, "decoder", None)) is None:
            decoder = self.own.decoder = self._another()
        done = decoder.run(piece.group, piece.wanted)
        if not piece.group.closes:
            done.decoder = decoder
            self.own.decoder = None
        elif piece.before is not None:
            self.own.decoder = decoder
        return done

    def _another(self) -> _Decoder:
        # One at a time, and only for the decoder's set-up: the index of a day is large.
        with self.lock, open_container(self.source.path) as box:
            decoder = self._made(box)
            # What only the first packet may hold, as a sequence header, every decoder has seen.
            decoder.prime(self.first)
        return decoder


class _Decoder:
    """One codec context, used for one group after the other.

    Attributes:
        due: Chosen pictures whose frames are to come: time, and whether marked, by raw time.
    """

    def __init__(self, context: Any, looker: Looker | None, scale: int) -> None:
        self.context, self.looker, self.scale = context, looker, scale
        self.skips = looker is None and context.codec.canonical_name in _SKIPPING
        self.delay = context.has_b_frames
        self.due: dict[int, tuple[int, bool]] = {}
        self.times: dict[int, int] = {}
        self.skipping = False

    def prime(self, packet: Any) -> None:
        """Decode a key packet and forget it."""
        try:
            self.context.decode(packet)
            self.context.decode(None)
        except av.FFmpegError as error:
            raise Unsafe("damage") from error
        self.context.flush_buffers()

    def run(self, group: Group, wanted: Wanted) -> _Done:
        """Feed what is needed of a group and pick the chosen pictures from what comes out.

        Raises:
            Unsafe: Damage, or a chosen picture did not come.
        """
        done = _Done()
        if self.looker is not None:
            self._look_at(group)
        for i, mark in zip(wanted.places, wanted.marked, strict=True):
            self.due[group.raw[i]] = (group.t[i], mark)
        try:
            for i in self._needed(group, wanted):
                self._pick(self.context.decode(group.packets[i]), done)
            if group.closes:
                self._pick(self.context.decode(None), done)
                self.context.flush_buffers()
        except av.FFmpegError as error:
            raise Unsafe("damage") from error
        if group.closes and self.due:
            raise Unsafe("damage")
        if self.context.has_b_frames != self.delay:
            raise Unsafe("the order of pictures changes")
        if self.looker is not None and group.opens and group.closes:
            done.edge = self.looker.edge()
        group.packets = []
        return done

    def _look_at(self, group: Group) -> None:
        """Prepare for looking at every picture of a group."""
        assert self.looker is not None  # noqa: S101 - asked only with one
        if group.opens:
            if min(group.t) < group.t[0]:
                raise Unsafe("groups that need the one before")
            self.looker.restart()
            self.times = {}
        self.times.update(zip(group.raw, group.t, strict=True))

    def _needed(self, group: Group, wanted: Wanted) -> Iterator[int]:
        """Packets to feed; where no picture refers to one and it is not chosen, it is skipped."""
        chosen = set(wanted.places)
        whole = self.looker is not None or not group.closes
        for i in range(len(group) if whole else wanted.reach):
            leading = group.opens and group.t[i] < group.t[0]
            if leading or (group.alone and not whole and i not in chosen):
                continue
            skip = self.skips and not group.layered and i not in chosen
            if skip != self.skipping:
                self.skipping = skip
                self.context.skip_frame = "NONREF" if skip else "DEFAULT"
            yield i

    def _pick(self, frames: list[Any], done: _Done) -> None:
        for frame in frames:
            done.decoded += 1
            if frame.is_corrupt:
                raise Unsafe("damage")
            if frame.interlaced_frame:
                raise Unsafe("interlaced")
            found = self.due.pop(frame.pts, None)
            if self.looker is not None:
                t = self.times.get(frame.pts)
                if t is None:
                    raise Unsafe("damage")
                if self.looker.differs(frame, t / self.scale):
                    found = (t, True)
            if found is not None:
                done.frames.append((frame, *found))
