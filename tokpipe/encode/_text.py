"""Whether a picture is rich in text, from its pixels alone."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

#: Side of the tiles that are looked at one by one, in pixels of a picture 448 wide.
_TILE = 28
#: Grey levels between neighbours that make an edge; the part of a tile's neighbours that must.
_EDGE, _EDGES = 40, 0.03
#: Grey levels around a tile's commonest one that are its paper; part of the tile it must cover.
_PAPER, _COVERED = 12, 0.5


def text_richness(rgb: NDArray[np.uint8]) -> float:
    """Part of a picture's tiles that look like text, 0 to 1.

    A tile of text is mostly paper (half of its pixels within 12 grey levels of the commonest) and
    has many strong horizontal steps of luma (3 % of its neighbours differ by 40 or more).

    Args:
        rgb: uint8 [H, W, 3], about 448 pixels on the long side.
    """
    rows, cols = rgb.shape[0] // _TILE, rgb.shape[1] // _TILE
    if not rows or not cols:
        return 0.0
    grey = _luma(rgb[: rows * _TILE, : cols * _TILE])
    # Steps between neighbours; those across a tile's border, its last column, do not count.
    left, right = grey[:, :-1], grey[:, 1:]
    step = np.zeros(grey.shape, dtype=np.bool_)
    np.greater_equal(np.maximum(left, right) - np.minimum(left, right), _EDGE, out=step[:, :-1])
    step[:, _TILE - 1 :: _TILE] = False
    # Down the columns first, in bytes: 28 lines fit.
    down = step.view(np.uint8).reshape(rows, _TILE, -1).sum(1, dtype=np.uint8)
    edges = down.reshape(rows, cols, _TILE).sum(2) / (_TILE * (_TILE - 1))
    busy = np.nonzero(edges >= _EDGES)
    tiles = grey.reshape(rows, _TILE, cols, _TILE).swapaxes(1, 2)[busy]
    paper = _paper(tiles.reshape(-1, _TILE * _TILE))
    part: float = np.count_nonzero(paper >= _COVERED) / (rows * cols)
    return part


def _luma(rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """BT.601 luma in 8 bits: 77, 150 and 29 of 256, as sums that fit 16."""
    grey = rgb[..., 0].astype(np.int16)
    grey *= 77
    grey >>= 1
    part = rgb[..., 1].astype(np.int16)
    part *= 75
    grey += part
    np.multiply(rgb[..., 2], 29, out=part, dtype=np.int16)
    part >>= 1
    grey += part
    grey >>= 7
    return grey.astype(np.uint8)


def _paper(tiles: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Part [N] of each tile [N, pixels] whose luma is near its commonest level."""
    n = len(tiles)
    place = (tiles >> 3) + np.arange(0, 32 * n, 32, dtype=np.int64)[:, None]
    counts = np.bincount(place.ravel(), minlength=32 * n).reshape(n, 32)
    common = (counts.argmax(1) * 8 + 4).astype(np.uint8)[:, None]
    near = np.maximum(tiles, common) - np.minimum(tiles, common) <= _PAPER
    part: NDArray[np.float64] = np.count_nonzero(near, axis=1) / tiles.shape[1]
    return part
