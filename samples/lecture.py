"""The slide lecture: eight slides, one hardly visible change, and a presenter who moves."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from speech import SENTENCES

SIZE = (640, 360)
FPS = 15
DURATION = 120.0
INSET = (476, 236, 152, 114)  # left, top, width, height of the presenter's picture

# Start in seconds, title, lines. A title that comes twice is the same slide with a line changed.
SLIDES: tuple[tuple[float, str, tuple[str, ...]], ...] = (
    (0.0, "From Video to Tokens", ("A short lecture in eight slides", "Sample file of tokpipe")),
    (12.0, "Plan", ("1  The problem", "2  What a token is", "3  Time and sound", "4  Results")),
    (
        28.0,
        "What is a token?",
        (
            "a small piece of the signal",
            "with a time and a place",
            "stands for what looks the same",
        ),
    ),
    (44.0, "Measure first.", ()),
    (
        47.0,
        "One honest clock",
        ("frames come at uneven times", "trust the time stamp", "sound may start late"),
    ),
    (66.0, "Sharing a budget", ("video   1536", "audio    512", "total   2048")),
    (80.0, "Sharing a budget", ("video   1536", "audio    517", "total   2048")),
    (90.0, "Results", ()),
    (
        106.0,
        "Summary",
        ("decode once", "decide many times", "keep an honest clock", "thank you"),
    ),
)
_PAPER = ((250, 250, 246), (236, 244, 252), (250, 250, 246), (28, 36, 60))
_BARS = (("all", 300), ("even", 190), ("drop", 120), ("ours", 70))


def slide_at(time: float) -> int:
    """Number of the entry in `SLIDES` that is shown at a time in seconds."""
    return max(n for n, (start, _, _) in enumerate(SLIDES) if start <= time + 1e-6)


def _text(
    draw: ImageDraw.ImageDraw, place: tuple[int, int], words: str, size: int, ink: tuple[int, ...]
) -> None:
    draw.text(place, words, font=ImageFont.load_default(size=size), fill=ink)


@cache
def _slide(number: int) -> Image.Image:
    start, title, lines = SLIDES[number]
    titles = list(dict.fromkeys(title for _, title, _ in SLIDES))
    place = titles.index(title)
    dark = place % 4 == 3
    ink = (245, 240, 220) if dark else (24, 32, 48)
    picture = Image.new("RGB", SIZE, _PAPER[place % 4])
    draw = ImageDraw.Draw(picture)
    if start == 0.0:
        draw.rectangle((0, 120, 640, 126), fill=(200, 80, 40))
        _text(draw, (40, 60), title, 42, ink)
        for row, line in enumerate(lines):
            _text(draw, (42, 150 + 36 * row), line, 22, ink)
    elif not lines and title != "Results":
        _text(draw, (120, 130), title, 52, ink)
    else:
        draw.rectangle(
            (0, 0, 640, 62), fill=((40, 70, 120), (150, 60, 50), (40, 110, 80))[place % 3]
        )
        _text(draw, (28, 12), title, 34, (255, 255, 255))
        for row, line in enumerate(lines):
            draw.ellipse((34, 103 + 46 * row, 43, 112 + 46 * row), fill=(200, 80, 40))
            _text(draw, (58, 92 + 46 * row), line, 25, ink)
    if title == "Results":
        for row, (name, length) in enumerate(_BARS):
            top = 92 + 62 * row
            _text(draw, (30, top + 4), name, 24, ink)
            shade = (200, 80, 40) if name == "ours" else (90, 130, 190)
            draw.rectangle((120, top, 120 + length, top + 38), fill=shade)
    _text(draw, (14, 336), f"{place + 1} / {len(titles)}", 14, (130, 130, 130))
    return picture


def _speaking(time: float) -> bool:
    return any(start <= time < stop for start, stop, _ in SENTENCES)


@cache
def _presenter(sway: int, arm: int, mouth: int, eyes: bool) -> Image.Image:
    """Draw the figure at twice the size and halve it: poses are few, so they repeat exactly."""
    _, _, width, height = INSET
    picture = Image.new("RGB", (2 * width, 2 * height), (96, 120, 128))
    draw = ImageDraw.Draw(picture)
    draw.rectangle((0, 176, 2 * width, 2 * height), fill=(70, 84, 90))
    middle, skin, shirt = 150 + 3 * sway, (226, 180, 150), (60, 60, 140)
    draw.polygon(
        [(middle - 62, 228), (middle - 42, 120), (middle + 42, 120), (middle + 62, 228)], fill=shirt
    )
    angle = math.radians(40 - 14 * arm)
    elbow = (middle + 50 + 34 * math.cos(angle), 140 + 34 * math.sin(angle))
    hand = (elbow[0] + 34 * math.cos(angle - 0.9), elbow[1] + 34 * math.sin(angle - 0.9))
    draw.line([(middle + 38, 134), elbow, hand], fill=shirt, width=20, joint="curve")
    draw.ellipse((hand[0] - 12, hand[1] - 12, hand[0] + 12, hand[1] + 12), fill=skin)
    draw.line([(middle - 40, 134), (middle - 60, 190)], fill=shirt, width=20)
    draw.ellipse((middle - 34, 28, middle + 34, 112), fill=skin)
    draw.pieslice((middle - 36, 22, middle + 36, 96), 180, 360, fill=(70, 44, 30))
    for side in (-14, 14):
        tall = 5 if eyes else 1
        draw.ellipse(
            (middle + side - 4, 66 - tall, middle + side + 4, 66 + tall), fill=(30, 30, 30)
        )
    draw.ellipse((middle - 12, 90 - 3 * mouth, middle + 12, 92 + 3 * mouth), fill=(150, 50, 50))
    return picture.resize((width, height), Image.Resampling.BOX)


def draw_lecture(_number: int, time: float) -> NDArray[np.uint8]:
    """Draw the picture at a time in seconds: the slide with the presenter's inset over it.

    Returns:
        RGB picture [360, 640, 3].
    """
    picture = _slide(slide_at(time)).copy()
    speaking = _speaking(time)
    sway = round(3 * math.sin(0.7 * time) + 2 * math.sin(1.9 * time))
    arm = round(2.5 + 2.5 * math.sin(1.3 * time)) if speaking else 0
    mouth = int(time * 7.5) % 3 if speaking else 0
    left, top, width, height = INSET
    box = (left - 2, top - 2, left + width + 1, top + height + 1)
    ImageDraw.Draw(picture).rectangle(box, fill=(30, 30, 30))
    picture.paste(_presenter(sway, arm, mouth, time % 4.0 > 0.2), (left, top))
    return np.asarray(picture)
