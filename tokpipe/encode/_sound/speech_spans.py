"""From probabilities of speech to spans, chunks of spans, and the clock of the spoken part.

The rules are those of silero-vad, WhisperX and faster-whisper; all places are samples unless a
name says seconds.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from math import inf
from typing import Literal

Span = tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeechRules:
    """When speech begins and ends.

    Attributes:
        threshold: Probability, 0 to 1, at which speech begins.
        leave: Probability under which it may end; None is ``threshold`` - 0.15, at least 0.01.
        min_speech: Milliseconds a span must last longer than.
        max_speech: Seconds after which a span is cut, at a pause in it where there is one.
        min_silence: Milliseconds of quiet that end a span.
        pad: Milliseconds a span is widened by on both sides; neighbours share what is between.
        split_silence: Milliseconds a pause must last longer than to be a place for a cut.
        split: ``longest`` or ``last`` pause takes the cut.
    """

    threshold: float = 0.5
    leave: float | None = None
    min_speech: float = 250
    max_speech: float = inf
    min_silence: float = 100
    pad: float = 30
    split_silence: float = 98
    split: Literal["longest", "last"] = "longest"

    @property
    def quiet(self) -> float:
        """Probability under which speech may end."""
        return max(self.threshold - 0.15, 0.01) if self.leave is None else self.leave


@dataclass(slots=True)
class _Scan:
    """Walks over frames, one probability at a time.

    Attributes:
        start: First sample of the open span, None outside speech.
        pause: First sample of the quiet being waited out inside a span.
        cuts: Pauses of the open span fit for a cut: where each begins, where speech resumes
            (None: not yet).
        spans: What was found, unpadded.
    """

    rules: SpeechRules
    rate: int
    frame: int
    start: int | None = None
    pause: int | None = None
    cuts: list[tuple[int, int | None]] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)

    def _ms(self, milliseconds: float) -> float:
        return self.rate * milliseconds / 1000

    def step(self, at: int, probability: float) -> None:
        rules = self.rules
        if probability >= rules.threshold:
            self._resume(at)
            if self.start is None:
                self.start = at
                return
        if self.start is None:
            return
        longest = self.rate * rules.max_speech - self.frame - 2 * self._ms(rules.pad)
        if at - self.start > longest:
            if not self.cuts:
                self._close(self.start, at)
                return
            self._cut(self.start)
        if probability < rules.quiet and self.start is not None:
            self._listen(self.start, at)

    def _resume(self, at: int) -> None:
        """Speech goes on: the pause, if any, is over."""
        if self.pause is None:
            return
        if self.rules.split == "longest":
            if at - self.pause > self._ms(self.rules.split_silence):
                self.cuts.append((self.pause, at))
        elif self.cuts and self.cuts[-1][1] is None:
            self.cuts[-1] = (self.cuts[-1][0], at)
        self.pause = None

    def _cut(self, start: int) -> None:
        """Cut a span that is too long at a pause; the rest of it goes on where speech resumed."""
        stop, resumed = self.cuts[-1]
        if self.rules.split == "longest":
            stop, resumed = max(self.cuts, key=lambda cut: (cut[1] or cut[0]) - cut[0])
        self._close(start, stop)
        self.start = resumed

    def _listen(self, start: int, at: int) -> None:
        """Quiet inside a span: remember it, end the span when it has lasted."""
        if self.pause is None:
            self.pause = at
        quiet = at - self.pause
        if self.rules.split == "last" and quiet > self._ms(self.rules.split_silence):
            self.cuts = [(self.pause, None)]
        if quiet >= self._ms(self.rules.min_silence):
            if self.pause - start > self._ms(self.rules.min_speech):
                self._close(start, self.pause)
            self._forget()

    def _close(self, start: int, stop: int) -> None:
        self.spans.append((start, stop))
        self._forget()

    def _forget(self) -> None:
        self.start, self.pause, self.cuts = None, None, []

    def finish(self, length: int) -> None:
        """Close what is open at the end of the sound."""
        if self.start is not None and length - self.start > self._ms(self.rules.min_speech):
            self._close(self.start, length)


def spans_of(
    probabilities: Sequence[float],
    length: int | None = None,
    rules: SpeechRules | None = None,
    *,
    rate: int = 16_000,
    frame: int = 512,
) -> list[Span]:
    """Spans of speech in order of time, not overlapping.

    Args:
        probabilities: One for each frame.
        length: Samples of the whole sound; default all frames.
        rules: Default ``SpeechRules()``.
        rate: Hertz of the samples.
        frame: Samples of a frame.

    Returns:
        Half-open (start, stop) in samples.
    """
    rules = rules or SpeechRules()
    length = len(probabilities) * frame if length is None else length
    scan = _Scan(rules, rate, frame)
    for number, probability in enumerate(probabilities):
        scan.step(number * frame, probability)
    scan.finish(length)
    return _padded(scan.spans, rate * rules.pad / 1000, length)


def _padded(spans: list[Span], pad: float, length: int) -> list[Span]:
    """Widen spans; two that are nearer than twice ``pad`` meet in the middle."""
    if not spans:
        return []
    gaps = [after[0] - before[1] for before, after in pairwise(spans)]
    widths = [pad if gap >= 2 * pad else gap // 2 for gap in gaps]
    before, after = [pad, *widths], [*widths, pad]
    return [
        (int(max(0, a - left)), int(min(length, b + right)))
        for (a, b), left, right in zip(spans, before, after, strict=True)
    ]


def merged(
    segments: Sequence[tuple[float, float]], size: float
) -> list[tuple[float, float, list[tuple[float, float]]]]:
    """Join segments greedily into chunks, as WhisperX does before recognition.

    A chunk is closed when the next segment would end more than ``size`` after the chunk's start; a
    segment longer than ``size`` is a chunk of its own.

    Args:
        segments: (start, stop) in order of time, any unit.
        size: Longest chunk, same unit.

    Returns:
        Start, stop and segments of each chunk.
    """
    chunks: list[list[tuple[float, float]]] = []
    for segment in segments:
        if not chunks or segment[1] - chunks[-1][0][0] > size:
            chunks.append([])
        chunks[-1].append(segment)
    return [(parts[0][0], parts[-1][1], parts) for parts in chunks]


@dataclass(frozen=True, slots=True)
class SpokenClock:
    """Two clocks: that of the file, and that of its spans laid end to end without the rest.

    Attributes:
        spans: (start, stop) in samples, in order, not overlapping.
        rate: Hertz of the samples.
    """

    spans: tuple[Span, ...]
    rate: int = 16_000

    @property
    def _ends(self) -> list[int]:
        """Where each span ends on the spoken clock."""
        return list(accumulate(stop - start for start, stop in self.spans))

    def to_file(self, seconds: float, *, end: bool = False) -> float:
        """Time in the file of a time in the spoken part.

        Args:
            seconds: On the spoken clock; past its end the last span goes on.
            end: The time ends something: where two spans meet it belongs to the first.
        """
        ends = self._ends
        if not ends:
            return seconds
        place = int(seconds * self.rate)
        number = (bisect_left if end else bisect_right)(ends, place)
        number = min(number, len(ends) - 1)
        silence = self.spans[number][1] - ends[number]
        return silence / self.rate + seconds

    def to_spoken(self, seconds: float) -> float:
        """Time in the spoken part of a time in the file; a time in a gap is the gap's."""
        before = 0
        for start, stop in self.spans:
            if seconds * self.rate < stop:
                return before / self.rate + max(0.0, seconds - start / self.rate)
            before += stop - start
        return before / self.rate
