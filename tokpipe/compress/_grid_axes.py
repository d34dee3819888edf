"""Matrices along one axis of a grid, and the maps of whole frames that are made of them.

Letters: n positions before, m after; T frames, R x C cells of a frame.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tokpipe.frames import stacked, whole_grids
from tokpipe.grid import regular_shape
from tokpipe.maps import GridMap, TokenMap
from tokpipe.tensors import TokenBatch

#: Coefficients of a transform below this are rounding, not weight.
_DUST = 1e-7


@dataclass(frozen=True, slots=True)
class Grids:
    """Whole frames of one grid.

    Attributes:
        steps: T, 0 or more.
        rows, cols: Cells of a frame.
        device: Where the tokens live.
    """

    steps: int
    rows: int
    cols: int
    device: torch.device

    @staticmethod
    def of(tokens: TokenBatch, operator: str) -> Grids:
        """The grids of a batch; no tokens are no frames of one cell.

        Raises:
            RecipeError: The tokens are not whole frames in raster order.
        """
        shape = whole_grids(tokens, operator) if len(tokens) else (0, 1, 1)
        return Grids(*shape, tokens.at.device)

    def __len__(self) -> int:
        """Return N."""
        return self.steps * self.rows * self.cols

    def within(self, rows: int, cols: int, budget: int | None) -> tuple[int, int, int]:
        """The largest (steps, a, b) with a <= rows, b <= cols within ``budget`` rows in all.

        Frames are averaged over time only where the budget is below one row for each.
        """
        if budget is None or self.steps * rows * cols <= budget:
            return self.steps, rows, cols
        steps = min(self.steps, budget)
        return (steps, *regular_shape(rows, cols, budget // steps))

    def keep(self) -> TokenMap:
        """Everything as it is."""
        return TokenMap.identity(len(self), self.device)

    def map(self, t: Tensor | None, y: Tensor | None, x: Tensor | None) -> GridMap:
        """The map of three axis matrices; None leaves an axis as it is."""
        sizes = (self.steps, self.rows, self.cols)
        axes = [torch.eye(n) if m is None else m for m, n in zip((t, y, x), sizes, strict=True)]
        return GridMap(**{k: m.to(self.device) for k, m in zip("tyx", axes, strict=True)})

    def averaged(self, steps: int, rows: int, cols: int) -> TokenMap | GridMap:
        """Adaptive averages to ``steps`` x ``rows`` x ``cols``; the identity where none shrinks."""
        if steps * rows * cols == len(self):
            return self.keep()
        axes = (
            GridMap.average(n, m) if n != m else None
            for n, m in zip((self.steps, self.rows, self.cols), (steps, rows, cols), strict=True)
        )
        return self.map(*axes)


def runs(size: int, stride: int) -> Tensor:
    """Matrix [ceil(n / stride), n] that averages runs of ``stride``; the last may be shorter."""
    group = torch.arange(size) // stride
    matrix = torch.nn.functional.one_hot(group).T.float()
    return matrix / matrix.sum(1, keepdim=True)


def floored(size: int, stride: int) -> Tensor:
    """Matrix [max(1, n // stride), n] that averages whole runs; a ragged rest is left out."""
    stride = min(stride, size)
    count = size // stride
    matrix = torch.zeros(count, size)
    matrix[:, : count * stride] = torch.eye(count).repeat_interleave(stride, 1) / stride
    return matrix


def bilinear(size: int, count: int) -> Tensor:
    """Matrix [m, n] of linear interpolation at the cells' middles, without antialiasing.

    Point i lies at (i + 1/2) n / m - 1/2, held at the ends.
    """
    at = ((torch.arange(count).double() + 0.5) * size / count - 0.5).clamp(0, size - 1)
    low = at.floor().long()
    part = at - low
    matrix = torch.zeros(count, size, dtype=torch.float64)
    rows = torch.arange(count)
    matrix[rows, low] = 1 - part
    matrix[rows, (low + 1).clamp(max=size - 1)] += part
    return _clean(matrix)


def dct(size: int) -> Tensor:
    """Orthonormal DCT-II [n, n], float64: row k holds the k-th cosine."""
    place = torch.arange(size, dtype=torch.float64)
    matrix = torch.cos(math.pi / size * (place + 0.5)[None, :] * place[:, None])
    matrix *= math.sqrt(2 / size)
    matrix[0] /= math.sqrt(2)
    return matrix


def low_pass(size: int, count: int, *, scaled: bool) -> Tensor:
    """Matrix [m, n]: keep the m lowest frequencies and go back on m points.

    Args:
        size: n.
        count: m, at most n.
        scaled: Divide by sqrt(n / m), so that a constant stays what it is.
    """
    matrix = dct(count).T @ dct(size)[:count]
    return _clean(matrix / math.sqrt(size / count) if scaled else matrix)


def _clean(matrix: Tensor) -> Tensor:
    return torch.where(matrix.abs() < _DUST, 0.0, matrix).float()


def together(maps: list[TokenMap], num_sources: int, device: torch.device) -> TokenMap:
    """Rows of several maps of the same tokens; a source in several maps splits its share evenly."""
    both = stacked(maps, num_sources, device)
    total = torch.zeros(num_sources, device=device).index_add_(0, both.src, both.share)
    return replace(both, share=both.share / total[both.src].clamp(min=1e-30))


def in_order(decision: TokenMap, order: Tensor) -> TokenMap:
    """The rows of a map in another order, int64 [K]."""
    row = torch.empty_like(order)
    row[order] = torch.arange(order.shape[0], device=order.device)
    return replace(
        decision,
        dst=row[decision.dst],
        anchor=decision.anchor[order],
        score=None if decision.score is None else decision.score[order],
        kind=None if decision.kind is None else decision.kind[order],
    )
