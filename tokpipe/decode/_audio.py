"""Audio on the media's clock: one channel at 16 kHz, gaps filled, late starts kept.

Every decoded frame is placed by its own timestamp. A hole of more than 20 ms is filled with
silence, an overlap is dropped, and both are counted, so sample i of the result is always the
media time i / 16000.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import av
import numpy as np
from av.filter import Graph

if TYPE_CHECKING:
    from numpy.typing import NDArray

RATE = 16000
#: Mix to the mean of the channels: without it float sources get louder by sqrt(2) and clip.
_MEAN = {"rematrix_maxval": "1.0"}
#: Samples of one block handed on (10 s, as long as the mel picture's), and the hole in 1 / seconds
#: that is not just rounding.
BLOCK = 10 * RATE
TOLERANCE = 50


def resampled_length(samples: int, sample_rate: int) -> int:
    """Samples at 16 kHz that lie within ``samples`` of the source: ceil(n x 16000 / rate)."""
    return -(-samples * RATE // sample_rate)


@dataclass(slots=True)
class AudioPlacer:
    """Resamples decoded frames and puts them where their timestamps say.

    Attributes:
        scale: Units a second of the start times, a multiple of 16000 and of the sample rate.
        written: Samples handed on so far; the next block starts at written / 16000 s.
        gaps, overlaps: Holes filled and overlaps dropped, in samples at 16 kHz.
    """

    scale: int
    written: int = 0
    gaps: int = 0
    overlaps: int = 0
    late: int = 0
    started: bool = False
    _resampler: _Resampler | None = None
    _form: tuple[int, str, str] | None = None
    _fed: int = 0
    _pulled: int = 0
    _taken: int = 0
    _origin: int = 0
    _skip: int = 0
    _parts: list[NDArray[np.float32]] = field(default_factory=list)
    _held: int = 0

    def push(self, frame: av.AudioFrame, start: int) -> Iterable[NDArray[np.float32]]:
        """Blocks float32 [L] complete after this frame, which starts at ``start`` units."""
        rate, scale = frame.sample_rate, self.scale
        form = (rate, frame.layout.name, frame.format.name)
        expected = self._origin * scale // RATE
        if self._form is not None:
            expected += self._fed * scale // self._form[0]
        if (
            self._resampler is None
            or form != self._form
            or abs(start - expected) * TOLERANCE > scale
        ):
            return self._push_anew(frame, form, start)
        self._fed += frame.samples
        frame.pts = None
        self._resampler.push(frame)
        # Once a second: to ask after each of its frames costs more than to resample them.
        return self._pull() if self._fed - self._pulled >= rate else ()

    def finish(self) -> Iterator[NDArray[np.float32]]:
        """The remaining blocks."""
        yield from self._close()
        yield from self._emit(last=True)

    def _push_anew(
        self, frame: av.AudioFrame, form: tuple[int, str, str], start: int
    ) -> Iterator[NDArray[np.float32]]:
        yield from self._open(form, start)
        self._fed += frame.samples
        frame.pts = None
        assert self._resampler is not None  # noqa: S101 - _open has just made it
        self._resampler.push(frame)

    def _pull(self) -> Iterator[NDArray[np.float32]]:
        self._pulled = self._fed
        assert self._resampler is not None  # noqa: S101 - only called inside a stretch
        for samples in self._resampler.pull():
            yield from self._take(samples)

    def _open(self, form: tuple[int, str, str], start: int) -> Iterator[NDArray[np.float32]]:
        yield from self._close()
        target = (2 * start * RATE + self.scale) // (2 * self.scale)
        have = self.written + self._held
        if target > have:
            if self.started:
                self.gaps += target - have
            else:
                self.late = target
            yield from self._silence(target - have)
        elif self.started:
            self.overlaps += have - target
        self.started = True
        self._origin, self._fed, self._taken, self._form = target, 0, 0, form
        self._pulled = 0
        self._skip = max(0, have - target)
        self._resampler = _Resampler(form)

    def _close(self) -> Iterator[NDArray[np.float32]]:
        """End a contiguous stretch at exactly the length its source samples span."""
        if self._resampler is None or self._form is None:
            return
        for samples in self._resampler.finish():
            yield from self._take(samples)
        missing = resampled_length(self._fed, self._form[0]) - self._taken
        if missing > 0:
            yield from self._take(np.zeros(missing, dtype=np.float32))
        self._resampler = None

    def _take(self, samples: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
        assert self._form is not None  # noqa: S101 - only called inside a stretch
        room = resampled_length(self._fed, self._form[0]) - self._taken
        samples = samples[: max(0, room)]
        self._taken += len(samples)
        dropped = min(self._skip, len(samples))
        self._skip -= dropped
        yield from self._add(samples[dropped:])

    def _silence(self, count: int) -> Iterator[NDArray[np.float32]]:
        while count > 0:
            part = min(count, BLOCK)
            yield from self._add(np.zeros(part, dtype=np.float32))
            count -= part

    def _add(self, samples: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
        if len(samples):
            self._parts.append(samples)
            self._held += len(samples)
        yield from self._emit()

    def _emit(self, *, last: bool = False) -> Iterator[NDArray[np.float32]]:
        if self._held < BLOCK and not (last and self._held):
            return
        joined = np.concatenate(self._parts)
        stop = len(joined) if last else len(joined) // BLOCK * BLOCK
        for a in range(0, stop, BLOCK):
            yield joined[a : a + BLOCK]
        self.written += stop
        self._parts, self._held = (
            ([joined[stop:]] if stop < len(joined) else []),
            len(joined) - stop,
        )


class _Resampler:
    """libswresample to one channel at 16 kHz; takes any number of frames between two looks."""

    def __init__(self, form: tuple[int, str, str]) -> None:
        rate, layout, name = form
        self.graph = Graph()
        self.source = self.graph.add_abuffer(
            format=name, sample_rate=rate, layout=layout, time_base=Fraction(1, rate)
        )
        mix = self.graph.add("aresample", **_MEAN)
        mono = self.graph.add(
            "aformat", sample_rates=str(RATE), sample_fmts="fltp", channel_layouts="mono"
        )
        self.sink = self.graph.add("abuffersink")
        for a, b in ((self.source, mix), (mix, mono), (mono, self.sink)):
            a.link_to(b)
        self.graph.configure()
        self.graph.set_audio_frame_size(RATE)

    def push(self, frame: av.AudioFrame | None) -> None:
        """Give it a frame, None at the end."""
        self.source.push(frame)

    def pull(self) -> Iterator[NDArray[np.float32]]:
        """What is ready, float32 [L] each."""
        while True:
            try:
                frame: Any = self.sink.pull()
            except (av.BlockingIOError, av.EOFError):
                return
            yield frame.to_ndarray()[0]

    def finish(self) -> Iterator[NDArray[np.float32]]:
        """What is left."""
        self.push(None)
        yield from self.pull()
