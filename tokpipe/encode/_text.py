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
    red, green, blue = (rgb[..., c].astype(np.int16) for c in range(3))
    # BT.601 luma in 8 bits: 77, 150 and 29 of 256, as sums that fit 16.
    grey = ((77 * red >> 1) + 75 * green + (29 * blue >> 1)) >> 7
    rows, cols = grey.shape[0] // _TILE, grey.shape[1] // _TILE
    if not rows or not cols:
        return 0.0
    cut = grey[: rows * _TILE, : cols * _TILE].reshape(rows, _TILE, cols, _TILE).swapaxes(1, 2)
    tiles = cut.reshape(rows * cols, _TILE, _TILE)
    edges = (np.abs(np.diff(tiles, axis=2)) >= _EDGE).mean(axis=(1, 2))
    busy = np.flatnonzero(edges >= _EDGES)
    paper = sum(bool(_paper(tiles[i]) >= _COVERED) for i in busy)
    return paper / len(tiles)


def _paper(tile: NDArray[np.int16]) -> float:
    """Part of the tile whose luma is near its commonest level."""
    flat = tile.ravel()
    common = int(np.bincount(flat >> 3, minlength=32).argmax()) * 8 + 4
    return float((np.abs(flat - common) <= _PAPER).mean())
