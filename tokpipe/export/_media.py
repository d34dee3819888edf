"""A stream of a feature cache as a consumer sees it: pictures in time, each with its tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tokpipe.cache.format import KIND_LAYOUT
from tokpipe.errors import CacheError

if TYPE_CHECKING:
    from tokpipe.cache.reader import TokenCache


@dataclass(frozen=True, slots=True)
class Media:
    """Tokens of one stream, rows sorted by (at, tile, y, x).

    Attributes:
        stream: ``video`` or ``audio``.
        data: Features [N, D] in the dtype they are stored in.
        deepstack: Rows beside each token, one [N, D] a level; empty without.
        at: float64 [N] seconds.
        step: int64 [N] which picture of the cache a row belongs to, 0 .. T-1 by rising ``at``.
        cell: int64 [N, 3] (t, y, x) in the encoder's grid, -1 where the row is no cell of it.
        extent: int64 [N, 3] cells of the grid it covers.
        tile: int64 [N] 0 the whole picture, else the crop's number.
        kind: uint8 [N] 0 kept, 1 merged, 2 pooled, 3 newline, 4 separator.
        mass: float32 [N] source tokens each row stands for.
        times: float64 [T] seconds of the pictures that have a row.
        grid: (rows, columns) of a whole picture's tokens, None where the encoder has no grid.
        about: What the cache says of the encoder (``tokpipe.encoder.STREAM``).
        layout: ``ragged``, ``frames`` or ``grid``.
        source: Tokens the encoder gave of the stream, dropped ones among them; 0 unknown.
    """

    stream: str
    data: Tensor
    deepstack: tuple[Tensor, ...]
    at: Tensor
    step: Tensor
    cell: Tensor
    extent: Tensor
    tile: Tensor
    kind: Tensor
    mass: Tensor
    times: Tensor
    grid: tuple[int, int] | None
    about: Mapping[str, Any]
    layout: str
    source: int = 0

    def __len__(self) -> int:
        """Return N."""
        return len(self.at)

    @property
    def placed(self) -> bool:
        """Every row but newlines and separators is a cell of the grid, no two the same one."""
        real = self.kind < KIND_LAYOUT
        key = torch.stack([self.step, self.tile, self.cell[:, 1], self.cell[:, 2]], -1)[real]
        return bool((self.cell[real] >= 0).all()) and len(torch.unique(key, dim=0)) == len(key)

    @property
    def whole(self) -> bool:
        """Every picture has every cell of the grid, in raster order (nothing was dropped)."""
        if self.grid is None or not self.placed:
            return False
        return len(self) == len(self.times) * self.grid[0] * self.grid[1]

    @property
    def unproven(self) -> str:
        """Why it is not known whose weights made the rows, as a sentence; empty where it is."""
        told = self.about.get("projected") or {}
        if told.get("checked") == "nothing":
            return (
                f"whose tower made the {self.stream} rows was not checked when they were projected"
            )
        if not self.about.get("weights"):
            return f"the cache does not say which weights made its {self.stream} rows"
        return ""


def read_media(cache: TokenCache, stream: str) -> Media:
    """Read a stream of features.

    Raises:
        CacheError: The stream is not there, or holds signal instead of features.
    """
    if stream not in cache.streams:
        raise CacheError(
            f"the cache has no {stream}", hint=f"it holds: {', '.join(cache.streams)}",
            code="cache.stream",
        )  # fmt: skip
    about = cache.metadata.get(f"tokpipe.encoder.{stream}") or {}
    if "stage" not in about:
        raise CacheError(
            f"the {stream} of the cache is signal, the model takes features",
            hint=f"tokpipe encode FILE --encoder {'hf_vision' if stream == 'video' else 'hf_audio'}"
            ":MODEL --stage post_projector", code="cache.domain",
        )  # fmt: skip
    rows = cache.tokens(stream=stream)[stream].to_tokens()
    times, step = torch.unique(rows.at, return_inverse=True)
    deep = [f"deepstack_{k + 1}" for k in range(int(about.get("deepstack", 0) or 0))]
    grid = about.get("grid")
    counts = (cache.metadata.get("tokpipe.counts") or {}).get(stream) or {}
    return Media(
        stream=stream, data=rows.data, deepstack=tuple(rows.extras[name] for name in deep),
        at=rows.at, step=step, cell=rows.cell.long(), extent=rows.extent.long(),
        tile=rows.tile.long(), kind=rows.kind, mass=rows.mass, times=times,
        grid=None if not grid else (int(grid[0]), int(grid[1])), about=about, layout=cache.layout,
        source=round(float(counts.get("source") or 0)),
    )  # fmt: skip
