"""Rows of a stream sorted into the pictures they are of."""

from __future__ import annotations

import torch
from torch import Tensor

from tokpipe.export._media import Media


def pictures(media: Media) -> tuple[list[Tensor], bool]:
    """Rows of each picture that is one grid, and whether dropped cells are among them.

    Returns:
        int64 [rows x columns] for each of the T pictures in raster order, -1 where a cell was
        dropped, and True. Where rows are no cells of a grid: int64 [n] in their order, and False.
    """
    if media.grid is None or not media.placed or bool((media.tile > 0).any()):
        return in_order(media), False
    high, wide = media.grid
    y, x = media.cell[:, 1], media.cell[:, 2]
    inside = (y >= 0) & (x >= 0) & (y < high) & (x < wide)
    if not bool(inside.all()):
        return in_order(media), False
    cells = torch.full((len(media.times), high * wide), -1, dtype=torch.int64)
    cells[media.step, y * wide + x] = torch.arange(len(media))
    return list(cells), True


def in_order(media: Media) -> list[Tensor]:
    """Rows of each picture as they come."""
    counts = torch.bincount(media.step, minlength=len(media.times)).tolist()
    return list(torch.split(torch.arange(len(media)), counts))


def filled(media: Media, step: int, places: Tensor) -> Tensor | None:
    """Rows of one picture that fill the places of a layout of several tiles.

    Args:
        places: int64 [n, 3] (tile, y, x) in the order of the prompt; -1 for what is no cell.

    Returns:
        int64 [n], -1 where a place was dropped; None where a row has no place of the layout.
    """
    mine = (media.step == step).nonzero()[:, 0]
    side = 1 + int(max(places.max(), media.cell[mine].max(), media.tile[mine].max()))
    key = _key(places, side)
    have = _key(torch.stack([media.tile[mine], media.cell[mine, 1], media.cell[mine, 2]], 1), side)
    order = key.argsort()
    spot = torch.searchsorted(key[order], have).clamp(max=len(key) - 1)
    if not torch.equal(key[order][spot], have) or len(torch.unique(have)) != len(have):
        return None
    rows = torch.full((len(key),), -1, dtype=torch.int64)
    rows[order[spot]] = mine
    return rows


def _key(places: Tensor, side: int) -> Tensor:
    """One number a place, of numbers from -1 to side - 1."""
    made = torch.zeros(len(places), dtype=torch.int64)
    for axis in places.unbind(1):
        made = made * (side + 1) + axis + 1
    return made


def tiles_of(media: Media) -> tuple[list[list[Tensor]], bool]:
    """Rows of each picture by tile, crops first and the whole picture last.

    With them, whether dropped cells are among the rows, as ``pictures`` says it.

    Where it is known how many crops there are (``tokens_per_picture`` of the record), each tile has
    all of its cells, -1 where one was dropped; else those rows alone.
    """
    grid = media.grid or (0, 0)
    many = int(media.about.get("tokens_per_picture", 0))
    cells = grid[0] * grid[1]
    y, x, tile = media.cell[:, 1], media.cell[:, 2], media.tile
    known = cells > 0 and media.placed and many >= cells and many % cells == 0
    if known and bool(((y >= 0) & (x >= 0) & (y < grid[0]) & (x < grid[1])).all()):
        count = many // cells
        if bool((tile < count).all()):
            rows = torch.full((len(media.times), count, cells), -1, dtype=torch.int64)
            rows[media.step, (tile - 1) % count, y * grid[1] + x] = torch.arange(len(media))
            return [list(picture) for picture in rows], True
    made = []
    for mine in in_order(media):
        order = [*sorted(t for t in torch.unique(tile[mine]).tolist() if t), 0]
        made.append([mine[tile[mine] == t] for t in order])
    return made, False
