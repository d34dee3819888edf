"""Tokens of a cache as the items of a request: one video, single pictures, or one sound.

Letters: n rows of an item, D columns, L deepstack levels, T pictures.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tokpipe.digest import canonical_json
from tokpipe.errors import CacheError
from tokpipe.export._contract import check_layout
from tokpipe.export._servers.kinds import Modality
from tokpipe.spec import KIND_NEWLINE

if TYPE_CHECKING:
    from tokpipe.export._media import Media

#: Largest part of the mean gap by which gaps may differ and still count as even.
_EVEN = 0.01


@dataclass(frozen=True, slots=True)
class Item:
    """One image, video or sound of a request.

    Attributes:
        data: [n, D * (1 + L)]: main columns, then those of each deepstack level.
        grid: (t, h, w) in patches before the merger, None for models without a grid.
        times: Seconds of each temporal patch; of a picture or sound, its own.
    """

    data: Tensor
    grid: tuple[int, int, int] | None
    times: tuple[float, ...]

    def digest(self, *more: object) -> str:
        """SHA-256, 64 hex digits, of rows, dtype, grid, times and whatever else counts."""
        facts = [str(self.data.dtype), list(self.data.shape), self.grid, self.times, *more]
        total = hashlib.sha256(canonical_json(facts).encode())
        total.update(self.data.contiguous().view(torch.uint8).numpy().data)
        return total.hexdigest()


def rows_of(media: Media, dtype: torch.dtype | None = None) -> Tensor:
    """Rows [N, D * (1 + L)] as vision towers with deepstack give them to servers.

    Args:
        dtype: None leaves them in the dtype they are stored in.
    """
    rows = torch.cat([media.data, *media.deepstack], 1)
    return (rows if dtype is None else rows.to(dtype)).contiguous()


def video_item(media: Media, merge: int, dtype: torch.dtype | None = None) -> Item:
    """All pictures as one video with a regular grid.

    Raises:
        CacheError: A picture lacks cells, or pictures have different grids.
    """
    sides = grids_of(media)
    if len(set(sides)) > 1:
        raise CacheError(
            f"pictures of the cache have {len(set(sides))} different grids, a video has one",
            hint="send them as images: media=image", code="export.grid",
        )  # fmt: skip
    high, wide = sides[0]
    grid = (len(sides), high * merge, wide * merge)
    return Item(rows_of(media, dtype), grid, tuple(media.times.tolist()))


def image_items(
    media: Media, merge: int, *, gridded: bool, dtype: torch.dtype | None = None
) -> list[Item]:
    """Each picture as an image of its own, in order of time.

    Args:
        gridded: The model's positions come from a grid, so that pictures must be whole.
    """
    rows, sides = rows_of(media, dtype), grids_of(media) if gridded else None
    counts = torch.bincount(media.step, minlength=len(media.times)).tolist()
    made = []
    for number, (part, time) in enumerate(
        zip(torch.split(rows, counts), media.times.tolist(), strict=True)
    ):
        grid = None if sides is None else (1, sides[number][0] * merge, sides[number][1] * merge)
        made.append(Item(part.contiguous(), grid, (time,)))
    return made


def sound_item(media: Media, dtype: torch.dtype | None = None) -> Item:
    """All sound as one item."""
    return Item(rows_of(media, dtype), None, (float(media.at[0]),))


def grids_of(media: Media) -> list[tuple[int, int]]:
    """(rows, columns) of tokens of each picture.

    Raises:
        CacheError: Rows of a picture do not fill a rectangle, or are no cells.
    """
    made = []
    for number in range(len(media.times)):
        at = media.step == number
        cell = media.cell[at, 1:]
        high, wide = (len(torch.unique(cell[:, axis])) for axis in (0, 1))
        cells = bool((media.kind[at] < KIND_NEWLINE).all() and (media.tile[at] == 0).all())
        full = len(torch.unique(cell, dim=0)) == len(cell) == high * wide
        if not cells or (cell < 0).any() or not full:
            raise CacheError(
                f"tokens of the picture at {float(media.times[number]):.3f} s fill no rectangle",
                hint=f"encode again with --layout frames, or export to {_OTHERS}",
                code="export.grid",
            )
        made.append((high, wide))
    return made


#: Consumers that take any subset of tokens of a model with positions in a grid.
_OTHERS = "transformers or sglang, which take any subset"


def check_gridded(media: Media, name: str) -> None:
    """Refuse a layout that a model with positions from a grid cannot be given by this server."""
    if not (media.layout == "ragged" and media.whole):
        check_layout(("frames", "grid"), media.layout, name, _OTHERS)


def pace(times: Sequence[float]) -> tuple[float, bool]:
    """Mean seconds between pictures, and whether they are evenly apart; (1, True) for one."""
    if len(times) < 2:
        return 1.0, True
    gaps = [b - a for a, b in pairwise(times)]
    mean = (times[-1] - times[0]) / len(gaps)
    return mean, max(abs(gap - mean) for gap in gaps) <= _EVEN * mean


def modality_for(media: Media, takes: Sequence[Modality], asked: str, *, still: bool) -> Modality:
    """As what the tokens of a stream are sent.

    Args:
        takes: What the server takes of this model, the usual one first.
        asked: ``auto``, ``video`` or ``image``.
        still: The source is one picture.

    Raises:
        CacheError: The server does not take it.
    """
    if media.stream == "audio":
        wanted: Modality = "audio"
    elif asked == "auto":
        wanted = "image" if "image" in takes and (still or "video" not in takes) else "video"
    else:
        wanted = "image" if asked == "image" else "video"
    if wanted not in takes:
        raise CacheError(
            f"the server takes {' or '.join(takes)} tokens of this model, not {wanted}",
            hint=f"leave media={asked} out" if asked != "auto" else "export to transformers",
            code="export.modality",
        )
    return wanted
