"""Budgets: five forms, exact splits."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokpipe.budget import Budget, Supply, audio_share_of, largest_remainder, split_modalities
from tokpipe.errors import BudgetError


@pytest.mark.parametrize(
    ("text", "form", "amount"),
    [
        ("2048", "total", 2048),
        (7, "total", 7),
        (" 100_000 ", "total", 100000),
        ("64/frame", "per_frame", 64),
        ("20/s", "per_second", 20),
        ("2.5/s", "per_second", Fraction(5, 2)),
        ("10%", "percent", 10),
        ("0.25 %", "percent", Fraction(1, 4)),
    ],
)
def test_budget_parse_reads_every_form(text: str, form: str, amount: Fraction) -> None:
    budget = Budget.parse(text)
    assert (budget.form, budget.amount) == (form, amount)
    assert Budget.parse(str(budget)) == budget


@pytest.mark.parametrize("text", ["video=1536,audio=512", "audio=5", "video=3"])
def test_budget_parse_reads_caps(text: str) -> None:
    budget = Budget.parse(text)
    assert budget.form == "split"
    assert Budget.parse(str(budget)) == budget
    assert f"video={budget.video},audio={budget.audio}" == str(budget)


@pytest.mark.parametrize(
    "text",
    ["", "0", "-5", "2.5", "101%", "0%", "5/frames", "64.5/frame", "video=", "video=0", "1e9",
     "video=1,video=2", "image=4", "nan", "9" * 13, "10 %%"],
)  # fmt: skip
def test_budget_parse_refuses_with_a_hint(text: str) -> None:
    with pytest.raises(BudgetError) as caught:
        Budget.parse(text)
    assert caught.value.hint


@given(st.text(max_size=20))
def test_budget_parse_raises_only_its_own_error(text: str) -> None:
    try:
        budget = Budget.parse(text)
    except BudgetError:
        return
    assert Budget.parse(str(budget)) == budget


@pytest.mark.parametrize(
    ("total", "weights", "caps", "expected"),
    [
        (10, [1, 1, 1], None, [4, 3, 3]),
        (10, [1, 2, 1], None, [3, 5, 2]),
        (5, [0, 0], None, [3, 2]),
        (5, [0, 1], None, [0, 5]),
        (5, [0, 1], [9, 2], [3, 2]),
        (10, [5, 1, 1], [4, 9, 9], [4, 3, 3]),
        (99, [1, 1], [3, 4], [3, 4]),
        (0, [1, 1], None, [0, 0]),
        (3, [], None, []),
    ],
)
def test_largest_remainder_of_known_splits(
    total: int, weights: list[float], caps: list[int] | None, expected: list[int]
) -> None:
    assert largest_remainder(total, weights, caps=caps) == expected


@given(
    st.integers(0, 300),
    st.lists(
        st.tuples(st.floats(0, 1e3, width=16), st.integers(0, 60), st.integers(0, 9)), max_size=9
    ),
)
def test_largest_remainder_spends_all_within_bounds(
    total: int, rows: list[tuple[float, int, int]]
) -> None:
    weights, caps, floors = (list(c) for c in zip(*rows, strict=True)) if rows else ([], [], [])
    parts = largest_remainder(total, weights, caps=caps, floors=floors)
    assert sum(parts) == min(total, sum(caps))
    assert all(0 <= p <= c for p, c in zip(parts, caps, strict=True))
    if total >= sum(floors):
        assert all(p >= min(f, c) for p, f, c in zip(parts, floors, caps, strict=True))


@given(st.integers(0, 500), st.lists(st.integers(1, 100), min_size=1, max_size=9))
def test_largest_remainder_stays_within_one_of_the_share(total: int, weights: list[int]) -> None:
    parts = largest_remainder(total, weights)
    for part, weight in zip(parts, weights, strict=True):
        assert abs(part - Fraction(total * weight, sum(weights))) < 1


@pytest.mark.parametrize(("total", "audio"), [(2048, 512), (8, 2), (7, 2), (2, 1), (1, 0), (0, 0)])
def test_audio_share_rounds_half_up(total: int, audio: int) -> None:
    assert audio_share_of(total) == audio


def test_audio_share_is_at_least_one_from_eight() -> None:
    assert audio_share_of(8, Fraction(1, 100)) == 1
    assert audio_share_of(7, Fraction(1, 100)) == 0
    assert audio_share_of(100, Fraction(0)) == 0


@pytest.mark.parametrize(
    ("video", "audio", "expected"),
    [
        (Supply(1000, 1000), Supply(1000, 1000), (75, 25)),
        (Supply(1000, 1000), Supply(0, 0), (100, 0)),
        (Supply(0, 0), Supply(9, 1000), (0, 100)),
        (Supply(1000, 1000), Supply(5, 1000), (95, 5)),
        (Supply(10, 1000), Supply(40, 1000), (10, 90)),
        (Supply(10, 1000), Supply(40, 50), (50, 50)),
        (Supply(10, 20), Supply(5, 6), (20, 6)),
        (Supply(1000, 1000), Supply(0, 50), (100, 0)),
    ],
)
def test_split_modalities_fills_in_order(
    video: Supply, audio: Supply, expected: tuple[int, int]
) -> None:
    assert split_modalities(100, video, audio) == expected


supplies = st.tuples(st.integers(0, 300), st.integers(0, 300)).map(
    lambda pair: Supply(min(pair), max(pair))
)


@given(st.integers(0, 700), supplies, supplies)
def test_split_modalities_spends_all_it_can(total: int, video: Supply, audio: Supply) -> None:
    v, a = split_modalities(total, video, audio)
    assert v + a == min(total, video.total + audio.total)
    assert 0 <= v <= video.total and 0 <= a <= audio.total
