"""Moving pictures for the action clip and the screen recording."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

ACTION_SIZE = (480, 270)
ACTION_FPS = 25
ACTION_CUTS = (0.0, 3.2, 6.0, 9.4, 11.0)
ACTION_DURATION = 14.0

SCREEN_SIZE = (640, 360)
SCREEN_FPS = 10
SCREEN_DURATION = 20.0
SCREEN_EVENTS = (
    (0.0, "empty editor"),
    (2.0, "typing starts"),
    (9.0, "typing ends"),
    (10.0, "a long page opens and scrolls"),
    (13.0, "scrolling ends"),
    (15.0, "dialog opens"),
    (18.0, "dialog closes"),
)

_SKIES = ((120, 180, 230), (40, 30, 60), (230, 200, 150), (60, 120, 80), (200, 90, 80))
_WORDS = (
    "def median(values):",
    "    ordered = sorted(values)",
    "    middle = len(ordered) // 2",
    "    if len(ordered) % 2:",
    "        return ordered[middle]",
    "    low = ordered[middle - 1]",
    "    return (low + ordered[middle]) / 2",
)
_PAGE = tuple(f"line {n:02d}   value {(37 * n) % 101:3d}" for n in range(1, 61))


def draw_action(_number: int, time: float) -> NDArray[np.uint8]:
    """Draw the action clip at a time in seconds: another place and other shapes after each cut.

    Returns:
        RGB picture [270, 480, 3].
    """
    scene = max(n for n, cut in enumerate(ACTION_CUTS) if cut <= time + 1e-6)
    since = time - ACTION_CUTS[scene]
    width, height = ACTION_SIZE
    picture = Image.new("RGB", ACTION_SIZE, _SKIES[scene])
    draw = ImageDraw.Draw(picture)
    ground = 180 + 10 * scene
    draw.rectangle((0, ground, width, height), fill=tuple(c // 2 for c in _SKIES[scene]))
    if scene == 0:
        left = -60 + 170 * since
        draw.rectangle((left, 150, left + 90, 185), fill=(200, 40, 40))
        draw.rectangle((left + 20, 130, left + 70, 152), fill=(220, 220, 230))
        for wheel in (left + 12, left + 60):
            draw.ellipse((wheel, 176, wheel + 22, 198), fill=(20, 20, 20))
    elif scene == 1:
        for n in range(12):
            angle = 2 * math.pi * n / 12
            reach = 20 + 60 * since
            x, y = 240 + reach * math.cos(angle), 110 + reach * math.sin(angle)
            draw.ellipse((x - 6, y - 6, x + 6, y + 6), fill=(250, 220 - 12 * n, 60 + 14 * n))
    elif scene == 2:
        for n in range(3):
            x = 80 + 140 * n + 30 * math.sin(since + n)
            y = ground - 20 - 110 * abs(math.sin(2.2 * since + 0.8 * n))
            draw.ellipse(
                (x - 22, y - 22, x + 22, y + 22),
                fill=((40, 90, 200), (200, 60, 140), (30, 150, 90))[n],
            )
    elif scene == 3:
        for n in range(6):
            x = (n * 100 - 220 * since) % 600 - 60
            draw.polygon([(x, ground), (x + 30, 60), (x + 60, ground)], fill=(20, 70, 40))
    else:
        turn = 1.8 * since
        points = [
            (
                240 + 90 * math.cos(turn + k * math.pi / 2),
                120 + 90 * math.sin(turn + k * math.pi / 2),
            )
            for k in range(4)
        ]
        draw.polygon(points, fill=(250, 230, 120))
    return np.asarray(picture)


@cache
def _desk() -> Image.Image:
    picture = Image.new("RGB", SCREEN_SIZE, (58, 92, 122))
    draw = ImageDraw.Draw(picture)
    draw.rectangle((30, 20, 610, 340), fill=(252, 252, 252), outline=(90, 90, 90))
    draw.rectangle((30, 20, 610, 44), fill=(220, 222, 226))
    draw.text((42, 24), "editor", font=ImageFont.load_default(size=15), fill=(40, 40, 40))
    for n, colour in enumerate(((230, 90, 80), (240, 190, 70), (90, 190, 90))):
        draw.ellipse((552 + 18 * n, 27, 562 + 18 * n, 37), fill=colour)
    return picture


def _typed(draw: ImageDraw.ImageDraw, time: float) -> None:
    text = "\n".join(_WORDS)
    shown = text[: round(len(text) * min(1.0, max(0.0, (time - 2.0) / 7.0)))]
    for row, line in enumerate(shown.split("\n")):
        draw.text(
            (48, 58 + 26 * row), line, font=ImageFont.load_default(size=18), fill=(30, 40, 90)
        )


def _scrolled(picture: Image.Image, time: float) -> None:
    offset = round(300 * min(1.0, (time - 10.0) / 3.0))
    page = Image.new("RGB", (560, 290), (252, 252, 252))
    draw = ImageDraw.Draw(page)
    for row, line in enumerate(_PAGE):
        top = 6 + 24 * row - offset
        if -24 < top < 290:
            draw.text((8, top), line, font=ImageFont.load_default(size=17), fill=(30, 30, 30))
    picture.paste(page, (40, 46))


def draw_screen(_number: int, time: float) -> NDArray[np.uint8]:
    """Draw the screen recording at a time in seconds: typing, scrolling, a dialog, the cursor.

    Returns:
        RGB picture [360, 640, 3].
    """
    picture = _desk().copy()
    draw = ImageDraw.Draw(picture)
    if time < 10.0 - 1e-6:
        _typed(draw, time)
    else:
        _scrolled(picture, time)
    if 15.0 - 1e-6 <= time < 18.0 - 1e-6:
        draw.rectangle((190, 120, 450, 240), fill=(236, 236, 240), outline=(60, 60, 60), width=2)
        draw.text(
            (215, 140), "Save changes?", font=ImageFont.load_default(size=22), fill=(20, 20, 20)
        )
        draw.rectangle((330, 195, 430, 225), fill=(60, 110, 200))
        draw.text((362, 200), "Save", font=ImageFont.load_default(size=17), fill=(255, 255, 255))
    goal = (380, 210) if time >= 15.0 else (500, 250)
    blend = min(1.0, max(0.0, (time - 14.0) / 3.5)) if time >= 14.0 else 0.0
    wander = (80 * math.sin(0.5 * time), 40 * math.cos(0.8 * time)) if time < 14.0 else (0.0, 0.0)
    x, y = 500 + wander[0] + blend * (goal[0] - 500), 250 + wander[1] + blend * (goal[1] - 250)
    arrow = [(x, y), (x, y + 16), (x + 4, y + 12), (x + 10, y + 12)]
    draw.polygon(arrow, fill=(0, 0, 0), outline=(255, 255, 255))
    return np.asarray(picture)
