"""Moments within bounded memory, the chooser among them, and what is raised to finer grids."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tokpipe.compress import _moments
from tokpipe.compress._coverage import Cover, Likeness, levels_of
from tokpipe.compress._detail import refine
from tokpipe.compress._moments import Moments
from tokpipe.compress._picture_space import DIM, place_pictures
from tokpipe.compress._sending import fill, send
from tokpipe.encode.pixels import describe
from tokpipe.testing.films import Grid, film, scene, scored_stream

GRID: Grid = (4, 8)
CELLS = 32


def moments_of(pictures: np.ndarray, block: int = 64) -> Moments:
    made = Moments(pictures.shape[1] // 28, pictures.shape[2] // 28)
    for tokens in scored_stream(pictures, block):
        made.add(tokens)
    return made


@pytest.fixture(scope="module")
def three() -> Moments:
    """Three scenes of 6, 1 and 4 s; a block moves in each."""
    return moments_of(film(GRID, [6, 1, 4]))


def test_moments_hold_what_they_saw(three: Moments) -> None:
    assert three.number.tolist() == list(range(11))
    assert three.seconds.tolist() == [1.0] * 11
    assert three.place.shape == (11, DIM)
    assert three.data.shape == (11, CELLS, 24)
    apart = three.apart()
    assert np.array_equal(apart, apart.T)
    assert (apart[0, :6] < apart[0, 6]).all()


@pytest.mark.parametrize("block", [1, 4, 32])
def test_no_more_moments_than_the_capacity_stay(
    block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is unlike its neighbours is never joined, and no second is lost."""
    monkeypatch.setattr(_moments, "CAPACITY", 16)
    pictures = film(GRID, [150])
    pictures[77] = scene(99, GRID)
    made = Moments(*GRID)
    for tokens in scored_stream(pictures, block):
        made.add(tokens)
        assert len(made) <= 2 * 16
    made.trim()
    assert len(made) == 16
    assert 77 in made.number
    assert made.seconds.sum() == pytest.approx(150)
    assert (np.diff(made.number) > 0).all()
    assert len(made.data) == len(made.place) == 16


@pytest.mark.parametrize("grid", [(1, 1), (9, 16), (64, 64)])
def test_capacity_bounds_the_bytes(grid: Grid) -> None:
    capacity = Moments(*grid).capacity
    assert 64 <= capacity <= 2048
    assert capacity == 64 or capacity * grid[0] * grid[1] * 48 <= 48 << 20


@pytest.mark.parametrize("grid", [(9, 16), (16, 9), (8, 8), (3, 4), (46, 64), (1, 1)])
def test_levels_begin_full_and_never_fall_below_8_cells(grid: Grid) -> None:
    levels = levels_of(*grid)
    assert (levels[0].owner, levels[0].count) == (None, grid[0] * grid[1])
    counts = [level.count for level in levels]
    assert counts == sorted(counts, reverse=True)
    assert [level.blur for level in levels] == sorted(level.blur for level in levels)
    for level in levels[1:]:
        assert level.owner is not None
        assert sorted(set(level.owner.tolist())) == list(range(level.count))
        cols = level.owner.reshape(grid)
        assert max(len(set(cols[0])), len(set(cols[:, 0]))) >= 8
    if grid == (9, 16):
        assert counts[-1] == 40


def test_cover_takes_each_scene_before_a_second_of_one(three: Moments) -> None:
    cover = Cover(Likeness(three), levels_of(*GRID)[0], np.zeros(11, np.bool_))
    cover.run(3 * CELLS)
    scenes = [0 if m < 6 else 1 if m == 6 else 2 for m in cover.order[:2]]
    assert scenes == [0, 2]
    cover.reach(4 * CELLS, 0.3)
    assert 6 in cover.order
    assert cover.uncovered() < 0.05


def test_cover_of_nothing_chooses_nothing() -> None:
    none = Moments(*GRID)
    cover = Cover(Likeness(none), levels_of(*GRID)[0], np.zeros(0, np.bool_))
    cover.run(100)
    cover.reach(100, 0.1)
    assert (cover.order, cover.spent) == ([], 0)


def test_the_first_is_sent_whole_then_what_changed(three: Moments) -> None:
    level = levels_of(*GRID)[0]
    parts = send(three, [8, 0, 1], np.zeros(11, np.bool_), level)
    assert [part.moment for part in parts] == [0, 1, 8]
    assert len(parts[0]) == CELLS
    assert 0 < len(parts[1]) < CELLS
    assert (parts[1].pieces == (parts[1].change >= 1)).all()
    before = sum(map(len, parts))
    assert fill(parts, 5) == 0
    assert sum(map(len, parts)) == before + 5
    assert fill(parts, 10_000) == 10_000 - (3 * CELLS - before - 5)


def test_a_full_picture_after_a_coarse_one_is_sent_whole() -> None:
    """What is blurred does not serve it."""
    moments = moments_of(film((4, 16), [3, 3], still=True))
    level = levels_of(4, 16)[-1]
    coarse = np.array([True, False, False, True, True, True])
    sizes = [len(part) for part in send(moments, [0, 1, 2, 4], coarse, level)]
    assert sizes == [level.count, 64, 0, level.count]


def test_refine_raises_all_once_before_one_twice() -> None:
    moments = moments_of(film(GRID, [5, 3, 2], still=True))
    text, finest = np.full(10, 0.9, np.float32), np.full(10, 4)
    assert refine(moments, text, finest, 4 * CELLS - 1).times == {}
    # The longest first, and of each scene its first picture.
    assert refine(moments, text, finest, 4 * CELLS).times == {0: 2}
    assert refine(moments, text, finest, 12 * CELLS).times == {0: 2, 5: 2, 8: 2}
    most = refine(moments, text, finest, 10_000)
    assert most.times == {0: 4, 5: 4, 8: 4}
    assert most.extra == 3 * 15 * CELLS
    assert refine(moments, text * 0, finest, 10_000).times == {}
    assert refine(moments, text, finest // 2, 10_000).times == {0: 2, 5: 2, 8: 2}
    assert refine(moments, text, finest // 4, 10_000).times == {}


def test_pictures_that_differ_in_one_view_lie_apart() -> None:
    """Layout, colours and edges each tell pictures that the others take for one."""
    plain = scene(1, GRID)
    flipped = plain[:, ::-1].copy()
    red = np.clip(plain.astype(int) + np.array((40, -20, -20)), 0, 255).astype(np.uint8)
    lined = plain.copy()
    lined[::8] = 255 - lined[::8]
    place = [
        place_pictures(describe(torch.from_numpy(p[None])).float().numpy().reshape(1, *GRID, 24))[0]
        for p in (plain, plain, flipped, red, lined)
    ]
    far = [float(np.linalg.norm(p - place[0])) for p in place]
    assert far[1] == 0
    assert min(far[2:]) > 0.3
