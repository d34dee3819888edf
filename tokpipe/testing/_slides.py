"""The slides of a generated lecture: what each shows, and from which picture on."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from PIL import Image, ImageDraw, ImageFont

_WORDS = (
    "signal", "token", "budget", "frame", "window", "clock", "memory", "stream", "decode",
    "sample", "measure", "compare", "result", "model", "vector", "cell", "grid", "audio",
    "speech", "picture", "change", "still", "motion", "error", "bound", "proof", "limit",
    "average", "median", "sum", "share", "weight", "query", "cache", "file", "record", "lecture",
    "method", "figure", "table",
)  # fmt: skip
_PAPERS = ((250, 250, 246), (234, 242, 252), (28, 36, 60), (252, 244, 230))
_BARS = ((40, 70, 120), (150, 60, 50), (40, 110, 80), (90, 60, 130))


@dataclass(frozen=True, slots=True)
class Slide:
    """One slide.

    Attributes:
        number: Shown in the corner; chooses the colours.
        title: Words of the bar.
        lines: Words of the body, a line each.
        bars: Heights of a bar chart, 0 to 1; empty for none.
    """

    number: int
    title: str
    lines: tuple[str, ...]
    bars: tuple[float, ...] = ()

    def draw(self, size: tuple[int, int]) -> Image.Image:
        """Draw it as an RGB picture of ``size`` (width, height) pixels."""
        width, height = size
        paper = _PAPERS[self.number % len(_PAPERS)]
        ink = (240, 236, 224) if sum(paper) < 300 else (24, 32, 48)
        picture = Image.new("RGB", size, paper)
        draw = ImageDraw.Draw(picture)
        unit = height / 36
        draw.rectangle((0, 0, width, int(6 * unit)), fill=_BARS[self.number % 3])
        title = ImageFont.load_default(size=3 * unit)
        body = ImageFont.load_default(size=1.9 * unit)
        draw.text((2 * unit, 1.2 * unit), self.title, font=title, fill=(250, 250, 250))
        for row, line in enumerate(self.lines):
            draw.text((3 * unit, (8 + 3.2 * row) * unit), line, font=body, fill=ink)
        for place, high in enumerate(self.bars):
            left, foot = width - (22 - 4.4 * place) * unit, 20 * unit
            box = (left, foot - 11 * high * unit, left + 3 * unit, foot)
            draw.rectangle(box, fill=_BARS[place % len(_BARS)])
        draw.text((2 * unit, 33.5 * unit), str(self.number), font=body, fill=ink)
        return picture


@dataclass(frozen=True, slots=True)
class Show:
    """A slide from a picture number on.

    Attributes:
        first: Number of its first picture.
        slide: What is shown.
        small: Only a few lines differ from the slide before.
        short: It is the one shown for three seconds.
    """

    first: int
    slide: Slide
    small: bool = False
    short: bool = False


def _sentence(generator: np.random.Generator, low: int, high: int) -> str:
    return " ".join(generator.choice(_WORDS, int(generator.integers(low, high))))


def _new(number: int, generator: np.random.Generator) -> Slide:
    lines = tuple(_sentence(generator, 3, 7) for _ in range(int(generator.integers(3, 8))))
    bars = tuple(generator.uniform(0.2, 1.0, 4).tolist()) if number % 5 == 3 else ()
    return Slide(number, _sentence(generator, 2, 4).capitalize(), lines, bars)


def _altered(slide: Slide, generator: np.random.Generator) -> Slide:
    """The same slide with one or two lines of other words."""
    lines = list(slide.lines)
    places = generator.choice(len(lines), min(len(lines), int(generator.integers(1, 3))), False)
    for place in places:
        lines[place] = _sentence(generator, 3, 7)
    return replace(slide, lines=tuple(lines))


def _starts(
    total: int, fps: int, gop: int, changes: int, generator: np.random.Generator
) -> tuple[list[int], int]:
    """First pictures of the slides that follow the first, and which of them stays three seconds."""
    least = 4 * fps
    room = total - (changes + 1) * least
    if room < 0:
        raise ValueError(f"{changes} changes need {(changes + 1) * 4} s, not {total / fps:.0f} s")
    cuts = np.sort(generator.integers(0, room + 1, changes))
    starts = [int(cut) + (n + 1) * least for n, cut in enumerate(cuts)]
    margin = max(3, fps // 10)

    def apart(number: int) -> int:
        """Keep a tenth of a second from key pictures: who reads those alone sees no change."""
        return number - number % gop + min(max(number % gop, margin), gop - margin)

    starts = [apart(number) for number in starts]
    short = int(np.argmax(np.diff(starts)))
    starts[short + 1] = apart(starts[short] + 3 * fps)
    starts[short] = starts[short + 1] - 3 * fps
    return starts, short


def slide_shows(total: int, fps: int, gop: int, changes: int, seed: int) -> list[Show]:
    """Plan a lecture.

    Args:
        total: Pictures of the whole lecture.
        fps: Pictures per second.
        gop: Distance of key pictures; no slide starts on one.
        changes: Number of slide changes, 2 or more.
        seed: Of times and words.

    Returns:
        ``changes + 1`` shows, ascending; the first starts at 0.

    Raises:
        ValueError: If the lecture is too short for them.
    """
    generator = np.random.default_rng(seed)
    starts, short = _starts(total, fps, gop, changes, generator)
    shows = [Show(0, _new(1, generator))]
    for n, first in enumerate(starts):
        before = shows[-1].slide
        small = n % 4 == 2 and n not in {short, short + 1}
        slide = _altered(before, generator) if small else _new(before.number + 1, generator)
        shows.append(Show(first, slide, small, n == short))
    return shows
