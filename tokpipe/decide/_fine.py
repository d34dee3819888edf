"""Rows of whole pictures replaced by those of a finer grid, and all others told in that grid."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from tokpipe.cache.bank import Bank
from tokpipe.encode.pixels import DIM, describe
from tokpipe.grid import CELL
from tokpipe.spec import KIND_POOLED
from tokpipe.tensors import TokenBatch


def finest(times: Mapping[int, int]) -> int:
    """The finest of some grids, as a multiple of the video's."""
    return max(times.values(), default=1)


def to_fine(
    rows: TokenBatch, priority: torch.Tensor, times: Mapping[int, int], bank: Bank
) -> tuple[TokenBatch, torch.Tensor]:
    """Rows in the cells of the finest grid used.

    Args:
        rows: Kept rows in the cache's order; of the frames in ``times`` all cells.
        priority: float64 [K].
        times: Sampled frame to how many times finer it is sent.

    Returns:
        Rows and their priority. A row of a coarser grid is pooled: it covers several cells.
    """
    scale = finest(times)
    step = rows.cell[:, 0]
    fine = torch.isin(step, torch.tensor(list(times), dtype=step.dtype))
    parts, order = [_scaled(rows.take(~fine), scale)], [priority[~fine]]
    for number, many in times.items():
        index = torch.nonzero(step == number).flatten()
        parts.append(_split(rows.take(index), number, many, scale, bank))
        order.append(priority[index].repeat_interleave(many * many))
    made, order_of = TokenBatch.cat(parts), torch.cat(order)
    place = made.order()
    return made.take(place), order_of[place]


def _scaled(rows: TokenBatch, scale: int) -> TokenBatch:
    """Rows of the video's grid told in cells ``scale`` times finer."""
    factor = torch.tensor([1, scale, scale], dtype=torch.int32)
    # A row that is not pooled shows one cell, whatever it stands for.
    shown = torch.where(rows.kind[:, None] == KIND_POOLED, rows.extent, rows.extent.clamp(max=1))
    extent = torch.cat([rows.extent[:, :1], shown[:, 1:]], 1) * factor
    kind = torch.full_like(rows.kind, KIND_POOLED)
    return rows.with_columns(cell=rows.cell * factor, extent=extent, kind=kind)


def _split(rows: TokenBatch, number: int, many: int, scale: int, bank: Bank) -> TokenBatch:
    """Each row of a whole picture as ``many`` x ``many`` rows of its fine picture."""
    picture = fine_picture(bank, number, many)
    high, wide = picture.shape[0] // CELL, picture.shape[1] // CELL
    data = describe(torch.tensor(picture[None])).reshape(high * wide, DIM)
    inner = torch.arange(many * many, dtype=torch.int32)
    each = rows.take(torch.arange(len(rows)).repeat_interleave(many * many))
    y = each.cell[:, 1] * many + (inner // many).repeat(len(rows))
    x = each.cell[:, 2] * many + (inner % many).repeat(len(rows))
    size = scale // many
    extent = torch.stack([each.extent[:, 0], torch.full_like(y, size), torch.full_like(y, size)], 1)
    kind = torch.full_like(each.kind, KIND_POOLED) if size > 1 else each.kind
    return each.with_columns(
        data=data[(y * wide + x).long()].to(rows.data.dtype),
        cell=torch.stack([each.cell[:, 0], y * size, x * size], 1), extent=extent, kind=kind,
        mass=each.mass / (many * many),
    )  # fmt: skip


def fine_picture(bank: Bank, number: int, many: int) -> NDArray[np.uint8]:
    """The sampled picture ``number`` at ``many`` times the grid's size, uint8 [H, W, 3]."""
    records: Any = bank.fine()
    record = records[int(np.searchsorted(records["step"], number))]
    picture = bank.fine_picture(record)
    shrink = int(record["times"]) // many
    if shrink == 1:
        return picture
    size = (picture.shape[1] // shrink, picture.shape[0] // shrink)
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC))
