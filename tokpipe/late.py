"""Late encoding: which tokens of a tower are live, given the cells of the signal that were kept.

A token is live at t if at least half of its box lies in cells kept at t (cells held over from
earlier do not count). It takes the times of the kept cells it touches.

Letters: F pictures, n tokens of one picture, R x C cells of the signal.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tokpipe.encode._tower import Places
from tokpipe.spec import KIND_NEWLINE

#: Part of a token's box that must lie in kept cells.
HALF = 0.5


@dataclass(frozen=True, slots=True)
class Coverage:
    """How the boxes of n tokens lie on R x C cells.

    Attributes:
        part: float64 [n, R * C], part of each token's box that each cell covers.
        newline: bool [n]. Newline rows are live wherever any token of their picture is.
    """

    part: Tensor
    newline: Tensor

    @staticmethod
    def of(places: Places, rows: int, cols: int) -> Coverage:
        """Measure the overlap of every box with every cell."""
        y = _overlap(places.box[:, 0], places.box[:, 2], rows)
        x = _overlap(places.box[:, 1], places.box[:, 3], cols)
        part = (y[:, :, None] * x[:, None, :]).flatten(1)
        return Coverage(part, places.kind == KIND_NEWLINE)

    def live(self, kept: Tensor) -> Tensor:
        """Live tokens bool [F, n] of kept cells bool [F, R, C]."""
        covered = kept.flatten(1).double() @ self.part.T
        # Sums of a few fractions: half a box is half a box whatever the rounding.
        live = covered >= HALF - 1e-9
        live[:, self.newline] = live.any(1, keepdim=True)
        return live

    def hull(self, kept: Tensor, start: Tensor, stop: Tensor) -> Tensor:
        """First start and last stop [n, 2] over the kept cells that each token touches.

        Args:
            kept: bool [R, C] of one picture; ``start`` and ``stop`` [R, C] of its cells.
        """
        touched = (self.part > 0) & kept.flatten()
        touched[self.newline] = kept.flatten()
        top = torch.finfo if start.is_floating_point() else torch.iinfo
        low = torch.where(touched, start.flatten(), top(start.dtype).max).amin(1)
        high = torch.where(touched, stop.flatten(), top(stop.dtype).min).amax(1)
        return torch.stack([low, high], 1)


def _overlap(low: Tensor, high: Tensor, parts: int) -> Tensor:
    """Part [n, parts] of each interval that lies in each of ``parts`` equal parts of 0..1."""
    edges = torch.linspace(0, 1, parts + 1, dtype=torch.float64)
    shared = torch.minimum(high[:, None], edges[1:]) - torch.maximum(low[:, None], edges[:-1])
    return shared.clamp(min=0) / (high - low)[:, None].clamp(min=1e-12)


@dataclass(frozen=True, slots=True)
class Survivors:
    """Pictures to encode, and the cells of each that were kept.

    Attributes:
        step: int64 [F], number of each picture in its source, rising.
        at, stop: float64 [F], seconds each picture begins, and the next one.
        index: int64 [F], rank of the frame, -1 unknown.
        grid: R and C.
        first: int64 [F + 1], where each picture's rows start in the columns below; None: every
            cell of every picture was kept, and stands for its own picture alone.
        cell: int64 [M], number of each kept cell in its picture.
        pts, frame: [M, 2], what each kept cell stands for.
    """

    step: Tensor
    at: Tensor
    stop: Tensor
    index: Tensor
    grid: tuple[int, int]
    first: Tensor | None = None
    cell: Tensor | None = None
    pts: Tensor | None = None
    frame: Tensor | None = None

    def __len__(self) -> int:
        """Return F."""
        return int(self.step.shape[0])

    def take(self, index: Tensor) -> Survivors:
        """Pictures ``index`` int64 [F'], rising, with their rows."""
        own = (self.step[index], self.at[index], self.stop[index], self.index[index], self.grid)
        if self.first is None or self.cell is None or self.pts is None or self.frame is None:
            return Survivors(*own)
        count = (self.first[1:] - self.first[:-1])[index]
        first = torch.zeros(len(index) + 1, dtype=torch.int64)
        torch.cumsum(count, 0, out=first[1:])
        rows = torch.arange(int(first[-1])) - first[:-1].repeat_interleave(count)
        rows += self.first[index].repeat_interleave(count)
        return Survivors(*own, first, self.cell[rows], self.pts[rows], self.frame[rows])

    def complete(self) -> Survivors:
        """Pictures that show every cell, of this time or held over, as whole ones.

        Each lasts until the next picture. A cell that is first kept later is not known yet, so that
        pictures before it are left out.
        """
        if self.first is None or self.cell is None:
            return self
        newest = torch.full((self.grid[0] * self.grid[1],), len(self), dtype=torch.int64)
        picture = torch.arange(len(self)).repeat_interleave(self.first[1:] - self.first[:-1])
        newest = newest.scatter_reduce(0, self.cell, picture, "amin")
        since = int(newest.max()) if len(self) else 0
        stop = torch.cat([self.at[1:], self.stop[-1:]])
        all_of = slice(since, None)
        return Survivors(
            self.step[all_of], self.at[all_of], stop[all_of], self.index[all_of], self.grid
        )

    def kept(self, a: int, b: int) -> Tensor:
        """Kept cells bool [b - a, R, C] of pictures ``a:b``."""
        if self.first is None or self.cell is None:
            return torch.ones(b - a, *self.grid, dtype=torch.bool)
        mask = torch.zeros(b - a, self.grid[0] * self.grid[1], dtype=torch.bool)
        rows = slice(int(self.first[a]), int(self.first[b]))
        count = self.first[a + 1 : b + 1] - self.first[a:b]
        mask[torch.arange(b - a).repeat_interleave(count), self.cell[rows]] = True
        return mask.reshape(b - a, *self.grid)

    def spans(self, coverage: Coverage, a: int, b: int) -> tuple[Tensor, Tensor]:
        """Times float64 [b - a, n, 2] and frames int64 [b - a, n, 2] of all tokens of ``a:b``."""
        n = coverage.part.shape[0]
        if self.first is None or self.cell is None or self.pts is None or self.frame is None:
            times = torch.stack([self.at[a:b], self.stop[a:b]], 1)
            ranks = torch.stack([self.index[a:b]] * 2, 1)
            return times[:, None].expand(-1, n, 2), ranks[:, None].expand(-1, n, 2)
        hulls: tuple[list[Tensor], list[Tensor]] = ([], [])
        mask = self.kept(a, b)
        for i in range(a, b):
            rows = slice(int(self.first[i]), int(self.first[i + 1]))
            for column, out in zip((self.pts, self.frame), hulls, strict=True):
                sides = column.new_zeros(2, self.grid[0] * self.grid[1])
                sides[:, self.cell[rows]] = column[rows].T
                start, stop = sides.reshape(2, *self.grid)
                out.append(coverage.hull(mask[i - a], start, stop))
        return torch.stack(hulls[0]), torch.stack(hulls[1])
