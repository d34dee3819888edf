"""Coverage and updates: pictures are whole, what is short is seen, text is finer."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tokpipe.compress._cell_distance import cell_change
from tokpipe.compress.similarity.coverage_updates import Detail
from tokpipe.spec import KIND_POOLED, Layout
from tokpipe.tensors import TokenBatch
from tokpipe.testing.films import CoverageRun, Grid, film, scene

SMALL: Grid = (3, 4)
#: Wide enough for coarser grids.
WIDE: Grid = (5, 16)
DETAILS: tuple[Detail, ...] = ("low", "auto", "high")


def frames_of(kept: TokenBatch) -> list[int]:
    found: list[int] = torch.unique(kept.cell[:, 0]).tolist()
    return found


def worst(run: CoverageRun, kept: TokenBatch) -> dict[int, float]:
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


def test_every_kept_picture_is_whole() -> None:
    """Cells that are not sent look like what is shown, where every moment has the full grid."""
    run = CoverageRun(film(WIDE, [6, 1, 6, 6]), detail="high")
    for budget in range(run.cells, int(run.seen.novel), 37):
        kept, _ = run.kept(budget)
        assert (kept.kind != KIND_POOLED).all()
        # A repeat that fills the budget may lie a border away, and the cell a border beyond.
        assert max(worst(run, kept).values()) < 2, budget


def test_where_all_that_is_new_fits_every_frame_is_right() -> None:
    run = CoverageRun(film(WIDE, [6, 1, 6]))
    novel = int(run.seen.novel)
    kept, _ = run.kept(novel)
    assert float(kept.mass.sum()) == run.total
    assert max(worst(run, kept).values()) < 1
    more, _ = run.kept(min(run.total, novel + 50))
    assert float(more.mass.sum()) == run.total
    assert max(worst(run, more).values()) < 2


def test_coarse_pictures_cover_their_frames() -> None:
    """Pooled rows of a frame tile rectangles, none twice, and stand for all their sources."""
    run = CoverageRun(film(WIDE, [9] * 6), detail="low")
    kept, state = run.kept(300)
    assert state.coarse
    assert len(kept) == 300
    for t in frames_of(kept):
        assert covered(kept.take(kept.cell[:, 0] == t)).max() == 1
    first = frames_of(kept)[0]
    assert int((kept.cell[:, 0] == first).sum()) < run.cells


@pytest.mark.parametrize("detail", DETAILS)
@pytest.mark.parametrize("over", [0, 1, 16, 50, 79])
def test_what_is_left_is_one_more_picture(detail: Detail, over: int) -> None:
    """Too little for another whole one: it covers its frame, in fewer and larger pieces."""
    run = CoverageRun(film(WIDE, [1] * 40, still=True), detail=detail)
    kept, _ = run.kept(6 * run.cells + over)
    assert len(kept) == 6 * run.cells + over
    for t in frames_of(kept):
        assert covered(kept.take(kept.cell[:, 0] == t)).all(), t


def test_a_short_insert_and_a_short_state_are_kept() -> None:
    """One frame of another picture, and two of a third, in a minute of camera movement."""
    grid = (9, 16)
    wide = np.concatenate([scene(7, (9, 40))], axis=1)
    pan = np.stack([wide[:, 6 * t : 6 * t + 448] for t in range(60)])
    pan[20] = scene(8, grid)
    pan[40:42] = scene(9, grid)
    run = CoverageRun(pan)
    for budget in (4 * run.cells, 6 * run.cells, 10 * run.cells):
        kept, _ = run.kept(budget)
        assert 20 in frames_of(kept), budget
        assert {40, 41} & set(frames_of(kept)), budget


def test_still_scenes_buy_many_moments() -> None:
    run = CoverageRun(film(WIDE, [30, 30]))
    kept, _ = run.kept(3 * run.cells)
    assert len(frames_of(kept)) >= 9
    assert {t // 30 for t in frames_of(kept)} == {0, 1}


def test_detail_trades_moments_against_cells() -> None:
    """Pictures that all differ: the coarse ones are more."""
    pictures = np.stack([scene(i, WIDE) for i in range(40)])
    counts, sizes = {}, {}
    for detail in DETAILS:
        run = CoverageRun(pictures, detail=detail)
        kept, _ = run.kept(8 * run.cells)
        counts[detail] = len(frames_of(kept))
        sizes[detail] = int((kept.kind == KIND_POOLED).sum())
    assert counts["low"] > counts["high"] == 8
    assert counts["low"] >= counts["auto"] >= counts["high"]
    assert sizes["high"] == 0 < sizes["low"]


def test_text_keeps_the_full_grid_unless_detail_is_low() -> None:
    pictures = np.stack([scene(i, WIDE) for i in range(40)])
    for detail, pooled in (("auto", False), ("high", False), ("low", True)):
        kept, _ = CoverageRun(pictures, detail=detail, text=0.9).kept(640)  # type: ignore[arg-type]
        assert bool((kept.kind == KIND_POOLED).any()) == pooled, detail


def test_room_goes_to_finer_text() -> None:
    """Two still slides at four times the grid, when that fits; the count stays exact."""
    run = CoverageRun(film(SMALL, [8, 8], still=True), text=0.9, finest=4)
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
    assert (
        not CoverageRun(film(SMALL, [8, 8], still=True), text=0.0, finest=4)
        .settled(130)
        .finer.times
    )
    low = CoverageRun(film(SMALL, [8, 8], still=True), text=0.9, finest=4, detail="low")
    assert not low.settled(130).finer.times


@pytest.mark.parametrize("layout", ["frames", "ragged"])
def test_finer_rows_stay_within_the_budget(layout: Layout) -> None:
    run = CoverageRun(film(SMALL, [6, 6, 6]), text=0.9, finest=2)
    for budget in range(1, run.total + 1):
        state = run.settled(budget, layout)
        assert state.given <= budget
        if layout == "ragged":
            assert state.given == budget
        elif budget >= run.cells:
            assert state.given == budget // run.cells * run.cells


def test_scores_say_what_changes_and_what_repeats() -> None:
    run = CoverageRun(film(WIDE, [6, 6]), detail="high")
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
