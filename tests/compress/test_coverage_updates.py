"""Coverage and updates: exact counts for every budget, layout and shape of picture."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokpipe.compress.similarity.coverage_updates import CoverageUpdates, Detail
from tokpipe.errors import RecipeError
from tokpipe.grid import ragged_partition, regular_shape
from tokpipe.spec import KIND_POOLED, Layout
from tokpipe.tensors import TokenBatch
from tokpipe.testing.films import CoverageRun, Grid, film

SMALL: Grid = (3, 4)
#: Wide enough for coarser grids.
WIDE: Grid = (5, 16)
LAYOUTS: tuple[Layout, ...] = ("ragged", "frames", "grid")
DETAILS: tuple[Detail, ...] = ("low", "auto", "high")


def frames_of(kept: TokenBatch) -> list[int]:
    found: list[int] = torch.unique(kept.cell[:, 0]).tolist()
    return found


@pytest.fixture(scope="module")
def small() -> CoverageRun:
    return CoverageRun(film(SMALL, [3, 1, 4]))


@pytest.fixture(scope="module", params=DETAILS)
def wide(request: pytest.FixtureRequest) -> CoverageRun:
    return CoverageRun(film(WIDE, [4, 1, 5]), detail=request.param)


def test_ragged_is_exact_at_every_budget(small: CoverageRun, wide: CoverageRun) -> None:
    for run in (small, wide):
        for budget in range(1, run.total + 3):
            state = run.settled(budget)
            assert state.given == min(budget, run.total), budget


@pytest.mark.parametrize("block", [1, 3, 64])
def test_rows_are_as_many_as_were_settled(block: int) -> None:
    """What the second pass hands out, for each layout, whatever the blocks."""
    run = CoverageRun(film(WIDE, [4, 1, 5]), block=block)
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
    whole, parts = CoverageRun(pictures), CoverageRun(pictures, block=3)
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
    run = CoverageRun(film(SMALL, lengths, still=still), detail=detail)
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
def test_below_one_frame_one_picture_is_tiled(budget: int, small: CoverageRun) -> None:
    kept, _ = small.kept(budget)
    assert len(frames_of(kept)) == 1
    assert (kept.kind == KIND_POOLED).all()
    boxes = torch.cat([kept.cell[:, 1:], kept.extent[:, 1:]], 1).tolist()
    assert boxes == [list(tile) for tile in ragged_partition(*SMALL, budget)]
    kept, _ = small.kept(budget, "frames")
    high, wide = regular_shape(*SMALL, budget)
    assert len(kept) == high * wide


@pytest.mark.parametrize("layout", ["frames", "grid"])
def test_layouts_give_whole_shapes(layout: Layout, wide: CoverageRun) -> None:
    for budget in (80, 159, 160, 400, 799, 800, 5000):
        kept, _ = wide.kept(budget, layout)
        _, counts = torch.unique(kept.cell[:, 0], return_counts=True)
        assert len(torch.unique(counts)) == 1
        if layout == "frames":
            assert len(kept) == min(wide.frames, budget // wide.cells) * wide.cells


def test_without_being_informed_all_is_plain(small: CoverageRun) -> None:
    """No text is known, so nothing is finer, and what is said of no text changes nothing."""
    told = CoverageRun(film(SMALL, [3, 1, 4]), text=0.0)
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
    one = CoverageRun(film(SMALL, [1]))
    for layout in LAYOUTS:
        for budget in (1, 5, 11, 12, 13):
            kept, _ = one.kept(budget, layout)
            assert 1 <= len(kept) <= min(budget, 12)
            assert frames_of(kept) == [0]
    assert len(one.kept(12)[0]) == 12


@pytest.mark.parametrize("grid", [(1, 1), (1, 8), (16, 9), (8, 4), (4, 8), (64, 1)])
def test_any_shape_of_picture(grid: Grid) -> None:
    run = CoverageRun(film(grid, [3, 2], still=min(grid) == 1))
    for budget in {1, run.cells, run.cells + 1, 2 * run.cells - 1, run.total}:
        for layout in LAYOUTS:
            kept, state = run.kept(budget, layout)
            assert 1 <= len(kept) == state.given <= budget
            assert layout != "ragged" or len(kept) == budget


def test_order_gives_up_moments_one_by_one() -> None:
    """What is chosen first stays whole longest."""
    run = CoverageRun(film(WIDE, [1] * 30), detail="high")
    kept, state = run.kept(6 * run.cells)
    order = run.operator.order(state, kept)
    frame = kept.cell[:, 0][torch.argsort(order)].reshape(6, run.cells)
    assert (frame == frame[:, :1]).all()
    assert len(torch.unique(frame[:, 0])) == 6


def test_other_tokens_are_refused() -> None:
    operator = CoverageUpdates()
    state = operator.begin(10, *SMALL)
    bad = TokenBatch.build(torch.zeros(12, 8), torch.zeros(12, dtype=torch.float64))
    with pytest.raises(RecipeError, match="pixels"):
        operator.observe(state, bad)


@pytest.mark.parametrize("form", ["gap", "same"])
def test_nothing_depends_on_how_often_it_is_run(form: Literal["gap", "same"]) -> None:
    lengths = [5, 1, 5] if form == "gap" else [11]
    runs = [CoverageRun(film(WIDE, lengths)) for _ in range(2)]
    for budget in (50, 240, 600):
        (a, first), (b, second) = (run.kept(budget) for run in runs)
        assert torch.equal(a.cell, b.cell)
        assert torch.equal(a.data, b.data)
        assert np.array_equal(first.ranks, second.ranks)
