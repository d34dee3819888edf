"""Keep the moments that cover the whole video best, each as what changed since the one before.

Source: tokpipe; greedy facility location with gain per cost (Leskovec et al., CELF, KDD 2007,
section 3) over whole pictures that are sent as in video coding: key frames, and updates against
what is shown.

A moment costs the cells that differ from what is shown by then, so a still scene buys many moments
and every picture that is rebuilt is whole. Up to three tenths of the budget go to moments unlike
anything shown, however short. Pictures rich in text keep the full grid; the others get the grid
that leaves the least loss, estimated from their distances and from what each grid blurs. Where the
novel cells of all frames fit, they are all kept. What is left raises pictures rich in text to finer
grids, then sends repeats by descending change. A budget below one frame keeps the best moment at a
reduced grid of exactly N pieces.

Needs scores where 1 is the border of novel (``temporal-drop``). Two passes: ``observe`` sees every
block once before ``settle`` fixes the choice; memory is O(N + moments), at most 2048 of these.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from tokpipe.budget import Supply
from tokpipe.compress._coverage import RESERVE, STATE, Cover, Level, Likeness, levels_of
from tokpipe.compress._detail import Finer, refine
from tokpipe.compress._moments import Facts, Moments
from tokpipe.compress._sending import Sent, fill, ids_of, send
from tokpipe.compress._two_pass import (
    Choice,
    Ids,
    owners,
    regular_pieces,
    settle_each,
    settle_grid,
    settle_smaller,
    whole_frames,
)
from tokpipe.grid import ragged_partition, regular_shape
from tokpipe.spec import TEXT_RICH, VISIBLE, Layout, Scope
from tokpipe.tensors import TokenBatch, TokenMap

Detail = Literal["auto", "low", "high"]
#: Mean loss under which nothing is left to cover.
_DONE = 0.002
#: Frames' worth of tokens under which a second order of choosing is tried, as in CELF.
_FEW = 12
#: How many times as far as others a moment must lie from all chosen ones to be unlike any.
_UNLIKE = 3.0


@dataclass(slots=True, kw_only=True)
class State(Choice):
    """Both passes, and what the pictures look like.

    Attributes:
        moments: Candidates.
        facts: What is known of the frames besides.
        finer: Moments to be sent at finer grids than the video's.
        changes: Frame to how much its cells float32 [C] differ from what is shown by then.
        likeness: How unlike the moments look, once they are all there.
    """

    moments: Moments
    finer: Finer = field(default_factory=Finer)
    changes: dict[int, NDArray[np.float32]] = field(default_factory=dict)
    likeness: Likeness | None = None
    facts: Facts = field(default_factory=Facts)

    @property
    def given(self) -> int:
        """Rows that will be given, those of finer grids too."""
        return self.counted() + self.finer.extra


@dataclass(frozen=True, slots=True)
class CoverageUpdates:
    """Stream reducer that meets its budget exactly.

    Attributes:
        detail: Trade of moments against detail: ``low`` sends every picture at the coarsest grid,
            ``high`` none below the full one, ``auto`` what loses least.
    """

    source: ClassVar[str] = "tokpipe; Leskovec et al., CELF, KDD 2007, section 3"
    scope: ClassVar[Scope] = "stream"
    needs: ClassVar[tuple[str, ...]] = ("score", "pixels")
    modalities: ClassVar[tuple[str, ...]] = ("video",)
    layouts: ClassVar[tuple[Layout, ...]] = ("ragged", "frames", "grid")
    causal: ClassVar[bool] = False
    exact: ClassVar[bool] = True
    version: ClassVar[int] = 1

    detail: Detail = "auto"

    def begin(self, limit: int, rows: int, cols: int) -> State:
        """Fresh state for frames of ``rows`` x ``cols`` cells and a budget of at most ``limit``."""
        return State(limit=limit, rows=rows, cols=cols, moments=Moments(rows, cols))

    def inform(self, state: State, facts: Facts) -> None:
        """What is known of the frames besides their cells, before they are observed."""
        state.facts = facts

    def observe(self, state: State, tokens: TokenBatch) -> None:
        """First pass: count, and remember the best cells and the moments."""
        state.observe(tokens)
        state.moments.add(tokens, state.facts.places)

    def glance(
        self, state: State, scores: NDArray[np.float32], seconds: NDArray[np.float64]
    ) -> None:
        """First pass where all is known already: no cell need be read.

        Args:
            scores: float32 [T, C] of whole frames.
            seconds: float64 [T], how long each stays; places and cells are those of the facts.
        """
        state.count(scores.reshape(-1), len(scores))
        state.moments.glance(seconds, state.facts)

    def supply(self, state: State) -> Supply:
        """Novel cells, those of finer grids for text among them, and all cells seen."""
        offered = state.supply()
        if self.detail == "low" or not len(state.facts.finest):
            return offered
        state.moments.trim()
        # What sound could take instead is worth less than slides that can be read.
        finer = refine(state.moments, state.facts.text, state.facts.finest, offered.total, most=2)
        return Supply(min(offered.novel + finer.extra, offered.total), offered.total)

    def settle(
        self, state: State, budget: int, layout: Layout = "ragged", per_frame: int | None = None
    ) -> None:
        """Fix the choice: at most ``budget`` rows, at most ``per_frame`` of each frame."""
        budget = min(budget, state.total)
        state.moments.trim()
        if budget <= 0:
            picked = np.zeros(0, np.int64)
        elif per_frame is not None and layout != "ragged":
            picked = settle_smaller(state, budget, min(per_frame, state.cells, budget))
        elif per_frame is not None:
            picked = settle_each(state, budget, per_frame)
        elif layout == "grid":
            picked = settle_grid(state, budget)
        elif budget < state.cells:
            picked = self._one(state, budget, layout)
        elif layout == "frames":
            picked = self._frames(state, budget)
        elif state.novel <= budget:
            picked = self._everything(state, budget)
        else:
            picked = self._best(state, budget)
        state.keep(picked)

    def _one(self, state: State, budget: int, layout: Layout) -> Ids:
        """The best moment at a smaller grid."""
        rows, cols = state.rows, state.cols
        if layout == "ragged":
            state.pieces = ragged_partition(rows, cols, budget)
        else:
            state.pieces = regular_pieces(rows, cols, *regular_shape(rows, cols, budget))
        if not len(state.moments):
            # A plan, which only counts.
            return np.arange(state.cells)
        cover = self._cover(state, levels_of(rows, cols)[0], delta=False)
        cover.run(state.cells)
        return whole_frames(state.moments.number[cover.order[:1]], state.cells)

    def _frames(self, state: State, budget: int) -> Ids:
        """Whole frames: as many as fit."""
        cells, numbers = state.cells, state.moments.number
        full = levels_of(state.rows, state.cols)[0]
        cover = self._cover(state, full, delta=False)
        _choose(cover, budget)
        self._raise(state, cover, budget)
        room = (budget - state.finer.extra) // cells
        if state.finer.times:
            cover.order = [*state.finer.times, *(m for m in cover.order
                                                 if m not in state.finer.times)]  # fmt: skip
        cover.spent = len(cover.order) * cells
        cover.run(room * cells, any_=True)
        chosen = numbers[cover.order[:room]]
        missing = min(state.frames, room) - len(chosen)
        if missing > 0:
            # Alike ones too: in the middle of the widest gaps.
            others = np.setdiff1d(np.arange(state.frames), chosen)
            even = (2 * np.arange(missing) + 1) * len(others)
            chosen = np.append(chosen, others[even // (2 * missing)])
        # Sent whole, a frame replaces whatever was shown.
        state.changes = dict.fromkeys(chosen.tolist(), np.ones(cells, np.float32))
        return whole_frames(chosen, cells)

    def _everything(self, state: State, budget: int) -> Ids:
        """Every novel cell, finer grids for text, then repeats by descending change."""
        updates = state.by_change()
        if len(state.facts.finest) and self.detail != "low":
            room = budget - int((state.scores >= VISIBLE).sum())
            state.finer = refine(state.moments, state.facts.text, state.facts.finest, room)
        finer = state.moments.number[list(state.finer.times)]
        first = np.concatenate([whole_frames(finer, state.cells), updates[: state.novel]])
        _, index = np.unique(first, return_index=True)
        first = first[np.sort(index)]
        more = updates[state.novel :]
        more = more[~np.isin(more, first)]
        return np.concatenate([first, more])[: budget - state.finer.extra]

    def _raise(self, state: State, cover: Cover, budget: int) -> None:
        """Spend what covering needs no more on finer grids for text."""
        if len(state.facts.finest) and self.detail != "low" and cover.uncovered() <= _DONE:
            room = int(budget - cover.spent)
            if cover.delta:
                # Differences that can be seen come before detail.
                seen = send(state.moments, cover.order, cover.coarse, cover.level)
                room = budget - sum(int((p.pieces | (p.change >= VISIBLE)).sum()) for p in seen)
            state.finer = refine(state.moments, state.facts.text, state.facts.finest, room)

    def _cover(self, state: State, level: Level, *, delta: bool = True) -> Cover:
        """Chooser for one grid; pictures rich in text keep the full one."""
        moments = state.moments
        rich = np.zeros(len(moments), np.bool_)
        if len(state.facts.text) and self.detail != "low":
            rich = state.facts.text[moments.number] >= TEXT_RICH
        if state.likeness is None:
            state.likeness = Likeness(moments)
        cover = Cover(state.likeness, level, rich, delta=delta)
        if len(state.facts.even):
            cover.steady = state.facts.even[moments.number]
        return cover

    def _best(self, state: State, budget: int) -> Ids:
        """Moments sent as what changed, at the grid that leaves the least loss."""
        levels = levels_of(state.rows, state.cols)
        tried = {"high": levels[:1], "low": levels[-1:], "auto": levels}[self.detail]
        best: Cover | None = None
        for level in tried:
            if best is not None and best.uncovered() <= level.blur - tried[0].blur:
                # What this grid blurs is more than it could still cover.
                continue
            ways = (_choose, _choose_unlike) if budget < _FEW * state.cells else (_choose,)
            for choose in ways:
                cover = self._cover(state, level)
                choose(cover, budget)
                if best is None or cover.left() < best.left() - 1e-9:
                    best = cover
        assert best is not None  # noqa: S101 - there is always the full grid
        self._raise(state, best, budget)
        best.run(budget - state.finer.extra, any_=True)
        parts, picked, room = self._sent(state, best, budget - state.finer.extra)
        few = room >= best.level.count or (room and len(parts) == len(state.moments))
        if few and best.level.owner is not None:
            # Too few moments to spend it all on coarse ones.
            best = self._cover(state, levels[0])
            _choose(best, budget)
            parts, picked, room = self._sent(state, best, budget - state.finer.extra)
        for part in parts:
            number, owner = int(state.moments.number[part.moment]), best.level.owner
            state.changes[number] = part.change
            if part.coarse and owner is not None:
                state.coarse[number], state.changes[number] = owner, part.change[owner]
        return np.concatenate([picked, self._rest(state, best, parts, room)])

    def _rest(self, state: State, cover: Cover, parts: list[Sent], room: int) -> Ids:
        """More pictures, least like any sent, the last at a grid of exactly what is left.

        There is room only when all others are sent whole, so these stay right.
        """
        numbers, near, out = state.moments.number, cover.near.copy(), []
        sent = numbers[[part.moment for part in parts]]
        near[[part.moment for part in parts]] = -1
        while room and near.max() >= 0:
            moment = int(near.argmax())
            near = np.minimum(near, cover.apart[moment])
            near[moment] = -1
            number, count = int(numbers[moment]), min(room, state.cells)
            if count < state.cells:
                pieces = ragged_partition(state.rows, state.cols, count)
                state.coarse[number] = owners(pieces, state.rows, state.cols)
            state.changes[number] = np.ones(state.cells, np.float32)
            for after in sent[sent > number][:1].tolist():
                # Its repeats now repeat something else.
                state.changes[after] = np.maximum(state.changes[after], 1)
            out.append(number * state.cells + np.arange(state.cells))
            room -= count
        given = np.concatenate([sent, *(ids[:1] // state.cells for ids in out)])
        updates = state.by_change()
        updates = updates[~np.isin(updates // state.cells, given)]
        return np.concatenate([*out, updates[:room]])

    def _sent(self, state: State, cover: Cover, budget: int) -> tuple[list[Sent], Ids, int]:
        """What is sent of the chosen moments, its ids, and the room that is left."""
        moments, finer = state.moments, state.finer.times
        order = [*finer, *(m for m in cover.order if m not in finer)]
        coarse = cover.coarse.copy()
        coarse[list(finer)] = False
        parts = send(moments, order, coarse, cover.level, finer)
        while sum(map(len, parts)) > budget and len(order) > max(1, len(finer)):
            # Costs were foretold from neighbours; what was chosen last makes room.
            over = sum(map(len, parts)) - budget
            size = {part.moment: len(part) for part in parts}
            while over > 0 and len(order) > max(1, len(finer)):
                over -= size[order.pop()]
            parts = send(moments, order, coarse, cover.level, finer)
        room = fill(parts, budget - sum(map(len, parts)))
        at = {part.moment: part for part in parts}
        ids = [ids_of(at[m], cover.level, int(moments.number[m]), state.cells) for m in order]
        return parts, np.concatenate(ids), room

    def push(
        self, state: State, carried: TokenBatch | None, new: TokenBatch
    ) -> tuple[State, TokenMap]:
        """Second pass: map over [carried; new]."""
        return state, state.push(carried, new)

    def finish(self, state: State, carried: TokenBatch) -> TokenMap:
        """Drop what still waits."""
        return state.finish(carried)

    def conclude(self, state: State, kept: TokenBatch) -> TokenMap | None:
        """Map of the kept rows, in the cache's order, to reduced grids; None at the full one."""
        return state.conclude(kept)

    def scores(self, state: State, kept: TokenBatch) -> torch.Tensor:
        """Scores float32 [K] of the kept rows: how much each changes what is shown."""
        score = kept.score.clone()
        step = kept.cell[:, 0].numpy() - (state.first or 0)
        place = (kept.cell[:, 1] * state.cols + kept.cell[:, 2]).numpy()
        for number in np.unique(step).tolist():
            if number in state.changes:
                mine = np.flatnonzero(step == number)
                score[mine] = torch.from_numpy(state.changes[number][place[mine]])
        return score

    def order(self, state: State, kept: TokenBatch) -> torch.Tensor:
        """Rank int64 [K] of each kept row: which to give up last when the budget shrinks."""
        return state.order(kept)


def _choose(cover: Cover, budget: int) -> None:
    """What covers most, then what is unlike anything shown, then what else fits."""
    cover.run(budget * (1 - RESERVE), until=_DONE)
    done = cover.uncovered() <= _DONE
    cover.reach(budget, STATE if done else max(STATE, _UNLIKE * cover.distance()))
    if cover.uncovered() > _DONE:
        cover.run(budget)
        cover.run(budget, any_=True)


def _choose_unlike(cover: Cover, budget: int) -> None:
    """The best moment, then what is unlike it: where few fit, cheap ones would leave no room."""
    cover.take(int(np.where(cover.steady, cover.gain, -1.0).argmax()))
    cover.reach(budget, STATE)
    cover.run(budget)
