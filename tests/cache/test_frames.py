"""frames(): own, earlier, later and unknown content of a hand-made atlas."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from tokpipe.cache import RebuiltFrame, open_cache
from tokpipe.errors import CacheCorrupt, CacheError

Make = Callable[..., Any]
RED, GREEN, BLUE, WHITE = (250, 0, 0), (0, 250, 0), (0, 0, 250), (250, 250, 250)
COLOURS = [RED, GREEN, BLUE, WHITE]


def frames_of(path: Path) -> list[RebuiltFrame]:
    with open_cache(path) as cache:
        return list(cache.frames())


def colours(frame: RebuiltFrame) -> npt.NDArray[Any]:
    """Colour of each cell, which must be flat."""
    rows, cols = frame.mask.shape
    tiles = frame.pixels.reshape(rows, 28, cols, 28, 3).swapaxes(1, 2)
    flat = tiles.reshape(rows, cols, -1, 3)
    assert (flat == flat[:, :, :1]).all()
    return flat[:, :, 0]


def test_frames_show_own_earlier_later_and_unknown(
    tmp_path: Path, write_pictures: Make, make_page: Make
) -> None:
    path = write_pictures(
        tmp_path / "a", 1, 4, [0.0, 1.0, 1.0, 5.0], [[0, 0], [0, 0], [0, 1], [0, 1]],
        [(0, 0), (0, 1), (0, 2), (0, 3)], [make_page(COLOURS)],
    )  # fmt: skip
    frames = frames_of(path)
    assert [f.pts for f in frames] == [0.0, 1.0, 5.0]
    assert [f.mask.tolist() for f in frames] == [[[3, 1, 0, 0]], [[3, 3, 0, 0]], [[2, 3, 0, 0]]]
    grey = [128, 128, 128]
    assert [colours(f).tolist()[0] for f in frames] == [
        [list(RED), list(BLUE), list(BLUE), grey],
        [list(GREEN), list(BLUE), list(BLUE), grey],
        [list(GREEN), list(WHITE), list(WHITE), grey],
    ]


def test_unknown_cell_is_the_mean_of_its_known_neighbours(
    tmp_path: Path, write_pictures: Make, make_page: Make
) -> None:
    path = write_pictures(
        tmp_path / "a", 3, 3, [0.0, 0.0, 0.0], [[0, 0], [0, 1], [2, 2]],
        [(0, 0), (0, 1), (0, 3)], [make_page(COLOURS)],
    )  # fmt: skip
    (frame,) = frames_of(path)
    shown = colours(frame)
    assert shown[1, 1].tolist() == [167, 167, 83], "red, green and white"
    assert shown[0, 2].tolist() == list(GREEN)
    assert shown[2, 0].tolist() == [128] * 3
    assert frame.mask.tolist() == [[3, 3, 0], [0, 0, 0], [0, 0, 3]]


def test_reduced_cell_covers_its_rectangle_cut_at_the_edge(
    tmp_path: Path, write_pictures: Make, make_page: Make
) -> None:
    path = write_pictures(
        tmp_path / "a", 3, 3, [0.0, 1.0], [[0, 0], [2, 2]], [(0, 0), (0, 1)],
        [make_page(COLOURS)],
        columns={"extent": np.array([[1, 2, 3], [1, 2, 2]]), "kind": np.array([2, 2])},
    )  # fmt: skip
    first, second = frames_of(path)
    assert first.mask.tolist() == [[3, 3, 3], [3, 3, 3], [0, 0, 1]]
    assert colours(first)[:2].reshape(-1, 3).tolist() == [list(RED)] * 6
    assert second.mask.tolist() == [[2, 2, 2], [2, 2, 2], [0, 0, 3]]


def test_token_that_is_not_pooled_shows_its_anchor_cell_only(
    tmp_path: Path, write_pictures: Make, make_page: Make
) -> None:
    where = (1, 3, [0.0], [[0, 1]], [(0, 0)], [make_page(COLOURS)])
    for kind in (0, 1):
        columns = {"extent": np.array([[1, 1, 3]]), "kind": np.array([kind])}
        (frame,) = frames_of(write_pictures(tmp_path / f"{kind}", *where, columns=columns))
        assert frame.mask.tolist() == [[0, 3, 0]]


def test_frames_use_every_page_and_skip_rows_without_a_picture(
    tmp_path: Path, write_pictures: Make, make_page: Make
) -> None:
    path = write_pictures(
        tmp_path / "a", 1, 2, [0.0, 1.0, 2.0], [[0, 0], [0, 1], [0, 0]],
        [(0, 0), (-1, 0), (1, 1)], [make_page([RED]), make_page([RED, GREEN])],
    )  # fmt: skip
    frames = frames_of(path)
    assert [f.mask.tolist() for f in frames] == [[[3, 0]], [[2, 0]], [[3, 0]]]
    assert colours(frames[2])[0].tolist() == [list(GREEN), list(GREEN)]


def test_scaled_picture_keeps_its_shape(
    tmp_path: Path, write_pictures: Make, make_page: Make
) -> None:
    path = write_pictures(
        tmp_path / "a", 2, 1, [0.0], [[0, 0]], [(0, 0)], [make_page([RED, GREEN])],
        columns={"extent": np.array([[1, 2, 1]]), "kind": np.array([2])},
    )  # fmt: skip
    (frame,) = frames_of(path)
    assert frame.pixels.shape == (56, 28, 3)
    assert colours(frame).reshape(-1, 3).tolist() == [list(RED)] * 2


def test_frames_of_a_feature_cache_are_refused(tmp_path: Path, write_feature: Make) -> None:
    with open_cache(write_feature(tmp_path / "a")) as cache, pytest.raises(CacheError):
        next(cache.frames())


def test_damaged_page_is_a_named_error(tmp_path: Path, write_pictures: Make) -> None:
    path = write_pictures(tmp_path / "a", 1, 1, [0.0], [[0, 0]], [(0, 0)], [b"RIFF....WEBP"])
    with pytest.raises(CacheCorrupt, match="page 0"):
        frames_of(path)


def test_huge_page_is_refused_before_it_is_decoded(
    tmp_path: Path, write_pictures: Make, make_page: Make
) -> None:
    page = make_page([RED], slots=5)
    path = write_pictures(tmp_path / "a", 1, 1, [0.0], [[0, 0]], [(0, 0)], [page])
    with pytest.raises(CacheCorrupt, match="160x160"):
        frames_of(path)
