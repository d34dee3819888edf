"""Where whole pictures lie: distances between them as people see them, without learned weights.

A picture's cells (``pixels`` descriptors) give a small copy of it: 4 x 4 luma and 2 x 2 chroma
samples a cell. From that come four views, each blind to something else, joined by fixed weights:
its layout (normalised luma of 8 x 8 regions), its colours (one histogram of the whole picture),
its edges (how much of which direction in each of 4 x 4 regions) and its shapes (the directions
alone, at half the size).

The four weights were found by trial on a film, talks, screen recordings and single shots, such
that a greedy cover by this distance also covers in an independent image embedding.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokpipe.grid import spans

#: Single precision everywhere but in a histogram's sums.
Array = NDArray[Any]

#: What each view is multiplied by: layout, colours, edges, shapes.
_WEIGHTS = (0.863, 2.216, 1.908, 1.415)
#: Levels of luma and of each chroma difference, and the chroma range that is told apart.
_LUMA, _CHROMA, _RANGE = 6, 7, 48.0
_DIRECTIONS, _REGIONS, _LAYOUT = 8, 4, 8
#: Width of a picture's vector.
DIM = _LAYOUT**2 + _LUMA * _CHROMA**2 + 2 * _REGIONS**2 * _DIRECTIONS


def place_pictures(data: NDArray[Any]) -> NDArray[np.float32]:
    """Vectors float32 [T, DIM] of pictures: their squared distances say how unlike they look.

    0 is alike; 0.1 a gesture; 1 and above another scene.

    Args:
        data: ``pixels`` descriptors [T, R, C, 24].
    """
    luma, cb, cr = _planes(np.asarray(data, dtype=np.float32))
    half = _pooled(luma, luma.shape[1] // 2, luma.shape[2] // 2)
    edges = _directions(luma)
    shapes = _directions(half)
    views = (
        _unit(_pooled(luma - luma.mean((1, 2), keepdims=True), _LAYOUT, _LAYOUT)),
        _colours(half, cb, cr),
        np.log1p(edges) / 16,
        np.sqrt(shapes / (shapes.sum(1, keepdims=True) + 1e-3)),
    )
    return np.concatenate(
        [np.asarray(v * w, np.float32) for v, w in zip(views, _WEIGHTS, strict=True)], 1
    )


def _planes(data: Array) -> tuple[Array, Array, Array]:
    """Luma [T, 4R, 4C] and chroma differences [T, 2R, 2C] in grey levels, of descriptors."""
    t, rows, cols = data.shape[:3]

    def plane(part: Array, side: int) -> Array:
        basis = _basis(side)
        blocks = part.reshape(t, rows, cols, side, side)
        made = basis.T @ blocks @ basis
        return made.transpose(0, 1, 3, 2, 4).reshape(t, rows * side, cols * side)

    # A flat cell of level g has a first coefficient of 28 g (luma) or 14 g (chroma).
    return (
        plane(data[..., :16] / 7, 4), plane(data[..., 16:20] / 7, 2), plane(data[..., 20:] / 7, 2),
    )  # fmt: skip


@cache
def _basis(size: int) -> Array:
    """Rows of the orthonormal DCT-II of ``size`` points."""
    k, n = np.arange(size)[:, None], np.arange(size)
    rows = np.cos(math.pi * (2 * n + 1) * k / (2 * size)) * math.sqrt(2 / size)
    rows[0] /= math.sqrt(2)
    return rows.astype(np.float32)


def _pooled(plane: Array, rows: int, cols: int) -> Array:
    """Means [T, rows, cols] of even regions; a plane with fewer lines repeats some."""
    down = _regions(plane.shape[1], rows)
    across = _regions(plane.shape[2], cols)
    made: Array = down @ plane @ across.T
    return made


@cache
def _regions(size: int, parts: int) -> Array:
    """[parts, size] that averages even runs of a line."""
    out = np.zeros((parts, size), dtype=np.float32)
    for row, (a, b) in zip(out, spans(size, parts), strict=True):
        row[a : max(b, a + 1)] = 1 / (max(b, a + 1) - a)
    return out


def _unit(plane: Array) -> Array:
    flat = plane.reshape(len(plane), -1)
    out: Array = flat / (np.linalg.norm(flat, axis=1, keepdims=True) + 1e-6)
    return out


def _colours(luma: Array, cb: Array, cr: Array) -> Array:
    """Square roots of a joint histogram [T, 6 * 7 * 7]; 8 nearest bins share a sample."""
    t, count = len(luma), luma[0].size
    bins = np.arange(t)[:, None] + np.zeros(count, np.int64)
    weight = np.ones((t, count), dtype=np.float32)
    corners = [(bins, weight)]
    for plane, low, size, levels in ((luma, 0.0, 255.0, _LUMA), (cb, -_RANGE, 2 * _RANGE, _CHROMA),
                                     (cr, -_RANGE, 2 * _RANGE, _CHROMA)):  # fmt: skip
        place = (plane.reshape(t, count) - low) * ((levels - 1) / size)
        place = np.clip(place, 0, levels - 1)
        first = np.minimum(place.astype(np.int64), levels - 2)
        part = place - first
        corners = [
            (at * levels + first + step, share * (part if step else 1 - part))
            for at, share in corners for step in (0, 1)
        ]  # fmt: skip
    total = np.zeros(t * _LUMA * _CHROMA**2, dtype=np.float64)
    for at, share in corners:
        total += np.bincount(at.ravel(), share.ravel(), minlength=len(total))
    made: Array = np.sqrt(total.reshape(t, -1) / count).astype(np.float32)
    return made


def _directions(luma: Array) -> Array:
    """Gradient magnitude per region and direction, means [T, 4 * 4 * 8]."""
    across, down = np.zeros_like(luma), np.zeros_like(luma)
    across[:, :, 1:-1] = luma[:, :, 2:] - luma[:, :, :-2]
    down[:, 1:-1] = luma[:, 2:] - luma[:, :-2]
    size = np.hypot(across, down).reshape(len(luma), -1)
    place = np.mod(np.arctan2(down, across) / math.pi, 1.0).reshape(size.shape) * _DIRECTIONS
    first = place.astype(np.int64)
    part = place - first
    region, area = _region_of(luma.shape[1], luma.shape[2])
    base = (np.arange(len(luma))[:, None] * _REGIONS**2 + region) * _DIRECTIONS
    count = len(luma) * _REGIONS**2 * _DIRECTIONS
    total = np.zeros(count)
    for step, share in ((0, 1 - part), (1, part)):
        index = base + (first + step) % _DIRECTIONS
        total += np.bincount(index.ravel(), (size * share).ravel(), minlength=count)
    made: Array = total.reshape(len(luma), _REGIONS**2, _DIRECTIONS) / area[:, None]
    # Direction by direction, as the weights were found.
    return made.swapaxes(1, 2).reshape(len(luma), -1).astype(np.float32)


@cache
def _region_of(high: int, wide: int) -> tuple[Array, Array]:
    """Region [high * wide] of each sample, and the samples of each of the 4 x 4 regions."""
    rows = np.repeat(np.arange(_REGIONS), [b - a for a, b in spans(high, _REGIONS)])
    cols = np.repeat(np.arange(_REGIONS), [b - a for a, b in spans(wide, _REGIONS)])
    region = (rows[:, None] * _REGIONS + cols).reshape(-1)
    return region, np.maximum(np.bincount(region, minlength=_REGIONS**2), 1)
