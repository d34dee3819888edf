"""One walk through the video: dense frames, and every storyboard in step with it.

Frames are embedded as they come and let go; what stays is a vector each. A picture of a storyboard
is compared with the frame that is on screen at its time.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokpipe.decode import open_source
from tokpipe.encode._text import text_richness
from tokpipe.errors import DecodeError
from tokpipe.evaluate._boards import Board
from tokpipe.evaluate._embed import Collector, Embedder, at_half_side, to_size
from tokpipe.evaluate._ssim import luma, ssim
from tokpipe.ingest import Progress
from tokpipe.spec import TEXT_RICH, MediaInfo

#: Seconds by which a time may miss a frame's own through rounding.
_HAIR = 1e-4


class Ticks:
    """Takes the first frame at or after each tick of a grid that starts at the first frame."""

    def __init__(self, fps: float) -> None:
        self._fps = fps
        self._first: float | None = None
        self._due = 0

    def take(self, pts: float) -> bool:
        """Whether the frame at ``pts`` seconds is one of the dense frames."""
        self._first = pts if self._first is None else self._first
        ticks = math.floor((pts - self._first) * self._fps + 1e-6)
        if ticks < self._due:
            return False
        self._due = ticks + 1
        return True


def dense_times(times: Iterable[float], fps: float) -> list[float]:
    """Times of the dense frames among all frames."""
    ticks = Ticks(fps)
    return [t for t in times if ticks.take(t)]


@dataclass(slots=True)
class Seen:
    """What the walk found.

    Attributes:
        times: Seconds of the dense frames.
        vectors: Unit vector of each dense frame, by name of the features.
        halves: The same of some dense frames at half their sides: their number and vector.
        rich: Dense frames, by number, that are rich in text, with the SSIM of their half where it
            was measured.
        warnings: What the reader noted.
    """

    times: list[float] = field(default_factory=list)
    vectors: dict[str, list[NDArray[np.float32]]] = field(default_factory=dict)
    halves: dict[str, dict[int, NDArray[np.float32]]] = field(default_factory=dict)
    rich: dict[int, float | None] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    def frames(self, features: str) -> NDArray[np.float32]:
        """Vectors float32 [T, E]."""
        return np.stack(self.vectors[features])


class Walk:
    """A walk to be made once.

    Args:
        size: Width and height at which pictures are compared.
        halves: Dense frames, by number, that are also looked at with half their sides.
    """

    def __init__(
        self, *, size: tuple[int, int], fps: float, embedders: Sequence[Embedder],
        boards: Sequence[Board], halves: Collection[int],
    ) -> None:  # fmt: skip
        self.width, self.height = size
        self.boards, self.halves = boards, frozenset(halves)
        self.ticks = Ticks(fps)
        self.collector = Collector(embedders)
        self.seen = Seen()

    def run(self, path: Path, info: MediaInfo, progress: Progress | None = None) -> Seen:
        """Read the video once.

        Raises:
            DecodeError: No picture could be decoded.
        """
        source = open_source(path, info)
        for picture, until in _shown(source.read()):
            self._frame(picture, until)
            if progress is not None:
                progress("measure", picture.pts, info.duration)
        if not self.seen.times:
            raise DecodeError(
                f"no picture of `{path.name}` could be decoded",
                hint="check that it plays elsewhere",
            )
        self.collector.flush()
        self.seen.warnings = tuple(f"{code}: {text}" for code, text in source.report.notes)
        return self.seen

    def _frame(self, picture: Any, until: float) -> None:
        dense = self.ticks.take(picture.pts)
        due = [(board, shown) for board in self.boards for shown in board.before(until - _HAIR)]
        if not dense and not due:
            return
        frame = picture.rgb(self.width, self.height)
        rich = text_richness(frame) >= TEXT_RICH
        if dense:
            self._dense(frame, picture.pts, rich)
        for board, shown in due:
            fitted = to_size(shown, self.width, self.height)
            self.collector.add(fitted, board.own)
            if rich:
                board.ssim.append(ssim(luma(fitted), luma(frame)))

    def _dense(self, frame: NDArray[np.uint8], pts: float, rich: bool) -> None:
        seen, number = self.seen, len(self.seen.times)
        seen.times.append(pts)
        self.collector.add(frame, lambda f, v: seen.vectors.setdefault(f, []).append(v))
        half = at_half_side(frame) if number in self.halves else None
        if half is not None:
            self.collector.add(
                half, lambda f, v: seen.halves.setdefault(f, {}).__setitem__(number, v)
            )
        if rich:
            seen.rich[number] = None if half is None else ssim(luma(half), luma(frame))


def _shown(events: Iterable[Any]) -> Iterator[tuple[Any, float]]:
    """Each sound picture with the time until which it is on screen."""
    held: Any = None
    for event in events:
        if not hasattr(event, "usable") or event.corrupt:
            continue
        if held is not None:
            yield held, event.pts
        held = event
    if held is not None:
        yield held, math.inf
