"""One unit vector for each segment of a cache, made so that copies of a clip come out alike.

Features are averaged by mass. A signal cache holds pieces of the signal instead: their mean says
little more than how bright the picture is, so the picture (or the spectrogram) is laid out again
from the pieces, averaged over the segment's time, and described by its lowest frequencies, which
neither another size nor another encoding changes. Letters: N rows, G segments, R C cells, D width.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tokpipe.spec import KIND_NEWLINE, KIND_POOLED, Modality

if TYPE_CHECKING:
    from tokpipe.cache.reader import TokenCache

Array = NDArray[np.float64]

#: Rows of features read at a time, in elements.
_READ = 1 << 22
#: Numbers of a cell: 4 x 4 of luma, 2 x 2 of Cb and of Cr, each an orthonormal DCT corner.
_LUMA, _CHROMA = 4, 2
_DIM = _LUMA**2 + 2 * _CHROMA**2
#: Parts of a segment's time, each with a picture of its own.
_PARTS = 3
#: Frequencies of the whole picture that describe it, along each axis.
_PICTURE, _COLOUR = 8, 3
#: Weight of the mean colour beside the other frequencies; mean brightness has none.
_TINT = 0.3
#: Grey levels of weighted contrast under which a picture shows nothing to tell it by.
_FLAT = 8.0
#: Parts of a segment's time, and bands, of a spectrogram.
_TIMES, _BANDS = 32, 20
#: The same for sound, in decades of power a cell.
_STILL = 0.1


@dataclass(frozen=True, slots=True)
class Pooled:
    """Segments of one stream of a cache.

    Attributes:
        encoder: What made the tokens: its name, and a digest of all that vectors depend on.
        spans: float64 [G, 2] start and stop in seconds.
        vectors: float32 [G, D], each of length 1.
        flat: Segments left out because they show (or sound) nothing: black, silence.
        short: Segments left out because they are shorter than asked for.
    """

    encoder: tuple[str, str]
    spans: Array
    vectors: NDArray[np.float32]
    flat: int = 0
    short: int = 0


def pooled_segments(cache: TokenCache, stream: Modality, min_seconds: float = 0.0) -> Pooled | None:
    """Pool the segments of a cache; None where it has no such stream.

    A cache without a segment table is one segment.

    Args:
        cache: The open cache.
        stream: ``video`` or ``audio``.
        min_seconds: Shorter segments are left out.

    Raises:
        CacheCorrupt: Columns that break the format.
    """
    if stream not in cache.streams or not cache.num_tokens(stream):
        return None
    spans, rows = _segments(cache, stream)
    long = spans[:, 1] - spans[:, 0] >= min_seconds
    signal = cache.domain == "signal"
    if not signal:
        made = _features(cache, stream, rows)
    elif stream == "video":
        made = _pictures(cache, spans)
    else:
        made = _sounds(cache, spans)
    vectors = np.stack(list(made))
    length = np.linalg.norm(vectors, axis=1)
    clear = length > 0
    stays = clear & long
    unit = vectors[stays] / length[stays, None]
    return Pooled(
        _encoder(cache, stream, vectors.shape[1]), spans[stays], unit.astype(np.float32),
        flat=int((long & ~clear).sum()), short=int((~long).sum()),
    )  # fmt: skip


def _segments(cache: TokenCache, stream: Modality) -> tuple[Array, NDArray[np.int64]]:
    """Spans [G, 2] in seconds, and row ranges int64 [G, 2] of the stream, of segments with rows."""
    spans = cache.segments
    if len(spans):
        column = 2 * (stream == "audio")
        rows = np.asarray(cache.column("segment.rows"))[:, column : column + 2]
        some = rows[:, 1] > rows[:, 0]
        if some.any():
            return spans[some], rows[some]
    pts = cache.column(f"{stream}.pts")
    return np.array([[pts[:, 0].min(), pts[:, 1].max()]]), np.array([[0, len(pts)]])


def _encoder(cache: TokenCache, stream: Modality, width: int) -> tuple[str, str]:
    """Name and digest of the encoder; grids and budgets do not count, weights and layers do."""
    made: dict[str, Any] = dict(cache.metadata.get(f"tokpipe.encoder.{stream}") or {})
    name = str(made.get("name", "?"))
    told: dict[str, Any] = {"domain": cache.domain, "name": name, "version": made.get("version")}
    if cache.domain != "signal":
        told |= {key: made.get(key) for key in ("weights", "stage", "layer")} | {"width": width}
        params = made.get("params") or {}
        name = f"{name}:{params.get('model') or params.get('name') or ''}".rstrip(":")
    text = json.dumps(told, sort_keys=True, default=str)
    return name, hashlib.sha256(text.encode()).hexdigest()


def _features(cache: TokenCache, stream: Modality, rows: NDArray[np.int64]) -> Iterator[Array]:
    """Mean of each segment's features by mass; rows that mark ends of lines have no part."""
    for low, high in rows.tolist():
        width = cache.column(f"{stream}.tokens", low, low + 1).shape[1]
        total, step = np.zeros(width), max(1, _READ // width)
        for a in range(low, high, step):
            b = min(high, a + step)
            mass = np.asarray(cache.column(f"{stream}.mass", a, b), dtype=np.float32)
            mass = np.where(cache.column(f"{stream}.kind", a, b) < KIND_NEWLINE, mass, 0)
            data = np.asarray(cache.column(f"{stream}.tokens", a, b), dtype=np.float32)
            total += mass @ data
        yield total


def _pictures(cache: TokenCache, spans: Array) -> Iterator[Array]:
    """Low frequencies of the mean picture of each part of a segment; zero for a flat one."""
    grid = cache.metadata["tokpipe.grid"]
    rows, cols = int(grid["rows"]), int(grid["cols"])
    place, start, data = _cells(cache, rows, cols)
    order = np.lexsort((start, place))
    place, start, data = place[order], start[order], data[order]
    first = np.append(True, np.diff(place) != 0)
    # A cell shows its content until its next one, as `frames()` does; the first also before.
    stop = np.where(np.append(first[1:], True), np.inf, np.append(start[1:], np.inf))
    start = np.where(first, -np.inf, start)
    for a, b in spans.tolist():
        borders = np.linspace(a, max(b, a + 1e-3), _PARTS + 1)
        parts = []
        for low, high in pairwise(borders.tolist()):
            weight = np.minimum(stop, high) - np.maximum(start, low)
            shown = weight > 0
            where, weight = place[shown], weight[shown]
            total = np.bincount(where, weight, rows * cols)
            mean = np.zeros((rows * cols, _DIM))
            np.add.at(mean, where, data[shown] * weight[:, None])
            known = total > 0
            mean[known] /= total[known, None]
            mean[~known] = mean[known].mean(0)
            parts.append(_picture(mean.reshape(rows, cols, _DIM)))
        whole = np.concatenate(parts)
        yield whole if np.linalg.norm(whole) >= _FLAT * _PARTS**0.5 else np.zeros_like(whole)


def _cells(
    cache: TokenCache, rows: int, cols: int
) -> tuple[NDArray[np.int64], Array, NDArray[np.float32]]:
    """Cell number int64 [N], time from which it is shown [N] and descriptor [N, 24] of each row.

    A pooled row stands in each of the cells it covers, without the detail inside it.
    """
    names = ("at", "cell", "extent", "tile", "kind", "tokens")
    at, cell, extent, tile, kind, tokens = (np.asarray(cache.column(f"video.{n}")) for n in names)
    y, x = cell[:, 1], cell[:, 2]
    shown = (tile == 0) & (y >= 0) & (x >= 0) & (y < rows) & (x < cols)
    high, wide = (
        np.where(kind == KIND_POOLED, np.clip(extent[:, axis], 1, most), 1)
        for axis, most in ((1, rows), (2, cols))
    )
    count = np.where(shown, high * wide, 0)
    row = np.repeat(np.arange(len(at)), count)
    inside = np.arange(len(row)) - np.repeat(np.cumsum(count) - count, count)
    y, x = y[row] + inside // wide[row], x[row] + inside % wide[row]
    fits = (y < rows) & (x < cols)
    row, y, x = row[fits], y[fits], x[fits]
    data = tokens[row].astype(np.float32)
    plain = [0, _LUMA**2, _LUMA**2 + _CHROMA**2]
    detail = np.setdiff1d(np.arange(_DIM), plain)
    data[np.ix_(count[row] > 1, detail)] = 0
    return (y * cols + x).astype(np.int64), at[row], data


def _picture(cells: Array) -> Array:
    """Weighted low frequencies of a picture of descriptors [R, C, 24]."""
    ends = (0, _LUMA**2, _LUMA**2 + _CHROMA**2, _DIM)
    parts = []
    for a, b in pairwise(ends):
        side, most = (_LUMA, _PICTURE) if a == 0 else (_CHROMA, _COLOUR)
        rows, cols = cells.shape[:2]
        inner = cells[..., a:b].reshape(rows, cols, side, side)
        basis = _dct(side, side)
        # Orthonormal coefficients of 28 (14) pixels give means of 7 x 7 pixels when divided by 7.
        plane = np.einsum("rcuv,ui,vj->ricj", inner, basis, basis) / 7
        plane = plane.reshape(rows * side, cols * side)
        low = _dct(most, plane.shape[0]) @ plane @ _dct(most, plane.shape[1]).T
        # Pictures have less of the higher frequencies: each is to say about as much.
        weight = np.sqrt(np.hypot(*np.mgrid[:most, :most]))
        weight[0, 0] = 0 if a == 0 else _TINT
        parts.append((low * weight / np.sqrt(plane.size)).ravel())
    return np.concatenate(parts)


def _sounds(cache: TokenCache, spans: Array) -> Iterator[Array]:
    """The spectrogram of each segment on a coarse raster, less its mean; zero for a still one."""
    pts = np.asarray(cache.column("audio.pts"))
    mel = np.asarray(cache.column("audio.tokens"), dtype=np.float64)
    edges = np.linspace(0, mel.shape[1], min(_BANDS, mel.shape[1]) + 1).astype(int)
    bands = np.add.reduceat(mel, edges[:-1], axis=1) / np.diff(edges)
    floor = bands.max() - 8
    bands = np.maximum(bands, floor)
    for a, b in spans.tolist():
        borders = np.linspace(a, max(b, a + 1e-3), _TIMES + 1)
        inside = (pts[:, 1] > a) & (pts[:, 0] < b)
        low, high = pts[inside, :1], pts[inside, 1:]
        weight = np.minimum(high, borders[1:]) - np.maximum(low, borders[:-1])
        weight = np.maximum(weight, 0)
        total = weight.sum(0)
        made = weight.T @ bands[inside]
        heard = total > 0
        raster = np.full(made.shape, floor)
        raster[heard] = made[heard] / total[heard, None]
        raster -= raster.mean(0)
        size = np.sqrt((raster**2).mean())
        yield raster.ravel() if size >= _STILL else np.zeros(raster.size)


def _dct(count: int, size: int) -> Array:
    """First ``count`` rows of the orthonormal DCT-II of ``size`` points, zero beyond ``size``."""
    k, n = np.arange(count)[:, None], np.arange(size)
    rows: Array = np.cos(np.pi * (2 * n + 1) * k / (2 * size)) * np.sqrt(2 / size)
    rows[0] /= np.sqrt(2)
    rows[size:] = 0
    return rows
