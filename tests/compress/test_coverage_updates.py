"""Coverage and updates: exact counts, whole pictures, what is short is seen, what is finer."""

from __future__ import annotations

from copy import deepcopy
from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tokpipe.compress._cell_distance import cell_change
from tokpipe.compress._moments import Facts
from tokpipe.compress.similarity.coverage_updates import CoverageUpdates, Detail, State
from tokpipe.compress.similarity.temporal_drop import TemporalDrop
from tokpipe.encode.pixels import cell_tokens, describe
from tokpipe.errors import RecipeError
from tokpipe.grid import ragged_partition, regular_shape
from tokpipe.spec import KIND_POOLED, Layout
from tokpipe.tensors import TokenBatch

Pictures = NDArray[np.uint8]
Grid = tuple[int, int]
SMALL: Grid = (3, 4)
#: Wide enough for coarser grids.
WIDE: Grid = (5, 16)
LAYOUTS: tuple[Layout, ...] = ("ragged", "frames", "grid")
DETAILS: tuple[Detail, ...] = ("low", "auto", "high")


def scene(seed: int, grid: Grid) -> Pictures:
    """A picture of soft patches, each seed another."""
    draw = np.random.default_rng(seed)
    patches = draw.integers(20, 236, (2 * grid[0], 2 * grid[1], 3))
    return np.kron(patches, np.ones((14, 14, 1))).astype(np.uint8)


def film(grid: Grid, lengths: list[int], *, still: bool = False) -> Pictures:
    """Scenes of so many frames; in each a block moves, unless they are still."""
    out = []
    for number, length in enumerate(lengths):
        for t in range(length):
            picture = scene(number, grid).copy()
            if not still:
                left = (t * 9) % (picture.shape[1] - 28)
                picture[10:38, left : left + 28] = (250, 250, 20)
            out.append(picture)
    return np.stack(out)


def stream(pictures: Pictures, block: int = 64) -> list[TokenBatch]:
    """Scored tokens of pictures, one a second, in blocks of frames."""
    rows, cols = pictures.shape[1] // 28, pictures.shape[2] // 28
    scorer, out = TemporalDrop(), []
    memory = scorer.start()
    for a in range(0, len(pictures), block):
        part = torch.from_numpy(pictures[a : a + block])
        start = torch.arange(a, a + len(part))
        tokens = cell_tokens(
            describe(part).reshape(-1, 24).half(), start.double(), start.double() + 1, start,
            start.int(), rows, cols,
        )  # fmt: skip
        score = torch.as_tensor(scorer.score(memory, tokens)).reshape(-1)
        out.append(tokens.with_columns(score=score.float()))
    return out


class Run:
    """A stream seen once, settled for as many budgets as wanted."""

    def __init__(
        self, pictures: Pictures, *, detail: Detail = "auto", block: int = 64,
        text: float | None = None, finest: int = 1,
    ) -> None:  # fmt: skip
        self.grid: Grid = (pictures.shape[1] // 28, pictures.shape[2] // 28)
        self.cells = self.grid[0] * self.grid[1]
        self.frames, self.total = len(pictures), len(pictures) * self.cells
        self.blocks = stream(pictures, block) if len(pictures) else []
        self.operator = CoverageUpdates(detail=detail)
        self.seen = self.operator.begin(self.total, *self.grid)
        for tokens in self.blocks:
            self.operator.observe(self.seen, tokens)
        if text is not None:
            every = np.ones(self.frames, np.bool_)
            facts = Facts(
                text=np.full(self.frames, text, np.float32),
                finest=np.full(self.frames, finest, np.int64), even=every,
            )  # fmt: skip
            self.operator.inform(self.seen, facts)

    @property
    def data(self) -> NDArray[np.float16]:
        """Descriptors [T, C, 24] as they came."""
        rows = torch.cat([b.data for b in self.blocks]).numpy()
        out: NDArray[np.float16] = rows.reshape(self.frames, self.cells, 24)
        return out

    def settled(self, budget: int, layout: Layout = "ragged", each: int | None = None) -> State:
        """The state after the first pass."""
        state = deepcopy(self.seen)
        self.operator.settle(state, budget, layout, each)
        return state

    def kept(
        self, budget: int, layout: Layout = "ragged", each: int | None = None
    ) -> tuple[TokenBatch, State]:
        """Kept rows in the cache's order, at the video's own grid."""
        state = self.settled(budget, layout, each)
        carried: TokenBatch | None = None
        out = []
        for new in self.blocks:
            state, tmap = self.operator.push(state, carried, new)
            made = (new if carried is None else TokenBatch.cat([carried, new])).reduce(tmap)
            assert state.settled is not None
            out.append(made.take(state.settled))
            carried = made.take(~state.settled)
        assert carried is not None
        out.append(carried.reduce(self.operator.finish(state, carried)))
        kept = TokenBatch.cat(out).sorted()
        if (pooled := self.operator.conclude(state, kept)) is not None:
            kept = kept.reduce(pooled).sorted()
        return kept, state


def frames_of(kept: TokenBatch) -> list[int]:
    found: list[int] = torch.unique(kept.cell[:, 0]).tolist()
    return found


def worst(run: Run, kept: TokenBatch) -> dict[int, float]:
    """Of each kept frame, how far the farthest cell that is shown then is from its source."""
    shown = np.zeros((run.cells, 24), np.float32)
    out = {}
    for t in frames_of(kept):
        mine = kept.take(kept.cell[:, 0] == t)
        place = (mine.cell[:, 1] * run.grid[1] + mine.cell[:, 2]).long().numpy()
        shown[place] = mine.data.float().numpy()
        out[t] = float(cell_change(shown, run.data[t]).max())
    return out


def covered(rows: TokenBatch) -> NDArray[np.int64]:
    """How many rows of a picture show each of its cells."""
    seen = np.zeros(WIDE, np.int64)
    for (_, y, x), (_, high, wide), kind in zip(
        rows.cell.tolist(), rows.extent.tolist(), rows.kind.tolist(), strict=True
    ):
        size = (high, wide) if kind == KIND_POOLED else (1, 1)
        seen[y : y + size[0], x : x + size[1]] += 1
    return seen


@pytest.fixture(scope="module")
def small() -> Run:
    return Run(film(SMALL, [3, 1, 4]))


@pytest.fixture(scope="module", params=DETAILS)
def wide(request: pytest.FixtureRequest) -> Run:
    return Run(film(WIDE, [4, 1, 5]), detail=request.param)


def test_ragged_is_exact_at_every_budget(small: Run, wide: Run) -> None:
    for run in (small, wide):
        for budget in range(1, run.total + 3):
            state = run.settled(budget)
            assert state.given == min(budget, run.total), budget


@pytest.mark.parametrize("block", [1, 3, 64])
def test_rows_are_as_many_as_were_settled(block: int) -> None:
    """What the second pass hands out, for each layout, whatever the blocks."""
    run = Run(film(WIDE, [4, 1, 5]), block=block)
    for layout in LAYOUTS:
        for budget in (1, 7, 79, 80, 81, 200, 333, 500, 799, 800):
            kept, state = run.kept(budget, layout)
            assert len(kept) == state.given <= budget
            assert layout != "ragged" or len(kept) == budget
            ranks = run.operator.order(state, kept)
            assert sorted(ranks.tolist()) == list(range(len(kept)))
            assert float(kept.mass.sum()) <= run.total + 1e-3
            assert torch.isfinite(run.operator.scores(state, kept)).all()


def test_blocks_change_nothing() -> None:
    pictures = film(WIDE, [4, 1, 5])
    whole, parts = Run(pictures), Run(pictures, block=3)
    for budget in (30, 200, 500):
        (a, first), (b, second) = whole.kept(budget), parts.kept(budget)
        for name in ("data", "at", "pts", "cell", "mass", "kind"):
            assert torch.equal(getattr(a, name), getattr(b, name)), name
        assert torch.equal(whole.operator.order(first, a), parts.operator.order(second, b))


@settings(max_examples=60)
@given(
    lengths=st.lists(st.integers(1, 4), min_size=1, max_size=4), budget=st.integers(1, 200),
    layout=st.sampled_from(LAYOUTS), detail=st.sampled_from(DETAILS), still=st.booleans(),
    each=st.one_of(st.none(), st.integers(1, 13)),
)  # fmt: skip
def test_no_budget_is_exceeded(
    lengths: list[int], budget: int, layout: Layout, detail: Detail, still: bool, each: int | None
) -> None:
    run = Run(film(SMALL, lengths, still=still), detail=detail)
    if each is not None:
        budget = min(budget, each * run.frames)
    kept, state = run.kept(budget, layout, each)
    assert 1 <= len(kept) == state.given <= budget
    if layout == "ragged" and each is None:
        assert len(kept) == min(budget, run.total)
    if each is not None:
        _, counts = torch.unique(kept.cell[:, 0], return_counts=True)
        assert int(counts.max()) <= each


@pytest.mark.parametrize("budget", range(1, 12))
def test_below_one_frame_one_picture_is_tiled(budget: int, small: Run) -> None:
    kept, _ = small.kept(budget)
    assert len(frames_of(kept)) == 1
    assert (kept.kind == KIND_POOLED).all()
    boxes = torch.cat([kept.cell[:, 1:], kept.extent[:, 1:]], 1).tolist()
    assert boxes == [list(tile) for tile in ragged_partition(*SMALL, budget)]
    kept, _ = small.kept(budget, "frames")
    high, wide = regular_shape(*SMALL, budget)
    assert len(kept) == high * wide


@pytest.mark.parametrize("layout", ["frames", "grid"])
def test_layouts_give_whole_shapes(layout: Layout, wide: Run) -> None:
    for budget in (80, 159, 160, 400, 799, 800, 5000):
        kept, _ = wide.kept(budget, layout)
        _, counts = torch.unique(kept.cell[:, 0], return_counts=True)
        assert len(torch.unique(counts)) == 1
        if layout == "frames":
            assert len(kept) == min(wide.frames, budget // wide.cells) * wide.cells


def test_every_kept_picture_is_whole() -> None:
    """Cells that are not sent look like what is shown, where every moment has the full grid."""
    run = Run(film(WIDE, [6, 1, 6, 6]), detail="high")
    for budget in range(run.cells, int(run.seen.novel), 37):
        kept, _ = run.kept(budget)
        assert (kept.kind != KIND_POOLED).all()
        # A repeat that fills the budget may lie a border away, and the cell a border beyond.
        assert max(worst(run, kept).values()) < 2, budget


def test_where_all_that_is_new_fits_every_frame_is_right() -> None:
    run = Run(film(WIDE, [6, 1, 6]))
    novel = int(run.seen.novel)
    kept, _ = run.kept(novel)
    assert float(kept.mass.sum()) == run.total
    assert max(worst(run, kept).values()) < 1
    more, _ = run.kept(min(run.total, novel + 50))
    assert float(more.mass.sum()) == run.total
    assert max(worst(run, more).values()) < 2


def test_coarse_pictures_cover_their_frames() -> None:
    """Pooled rows of a frame tile rectangles, none twice, and stand for all their sources."""
    run = Run(film(WIDE, [9] * 6), detail="low")
    kept, state = run.kept(300)
    assert state.coarse
    assert len(kept) == 300
    for t in frames_of(kept):
        assert covered(kept.take(kept.cell[:, 0] == t)).max() == 1
    first = frames_of(kept)[0]
    assert int((kept.cell[:, 0] == first).sum()) < run.cells


def test_a_short_insert_and_a_short_state_are_kept() -> None:
    """One frame of another picture, and two of a third, in a minute of camera movement."""
    grid = (9, 16)
    wide = np.concatenate([scene(7, (9, 40))], axis=1)
    pan = np.stack([wide[:, 6 * t : 6 * t + 448] for t in range(60)])
    pan[20] = scene(8, grid)
    pan[40:42] = scene(9, grid)
    run = Run(pan)
    for budget in (4 * run.cells, 6 * run.cells, 10 * run.cells):
        kept, _ = run.kept(budget)
        assert 20 in frames_of(kept), budget
        assert {40, 41} & set(frames_of(kept)), budget


def test_still_scenes_buy_many_moments() -> None:
    run = Run(film(WIDE, [30, 30]))
    kept, _ = run.kept(3 * run.cells)
    assert len(frames_of(kept)) >= 9
    assert {t // 30 for t in frames_of(kept)} == {0, 1}


def test_detail_trades_moments_against_cells() -> None:
    """Pictures that all differ: the coarse ones are more."""
    pictures = np.stack([scene(i, WIDE) for i in range(40)])
    counts, sizes = {}, {}
    for detail in DETAILS:
        run = Run(pictures, detail=detail)
        kept, _ = run.kept(8 * run.cells)
        counts[detail] = len(frames_of(kept))
        sizes[detail] = int((kept.kind == KIND_POOLED).sum())
    assert counts["low"] > counts["high"] == 8
    assert counts["low"] >= counts["auto"] >= counts["high"]
    assert sizes["high"] == 0 < sizes["low"]


def test_text_keeps_the_full_grid_unless_detail_is_low() -> None:
    pictures = np.stack([scene(i, WIDE) for i in range(40)])
    for detail, pooled in (("auto", False), ("high", False), ("low", True)):
        kept, _ = Run(pictures, detail=detail, text=0.9).kept(640)  # type: ignore[arg-type]
        assert bool((kept.kind == KIND_POOLED).any()) == pooled, detail


def test_room_goes_to_finer_text() -> None:
    """Two still slides at four times the grid, when that fits; the count stays exact."""
    run = Run(film(SMALL, [8, 8], still=True), text=0.9, finest=4)
    for budget in range(1, run.total + 1):
        state = run.settled(budget)
        assert state.given == budget
        finer = state.finer.times
        assert state.finer.extra == sum(12 * (times**2 - 1) for times in finer.values())
        assert set(finer.values()) <= {2, 4}
        if finer:
            whole = np.bincount(state.chosen // 12, minlength=run.frames)
            assert all(whole[state.moments.number[m]] == 12 for m in finer)
    assert not run.settled(30).finer.times
    assert sorted(run.settled(130).finer.times.values()) == [2, 2]
    assert not Run(film(SMALL, [8, 8], still=True), text=0.0, finest=4).settled(130).finer.times
    low = Run(film(SMALL, [8, 8], still=True), text=0.9, finest=4, detail="low")
    assert not low.settled(130).finer.times


@pytest.mark.parametrize("layout", ["frames", "ragged"])
def test_finer_rows_stay_within_the_budget(layout: Layout) -> None:
    run = Run(film(SMALL, [6, 6, 6]), text=0.9, finest=2)
    for budget in range(1, run.total + 1):
        state = run.settled(budget, layout)
        assert state.given <= budget
        if layout == "ragged":
            assert state.given == budget
        elif budget >= run.cells:
            assert state.given == budget // run.cells * run.cells


def test_without_being_informed_all_is_plain(small: Run) -> None:
    """No text is known, so nothing is finer, and what is said of no text changes nothing."""
    told = Run(film(SMALL, [3, 1, 4]), text=0.0)
    for budget in (5, 12, 40, 96):
        (a, state), (b, _) = small.kept(budget), told.kept(budget)
        assert not state.finer.times
        assert torch.equal(a.cell, b.cell)


def test_empty_and_tiny_streams() -> None:
    operator = CoverageUpdates()
    for layout in LAYOUTS:
        for budget in (0, 1, 50):
            state = operator.begin(0, *SMALL)
            operator.settle(state, budget, layout)
            assert (state.given, len(state.chosen)) == (0, 0)
    one = Run(film(SMALL, [1]))
    for layout in LAYOUTS:
        for budget in (1, 5, 11, 12, 13):
            kept, _ = one.kept(budget, layout)
            assert 1 <= len(kept) <= min(budget, 12)
            assert frames_of(kept) == [0]
    assert len(one.kept(12)[0]) == 12


@pytest.mark.parametrize("grid", [(1, 1), (1, 8), (16, 9), (8, 4), (4, 8), (64, 1)])
def test_any_shape_of_picture(grid: Grid) -> None:
    run = Run(film(grid, [3, 2], still=min(grid) == 1))
    for budget in {1, run.cells, run.cells + 1, 2 * run.cells - 1, run.total}:
        for layout in LAYOUTS:
            kept, state = run.kept(budget, layout)
            assert 1 <= len(kept) == state.given <= budget
            assert layout != "ragged" or len(kept) == budget


def test_order_gives_up_moments_one_by_one() -> None:
    """What is chosen first stays whole longest."""
    run = Run(film(WIDE, [1] * 30), detail="high")
    kept, state = run.kept(6 * run.cells)
    order = run.operator.order(state, kept)
    frame = kept.cell[:, 0][torch.argsort(order)].reshape(6, run.cells)
    assert (frame == frame[:, :1]).all()
    assert len(torch.unique(frame[:, 0])) == 6


@pytest.mark.parametrize("detail", DETAILS)
@pytest.mark.parametrize("over", [0, 1, 16, 50, 79])
def test_what_is_left_is_one_more_picture(detail: Detail, over: int) -> None:
    """Too little for another whole one: it covers its frame, in fewer and larger pieces."""
    run = Run(film(WIDE, [1] * 40, still=True), detail=detail)
    kept, _ = run.kept(6 * run.cells + over)
    assert len(kept) == 6 * run.cells + over
    for t in frames_of(kept):
        assert covered(kept.take(kept.cell[:, 0] == t)).all(), t


def test_scores_say_what_changes_and_what_repeats() -> None:
    run = Run(film(WIDE, [6, 6]), detail="high")
    kept, state = run.kept(250)
    score = run.operator.scores(state, kept)
    shown: dict[int, NDArray[np.float16]] = {}
    for row in range(len(kept)):
        place = int(kept.cell[row, 1] * WIDE[1] + kept.cell[row, 2])
        data = kept.data[row].numpy()
        if place in shown and score[row] < 1:
            assert float(cell_change(data[None], shown[place][None]).max()) < 2
        if place not in shown:
            assert score[row] >= 1
        shown[place] = data


def test_other_tokens_are_refused() -> None:
    operator = CoverageUpdates()
    state = operator.begin(10, *SMALL)
    bad = TokenBatch.build(torch.zeros(12, 8), torch.zeros(12, dtype=torch.float64))
    with pytest.raises(RecipeError, match="pixels"):
        operator.observe(state, bad)


@pytest.mark.parametrize("form", ["gap", "same"])
def test_nothing_depends_on_how_often_it_is_run(form: Literal["gap", "same"]) -> None:
    lengths = [5, 1, 5] if form == "gap" else [11]
    runs = [Run(film(WIDE, lengths)) for _ in range(2)]
    for budget in (50, 240, 600):
        (a, first), (b, second) = (run.kept(budget) for run in runs)
        assert torch.equal(a.cell, b.cell)
        assert torch.equal(a.data, b.data)
        assert np.array_equal(first.ranks, second.ranks)
