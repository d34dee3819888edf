"""fit_budget: thresholds are bisected, counts trimmed or filled, never above, exact where asked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from tokpipe.compress._fit import fill, fit_budget, trim
from tokpipe.compress.similarity.tome import ToMe
from tokpipe.compress.transformation.grid_pool import GridPool
from tokpipe.compress.transformation.uniform import Uniform
from tokpipe.errors import BudgetError
from tokpipe.frames import allocate_frames
from tokpipe.spec import Scope
from tokpipe.tensors import GridMap, Query, TokenBatch, TokenMap
from tokpipe.testing.suites import sample_tokens


@dataclass(frozen=True)
class Above:
    """Keeps tokens whose score is above (or below) a threshold, whatever the budget."""

    threshold: Annotated[float, Field(ge=0, le=10)] = 9.5
    below: bool = False
    scope: ClassVar[Scope] = "video"

    def decide(
        self, tokens: TokenBatch, budget: int | None, query: Query | None = None
    ) -> TokenMap:
        high = tokens.score > self.threshold
        return TokenMap.keep(torch.nonzero(high ^ self.below).flatten(), len(tokens))


@dataclass(frozen=True)
class Fixed:
    """Gives a stored decision."""

    decision: TokenMap | GridMap
    scope: ClassVar[Scope] = "video"

    def decide(
        self, tokens: TokenBatch, budget: int | None, query: Query | None = None
    ) -> TokenMap | GridMap:
        return self.decision


def scored(*score: float) -> TokenBatch:
    n = len(score)
    data = torch.arange(float(n))[:, None]
    return TokenBatch.build(
        data, torch.zeros(n).double(), score=torch.tensor(score, dtype=torch.float32)
    )


@pytest.mark.parametrize("below", [False, True])
@pytest.mark.parametrize("budget", [1, 3, 5, 9, 10])
def test_fit_bisects_a_threshold_to_the_budget(below: bool, budget: int) -> None:
    tokens = scored(*[(i * 7 % 10) + 0.25 for i in range(10)])
    decision = fit_budget(Above(below=below), tokens, budget)
    ranked = sorted(range(10), key=lambda i: float(tokens.score[i]), reverse=not below)
    assert sorted(decision.anchor.tolist()) == sorted(ranked[:budget])


def test_fit_fills_what_bisection_cannot_reach() -> None:
    tokens = scored(1, 2, 2, 2, 3)
    assert sorted(fit_budget(Above(), tokens, 3).anchor.tolist()) == [1, 2, 4]
    assert fit_budget(Above(), tokens, 3, exact=False).anchor.tolist() == [4]


def test_fit_trims_the_lowest_score_then_the_later_row() -> None:
    tokens = scored(float("nan"), 1, 3, 1, 2)
    everything = Fixed(TokenMap.identity(5))
    for budget, kept in ((4, [1, 2, 3, 4]), (3, [1, 2, 4]), (1, [2])):
        assert fit_budget(everything, tokens, budget).anchor.tolist() == kept


def test_fit_fills_the_best_absorbed_source_and_takes_its_share() -> None:
    tokens = scored(0, 5, 4, 9, 1)
    decision = TokenMap.mean(torch.tensor([0, 0, 0, 1, -1]), 2)
    fitted = fit_budget(Fixed(decision), tokens, 4)
    reduced = tokens.reduce(fitted)
    assert fitted.anchor.tolist() == [0, 3, 1, 2]
    assert reduced.mass.tolist() == [1, 1, 1, 1]
    assert reduced.data.flatten().tolist() == [1, 3, 1, 2]
    assert fit_budget(Fixed(decision), tokens, 5).anchor.tolist() == [0, 3, 1, 2, 4]


def test_fill_leaves_every_row_a_share() -> None:
    """Rows without an anchor, or whose anchor another row stands for, keep one source."""
    tokens = scored(1, 2, 3)
    free = TokenMap.mean(torch.tensor([0, 0, 0]), 1, anchor=torch.tensor([-1]))
    crossed = TokenMap.mean(torch.tensor([0, 1, 1]), 2, anchor=torch.tensor([2, 0]))
    for decision in (free, crossed):
        filled = fill(decision, tokens, 3)
        mass = tokens.reduce(filled).mass
        assert len(filled) == 3 and mass.tolist() == [1, 1, 1]


def test_fit_expands_grids() -> None:
    tokens = sample_tokens(1, 3, 4)
    fitted = fit_budget(GridPool(rows=1, cols=2), tokens, 5)
    assert len(fitted) == 5
    assert float(tokens.reduce(fitted).mass.sum()) == pytest.approx(float(tokens.mass.sum()))
    assert len(fit_budget(GridPool(), tokens, 5, exact=False)) == 4


def test_fit_keeps_whole_frames_when_not_exact() -> None:
    tokens = sample_tokens(3, 2, 2)
    assert len(fit_budget(Uniform(), tokens, 11, exact=False)) == 8
    assert len(fit_budget(Uniform(), tokens, 11)) == 11


def test_fit_refuses_a_negative_budget() -> None:
    with pytest.raises(BudgetError, match="negative"):
        fit_budget(ToMe(), scored(1, 2), -1)


def test_trim_keeps_scores_and_kinds_of_its_rows() -> None:
    tokens = scored(1, 2, 3)
    kind = torch.tensor([0, 1, 2], dtype=torch.uint8)
    base = TokenMap.keep(torch.arange(3), 3, score=torch.tensor([3.0, 1.0, 2.0]))
    decision = TokenMap(
        src=base.src, dst=base.dst, weight=base.weight, share=base.share, anchor=base.anchor,
        num_sources=3, score=base.score, kind=kind,
    )  # fmt: skip
    trimmed = trim(decision, tokens, 2)
    assert trimmed.score is not None and trimmed.kind is not None
    assert trimmed.score.tolist() == [3, 2] and trimmed.kind.tolist() == [0, 2]


@st.composite
def decisions(draw: st.DrawFn) -> tuple[TokenBatch, TokenMap]:
    """A random grouping of up to 12 tokens, with ties and NaN among the scores."""
    n = draw(st.integers(1, 12))
    k = draw(st.integers(1, n))
    members = st.lists(st.integers(-1, k - 1), min_size=n - k, max_size=n - k)
    group = torch.tensor([*range(k), *draw(members)])
    score = draw(st.lists(st.sampled_from([0.0, 1.0, 2.0, float("nan")]), min_size=n, max_size=n))
    tokens = scored(*score)
    anchored = draw(st.booleans())
    return tokens, TokenMap.mean(group, k, anchor=None if anchored else torch.full((k,), -1))


@given(decisions(), st.integers(1, 14))
def test_fit_is_exact_and_conserves_mass(case: tuple[TokenBatch, TokenMap], budget: int) -> None:
    tokens, decision = case
    fitted = fit_budget(Fixed(decision), tokens, budget)
    assert len(fitted) == min(budget, len(tokens))
    share = torch.zeros(len(tokens)).index_add_(0, fitted.src, fitted.share)
    assert torch.isin(share, torch.tensor([0.0, 1.0])).all()
    mass = tokens.reduce(fitted).mass
    assert (mass > 0).all() and float(mass.sum()) == float(share.sum())


@given(st.lists(st.integers(0, 20), max_size=12), st.integers(0, 150))
def test_allocate_frames_spends_everything_it_can(counts: list[int], budget: int) -> None:
    parts = allocate_frames(counts, budget)
    assert sum(parts) == min(budget, sum(counts))
    assert all(0 <= part <= count for part, count in zip(parts, counts, strict=True))
