"""The video side of a tower: the signal says which pictures survive, these alone are encoded."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from tokpipe.budget import Supply
from tokpipe.cache.bank import Bank
from tokpipe.chain import Chain
from tokpipe.decide._feed import CellFeed, TowerFeed
from tokpipe.decide._stream import through_all
from tokpipe.decide._video import VideoSide, complete, frame_range
from tokpipe.encode._tower import Places
from tokpipe.errors import UnsupportedMedia
from tokpipe.late import Coverage, Survivors
from tokpipe.spec import KIND_POOLED, Layout
from tokpipe.tensors import Query, TokenBatch
from tokpipe.towers import PictureFeatures

#: Live tokens encoded for each token of the budget, so that the rules have a choice, while that
#: takes no more than a quarter of the pictures.
_CHOICE, _QUARTER = 2, 4


@dataclass(slots=True, kw_only=True)
class LateVideo:
    """What the engine asks of a side, for a chain with a tower; one window at a time.

    Attributes:
        supply: What the window offers; set by :meth:`window`.
        frames: Sampled frames in the window.
        source: Their candidates: tokens of whole pictures that are not padding.
        settled: Rows the window will give; set by :meth:`settle`.
        pooled: Candidates the pool could hold of them, None where it held all.
        scale: Towers have one grid.
    """

    bank: Bank
    chain: Chain
    features: PictureFeatures
    budgeted: bool
    pool: int | None
    device: str
    query: Query | None = None
    supply: Supply = field(default_factory=Supply)
    frames: int = 0
    source: int = 0
    settled: int = 0
    pooled: int | None = None
    first: int = 0
    last: int = 0
    _inner: VideoSide | None = None
    scale: int = 1

    def window(self, start: float, stop: float | None) -> None:
        """Count the frames with ``start`` <= pts < ``stop`` and what they offer."""
        feed = CellFeed(self.bank)
        self.first, self.last = frame_range(feed, start, stop)
        self.frames, self._inner, self.pooled = self.last - self.first, None, None
        self.source = self.frames * self.each
        if self.frames and not self.each:
            raise UnsupportedMedia(
                "no token of this encoder lies half on so long and narrow a picture",
                hint="use --fit squash",
            )
        self.supply = Supply(self.source, self.source)

    @property
    def each(self) -> int:
        """Candidates of one picture."""
        rows, cols = self.bank.meta["grid"][:2]
        return each_picture(self.features.places, (rows, cols))

    def settle(self, budget: int | None, layout: Layout, each: int | None) -> None:
        """Choose the pictures, encode what survives of them, and let the rules meet the budget."""
        survivors = self._survivors(budget, each)
        if layout != "ragged" and survivors.first is not None:
            # Whole pictures are what this layout says; the rules before only chose among them.
            whole = every_picture(CellFeed(self.bank), self.first, self.last)
            survivors = whole.take(survivors.step - self.first)
        self.settled = 0
        if not len(survivors) or budget == 0:
            return
        coverage = Coverage.of(self.features.places, *survivors.grid)
        feed = TowerFeed(survivors, coverage, self.features)
        late = self.chain.late
        assert late is not None  # noqa: S101 - only chains with a tower come here
        self._inner = VideoSide(
            feed, late, limit=self.source if self.budgeted else None, pool=self.pool,
            device=self.device, query=self.query,
        )  # fmt: skip
        self._inner.window(0, None)
        if budget is not None:
            budget = min(budget, self._inner.supply.total)
        self._inner.settle(budget, layout, each)
        self.settled, self.pooled = self._inner.settled, self._inner.pooled

    def rows(self) -> tuple[TokenBatch, Tensor]:
        """Kept rows in the cache's order, and their priority float64 [K] in (0, 1)."""
        if self._inner is None:
            none = torch.zeros(0, dtype=torch.float64)
            return TokenBatch.build(torch.zeros(0, self.features.outline.dim), none), none
        return self._inner.rows()

    def _survivors(self, budget: int | None, each: int | None) -> Survivors:
        """What the chain before the tower lets survive, for a budget of tokens."""
        feed, signal = CellFeed(self.bank), self.chain
        if not signal.reducers:
            return every_picture(feed, self.first, self.last)
        if budget is not None and hasattr(signal.reducers[-1], "settle"):
            whole = every_picture(feed, self.first, self.last)
            if each is not None or not self.frames:
                return whole
            stride = self._stride(budget)
            return whole if stride == 1 else whole.take(self._scouted(feed, stride))
        side = VideoSide(feed, signal, limit=None, pool=self.pool, device=self.device)
        side.look(self.first, self.last)
        side.settle(None, "ragged", None)
        return survivors_of(side.rows()[0], feed.grid)

    def _stride(self, budget: int) -> int:
        """Every how many pictures one is encoded: a power of two, so that budgets share them."""
        each = self._left_of_one() if self.features.merges else self.each
        least = -(-budget // each)
        most = max(least, min(self.frames // _QUARTER, _CHOICE * least))
        stride = 1 << max(0, (self.frames // max(1, least)).bit_length() - 1)
        while stride > 1 and (
            self.frames // stride < least or self.frames // (stride // 2) <= most
        ):
            stride //= 2
        return stride

    def _left_of_one(self) -> int:
        """Tokens a rule inside the tower leaves of a picture: one is encoded to see."""
        middle = (self.first + self.last) // 2
        one = every_picture(CellFeed(self.bank), middle, middle + 1)
        coverage = Coverage.of(self.features.places, *one.grid)
        return max(1, len(TowerFeed(one, coverage, self.features).tokens(0, 1)))

    def _scouted(self, feed: CellFeed, stride: int) -> Tensor:
        """Of each ``stride`` pictures the one with most that is new; ties go to the later.

        It is found by playing neighbours against each other, then the winners, so that a wider
        stride keeps some of the pictures of a narrower one: another budget encodes few anew.
        """
        scorers, _ = complete(self.chain, budgeted=True)
        blocks = (
            feed.tokens(a, min(a + feed.block, self.last))
            for a in range(self.first, self.last, feed.block)
        )
        novel = torch.zeros(self.frames, dtype=torch.int64)
        for block in through_all(iter(blocks), scorers):
            novel.index_add_(0, block.cell[:, 0].long() - self.first, (block.score >= 1).long())
        chosen = torch.arange(self.frames)
        while stride > 1:
            pairs = chosen[: len(chosen) // 2 * 2].reshape(-1, 2)
            later = novel[pairs[:, 1]] >= novel[pairs[:, 0]]
            chosen = torch.where(later, pairs[:, 1], pairs[:, 0])
            stride //= 2
        return chosen


def each_picture(places: Places, grid: tuple[int, int]) -> int:
    """Tokens of a whole picture that are live, which leaves out padding."""
    whole = torch.ones(1, *grid, dtype=torch.bool)
    return int(Coverage.of(places, *grid).live(whole).sum())


def every_picture(feed: CellFeed, first: int, last: int) -> Survivors:
    """All cells of all pictures ``first:last``."""
    if last <= first:
        none = torch.zeros(0, dtype=torch.float64)
        return Survivors(none.long(), none, none, none.long(), feed.grid)
    start, stop, index = feed.spans(first, last)
    return Survivors(torch.arange(first, last), start, stop, index, feed.grid)


def survivors_of(rows: TokenBatch, grid: tuple[int, int]) -> Survivors:
    """Pictures and cells of kept rows of the signal, which come in the cache's order.

    The number of a picture is the ``t`` of its cells. A pooled row covers all the cells of its
    ``extent``; any other row its own cell.
    """
    high = torch.where(rows.kind == KIND_POOLED, rows.extent[:, 1], 1).clamp(min=1)
    wide = torch.where(rows.kind == KIND_POOLED, rows.extent[:, 2], 1).clamp(min=1)
    size = (high * wide).long()
    row = torch.arange(len(rows)).repeat_interleave(size)
    within = torch.arange(len(row)) - (size.cumsum(0) - size)[row]
    y = rows.cell[row, 1] + within // wide[row]
    x = rows.cell[row, 2] + within % wide[row]
    inside = (y < grid[0]) & (x < grid[1])
    row, cell = row[inside], (y * grid[1] + x)[inside].long()
    step, place, count = torch.unique_consecutive(
        rows.cell[row, 0].long(), return_inverse=True, return_counts=True
    )
    first = torch.zeros(len(step) + 1, dtype=torch.int64)
    torch.cumsum(count, 0, out=first[1:])
    lead = row[first[:-1]]
    stop = torch.zeros(len(step), dtype=torch.float64)
    stop = stop.scatter_reduce(0, place, rows.pts[row, 1], "amax", include_self=False)
    return Survivors(
        step, rows.at[lead], stop, rows.frame[lead, 0], grid,
        first, cell, rows.pts[row], rows.frame[row],
    )  # fmt: skip
