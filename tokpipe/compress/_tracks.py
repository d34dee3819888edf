"""Tokens that show one place of the picture at different times, and who repeats whom.

A track holds the tokens of one place (tile, row, column) in time order. Letters: N M tokens,
K rows kept, T frames, C tokens of a frame, D width.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from tokpipe.maps import TokenMap
from tokpipe.tensors import TokenBatch

#: Similarity of a token that has nothing to be compared with: below every cosine.
NOTHING = -2.0
#: Elements of one block of rows gathered for comparison (4 MB in float32).
_BLOCK = 1 << 20
#: Bits of each coordinate in the number of a place.
_BITS = 20


@dataclass(frozen=True, slots=True)
class Tracks:
    """The tracks of N tokens, end to end.

    Attributes:
        order: int64 [N] tokens track after track, in time order within each.
        start: int64 [N] for each entry of ``order``, where its track begins.
        frame: int64 [N] frame of each token, 0 .. T - 1 in time order.
        counts: int64 [T] tokens of each frame.
        size: C where the tokens come frame after frame of the same C places, else None.
    """

    order: Tensor
    start: Tensor
    frame: Tensor
    counts: Tensor
    size: int | None

    @staticmethod
    def of(tokens: TokenBatch) -> Tracks:
        """Tracks of any tokens; frames may hold different places.

        Tokens without a cell are told apart by their rank in the frame.
        """
        at, n = tokens.at, len(tokens)
        in_time = bool((at[1:] >= at[:-1]).all())
        if in_time:
            begins = torch.ones(n, dtype=torch.bool, device=at.device)
            begins[1:] = at[1:] != at[:-1]
            frame = begins.cumsum(0) - 1
            counts = torch.bincount(frame)
        else:
            _, frame, counts = torch.unique(at, return_inverse=True, return_counts=True)
        key = places(tokens, frame)
        order, start = by_place(key, None if in_time else frame)
        return Tracks(order, start, frame, counts, _size(key, counts) if in_time else None)

    def previous(self) -> Tensor:
        """The token before each in its track, int64 [N], -1 none."""
        rank = torch.arange(self.order.shape[0], device=self.order.device)
        later = rank > self.start
        out = torch.full_like(rank, -1)
        out[self.order[later]] = self.order[rank[later] - 1]
        return out

    def latest(self, mask: Tensor) -> Tensor:
        """The latest token of ``mask`` bool [N] at or before each in its track, -1 none."""
        return latest(self.order, self.start, mask)

    def earliest(self, mask: Tensor) -> Tensor:
        """The first token of ``mask`` bool [N] at or after each in its track, -1 none."""
        n = self.order.shape[0]
        rank = torch.arange(n, device=self.order.device)
        ahead = torch.where(mask[self.order], rank, n).flip(0)
        next_ = torch.cummin(ahead, 0).values.flip(0).clamp(max=n - 1)
        right = mask[self.order[next_]] & (self.start[next_] == self.start) & (next_ >= rank)
        out = torch.empty_like(rank)
        out[self.order] = torch.where(right, self.order[next_], -1)
        return out

    def reference(self, frame: Tensor) -> Tensor:
        """The token of each one's track in another frame, int64 [N], -1 none.

        Args:
            frame: int64 [T] the earlier frame each frame is compared with, itself for none.
        """
        own = torch.arange(frame.shape[0], device=frame.device)
        used = torch.zeros_like(own, dtype=torch.bool)
        used[frame[frame != own]] = True
        found = self.latest(used[self.frame])
        # A reference frame that is itself compared looks past its own tokens.
        before = self.previous()
        while bool((late := (found >= 0) & (self.frame[found] > frame[self.frame])).any()):
            step = before[found]
            found = torch.where(late, step, found)
        right = (found >= 0) & (self.frame[found] == frame[self.frame])
        return torch.where(right & (frame != own)[self.frame], found, -1)


def places(tokens: TokenBatch, frame: Tensor) -> Tensor:
    """A number int64 [N] for the place of each token: tile, row and column."""
    cell = tokens.cell.long()
    key = (tokens.tile.long() << 2 * _BITS) | (cell[:, 1] << _BITS) | cell[:, 2]
    missing = (cell[:, 1] < 0) | (cell[:, 2] < 0)
    if bool(missing.any()):
        order = torch.argsort(frame, stable=True)
        starts = torch.searchsorted(frame[order].contiguous(), frame)
        rank = torch.empty_like(order)
        rank[order] = torch.arange(len(tokens), device=order.device)
        key = torch.where(missing, -1 - (rank - starts), key)
    return key


def by_place(key: Tensor, frame: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Order int64 [N] track after track, and where the track of each entry begins.

    Args:
        key: int64 [N] place of each token.
        frame: int64 [N] where the tokens are not in time order.
    """
    if frame is None:
        order = torch.argsort(key, stable=True)
    else:
        order = torch.argsort(frame, stable=True)
        order = order[torch.argsort(key[order], stable=True)]
    place = key[order]
    return order, torch.searchsorted(place, place)


def latest(order: Tensor, start: Tensor, mask: Tensor) -> Tensor:
    """The latest token of ``mask`` bool [N] at or before each in its track, -1 none."""
    if not len(order):
        return order
    rank = torch.arange(order.shape[0], device=order.device)
    last = torch.cummax(torch.where(mask[order], rank, -1), 0).values
    out = torch.empty_like(order)
    out[order] = torch.where(last >= start, order[last.clamp(min=0)], -1)
    return out


def keep_first(
    keeper: Tensor, rows: Tensor, *, score: Tensor | None = None, lost: Tensor | None = None
) -> TokenMap:
    """The map where kept tokens stay as they are and stand for the repeats after them.

    Args:
        keeper: int64 [N] the kept token that stands for each, itself where kept, -1 dropped.
        rows: int64 [K] kept tokens in the order of the rows.
        score: float32 [N], handed on for the rows.
        lost: bool [N] tokens that nobody stands for, whatever ``keeper`` says.
    """
    number = torch.full_like(keeper, -1)
    number[rows] = torch.arange(rows.shape[0], device=rows.device)
    held = keeper >= 0 if lost is None else (keeper >= 0) & ~lost
    src = torch.nonzero(held).flatten()
    stand = keeper[src]
    return TokenMap(
        src=src, dst=number[stand], weight=(stand == src).float(),
        share=torch.ones(src.shape[0], device=src.device), anchor=rows,
        num_sources=keeper.shape[0], score=None if score is None else score[rows],
    )  # fmt: skip


def cosines(data: Tensor, other: Tensor, size: int | None = None) -> Tensor:
    """Cosine float32 [N] of each row of ``data`` [N, D] with row ``other`` int64 [N].

    ``NOTHING`` where ``other`` is -1; zero rows resemble nothing (0).

    Args:
        data: Rows of any floating type.
        other: Row to compare with.
        size: C where all rows of a frame look equally far back, frame after frame.
    """
    n, width = data.shape
    length = torch.linalg.vector_norm(data, dim=1, dtype=torch.float32).clamp(min=1e-12)
    out = torch.full((n,), NOTHING, device=data.device)
    for rows, there in _pairs(other, size, max(1, _BLOCK // max(1, width))):
        now, then = data[rows].float(), data[there].float()
        dot = (now * then).sum(1)
        out[rows] = dot / (length[rows] * length[there])
    return out


def _pairs(
    other: Tensor, size: int | None, step: int
) -> Iterator[tuple[slice | Tensor, slice | Tensor]]:
    """Rows to compare, block by block; slices where whole frames look back alike."""
    if size is not None:
        for t, there in enumerate(other[::size].tolist()):
            if there >= 0:
                yield slice(t * size, (t + 1) * size), slice(there, there + size)
        return
    rows = torch.nonzero(other >= 0).flatten()
    if len(rows) > 1 and bool((rows.diff() == 1).all() & (other[rows].diff() == 1).all()):
        a, b, back = int(rows[0]), int(rows[-1]) + 1, int(rows[0] - other[rows[0]])
        for start in range(a, b, step):
            stop = min(start + step, b)
            yield slice(start, stop), slice(start - back, stop - back)
        return
    for part in torch.split(rows, step):
        yield part, other[part]


def _size(key: Tensor, counts: Tensor) -> int | None:
    """C where the places of all frames are the same, in the same order."""
    if not len(counts) or not bool((counts == counts[0]).all()):
        return None
    size = int(counts[0])
    grid = key.reshape(-1, size)
    return size if bool((grid == grid[:1]).all()) else None


def highest(score: Tensor, count: int) -> Tensor:
    """Mask bool [N] of the ``count`` highest scores; ties go to the lower index."""
    mask = torch.zeros(score.shape[0], dtype=torch.bool, device=score.device)
    mask[torch.argsort(score, descending=True, stable=True)[: max(0, count)]] = True
    return mask


def lowest_of_each(score: Tensor, frame: Tensor, quota: Tensor) -> Tensor:
    """Mask bool [N] of the ``quota`` int64 [T] lowest scores of each frame; ties: lower index."""
    order = torch.argsort(score, stable=True)
    order = order[torch.argsort(frame[order], stable=True)]
    number = frame[order].contiguous()
    rank = torch.arange(order.shape[0], device=order.device)
    rank = rank - torch.searchsorted(number, number)
    mask = torch.zeros(score.shape[0], dtype=torch.bool, device=score.device)
    mask[order] = rank < quota[number]
    return mask
