"""Selection by a query: what the stored cases and the suite do not cover."""

from __future__ import annotations

import pytest
import torch

from tokpipe.compress import _dpp
from tokpipe.compress._dpp import dpp_picks, dpp_picks_each
from tokpipe.compress._neighbors import unit_rows
from tokpipe.compress.query.cdpruner import CDPruner
from tokpipe.compress.query.mob import MoB
from tokpipe.compress.query.text_score import TextScore
from tokpipe.compress.query.trim import Trim
from tokpipe.errors import RecipeError
from tokpipe.tensors import Query, TokenBatch
from tokpipe.testing.golden import frame_tokens


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def ask(*rows: list[float]) -> Query:
    return Query(text="a", pooled=torch.tensor(rows))


def ragged() -> TokenBatch:
    """Frames of 3, 5 and 3 tokens."""
    at = torch.tensor([0, 0, 0, 1, 1, 1, 1, 1, 2, 2, 2]).double()
    return TokenBatch.build(random(11, 6), at)


def naive(unit: torch.Tensor, relevance: torch.Tensor, count: int) -> list[int]:
    """Greedy by determinants."""
    kernel = (relevance[:, None] * unit @ unit.T * relevance).double()
    picks: list[int] = []
    for _ in range(count):
        gain = [
            -1.0 if i in picks else float(torch.linalg.det(kernel[[*picks, i]][:, [*picks, i]]))
            for i in range(len(unit))
        ]
        picks.append(max(range(len(unit)), key=gain.__getitem__))
    return picks


@pytest.mark.parametrize("dense", [True, False])
def test_dpp_is_the_greedy_determinant(dense: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not dense:
        monkeypatch.setattr(_dpp, "BLOCK", 10)
    unit, relevance = unit_rows(random(20, 8)), random(20, seed=1).abs()
    assert dpp_picks(unit, relevance, 6).tolist() == naive(unit, relevance, 6)


@pytest.mark.parametrize("dense", [True, False])
def test_dpp_stops_at_the_span(dense: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not dense:
        monkeypatch.setattr(_dpp, "BLOCK", 10)
    unit = unit_rows(torch.cat([random(3, 16), torch.zeros(1, 16)])).repeat(4, 1)
    picks = dpp_picks(unit, torch.ones(16), 10)
    assert sorted(picks.tolist()) == [0, 1, 2]


def test_dpp_frames_end_on_their_own() -> None:
    unit = torch.stack([torch.eye(4), torch.ones(4, 4) / 2])
    picks = dpp_picks_each(unit, torch.ones(2, 4), 3)
    assert picks.tolist() == [[0, 1, 2], [0, -1, -1]]


def test_cdpruner_fills_with_the_most_relevant() -> None:
    tokens = frame_tokens(torch.tensor([[1.0, 0.0]]).repeat(5, 1))
    tokens = tokens.with_columns(score=torch.tensor([0.1, 0.9, 0.5, 0.7, 0.3]))
    decision = CDPruner(relevance="score").decide(tokens, 3)
    assert decision.anchor.tolist() == [1, 2, 3]


def test_cdpruner_shares_the_budget_over_ragged_frames() -> None:
    tokens, query = ragged(), Query(text="a", pooled=random(2, 6, seed=3))
    found = CDPruner().decide(tokens, 5, query)
    one = CDPruner().decide(tokens.take(slice(3, 8)), 2, query)
    assert len(found) == 5
    assert [i - 3 for i in found.anchor.tolist() if 3 <= i < 8] == one.anchor.tolist()


def test_cdpruner_sign_and_batch_are_released_only() -> None:
    data = torch.eye(4)[None].repeat(2, 1, 1)
    data[1] *= 3
    tokens = frame_tokens(data)
    query = ask([4.0, 3.0, 2.0, 1.0])
    assert CDPruner().decide(tokens, 4, query).anchor.tolist() == [0, 1, 4, 5]
    released = CDPruner(compat="released").decide(tokens, 4, query)
    assert released.anchor.tolist() == [2, 3, 6, 7]


def test_cdpruner_without_any_score_says_so() -> None:
    with pytest.raises(RecipeError, match="no score"):
        CDPruner(relevance="score").decide(frame_tokens(random(4, 3)), 2)


def test_cdpruner_over_the_video_is_one_frame() -> None:
    data = random(2, 6, 5)
    video = CDPruner(relevance="uniform", scope="video").decide(frame_tokens(data), 4)
    joined = CDPruner(relevance="uniform").decide(frame_tokens(data.reshape(12, 5)), 4)
    assert torch.equal(video.anchor, joined.anchor)


def test_trim_keeps_outliers_and_one_mean() -> None:
    data = torch.full((1, 20, 2), 1.0)
    data[0, 7] = torch.tensor([-1.0, 5.0])
    tokens = frame_tokens(data)
    query = ask([-1.0, 5.0])
    found = Trim().decide(tokens, None, query)
    assert len(found) == 2 and found.anchor[0] == 7
    rows = tokens.reduce(found)
    rest = torch.cat([data[0, :7], data[0, 8:]]).mean(0)
    torch.testing.assert_close(rows.data[1], rest)
    assert rows.mass.tolist() == [1.0, 19.0]


def test_trim_on_ragged_frames_is_one_by_one() -> None:
    tokens, query = ragged(), Query(text="a", pooled=random(1, 6, seed=3))
    for operator, budget in ((Trim(ratio=0.4), None), (Trim(), 6), (Trim(), None)):
        whole = tokens.reduce(operator.decide(tokens, budget, query))
        parts = []
        for (a, b), rows in zip(((0, 3), (3, 8), (8, 11)), (2, 2, 2), strict=True):
            part = tokens.take(slice(a, b))
            own = operator.decide(part, None if budget is None else rows, query)
            parts.append(part.reduce(own).data)
        if budget is None:
            torch.testing.assert_close(whole.data, torch.cat(parts))
        assert len(whole) == (sum(map(len, parts)) if budget is None else budget)


def test_trim_without_summary_drops() -> None:
    tokens = frame_tokens(torch.eye(4))
    found = Trim(summary=False).decide(tokens, 2, ask([1.0, 0.0, 0.5, 0.0]))
    assert found.src.tolist() == [0, 2]


def test_trim_of_one_row_is_the_mean_of_all() -> None:
    data = random(6, 3)
    rows = (tokens := frame_tokens(data)).reduce(Trim().decide(tokens, 1, ask([1.0, 0.0, 0.0])))
    torch.testing.assert_close(rows.data, data.mean(0, keepdim=True))


def test_mob_gives_the_picture_what_the_prompt_leaves() -> None:
    tokens = frame_tokens(random(30, 4))
    operator = MoB(share=0.5, nearest=1)
    found = operator.decide(tokens, 12, Query(text="a", pooled=random(2, 4, seed=1)))
    assert len(found) == len(found.anchor.unique()) == 12  # type: ignore[no-untyped-call]


def test_mob_share_one_is_prompt_only() -> None:
    tokens, query = frame_tokens(random(10, 4)), Query(text="a", pooled=random(1, 4, seed=1))
    found = MoB(share=1.0, nearest=10).decide(tokens, 3, query)
    best = (unit_rows(tokens.data) @ unit_rows(query.pooled)[0]).argsort(descending=True)[:3]
    assert torch.equal(found.anchor, best)


def test_text_score_feeds_other_rules() -> None:
    tokens = frame_tokens(random(8, 4))
    query = Query(text="a", pooled=random(3, 4, seed=1), tokens=random(5, 4, seed=2))
    mean = tokens.reduce(TextScore().decide(tokens, None, query)).score
    most = tokens.reduce(TextScore(by="tokens", over="max").decide(tokens, None, query)).score
    unit = unit_rows(tokens.data)
    torch.testing.assert_close(mean, (unit @ unit_rows(query.pooled).T).mean(1))
    assert query.tokens is not None
    torch.testing.assert_close(most, (unit @ unit_rows(query.tokens).T).amax(1))


@pytest.mark.parametrize("operator", [CDPruner(), Trim(), MoB(), TextScore()])
def test_no_query_is_refused(operator: CDPruner | Trim | MoB | TextScore) -> None:
    with pytest.raises(RecipeError) as caught:
        operator.decide(frame_tokens(random(4, 3)), 2)
    assert caught.value.code == "recipe.needs"
