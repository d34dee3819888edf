"""Selectors of whole frames: their own rules, their corners, and what they need."""

from __future__ import annotations

import doctest
import importlib
from typing import Any

import pytest
import torch
from torch import Tensor

from tokpipe.errors import RecipeError
from tokpipe.frames import frames_of
from tokpipe.sample._select import changes, frame_scores, topped_up
from tokpipe.sample.aks import Aks
from tokpipe.sample.bolt import Bolt
from tokpipe.sample.q_frame import QFrame
from tokpipe.sample.scene_middle import SceneMiddle
from tokpipe.sample.vilamp import Vilamp, fill_gaps
from tokpipe.tensors import Query, TokenBatch
from tokpipe.testing.golden import frame_tokens
from tokpipe.testing.suites import sample_tokens

_WHOLE = (Aks(score="column"), Bolt(score="column"), Vilamp(score="column"), SceneMiddle())


def scored(score: list[float], cells: int = 1) -> TokenBatch:
    """Frames of ``cells`` tokens; all tokens of a frame have its score."""
    value = torch.tensor(score).repeat_interleave(cells)
    data = torch.randn(len(score), cells, 4, generator=torch.Generator().manual_seed(0))
    return frame_tokens(data, (1, cells)).with_columns(score=value)


def frames(tokens: TokenBatch, index: Tensor) -> list[int]:
    return sorted(set(tokens.cell[index, 0].tolist()))


@pytest.mark.parametrize("name", ["aks", "bolt", "q_frame", "scene_middle", "vilamp"])
def test_selector_example_runs(name: str) -> None:
    result = doctest.testmod(importlib.import_module(f"tokpipe.sample.{name}"))
    assert result.attempted and not result.failed


@pytest.mark.parametrize("operator", _WHOLE, ids=lambda o: type(o).__name__)
def test_a_budget_buys_whole_frames(operator: Any) -> None:
    tokens = scored([0.1, 0.9, 0.3, 0.8, 0.2, 0.7, 0.4], cells=4)
    for budget in (4, 7, 8, 13, 27, 28, 30):
        made = operator.decide(tokens, budget)
        assert len(made) == min(7, budget // 4) * 4
        assert (torch.bincount(made.anchor // 4, minlength=7) % 4 == 0).all()
        assert made.anchor.tolist() == sorted(made.anchor.tolist())


@pytest.mark.parametrize("operator", _WHOLE, ids=lambda o: type(o).__name__)
def test_a_budget_below_one_frame_gives_the_best_one_smaller(operator: Any) -> None:
    tokens = scored([0.1, 0.9, 0.3], cells=6)
    made = operator.decide(tokens, 4)
    assert 1 <= len(made) <= 4 and len(frames(tokens, made.src)) == 1
    if not isinstance(operator, SceneMiddle):
        assert frames(tokens, made.src) == [1]


@pytest.mark.parametrize("kind", [Aks, Bolt, Vilamp, SceneMiddle])
def test_a_number_of_frames_holds_whatever_the_budget(kind: Any) -> None:
    tokens = sample_tokens(9, 2, 2)
    options = {} if kind is SceneMiddle else {"score": "novelty"}
    operator = kind(frames=3, **options)
    assert operator.drop and not kind(**options).drop
    for budget in (None, 1000):
        assert len(frames(tokens, operator.decide(tokens, budget).anchor)) == 3


@pytest.mark.parametrize("kind", [Aks, Bolt, Vilamp, QFrame])
def test_a_missing_query_or_score_is_named(kind: Any) -> None:
    tokens = scored([0.1, 0.2])
    with pytest.raises(RecipeError, match="needs a query"):
        kind().decide(tokens, None)
    bare = tokens.with_columns(score=torch.full((2,), torch.nan))
    with pytest.raises(RecipeError, match="no token has a score"):
        kind(score="column").decide(bare, None)
    with pytest.raises(RecipeError, match="`text_space` is missing"):
        kind().decide(tokens, None, Query(text="", pooled=torch.ones(1, 4), space="text_space"))
    assert kind().needs == ("query",) and kind(score="novelty").needs == ()


def test_scores_of_frames_come_from_query_change_or_column() -> None:
    data = torch.tensor([[[1.0, 0.0]], [[0.0, 2.0]], [[0.0, 2.0]]])
    tokens = frame_tokens(data).with_columns(score=torch.tensor([0.5, torch.nan, 0.1]))
    found = frames_of(tokens)
    query = Query(text="", pooled=torch.tensor([[0.0, 3.0], [-1.0, 0.0]]))
    assert frame_scores(tokens, found, "query", query, "x").tolist() == [0, 1, 1]
    plain = frame_scores(tokens, found, "query", query, "x", scaled=False)
    assert plain.tolist() == [0, 6, 6]
    novelty = frame_scores(tokens, found, "novelty", None, "x").tolist()
    assert novelty[0] == novelty[1] > novelty[2] == 0
    column = frame_scores(tokens, found, "column", None, "x")
    torch.testing.assert_close(column, torch.tensor([0.5, 0.1, 0.1]).double())
    assert torch.equal(changes(7 * data[:, 0]), changes(data[:, 0]))


def test_frames_are_found_whatever_the_order_of_their_tokens() -> None:
    tokens = scored([0.1, 0.9, 0.3, 0.8], cells=3)
    mixed = tokens.take(torch.randperm(12, generator=torch.Generator().manual_seed(3)))
    made = Aks(score="column", frames=2).decide(mixed, None)
    assert frames(mixed, made.anchor) == [1, 3] and len(made) == 6


def test_topping_up_takes_the_best_of_the_rest() -> None:
    score = torch.tensor([0.1, 0.9, 0.5, 0.5])
    assert topped_up(torch.tensor([0, 0]), score, 3).tolist() == [0, 1, 2]
    assert topped_up(torch.tensor([1, 2]), score, 1).tolist() == [1, 2]


# --- aks


def test_aks_takes_frames_from_every_part() -> None:
    score = torch.tensor([9.0, 8, 7, 6, 1, 2, 0, 0])
    spread_out = Aks(frames=2, gap=1.0).choose(score, 2)
    assert spread_out.tolist() == [0, 5]
    assert Aks(frames=2, gap=0.0).choose(score, 2).tolist() == [0, 1]


def test_aks_loses_frames_only_as_released() -> None:
    score = torch.rand(100, generator=torch.Generator().manual_seed(0))
    for count in (1, 3, 20, 33, 99, 100):
        assert len(Aks().choose(score, count)) == count
    assert len(Aks(compat="released").choose(score, 20)) == 0
    assert len(Aks(compat="released").choose(score, 40)) == 32
    assert len(Aks(compat="released").choose(score, 101)) == 100


def test_aks_takes_equal_scores_as_they_come() -> None:
    assert Aks().choose(torch.full((8,), 0.5), 4).tolist() == [0, 2, 4, 6]
    assert Aks().segments(torch.ones(3), 4) == []


# --- bolt


def test_bolt_fills_the_places_of_frames_drawn_twice() -> None:
    score = torch.tensor([0.0, 10.0, 0.1, 0.2, 0.3])
    operator = Bolt(power=None)
    assert operator.draw(score, 3).unique().shape[0] < 3  # type: ignore[no-untyped-call]
    tokens = scored(score.tolist())
    assert Bolt(frames=3, score="column").decide(tokens, None).anchor.tolist() == [1, 3, 4]
    released = Bolt(frames=3, score="column", compat="released")
    assert released.decide(tokens, None).anchor.tolist() == [1]


def test_bolt_draws_one_frame_at_the_median_and_equal_scores_evenly() -> None:
    score = torch.tensor([0.0, 1.0, 1.0, 1.0])
    assert Bolt().draw(score, 1).tolist() == [2]
    assert Bolt(compat="released").draw(score, 1).tolist() == [3]
    assert Bolt().draw(torch.ones(8), 2).tolist() == [3, 3]


# --- vilamp


def test_vilamp_hides_what_looks_like_a_key_frame() -> None:
    data = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [1.0, 0.0]])
    keys = Vilamp().key_frames(torch.tensor([0.1, 0.9, 0.3, 0.2, 0.8]), data, 4)
    assert torch.nonzero(keys).flatten().tolist() == [1, 2]
    some = Vilamp(least=0.5).key_frames(torch.tensor([0.1, 0.9, 0.3, 0.2, 0.8]), data, 4)
    assert torch.nonzero(some).flatten().tolist() == [1]


@pytest.mark.parametrize("count", [1, 2, 5, 9, 12])
def test_gaps_are_filled_to_the_count(count: int) -> None:
    mask = torch.zeros(12, dtype=torch.bool)
    mask[4] = True
    filled = fill_gaps(mask, count)
    assert int(filled.sum()) == count and bool(filled[4])
    assert torch.equal(fill_gaps(torch.ones(3).bool(), 2), torch.ones(3).bool())


# --- scene-middle


def test_scenes_give_their_middles_and_the_longest_come_first() -> None:
    vectors = torch.eye(3).repeat_interleave(torch.tensor([2, 7, 3]), 0)
    tokens = frame_tokens(vectors[:, None])
    assert SceneMiddle().decide(tokens, None).anchor.tolist() == [1, 5, 10]
    assert SceneMiddle().decide(tokens, 2).anchor.tolist() == [5, 10]
    assert SceneMiddle().decide(tokens, 1).anchor.tolist() == [5]
    assert len(SceneMiddle().decide(tokens, 5)) == 5
    still = frame_tokens(torch.ones(6, 1, 2))
    assert SceneMiddle().decide(still, None).anchor.tolist() == [3]


# --- q-frame


def test_q_frame_keeps_three_resolutions_in_time_order() -> None:
    tokens = frame_tokens(torch.randn(30, 64, 4, generator=torch.Generator().manual_seed(1)))
    operator = QFrame(score="novelty")
    made = operator.decide(tokens, None)
    assert len(made) == 6 * 16 + 6 * 4 + 8
    assert made.anchor.tolist() == sorted(made.anchor.tolist())
    counts = torch.bincount(made.anchor // 64, minlength=30).bincount(minlength=17)
    assert counts[[0, 1, 4, 16]].tolist() == [10, 8, 6, 6]
    other = QFrame(score="novelty", seed=5).decide(tokens, None)
    assert not torch.equal(other.anchor, made.anchor)


def test_q_frame_scales_its_numbers_to_a_budget() -> None:
    tokens = frame_tokens(torch.randn(30, 64, 4, generator=torch.Generator().manual_seed(1)))
    sizes = [len(QFrame(score="novelty").decide(tokens, b)) for b in (1, 30, 64, 128, 480, 1000)]
    assert all(a <= b for a, b in zip(sizes, (1, 30, 64, 128, 480, 1000), strict=True))
    assert sizes == sorted(sizes) and sizes[3] == 128 and sizes[5] == 480
    with pytest.raises(ValueError, match="at least one frame"):
        QFrame(high=0, mid=0, low=0)
