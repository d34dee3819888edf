"""What lies between the rows of a tower of one size and the tokens: a projector, often pooling.

Letters: B tiles, g patches on a side of a tile, P = g^2 of them, n tokens, D width.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

Rows = Callable[[Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class Pool:
    """Rows of all patches of a tile to fewer.

    Attributes:
        side: g.
        before: Rows are pooled before the projector, else after it.
        rows: The model's own pooling, [B, P, D] to [B, n, D].
        columns: The same of columns [B, P, ...], as means.
    """

    side: int
    before: bool
    rows: Rows
    columns: Rows

    def needed(self, live: Tensor) -> Tensor:
        """Patches bool [P] that the live tokens [n] are made of."""
        return self.members().to(live.device)[live].any(0)

    def members(self) -> Tensor:
        """Patches bool [n, P] that each token of a tile is made of."""
        made: Tensor = self.columns(torch.eye(self.side**2)[None])[0] > 0
        return made


@dataclass(frozen=True, kw_only=True)
class Head:
    """Projector and pooling.

    Attributes:
        project: Rows [..., D] to tokens, row by row.
        pool: None where every row becomes a token.
    """

    project: nn.Module
    pool: Pool | None = None

    def tokens(self, rows: Tensor) -> Tensor:
        """Tokens [B, n, D'] of whole tiles, from rows [B, m, s^2 D] of patches or their groups."""
        if self.pool is None:
            made: Tensor = self.project(rows)
        elif self.pool.before:
            made = self.project(self.pool.rows(rows))
        else:
            made = self.pool.rows(self.project(rows))
        return made

    def kept(self, rows: Tensor, groups: Tensor, live: Tensor) -> Tensor:
        """Tokens ``live`` bool [n] of a tile, from rows [1, ...] of the groups bool [m] alone."""
        if self.pool is None:
            made: Tensor = self.project(rows)
        elif self.pool.before:
            # Live ones are taken last: how a product rounds depends on the layout in memory.
            made = self.project(self.pool.rows(spread(rows, groups)))[:, live]
        else:
            made = self.pool.rows(spread(self.project(rows), groups))[:, live]
        return made


def spread(values: Tensor, groups: Tensor) -> Tensor:
    """Values [1, k, ...] of the groups bool [m] at their places in [1, m, ...], zeros elsewhere."""
    whole = values.new_zeros(1, len(groups), *values.shape[2:])
    whole[:, groups] = values
    return whole


def halved(side: int) -> Pool:
    """The grid interpolated to half its side after the projector, as LLaVA-OneVision does."""

    def rows(values: Tensor) -> Tensor:
        flat = values.flatten(2) if values.ndim > 2 else values[..., None]
        grid = flat.reshape(len(flat), side, side, -1).permute(0, 3, 1, 2).contiguous()
        half = math.ceil(side / 2)
        made = interpolate(grid, size=(half, half), mode="bilinear").permute(0, 2, 3, 1)
        return made.reshape(len(values), half * half, *values.shape[2:])

    return Pool(side=side, before=False, rows=rows, columns=rows)


def windows(side: int, kernel: int, rows: Rows) -> Pool:
    """Windows of kernel x kernel patches before the projector; a rest of the grid is left out.

    Args:
        rows: What the model does with them.
    """
    made = side // kernel

    def columns(values: Tensor) -> Tensor:
        grid = values.reshape(len(values), side, side, *values.shape[2:])
        used = grid[:, : made * kernel, : made * kernel]
        cut = used.reshape(len(values), made, kernel, made, kernel, *values.shape[2:])
        means = cut.float().mean((2, 4)).to(values.dtype)
        return means.reshape(len(values), made * made, *values.shape[2:])

    return Pool(side=side, before=True, rows=rows, columns=columns)
