"""The video side: candidates stream from a feed, the last reducer meets its part."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from tokpipe import registry
from tokpipe.budget import Supply
from tokpipe.chain import Chain, decides
from tokpipe.compress._fit import fit_chain, own_count
from tokpipe.compress._states import stands_for
from tokpipe.decide._feed import CellFeed, Feed
from tokpipe.decide._fine import finest, to_fine
from tokpipe.decide._stream import (
    by_frame,
    is_stream,
    meets_budget,
    priority_of,
    spread,
    through_all,
    through_stream,
    together,
)
from tokpipe.frames import allocate_frames
from tokpipe.recipe import build
from tokpipe.spec import Layout, StepSpec
from tokpipe.tensors import Query, TokenBatch

#: Tokens a reducer of video scope sees at least, and without a budget.
POOL, UNBOUNDED = 16384, 1 << 18
_SCORER, _SELECTOR = "temporal-drop", "coverage-updates"
#: What a chain of features gets that names no rule: the tokens that lie farthest apart.
_DIVERSE = StepSpec(use="max-min", params={"scope": "video"})


class VideoSide:
    """Runs a video chain's reducers, one window at a time.

    Attributes:
        supply: What the window offers; set by :meth:`window`.
        frames: Sampled frames in the window.
        source: Their candidates, also those that the chain removes for good.
        settled: Rows the window will give; set by :meth:`settle`.
        pooled: Candidates the pool could hold of them, None where it held all.
    """

    def __init__(
        self, feed: Feed, chain: Chain, *, limit: int | None, pool: int | None, device: str,
        query: Query | None = None, fine: bool = False,
    ) -> None:  # fmt: skip
        """Prepare.

        Args:
            limit: The most rows ever wanted of one window (None: no budget at all).
            fine: Pictures may be sent at finer grids than the video's.
        """
        self.fine = fine
        self.feed, self.limit, self.pool, self.device = feed, limit, pool, device
        self.chain, self.query = chain, query
        self.scorers, self.tail = complete(chain, budgeted=limit is not None)
        self.final: Any = self.tail[-1] if self.tail else None
        self.supply, self.frames, self.source, self.settled = Supply(), 0, 0, 0
        self.pooled: int | None = None
        self.first = self.last = 0
        self._state: Any = None
        self._made: TokenBatch | None = None

    def window(self, start: float, stop: float | None) -> None:
        """Look at the frames with ``start`` <= pts < ``stop`` and count what they offer."""
        self.look(*frame_range(self.feed, start, stop))

    def look(self, first: int, last: int) -> None:
        """Count what the frames ``first:last`` offer."""
        self.first, self.last = first, last
        self.frames, self._made, self.pooled = self.last - self.first, None, None
        self.source = total = self.feed.count(self.first, self.last)
        if hasattr(self.final, "settle"):
            limit = total if self.limit is None else min(total, self.limit)
            self._state = self.final.begin(limit, *self.feed.grid)
            if hasattr(self.final, "inform") and isinstance(self.feed, CellFeed):
                fps = getattr(self.chain.sampler, "fps", None)
                facts = self.feed.facts(self.first, self.last, fps)
                if not self.fine:
                    facts = replace(facts, finest=facts.finest[:0])
                self.final.inform(self._state, facts)
            if self._known:
                for a in range(self.first, self.last, self.feed.block):
                    self._glance(a, min(a + self.feed.block, self.last))
            else:
                for block in self._scored():
                    self.final.observe(self._state, block)
            self.supply = self.final.supply(self._state)
        elif any(self.chain.removes(r) for r in self.scorers):
            count = sum(len(block) for block in self._scored())
            self.supply = Supply(count, count)
        else:
            self.supply = Supply(total, total)

    def settle(self, budget: int | None, layout: Layout, each: int | None) -> None:
        """Fix how many rows the window gives: at most ``budget``, at most ``each`` of a frame."""
        if self._state is not None:
            budget = self.supply.total if budget is None else budget
            self.final.settle(self._state, budget, layout, each)
            self.settled = self._state.given
            return
        self._made = self._generic(budget, layout, each)
        self.settled = len(self._made)

    def rows(self) -> tuple[TokenBatch, torch.Tensor]:
        """Kept rows in the cache's order, and their priority float64 [K] in (0, 1): low stays."""
        if self._state is None:
            assert self._made is not None  # noqa: S101 - settle comes first
            made = self._made.sorted()
            return made, priority_of(made)
        made = self._kept()
        if len(made) and (pooled := self.final.conclude(self._state, made)) is not None:
            made = made.reduce(pooled).sorted()
        priority = spread(self.final.order(self._state, made))
        if hasattr(self.final, "scores"):
            made = made.with_columns(score=self.final.scores(self._state, made))
        times = self._finer()
        if times and isinstance(self.feed, CellFeed):
            return to_fine(made, priority, times, self.feed.bank)
        return made, priority

    @property
    def _known(self) -> bool:
        """The only score is in the bank, and the last rule needs no more of most cells."""
        return (
            isinstance(self.feed, CellFeed) and self.first == 0 and self.feed.known
            and [getattr(rule, "stored", None) for rule in self.scorers] == ["changes"]
            and hasattr(self.final, "glance")
        )  # fmt: skip

    def _glance(self, first: int, last: int) -> None:
        assert isinstance(self.feed, CellFeed)  # noqa: S101 - only where scores are known
        start, stop, _ = self.feed.spans(first, last)
        self.final.glance(self._state, self.feed.scores(first, last), (stop - start).numpy())

    def _kept(self) -> TokenBatch:
        """Rows of the chosen cells, in the cache's order."""
        if not (self._known and isinstance(self.feed, CellFeed)):
            parts = list(through_stream(self._scored(), self.final, self._state))
            return TokenBatch.cat(parts).sorted() if parts else self._empty()
        ids, self._state.first = self._state.chosen, 0
        if not len(ids):
            return self._empty()
        spans = stands_for(self.feed.scores, ids, self.last, self.feed.cells)
        return self.feed.standing(ids, *spans).sorted()

    @property
    def scale(self) -> int:
        """How many times finer than the video's grid the cells of :meth:`rows` are told."""
        return finest(self._finer())

    def _finer(self) -> dict[int, int]:
        """Sampled frames that are sent at finer grids, and how many times finer."""
        finer = getattr(self._state, "finer", None)
        if finer is None or not finer.times:
            return {}
        number = self._state.moments.number
        return {self.first + int(number[m]): times for m, times in finer.times.items()}

    def _scored(self) -> Iterator[TokenBatch]:
        return through_all(self._blocks(self.first, self.last), self.scorers)

    def _blocks(self, first: int, last: int) -> Iterator[TokenBatch]:
        for a in range(first, last, self.feed.block):
            yield self.feed.tokens(a, min(a + self.feed.block, last))

    def _empty(self) -> TokenBatch:
        return self.feed.empty()

    def _generic(self, budget: int | None, layout: Layout, each: int | None) -> TokenBatch:
        """Reducers that see a frame, or the pool, at once."""
        if budget == 0 or not self.frames:
            return self._empty()
        at_once = [r for r in self.tail if r.scope != "frame"]
        if budget is None and at_once and not (len(self.tail) == 1 and is_stream(self.final)):
            return self._fit(self._gather(None), None, exact=False)
        if budget is None:
            parts = [*through_all(self._scored(), self.tail)]
            return TokenBatch.cat(parts) if parts else self._empty()
        exact = layout == "ragged"
        if all(r.scope == "frame" for r in self.tail) or each is not None:
            counts = [len(frame) for frame in by_frame(self._scored())]
            caps = counts if each is None else [min(each, n) for n in counts]
            share = allocate_frames if exact else _equal_frames
            quota = share(caps, min(budget, sum(caps)))
            parts = [
                self._fit(frame, n, exact=exact)
                for frame, n in zip(by_frame(self._scored()), quota, strict=True) if n
            ]  # fmt: skip
            return TokenBatch.cat(parts) if parts else self._empty()
        if self._streams() and budget < self.source:
            state = self.final.start(budget, self.frames)
            return TokenBatch.cat(list(through_stream(self._scored(), self.final, state)))
        return self._fit(self._gather(budget), budget, exact=exact)

    def _streams(self) -> bool:
        """The rule meets a budget exactly while it streams: it sees every frame without a pool."""
        alone = len(self.tail) == 1 and is_stream(self.final) and self.final.exact
        return alone and not any(self.chain.removes(r) for r in (*self.scorers, self.final))

    def _fit(self, tokens: TokenBatch, budget: int | None, *, exact: bool) -> TokenBatch:
        placed = tokens.to(self.device)
        if budget is None:
            return placed.reduce(own_count(self.tail, placed, None, self.query)).to("cpu")
        # What a rule was told to remove stays out; the budget only bounds the rest.
        told = [self.chain.removes(r) for r in self.tail]
        made = fit_chain(self.tail, placed, budget, self.query, exact=exact, told=told)
        return placed.reduce(made).to("cpu")

    def _gather(self, budget: int | None) -> TokenBatch:
        """The pool: every candidate, or as many as it holds.

        A rule that picks by score gets the best scored; any other rule gets whole frames evenly
        spread, since most compare places over time and none should see a biased part.
        """
        room = self.pool or max(16 * (budget or 0), POOL if budget is not None else UNBOUNDED)
        room = max(budget or 0, room)
        steps = self.feed.step[self.first : self.last].tolist()
        frames, part = set(steps), False
        if "score" not in self.tail[0].needs and self.supply.total > room:
            each = -(-self.supply.total // self.frames)
            count = min(self.frames, max(1, room // each, -(-(budget or 0) // each)))
            frames = {steps[(2 * i + 1) * self.frames // (2 * count)] for i in range(count)}
            self.pooled, part = count * each, True
        held: list[TokenBatch] = []
        size = 0
        for frame in by_frame(self._scored()):
            if int(frame.cell[0, 0]) in frames:
                held.append(frame)
                size += len(frame)
            if size > 2 * room and not part:
                held = [_best_scored(TokenBatch.cat(held), room)]
                size, self.pooled = len(held[0]), room
        if not held:
            return self._empty()
        pool = TokenBatch.cat(held)
        if not part and len(pool) > room:
            self.pooled = room
            pool = _best_scored(pool, room)
        return pool


def frame_range(feed: Feed, start: float, stop: float | None) -> tuple[int, int]:
    """Frames [first, last) with ``start`` <= pts < ``stop`` (None: to the end)."""
    first = int(np.searchsorted(feed.pts, start)) if start > 0 else 0
    return first, len(feed.pts) if stop is None else int(np.searchsorted(feed.pts, stop))


def _equal_frames(caps: list[int], budget: int) -> list[int]:
    """The same part for every frame; below one each, one for frames at the middles of spans."""
    count = min(len(caps), budget)
    chosen = {(2 * i + 1) * len(caps) // (2 * count) for i in range(count)}
    return [min(budget // count, cap) if i in chosen else 0 for i, cap in enumerate(caps)]


def complete(chain: Chain, *, budgeted: bool) -> tuple[list[Any], list[Any]]:
    """Split a chain into what comes before and the reducers that meet the budget together.

    A chain that only encodes or only scores gets the default tail; one whose reducers were told to
    remove tokens gets the best-scored of the rest, one that projects an even part.
    """
    reducers = chain.reducers
    if not budgeted:
        # Without a budget a selector has nothing to meet; the rules before it decide.
        rules = [r for r in reducers if not hasattr(r, "settle")]
        cut = together(chain, rules) if rules and decides(rules[-1]) else len(rules) - 1
        return rules[: max(cut, 0)], rules[max(cut, 0) :]
    if reducers and meets_budget(reducers[-1]):
        cut = together(chain, reducers)
        return reducers[:cut], reducers[cut:]
    if reducers and hasattr(reducers[-1], "project"):
        return reducers, [build(StepSpec(use="uniform-tokens"))]
    if any(chain.removes(r) for r in reducers):
        return reducers, [build(StepSpec(use="top-k"))]
    if registry.lookup(chain.encoder_name).feature:
        return reducers, [build(_DIVERSE)]
    head = reducers or [build(StepSpec(use=_SCORER))]
    return head, [build(StepSpec(use=_SELECTOR))]


def _best_scored(tokens: TokenBatch, count: int) -> TokenBatch:
    """The ``count`` rows of highest score in the order they come; ties to the lower index."""
    score = torch.nan_to_num(tokens.score, nan=-torch.inf)
    return tokens.take(torch.argsort(score, descending=True, stable=True)[:count].sort().values)
