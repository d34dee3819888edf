"""Cosines of all pairs within frames: kept where they are few, made again block by block.

Letters: T frames, C tokens of a frame, D width.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from tokpipe.compress._neighbors import (
    inverse_lengths,
    most_alike,
    products,
    row_lengths,
)

#: Most pairs whose cosines are kept (64 MB in float32); more are made again, pass by pass.
DENSE = 1 << 24
#: Most elements of one block that is made again (32 MB in float32).
_BLOCK = 1 << 23


class Cosines:
    """Cosines of the tokens of T frames of one size, each with those of its own frame.

    A zero row has cosine 0 with everything, itself too. Up to ``DENSE`` pairs are kept; of more,
    nothing of size C x C or C x D is ever held, whatever C: rows are scaled after the
    product. Blocks depend on sizes alone, so results are repeatable.

    Attributes:
        data: float [T, C, D].
        shape: T and C.
        dense: float32 [T, C, C] where it is kept, else None.
    """

    def __init__(self, data: Tensor, *, pairs: int = DENSE) -> None:
        """Measure ``data`` float [T, C, D]; up to ``pairs`` pairs multiply all and keep them."""
        self.data = data
        self.shape = data.shape[0], data.shape[1]
        self._inverse = inverse_lengths(data)
        self.dense: Tensor | None = None
        if self.shape[0] * self.shape[1] ** 2 <= pairs:
            self.dense = self._all()

    def length(self) -> Tensor:
        """Length of each token, float32 [T, C]."""
        return row_lengths(self.data)

    def ranges(self, width: int | None = None) -> Iterator[tuple[int, int]]:
        """Half-open ranges of rows that together make a block; ``width`` columns, default C."""
        steps, size = self.shape
        limit = DENSE if self.dense is not None else _BLOCK
        # One row more than fits: see ``_neighbors.blocks``.
        step = 1 + limit // max(1, steps * (width or size))
        for start in range(0, size, step):
            yield start, min(size, start + step)

    def blocks(self, *, own: bool = False) -> Iterator[tuple[int, int, Tensor]]:
        """Ranges a, b and the rows [T, b - a, C] in order; may be written to if ``own``.

        A block that is let go before the next is asked for is never held beside it.
        """
        for a, b in self.ranges():
            if own and self.dense is not None:
                yield a, b, self.dense[:, a:b].clone()
            else:
                yield a, b, self.part(a, b)

    def part(self, a: int, b: int) -> Tensor:
        """Rows a .. b of every frame, [T, b - a, C]; a caller may not write to them."""
        if self.dense is not None:
            return self.dense[:, a:b]
        return self._product(self.data[:, a:b].float(), self._inverse[:, a:b])

    def rows(self, index: Tensor, columns: tuple[int, int] | None = None) -> Tensor:
        """Rows ``index`` int64 [T, R] of each frame, a copy [T, R, C], or columns a .. b."""
        frame = torch.arange(self.shape[0], device=index.device)[:, None]
        a, b = columns or (0, self.shape[1])
        if self.dense is not None:
            return self.dense[frame, index, a:b]
        left, scale = self.data[frame, index].float(), self._inverse[frame, index]
        made = products(left.mul_(scale[..., None]), self.data[:, a:b])
        return made.mul_(self._inverse[:, None, a:b])

    def unit_sum(self) -> Tensor:
        """Sum float64 [T, D] of the unit rows of each frame."""
        total = self.data.new_zeros((self.shape[0], self.data.shape[2]), dtype=torch.float64)
        for a, b in self.ranges(self.data.shape[2]):
            part = self._inverse[:, None, a:b] @ self.data[:, a:b].float()
            total += part[:, 0].double()
        return total

    def to(self, vectors: Tensor) -> Tensor:
        """Cosines [T, R, C] of other vectors float32 [T, R, D] with the tokens."""
        length = torch.linalg.vector_norm(vectors, dim=2).clamp(min=1e-12)
        return self._product(vectors, 1 / length)

    def _product(self, left: Tensor, scale: Tensor) -> Tensor:
        made = products(left * scale[..., None], self.data)
        return made.mul_(self._inverse[:, None])

    def _all(self) -> Tensor:
        """Cosines [T, C, C], some frames at a time where their unit rows would be many."""
        steps, size = self.shape
        step = max(1, _BLOCK // max(1, size * self.data.shape[2]))
        if steps <= step:
            unit = self.data * self._inverse[..., None]
            return unit @ unit.mT
        out = torch.empty((steps, size, size), device=self.data.device)
        for t in range(0, steps, step):
            unit = self.data[t : t + step] * self._inverse[t : t + step, :, None]
            torch.bmm(unit, unit.mT, out=out[t : t + step])
        return out


def nearest_other(cosines: Cosines) -> Tensor:
    """Largest cosine [T, C] of each token with another of its frame, -inf where there is none."""
    out = torch.empty(cosines.shape, device=cosines.data.device)
    for a, b, block in cosines.blocks(own=True):
        block.diagonal(offset=a, dim1=1, dim2=2).fill_(-torch.inf)
        out[:, a:b] = block.amax(2)
        del block
    return out


def nearest_of(cosines: Cosines, member: Tensor) -> tuple[Tensor, Tensor]:
    """Which of the tokens ``member`` bool [T, C] resembles each token most.

    Returns:
        (cosine float32 [T, C], index int64 [T, C]); ties go to the lower index. Every frame has
        at least one member.
    """
    value = torch.empty(cosines.shape, device=member.device)
    index = torch.empty(cosines.shape, dtype=torch.int64, device=member.device)
    if cosines.dense is None and cosines.shape[0] == 1:
        # Of one large frame the members' columns are enough.
        listed, every = torch.nonzero(member[0]).flatten(), torch.arange(member.shape[1])
        best, which = most_alike(cosines.data[0], every.to(listed.device), listed)
        return best[None], listed[which][None]
    barred = torch.where(member, 0.0, -torch.inf)[:, None]
    for a, b, block in cosines.blocks():
        found = (block + barred).max(2)
        value[:, a:b], index[:, a:b] = found.values, found.indices
    return value, index
