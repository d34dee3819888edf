"""Pictures of a cache as encoded bytes: rebuilt from its cells, or read again from the source.

``board_frames`` is what every consumer of pictures uses.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from itertools import groupby
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from tokpipe.errors import CacheError, MediaError
from tokpipe.export._storyboard.moments import Moment, fewer, moments_of
from tokpipe.export._storyboard.pictures import Look, cells_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tokpipe.cache.reader import TokenCache
    from tokpipe.spec import MediaInfo

#: Grey levels (RMS over a cell) below which a change is not seen. The same cell stored at two grids
#: differs by up to 4 where nothing changed, a line of text by 20 and more.
_UNSEEN = 5.0
#: Seconds by which a picture's time may miss the cache's and be the same.
_SAME = 1e-3


@dataclass(frozen=True, slots=True)
class BoardFrame:
    """One picture with its time.

    Attributes:
        moment: Its time, and what the cache says of it.
        data: The encoded picture.
        width, height: Pixels.
        cells: Of a rebuilt picture how many cells there are, and how many are its own, of earlier
            or later times, or unknown; empty where it was read from the source.
    """

    moment: Moment
    data: bytes
    width: int
    height: int
    cells: dict[str, Any]

    @property
    def pts(self) -> float:
        """Seconds from the media's zero."""
        return self.moment.pts


def board_frames(
    cache: TokenCache, *, look: Look | None = None, from_source: str = "", max_frames: int = 0,
    repeats: bool = False, moments: Sequence[Moment] | None = None,
) -> Iterator[BoardFrame]:  # fmt: skip
    """The pictures of a cache, by rising time; one is held at a time.

    The JPEG bytes and times of at most 32 moments: ``[(f.pts, f.data) for f in board_frames(cache,
    look=Look("jpeg", quality=90, max_side=768), max_frames=32)]``.

    Args:
        cache: Of the signal domain; of any with ``from_source``.
        look: Format, quality and size; JPEG of quality 90 as large as the pictures are.
        from_source: Path of the media the cache was made from, or its folder: pictures are then
            decoded from it at the cache's times, at full resolution.
        max_frames: At most so many, spread evenly and chosen by rank; 0 is all.
        repeats: Also pictures that look like the one before.
        moments: These instead of those of :func:`board_moments`.

    Raises:
        CacheError: A feature cache without ``from_source`` (code ``export.domain``), or no video.
        MediaError: ``from_source`` is another file (code ``export.source``) or cannot be read.
    """
    if not from_source:
        check_pictures(cache)
    found = board_moments(cache, repeats=repeats) if moments is None else moments
    chosen, look = fewer(found, max_frames), look or Look()
    if from_source:
        yield from _from_source(cache, source_path(cache, from_source), chosen, look)
    else:
        yield from _rebuilt(cache, chosen, look)


def board_moments(cache: TokenCache, *, repeats: bool = False) -> list[Moment]:
    """The moments of a cache that look different from the one before.

    A repeat goes into the moment it repeats, which then stands for both. Features have no pictures
    to compare: all their moments come.

    Args:
        repeats: All moments.

    Raises:
        CacheError: The cache holds no video.
    """
    found = moments_of(cache)
    if repeats or cache.domain != "signal":
        return found
    kept: list[Moment] = []
    before = None
    for moment, frame in zip(found, cache.frames(), strict=True):
        if before is not None and _alike(before, frame.pixels, frame.mask.shape):
            kept[-1] = kept[-1].with_next(moment)
        else:
            kept.append(moment)
            before = frame.pixels
    return kept


def _alike(one: NDArray[np.uint8], other: NDArray[np.uint8], grid: tuple[int, ...]) -> bool:
    """No cell of two rebuilt pictures differs visibly."""
    rows, cols = grid
    if np.array_equal(one, other):
        return True
    apart = np.subtract(one, other, dtype=np.float32) ** 2
    cells = apart.reshape(rows, len(one) // rows, cols, -1, 3).mean((1, 3, 4))
    return bool(cells.max() < _UNSEEN**2)


def picture_size(cache: TokenCache, from_source: str = "") -> tuple[int, int]:
    """Width and height of the pictures before any ``Look``."""
    if not from_source:
        grid = cache.metadata["tokpipe.grid"]
        return int(grid["cols"]) * int(grid["cell"]), int(grid["rows"]) * int(grid["cell"])
    video = check_source(cache, source_path(cache, from_source)).video
    if video is None:
        raise MediaError(f"`{from_source}` has no video", hint="name the file with the pictures",
                         code="export.source")  # fmt: skip
    width, height = video.display_size
    return max(1, round(width)), max(1, round(height))


def check_pictures(cache: TokenCache) -> None:
    """Refuse a cache that holds features instead of pictures.

    Raises:
        CacheError: Naming what would do.
    """
    if cache.domain != "signal":
        name = cache.info.get("name", "the media")
        raise CacheError(
            "a feature cache holds no pictures",
            hint=f"name the media it was made from (--from-source {name}), or export the cache "
            "made without --encoder", code="export.domain",
        )  # fmt: skip


def source_path(cache: TokenCache, from_source: str) -> Path:
    """The media: a file, or in a folder the one of the name that the cache has on record."""
    path = Path(from_source)
    return path / str(cache.info.get("name", "")) if path.is_dir() else path


def check_source(cache: TokenCache, path: Path) -> MediaInfo:
    """What a file holds, once it is known to be the one the cache was made from.

    Raises:
        MediaError: It is another file.
        MediaNotFound: It cannot be read.
    """
    from tokpipe.decode import probe
    from tokpipe.digest import fingerprint

    info = cache.info
    if fingerprint(path, full=info.get("method") == "full")[0] != info.get("fingerprint"):
        raise MediaError(
            f"`{path.name}` is not the file this cache was made from",
            hint=f"it was `{info.get('name')}`, {info.get('size')} bytes; name that one, unchanged",
            code="export.source",
        )
    # The streams the cache was made from, which may not be the file's first.
    chosen = {stream["kind"]: str(stream["index"]) for stream in info.get("streams", [])}
    return probe(
        path, video_stream=chosen.get("video", "auto"), audio_stream=chosen.get("audio", "none")
    )


def _rebuilt(cache: TokenCache, moments: Sequence[Moment], look: Look) -> Iterator[BoardFrame]:
    wanted = {moment.pts: moment for moment in moments}
    for frame in cache.frames():
        moment = wanted.get(frame.pts)
        if moment is not None:
            height, width = frame.pixels.shape[:2]
            size = look.size(width, height)
            yield BoardFrame(moment, look.encode(frame.pixels), *size, cells_of(frame.mask))


def _from_source(
    cache: TokenCache, path: Path, moments: Sequence[Moment], look: Look
) -> Iterator[BoardFrame]:
    """Decode everything first: which pictures come is settled only at the end."""
    from tokpipe.decode.at_times import pictures_at

    info = check_source(cache, path)
    size = look.size(*picture_size(cache, str(path)))
    with tempfile.TemporaryFile() as file:
        spool = _Spool(file)
        for place, picture in pictures_at(path, info, [m.pts for m in moments]):
            spool.put(place, picture.pts, look.encode(picture.rgb(*size)))
        for pts, group in groupby(range(len(spool.times)), key=spool.times.__getitem__):
            places = list(group)
            # Times between two frames show one picture, which then stands for all of them.
            moment = reduce(Moment.with_next, (moments[place] for place in places))
            moment = moment if abs(pts - moment.pts) < _SAME else replace(moment, pts=pts)
            yield BoardFrame(moment, spool.get(places[0]), *size, {})


class _Spool:
    """Byte strings by place, on disk; what lies beyond a place goes when it is put again."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.ends = [0]
        self.times: list[float] = []

    def put(self, place: int, pts: float, data: bytes) -> None:
        """Keep what belongs to a place, the next one or one that is begun again."""
        del self.ends[place + 1 :], self.times[place:]
        self.file.seek(self.ends[place])
        self.file.truncate()
        self.file.write(data)
        self.ends.append(self.ends[place] + len(data))
        self.times.append(pts)

    def get(self, place: int) -> bytes:
        """The bytes of a place."""
        self.file.seek(self.ends[place])
        return self.file.read(self.ends[place + 1] - self.ends[place])
