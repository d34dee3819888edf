"""What selectors of whole streams share: the scores of a first pass, the maps of a second.

Ids count cells frame by frame from the first frame of the stream. In the first pass the best cells
are remembered; once the choice is settled, the second pass hands out the chosen cells, each with
the repeats it stands for.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from tokpipe.budget import Supply, largest_remainder
from tokpipe.compress._states import StateMapper, frame_slices
from tokpipe.grid import regular_shape, spans
from tokpipe.spec import KIND_POOLED
from tokpipe.tensors import TokenBatch, TokenMap

Ids = NDArray[np.int64]
#: A rectangle of cells: y, x, height, width.
Piece = tuple[int, int, int, int]
#: Candidates remembered beyond the limit before the worst are let go: sorting is rare then.
_SPARE = 1 << 15


@dataclass(slots=True)
class Choice:
    """State of both passes.

    Attributes:
        limit: Most cells ever wanted.
        frames, novel: Frames seen, and cells of them that score 1 or more.
        ids, scores: The best cells so far.
        chosen: Ids of the cells to keep, rising; ``ranks``: which go first when the budget shrinks
            (high ones).
        pieces: Rectangles that every kept frame is pooled into, none: cells stay as they are.
        coarse: The same for single frames, by their number.
    """

    limit: int
    rows: int
    cols: int
    frames: int = 0
    novel: int = 0
    ids: Ids = field(default_factory=lambda: np.zeros(0, np.int64))
    scores: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))
    chosen: Ids = field(default_factory=lambda: np.zeros(0, np.int64))
    ranks: Ids = field(default_factory=lambda: np.zeros(0, np.int64))
    pieces: list[Piece] = field(default_factory=list)
    coarse: dict[int, Ids] = field(default_factory=dict)
    first: int | None = None
    seen: int = 0
    mapper: StateMapper = field(default_factory=StateMapper)
    settled: torch.Tensor | None = None

    @property
    def cells(self) -> int:
        """Cells of a frame, C."""
        return self.rows * self.cols

    @property
    def total(self) -> int:
        """Cells seen."""
        return self.frames * self.cells

    @property
    def given(self) -> int:
        """Rows that will be given."""
        return self.counted()

    def counted(self) -> int:
        """Rows that the chosen cells make."""
        if self.pieces:
            return len(self.chosen) // self.cells * len(self.pieces)
        count = len(self.chosen)
        for number, owner in self.coarse.items():
            a, b = np.searchsorted(self.chosen, [number * self.cells, (number + 1) * self.cells])
            count -= b - a - len(np.unique(owner[self.chosen[a:b] - number * self.cells]))
        return int(count)

    def observe(self, tokens: TokenBatch) -> None:
        """Count, and remember the best ``limit`` cells by (score, lower id)."""
        score = torch.nan_to_num(tokens.score, nan=0.0).numpy()
        self.count(score, len(frame_slices(tokens)))

    def count(self, score: NDArray[np.float32], frames: int) -> None:
        """The same of scores float32 [N] of so many frames."""
        first = self.frames * self.cells
        self.novel += int((score >= 1).sum())
        self.frames += frames
        ids = np.concatenate([self.ids, first + np.arange(len(score))])
        scores = np.concatenate([self.scores, score])
        if len(ids) > 2 * max(self.limit, _SPARE):
            best = np.lexsort((ids, -scores))[: self.limit]
            ids, scores = ids[best], scores[best]
        self.ids, self.scores = ids, scores

    def supply(self) -> Supply:
        """Novel cells and all cells seen."""
        return Supply(self.novel, self.total)

    def by_change(self) -> Ids:
        """Remembered cells, those that change most first."""
        return self.ids[np.lexsort((self.ids, -self.scores))]

    def keep(self, picked: Ids) -> None:
        """Fix the choice: ``picked`` ids, the last of them given up first."""
        by_id = np.argsort(picked, kind="stable")
        self.chosen, self.ranks = picked[by_id], by_id.astype(np.int64)

    def push(self, carried: TokenBatch | None, new: TokenBatch) -> TokenMap:
        """Second pass: map over [carried; new]."""
        if self.first is None:
            self.first = int(new.cell[0, 0])
        count, start = len(new), self.seen
        self.seen += count
        a, b = np.searchsorted(self.chosen, [start, start + count])
        chosen = np.zeros(count, dtype=np.bool_)
        chosen[self.chosen[a:b] - start] = True
        novel = torch.nan_to_num(new.score, nan=0.0).numpy() >= 1
        shape = (count // self.cells, self.cells)
        tmap = self.mapper.push(
            len(carried) if carried is not None else 0, novel.reshape(shape), chosen.reshape(shape)
        )
        self.settled = self.mapper.settled
        return tmap

    def finish(self, carried: TokenBatch) -> TokenMap:
        """Drop what still waits."""
        tmap = self.mapper.finish(len(carried))
        self.settled = self.mapper.settled
        return tmap

    def conclude(self, kept: TokenBatch) -> TokenMap | None:
        """Map of the kept rows, in the cache's order, to reduced grids; None at the full one."""
        if not self.pieces and not self.coarse:
            return None
        step = kept.cell[:, 0].numpy() - (self.first or 0)
        place = kept.cell[:, 1].numpy() * self.cols + kept.cell[:, 2].numpy()
        whole = owners(self.pieces, self.rows, self.cols) if self.pieces else None
        owner = place.astype(np.int64)
        pooled = np.full(len(owner), whole is not None)
        if whole is not None:
            owner = whole[place]
        for number, own in self.coarse.items():
            mine = step == number
            owner[mine], pooled[mine] = own[place[mine]], True
        names, group = np.unique(step * self.cells + owner, return_inverse=True)
        tmap = TokenMap.mean(torch.from_numpy(group.reshape(-1)), len(names))
        kind = np.zeros(len(names), dtype=np.uint8)
        kind[group.reshape(-1)[pooled]] = KIND_POOLED
        return TokenMap(src=tmap.src, dst=tmap.dst, weight=tmap.weight, share=tmap.share,
                        anchor=tmap.anchor, num_sources=len(kept),
                        kind=torch.from_numpy(kind))  # fmt: skip

    def order(self, kept: TokenBatch) -> torch.Tensor:
        """Rank int64 [K] of each kept row: which to give up last when the budget shrinks."""
        if self.pieces:
            return torch.arange(len(kept))
        cell = kept.cell.long().numpy()
        ids = (cell[:, 0] - (self.first or 0)) * self.cells + cell[:, 1] * self.cols + cell[:, 2]
        ranks = self.ranks[np.searchsorted(self.chosen, ids)]
        return torch.from_numpy(np.argsort(np.argsort(ranks, kind="stable"), kind="stable"))


def owners(pieces: list[Piece], rows: int, cols: int) -> Ids:
    """Piece [rows * cols] that each cell lies in, in raster order."""
    owner = np.zeros((rows, cols), dtype=np.int64)
    for i, (y, x, h, w) in enumerate(pieces):
        owner[y : y + h, x : x + w] = i
    return owner.reshape(-1)


def regular_pieces(rows: int, cols: int, high: int, wide: int) -> list[Piece]:
    """Rectangles that cut a frame into ``high`` x ``wide``."""
    return [(y, x, b - y, d - x) for y, b in spans(rows, high) for x, d in spans(cols, wide)]


def settle_each(choice: Choice, budget: int, most: int) -> Ids:
    """Cells of a budget of at most ``most`` a frame: the same part of each, most changed first."""
    updates = choice.by_change()
    caps = [min(most, choice.cells)] * choice.frames
    quota = np.array(largest_remainder(budget, [1] * choice.frames, caps=caps))
    frame = updates // choice.cells
    # Place of each cell among those of its own frame, best first.
    by_frame = np.argsort(frame, kind="stable")
    begin = np.searchsorted(frame[by_frame], frame[by_frame])
    place = np.empty(len(updates), np.int64)
    place[by_frame] = np.arange(len(updates)) - begin
    keep = place < quota[frame]
    return updates[keep][np.argsort(place[keep], kind="stable")]


def settle_grid(choice: Choice, budget: int) -> Ids:
    """Frames at a smaller regular grid; sets the pieces they are pooled into.

    A quarter of the cells buys four times the moments; short media get finer grids.
    """
    quarter = regular_shape(choice.rows, choice.cols, max(1, min(budget, choice.cells // 4)))
    count = min(choice.frames, budget // (quarter[0] * quarter[1]))
    high, wide = regular_shape(choice.rows, choice.cols, min(choice.cells, budget // count))
    choice.pieces = regular_pieces(choice.rows, choice.cols, high, wide)
    return middles(choice.frames, count, choice.cells)


def settle_smaller(choice: Choice, budget: int, most: int) -> Ids:
    """Frames at the largest regular grid of at most ``most`` cells each."""
    high, wide = regular_shape(choice.rows, choice.cols, most)
    count = min(choice.frames, budget // (high * wide))
    if high * wide < choice.cells:
        choice.pieces = regular_pieces(choice.rows, choice.cols, high, wide)
    return middles(choice.frames, count, choice.cells)


def middles(frames: int, count: int, cells: int) -> Ids:
    """Ids of all cells of ``count`` frames at the middles of equal spans, coarse to fine."""
    count = min(count, frames)
    if count <= 0:
        return np.zeros(0, np.int64)
    middle = np.array([(2 * i + 1) * frames // (2 * count) for i in range(count)], dtype=np.int64)
    bits = max(1, (count - 1).bit_length())
    coarse = sorted(range(count), key=lambda i: (int(f"{i:0{bits}b}"[::-1], 2), i))
    return whole_frames(middle[coarse], cells)


def whole_frames(frames: Ids, cells: int) -> Ids:
    """Ids of all cells of frames, in the order given."""
    return (frames[:, None] * cells + np.arange(cells)).reshape(-1)
