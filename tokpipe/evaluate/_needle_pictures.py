"""What needles show: painted patterns with a number on them, or pictures of another video."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from fractions import Fraction
from itertools import repeat
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tokpipe.decode import open_source
from tokpipe.errors import DecodeError
from tokpipe.spec import MediaInfo

Picture = NDArray[np.uint8]


class Pictures(Protocol):
    """Gives the pictures of needles, asked for by rising number."""

    def needle(self, number: int) -> Iterator[Picture]:
        """Pictures uint8 [H, W, 3] of one needle, in order; may end early."""
        ...


class Painted:
    """Patterns of coloured blocks, each with its number; a needle stands still.

    Args:
        size: Width and height.
        seed: Of colours and blocks.
    """

    def __init__(self, size: tuple[int, int], seed: int) -> None:
        self._size, self._seed = size, seed

    def needle(self, number: int) -> Iterator[Picture]:
        """The same picture, on and on."""
        return repeat(paint(number, self._size, self._seed))


def paint(number: int, size: tuple[int, int], seed: int) -> Picture:
    """A picture uint8 [H, W, 3] that is like no other number's: blocks, and the number large."""
    from PIL import Image, ImageDraw, ImageFont

    width, height = size
    rng = np.random.default_rng((seed, number))
    rows, cols = int(rng.integers(2, 6)), int(rng.integers(3, 8))
    blocks = rng.integers(0, 256, (rows, cols, 3), dtype=np.uint8)
    image = Image.fromarray(blocks).resize(size, Image.Resampling.NEAREST)
    draw = ImageDraw.Draw(image)
    side = max(8, min(width, height) // 3)
    try:
        font: Any = ImageFont.load_default(side)
    except (ImportError, OSError):
        font = ImageFont.load_default()  # without FreeType: small letters
    draw.text((width / 2, height / 2), str(number), font=font, anchor="mm", fill="white",
              stroke_width=max(1, side // 12), stroke_fill="black")  # fmt: skip
    return np.asarray(image)


class FromFile:
    """Pictures of another video, taken at even distances and played on.

    Args:
        path: A file with video; ``info`` describes it.
        size: Width and height they are brought to.
        fps: Pictures a second of the video they go into.
        count: Needles that will be asked for.
    """

    def __init__(
        self, path: Path, info: MediaInfo, size: tuple[int, int], fps: Fraction, count: int
    ) -> None:
        self._path, self._size, self._count = path, size, count
        self._total = int((info.duration or 0.0) * fps)
        self._frames = at_rate(open_source(path, info).read(), fps)
        self._next = 0

    def needle(self, number: int) -> Iterator[Picture]:
        """Pictures from the middle of the number's part of the file on.

        Raises:
            DecodeError: The file has ended.
        """
        first, shown = int((number + 0.5) * self._total / self._count), 0
        for picture in self._frames:
            self._next += 1
            if self._next > first:
                shown += 1
                yield picture.rgb(*self._size)
        if not shown:
            raise DecodeError(
                f"`{self._path.name}` has too few pictures for {self._count} needles",
                hint="name a longer file with --needle-from, or ask for fewer needles",
            )


def at_rate(events: Iterable[Any], fps: Fraction) -> Iterator[Any]:
    """The picture on screen at each tick from the first picture on."""
    held, first, tick = None, 0.0, 0
    for event in events:
        if not hasattr(event, "usable") or event.corrupt:
            continue
        if held is None:
            first = event.pts
        while held is not None and first + tick / fps < event.pts - 1e-6:
            yield held
            tick += 1
        held = event
    if held is not None:
        yield held
