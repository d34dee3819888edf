"""Needles: known pictures put inside a video, and how many of them a compression keeps."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokpipe.budget import Budget
from tokpipe.cache.reader import open_cache
from tokpipe.decode.scout import scan_packets
from tokpipe.errors import RecipeError, error_context
from tokpipe.evaluate._cover import random_draws, uniform
from tokpipe.evaluate._embed import Descriptors, to_size
from tokpipe.evaluate._hiding import Hiding, made_fps, made_size
from tokpipe.evaluate._needle_pictures import FromFile, Painted, Picture, Pictures
from tokpipe.evaluate.budgets import frames_of, tokens_of
from tokpipe.evaluate.report import Kind
from tokpipe.evaluate.score import picture_job, video_of
from tokpipe.grid import cell_grid
from tokpipe.ingest import Progress
from tokpipe.job import Job, Options
from tokpipe.recipe import Recipe
from tokpipe.run import SUFFIX, compress_file

#: Budget tried when none is named.
DEFAULT = ("64f",)


@dataclass(frozen=True, slots=True, kw_only=True)
class NeedleRow:
    """Needles one way of choosing pictures keeps at one budget.

    Attributes:
        pictures: Pictures it has.
        found: Needles kept; the mean of 20 draws for ``random``.
        which: Numbers of the needles kept, None for ``random``.
    """

    way: str
    kind: Kind
    budget: str
    tokens: int
    pictures: int
    found: float
    which: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NeedleReport:
    """What became of the needles in one host.

    Attributes:
        input: The host as it was named.
        video: The made video where it was kept, else None.
        duration: Seconds of the made video.
        fps: Its pictures a second.
        cells: Cells of a frame of its default grid.
        needles: Start and stop of each in seconds, half-open.
        keys_inside: Key frames inside needles: 0, as promised.
        rows: By budget.
        seconds: Wall time: make, compress, total.
    """

    input: str
    video: str | None
    duration: float
    fps: float
    cells: int
    needles: tuple[tuple[float, float], ...]
    keys_inside: int
    rows: tuple[NeedleRow, ...]
    seconds: Mapping[str, float]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def find_needles(
    path: str | Path,
    recipes: Sequence[str | Recipe] = ("auto",),
    budgets: Sequence[str] = DEFAULT,
    *,
    needle_seconds: float | None = 2.0,
    count: int = 20,
    hours: float | None = None,
    needle_from: str | Path | None = None,
    keep: str | Path | None = None,
    options: Options | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> NeedleReport:
    """Put needles into a video, compress it, and count those that are still there.

    The video is encoded anew, at most 640 pixels wide, 10 pictures a second, without sound. A
    needle lies inside a group of pictures, well away from the key picture at its start. It is kept
    where a rebuilt picture has a time inside it and looks (in the built-in descriptors) more like
    the needle than like the host's pictures beside it.

    Args:
        path: The host, a file with video.
        budgets: As for :func:`tokpipe.evaluate.evaluate_file`.
        needle_seconds: Seconds of one needle, None for a single picture.
        count: Needles, at least 1.
        hours: Length of the made video; the host runs over and over. None is the host's own.
        needle_from: A video whose pictures are the needles; None paints patterns with numbers.
        keep: Where the made video is left, an mp4; None leaves nothing.

    Raises:
        UnsupportedMedia: The host or ``needle_from`` holds no video.
        RecipeError: There is no room for the needles, or a recipe keeps no pictures.
        TokpipeError: As compression raises it.
    """
    _check(needle_seconds, count, hours)
    options = replace(options or Options(), force=True, audio_stream="none")
    jobs = {r if isinstance(r, str) else "recipe": picture_job(r, options) for r in recipes}
    with error_context(str(path)), ExitStack() as stack:
        search = _Search(Path(path), options, stack, progress)
        source = None if needle_from is None else Path(needle_from)
        search.hide(
            needle_seconds, count, hours, source, None if keep is None else Path(keep), seed
        )
        return search.compress(jobs, budgets, seed)


def _check(needle_seconds: float | None, count: int, hours: float | None) -> None:
    if count < 1:
        raise RecipeError(f"{count} needles are too few", hint="ask for at least 1")
    for name, value in (("--needle-seconds", needle_seconds), ("--hours", hours)):
        if value is not None and not 0 < value < math.inf:
            raise RecipeError(f"{name} {value:g} is out of range", hint="use a number above 0")


class _Search:
    """One host: the video with needles, then what each way keeps of them."""

    def __init__(
        self, path: Path, options: Options, stack: ExitStack, progress: Progress | None
    ) -> None:
        self.path, self.options, self.progress = path, options, progress
        self.began = time.perf_counter()
        self.info, _ = video_of(path, options)
        self.size, self.fps = made_size(self.info), made_fps(self.info)
        self.grid = cell_grid(*self.size)
        self.folder = Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="tokpipe-needles-"))
        )
        self.descriptors = Descriptors()
        self.kept: Path | None = None

    def hide(
        self, needle_seconds: float | None, count: int, hours: float | None, source: Path | None,
        keep: Path | None, seed: int,
    ) -> None:  # fmt: skip
        """Make the video."""
        target = keep or self.folder / f"{self.path.stem}-needles.mp4"
        target.parent.mkdir(parents=True, exist_ok=True)
        length = 1 if needle_seconds is None else max(1, round(needle_seconds * self.fps))
        pictures: Pictures = Painted(self.size, seed)
        if source is not None:
            pictures = FromFile(source, video_of(source, Options())[0], self.size, self.fps, count)
        hiding = Hiding(
            size=self.size, fps=self.fps, count=count, length=length,
            seconds=None if hours is None else hours * 3600, seed=seed, look=self.look,
            progress=self.progress,
        )  # fmt: skip
        self.made = hiding.make(self.path, self.info, target, pictures)
        self.kept, self.ready = keep, time.perf_counter()

    def compress(self, jobs: Mapping[str, Job], budgets: Sequence[str], seed: int) -> NeedleReport:
        """Compress the video in every way and count."""
        rows: list[NeedleRow] = []
        for text in budgets:
            tokens = tokens_of(text, self.grid.cells)
            rows += [self._kept(job, name, text, tokens) for name, job in jobs.items()]
            rows += self._baselines(text, tokens, seed)
        done = time.perf_counter()
        spans = {"make": self.ready - self.began, "compress": done - self.ready}
        needles = tuple((n.start, n.stop) for n in self.made.needles)
        return NeedleReport(
            input=str(self.path), video=None if self.kept is None else str(self.kept),
            duration=float(self.made.frames / self.fps), fps=float(self.fps),
            cells=self.grid.cells, needles=needles, keys_inside=self._keys_inside(),
            rows=tuple(rows),
            seconds={k: round(v, 3) for k, v in {**spans, "total": done - self.began}.items()},
        )  # fmt: skip

    def look(self, picture: Picture) -> NDArray[np.float32]:
        """Vector float32 [E] of a picture of any size."""
        fitted = to_size(picture, self.grid.width, self.grid.height)
        vector: NDArray[np.float32] = self.descriptors([fitted])[0]
        return vector

    def _kept(self, job: Job, name: str, text: str, tokens: int) -> NeedleRow:
        budget = Budget.parse(tokens)
        options = replace(self.options, budget=budget, video_stream="auto")
        target = self.folder / f"needles{SUFFIX}"
        compress_file(
            self.made.path, target, job=replace(job, options=options, budget=budget),
            progress=self.progress,
        )  # fmt: skip
        found, pictures = set(), 0
        with open_cache(target) as cache:
            for frame in cache.frames():
                pictures += 1
                number = self._inside(frame.pts)
                if number is None or number in found:
                    continue
                needle, vector = self.made.needles[number], self.look(frame.pixels)
                if (needle.like @ vector).max() > (needle.unlike @ vector).max():
                    found.add(number)
        return NeedleRow(
            way=name, kind="recipe", budget=text, tokens=tokens, pictures=pictures,
            found=len(found), which=tuple(sorted(found)),
        )  # fmt: skip

    def _inside(self, time: float) -> int | None:
        """Number of the needle on screen at a time."""
        for number, needle in enumerate(self.made.needles):
            # A hair of room: times of a file are rounded to its ticks.
            if needle.start - 1e-3 <= time < needle.stop - 1e-3:
                return number
        return None

    def _baselines(self, text: str, tokens: int, seed: int) -> list[NeedleRow]:
        k, frames = frames_of(tokens, self.grid.cells), self.made.frames
        even = self._hit(uniform(frames, k))
        drawn = [len(self._hit(draw.tolist())) for draw in random_draws(frames, k, seed)]
        plain: dict[str, Any] = {"budget": text, "tokens": tokens, "pictures": min(k, frames)}
        return [
            NeedleRow(way="uniform", kind="baseline", found=len(even), which=even, **plain),
            NeedleRow(way="random", kind="baseline", found=sum(drawn) / len(drawn), **plain),
        ]

    def _hit(self, frames: Sequence[int]) -> tuple[int, ...]:
        """Needles that one of these pictures of the made video shows."""
        numbers = {self._inside(float(frame / self.fps)) for frame in frames}
        return tuple(sorted(n for n in numbers if n is not None))

    def _keys_inside(self) -> int:
        info, _ = video_of(self.made.path, Options())
        scan = scan_packets(self.made.path, info)
        return sum(self._inside(time) is not None for time in scan.pts[scan.key].tolist())
