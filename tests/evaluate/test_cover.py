"""Coverage, oracle, gap and events against plain definitions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tokpipe.evaluate import _cover as cover
from tokpipe.evaluate.report import Events


def frames_of(count: int, width: int = 6, seed: int = 0) -> NDArray[np.float32]:
    rows = np.random.default_rng(seed).normal(size=(count, width)).astype(np.float32)
    unit: NDArray[np.float32] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return unit


def plain_greedy(near: NDArray[Any], k: int) -> list[int]:
    best, chosen = np.full(len(near), -1.0), list[int]()
    for _ in range(k):
        sums = [np.maximum(near[:, j], best).sum() for j in range(len(near))]
        chosen.append(int(np.argmax(sums)))
        best = np.maximum(best, near[:, chosen[-1]])
    return chosen


@pytest.mark.parametrize(("count", "k"), [(1, 1), (2, 2), (40, 7), (90, 90), (200, 60)])
def test_oracle_is_the_greedy_facility_location(count: int, k: int) -> None:
    frames = frames_of(count, seed=count)
    assert cover.oracle(frames, [k])[k] == plain_greedy((frames @ frames.T).astype(float), k)


def test_oracle_over_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    frames = frames_of(40)
    whole = cover.oracle(frames, [9])
    monkeypatch.setattr(cover, "_PRODUCT", 130)
    assert cover.oracle(frames, [9]) == whole


def test_oracle_of_several_counts_is_one_run() -> None:
    found = cover.oracle(frames_of(50), [3, 9])
    assert found[9][:3] == found[3]


def test_oracle_takes_candidates_at_even_distances(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cover, "CANDIDATES", 10)
    chosen = cover.oracle(frames_of(100), [4, 50])
    allowed = set(cover.uniform(100, 10))
    assert set(chosen[4]) <= allowed
    assert set(chosen[50]) == allowed


def test_best_cosines_over_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    frames, pictures = frames_of(30), frames_of(11, seed=1)
    monkeypatch.setattr(cover, "_PRODUCT", 130)
    expected = (frames @ pictures.T).max(1)
    np.testing.assert_allclose(cover.best_cosines(frames, pictures), expected, atol=1e-6)


def test_summary_has_mean_quantile_minimum() -> None:
    found = cover.summed(np.arange(101) / 100)
    assert (found.mean, found.p5, found.min) == pytest.approx((0.5, 0.05, 0.0))


@pytest.mark.parametrize(
    ("frames", "count", "expected"),
    [(10, 1, [5]), (10, 2, [2, 7]), (9, 3, [1, 4, 7]), (3, 3, [0, 1, 2]), (3, 9, [0, 1, 2])],
)
def test_uniform_takes_middles(frames: int, count: int, expected: list[int]) -> None:
    assert cover.uniform(frames, count) == expected


def test_random_is_the_mean_of_twenty_seeded_draws() -> None:
    frames = frames_of(30)
    rng = np.random.default_rng(5)
    drawn = [rng.choice(30, 4, replace=False) for _ in range(20)]
    means = [(frames @ frames[d].T).max(1).mean() for d in drawn]
    assert cover.random_coverage(frames, 4, 5).mean == pytest.approx(np.mean(means), abs=1e-6)
    assert cover.random_coverage(frames, 4, 6) != cover.random_coverage(frames, 4, 5)


def test_random_of_more_than_there_are_is_all() -> None:
    found = cover.random_coverage(frames_of(3), 9, 0)
    assert (found.mean, found.p5, found.min) == pytest.approx((1.0, 1.0, 1.0))


def test_gap_is_none_where_oracle_is_no_better() -> None:
    assert cover.gap_closed(0.95, 0.9, 1.0) == pytest.approx(0.5)
    assert cover.gap_closed(0.85, 0.9, 1.0) == pytest.approx(-0.5)
    assert cover.gap_closed(0.95, 0.9, 0.9019) is None


def test_slides_are_states_between_changes() -> None:
    states = cover.states_of({"slide_changes_s": [2.0, 5.0]}, 0.0, 9.0)
    assert states == [(0.0, 2.0), (2.0, 5.0), (5.0, 9.0)]
    # A change after the end makes no empty state.
    assert cover.states_of({"slide_changes_s": [9.0]}, 0.0, 9.0) == [(0.0, 9.0)]


def test_visits_are_states_and_other_notes_are_none() -> None:
    note = {"person_present_s": [[1, 2], [4, 6]]}
    assert cover.states_of(note, 0.0, 9.0) == [(1.0, 2.0), (4.0, 6.0)]
    assert cover.event_recall(cover.states_of({"cuts_frame": [3]}, 0.0, 9.0), [1.0]) is None


def test_events_count_states_with_a_picture_borders_included() -> None:
    states = [(0.0, 2.0), (2.0, 5.0), (5.0, 9.0)]
    assert cover.event_recall(states, [8.0, 1.0]) == Events(3, 2)
    assert cover.event_recall(states, [2.0]) == Events(3, 2)
    found = cover.event_recall(states, [])
    assert found is not None and found.recall == 0
