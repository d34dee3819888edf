"""Storyboards: pictures with times, from a cache or from a folder another tool wrote."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokpipe.cache.reader import TokenCache
from tokpipe.errors import CacheError, MediaError, MediaNotFound

MANIFEST = "manifest.jsonl"
Timed = tuple[float, NDArray[np.uint8]]


class Board:
    """Pictures in the order of their times, and what is found about them.

    Args:
        pictures: (seconds, uint8 [H, W, 3]) by rising time; one is held at a time.
        count: How many there are, 0 where that shows only at the end.

    Attributes:
        name: What a report calls it.
        times: Seconds of the pictures that were taken.
        vectors: Unit vectors of those pictures, by name of the features.
        ssim: SSIM of each picture whose source is rich in text.
    """

    def __init__(self, name: str, pictures: Iterator[Timed], count: int = 0) -> None:
        self.name, self._count = name, count
        self._pictures = pictures
        self._next: Timed | None = next(pictures, None)
        self.times: list[float] = []
        self.vectors: dict[str, list[NDArray[np.float32]]] = {}
        self.ssim: list[float] = []

    def __len__(self) -> int:
        """Pictures there are, or that were taken so far."""
        return max(self._count, len(self.times))

    def before(self, time: float) -> Iterator[NDArray[np.uint8]]:
        """Take the pictures that come before a time."""
        while self._next is not None and self._next[0] < time:
            pts, pixels = self._next
            self.times.append(pts)
            self._next = next(self._pictures, None)
            yield pixels

    def own(self, features: str, vector: NDArray[np.float32]) -> None:
        """Keep the vector of the next picture."""
        self.vectors.setdefault(features, []).append(vector)


def cache_board(cache: TokenCache, name: str) -> Board:
    """The pictures a signal cache rebuilds.

    Raises:
        CacheError: It is of the feature domain, or holds no picture.
    """
    board = Board(name, ((f.pts, f.pixels) for f in cache.frames()))
    if "video" not in cache.streams:
        raise CacheError(
            f"`{name}` kept no picture", hint="use a recipe that keeps some of the video",
            code="cache.stream",
        )  # fmt: skip
    return board


def folder_board(folder: Path) -> Board:
    """The pictures of a folder with ``manifest.jsonl``: one ``{"pts": s, "file": name}`` a line.

    Raises:
        MediaNotFound: There is no such folder or manifest.
        MediaError: A line or a picture cannot be read.
    """
    rows = read_manifest(folder)
    pictures = ((pts, _open(path)) for pts, path in rows)
    return Board(folder.name or str(folder), pictures, len(rows))


def read_manifest(folder: Path) -> list[tuple[float, Path]]:
    """Seconds and path of each picture, by rising time."""
    path = folder / MANIFEST
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise MediaNotFound(
            f"no storyboard in `{folder}`: {MANIFEST} cannot be read",
            hint='write one line a picture: {"pts": 1.5, "file": "0001.jpg"}',
        ) from error
    rows = [_row(folder, number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not rows:
        raise MediaError(f"`{path}` names no picture", hint="give it one line a picture")
    return sorted(rows, key=lambda row: row[0])


def _row(folder: Path, number: int, line: str) -> tuple[float, Path]:
    with suppress(ValueError, KeyError, TypeError):
        found: dict[str, Any] = json.loads(line)
        pts = float(found["pts"])
        if math.isfinite(pts):
            return pts, folder / str(found["file"])
    raise MediaError(
        f"line {number} of `{folder / MANIFEST}` has no `pts` in seconds and `file`",
        hint='write {"pts": 1.5, "file": "0001.jpg"}',
    )


def _open(path: Path) -> NDArray[np.uint8]:
    from PIL import Image

    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, ValueError, SyntaxError) as error:
        raise MediaError(
            f"the picture `{path}` cannot be read: {error}", hint="check the storyboard's files"
        ) from error
