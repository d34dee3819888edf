"""The first reducers: their own rules, their corners, and their naive twins."""

from __future__ import annotations

import doctest
import importlib

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tokpipe.compress.attention.top_k import TopK
from tokpipe.compress.similarity.dpc_knn import DpcKnn
from tokpipe.compress.similarity.max_min import MaxMin
from tokpipe.compress.similarity.tome import ToMe
from tokpipe.compress.transformation.grid_pool import GridPool
from tokpipe.compress.transformation.uniform import Uniform
from tokpipe.errors import RecipeError
from tokpipe.spec import KIND_KEPT, KIND_POOLED
from tokpipe.tensors import GridMap, TokenBatch, TokenMap
from tokpipe.testing.suites import sample_tokens

_MODULES = {
    "transformation": ("uniform", "grid_pool"),
    "similarity": ("tome", "dpc_knn", "max_min"),
    "attention": ("top_k",),
}


def vectors(n: int, dim: int, seed: int = 0) -> TokenBatch:
    data = torch.randn(n, dim, generator=torch.Generator().manual_seed(seed))
    return TokenBatch.build(data, torch.zeros(n).double())


@pytest.mark.parametrize("name", [f"{m}.{n}" for m, names in _MODULES.items() for n in names])
def test_operator_example_runs(name: str) -> None:
    module = importlib.import_module(f"tokpipe.compress.{name}")
    result = doctest.testmod(module)
    assert result.attempted > 0 and result.failed == 0


# --- uniform


@pytest.mark.parametrize(
    ("frames", "kept", "expected"),
    [(4, 4, [0, 1, 2, 3]), (4, 2, [1, 3]), (5, 1, [2]), (7, 3, [1, 3, 5]), (10, 4, [1, 3, 6, 8])],
)
def test_uniform_takes_the_middles_of_equal_spans(
    frames: int, kept: int, expected: list[int]
) -> None:
    tokens = sample_tokens(frames, 2, 3)
    decision = Uniform().decide(tokens, 6 * kept + 5 if kept < frames else 6 * kept)
    reduced = tokens.reduce(decision)
    assert sorted(set(reduced.cell[:, 0].tolist())) == expected
    assert len(reduced) == 6 * kept


def test_uniform_below_one_frame_pools_the_middle_one() -> None:
    tokens = sample_tokens(5, 9, 16)
    reduced = tokens.reduce(Uniform().decide(tokens, 40))
    assert len(reduced) == 40  # 5 x 8 is the largest shape near 16:9
    assert set(reduced.cell[:, 0].tolist()) == {2}
    assert (reduced.kind == KIND_POOLED).all()
    cell, extent = reduced.cell.long(), reduced.extent.long()
    seen = torch.zeros(9, 16)
    for (_, y, x), (_, h, w) in zip(cell.tolist(), extent.tolist(), strict=True):
        seen[y : y + h, x : x + w] += 1
    assert (seen == 1).all()


def test_uniform_pools_a_frame_with_holes_in_runs() -> None:
    frame = sample_tokens(1, 3, 3).take(torch.tensor([0, 1, 3, 4, 6, 7, 8]))
    decision = Uniform().decide(frame, 2)
    assert decision.dst.tolist() == [0, 0, 0, 1, 1, 1, 1]


def test_uniform_counts_its_own_frames_without_a_budget() -> None:
    tokens = sample_tokens(6, 2, 2)
    assert len(Uniform(frames=3).decide(tokens, None)) == 12
    assert len(Uniform(frames=3).decide(tokens, 8)) == 8
    assert len(Uniform().decide(tokens, None)) == 24


# --- grid-pool


def test_grid_pool_takes_the_largest_shape_within_the_budget() -> None:
    tokens = sample_tokens(1, 4, 6)
    decision = GridPool().decide(tokens, 13)
    assert isinstance(decision, GridMap) and (len(decision.y), len(decision.x)) == (3, 4)
    assert len(GridPool(rows=3, cols=3).decide(tokens, 7)) == 6


def test_grid_pool_averages_consecutive_frames() -> None:
    tokens = sample_tokens(5, 2, 2)
    decision = GridPool(frames=2).decide(tokens, None)
    reduced = tokens.reduce(decision)
    assert len(reduced) == 12
    torch.testing.assert_close(reduced.data[:4], (tokens.data[:4] + tokens.data[4:8]) / 2)
    torch.testing.assert_close(reduced.data[8:], tokens.data[16:])
    assert reduced.extent[:, 0].tolist() == [2] * 8 + [1] * 4


def test_grid_pool_below_one_token_a_frame_pools_time() -> None:
    assert len(GridPool().decide(sample_tokens(5, 2, 2), 3)) == 3


def test_grid_pool_refuses_ragged_frames() -> None:
    with pytest.raises(RecipeError, match="whole frames"):
        GridPool(rows=1).decide(sample_tokens(2, 2, 2).take(torch.arange(7)), None)
    with pytest.raises(RecipeError, match="whole frames"):
        GridPool(rows=1).decide(sample_tokens(1, 2, 2).take(torch.tensor([1, 0, 2, 3])), None)


# --- tome


def naive_round(data: Tensor, mass: Tensor, remove: int) -> tuple[Tensor, Tensor]:
    """One round with loops."""
    unit = data / data.norm(dim=1, keepdim=True)
    found = []
    for a in range(0, len(data), 2):
        scores = [float(unit[a] @ unit[b]) for b in range(1, len(data), 2)]
        found.append((max(scores), a, 2 * scores.index(max(scores)) + 1))
    found.sort(key=lambda item: (-item[0], item[1]))
    rows = [[a] for _, a, _ in found[remove:]] + [[b] for b in range(1, len(data), 2)]
    for _, a, b in found[:remove]:
        next(row for row in rows if b in row).append(a)
    values = [(data[r] * mass[r][:, None]).sum(0) / mass[r].sum() for r in rows]
    return torch.stack(values), torch.stack([mass[r].sum() for r in rows])


@pytest.mark.parametrize(("n", "budget"), [(8, 5), (9, 3), (31, 4), (40, 1)])
def test_tome_equals_naive_rounds(n: int, budget: int) -> None:
    tokens = vectors(n, 6, n).with_columns(mass=torch.arange(1.0, n + 1))
    data, mass = tokens.data, tokens.mass
    while len(data) > budget:
        data, mass = naive_round(data, mass, min(len(data) // 2, len(data) - budget))
    reduced = tokens.reduce(ToMe().decide(tokens, budget))
    torch.testing.assert_close(reduced.data, data, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(reduced.mass, mass)


def test_tome_protected_tokens_survive_every_round() -> None:
    tokens = vectors(40, 6)
    rule = ToMe(class_token=True, distill_token=True)
    decision = rule.decide(tokens, 5)
    assert decision.anchor[:2].tolist() == [0, 1]
    assert torch.bincount(decision.dst)[:2].tolist() == [1, 1]
    assert rule.decide(tokens, 1).anchor.tolist() == [0]


def test_tome_distillation_needs_a_class_token() -> None:
    with pytest.raises(ValueError, match="class_token"):
        ToMe(distill_token=True)


def test_tome_merges_zero_rows_without_nan() -> None:
    tokens = TokenBatch.build(torch.zeros(9, 4), torch.zeros(9).double())
    assert tokens.reduce(ToMe().decide(tokens, 2)).data.eq(0).all()


@pytest.mark.parametrize("every", [2, 3, 4, 7])
def test_tome_partition_reaches_any_budget(every: int) -> None:
    tokens = vectors(23, 5)
    for budget in range(1, 23):
        assert len(ToMe(every=every).decide(tokens, budget)) == budget


# --- dpc-knn


def naive_peaks(data: Tensor, count: int, k: int) -> tuple[list[int], list[int]]:
    """Centres and labels from the page's formulas, in float64."""
    apart = torch.cdist(data.double(), data.double()) / data.shape[1] ** 0.5
    density = (-apart.sort(1).values[:, :k].square().mean(1)).exp()
    n = len(data)
    gap = []
    for i in range(n):
        denser = [
            float(apart[i, j])
            for j in range(n)
            if density[j] > density[i] or (density[j] == density[i] and j < i)
        ]
        gap.append(min(denser) if denser else float(apart.max()))
    score = [float(density[i]) * gap[i] for i in range(n)]
    centre = sorted(range(n), key=lambda i: (-score[i], i))[:count]
    label = apart[:, centre].argmin(1).tolist()
    for rank, i in enumerate(centre):
        label[i] = rank
    return centre, label


@pytest.mark.parametrize(
    ("n", "dim", "count", "k"), [(30, 4, 6, 5), (50, 40, 9, 3), (12, 8, 11, 5)]
)
def test_dpc_knn_equals_naive_twin(n: int, dim: int, count: int, k: int) -> None:
    tokens = vectors(n, dim)
    decision = DpcKnn(k=k).decide(tokens, count)
    centre, label = naive_peaks(tokens.data, count, k)
    assert decision.anchor.tolist() == centre
    assert decision.dst.tolist() == label


def test_dpc_knn_tells_clusters_apart_at_any_scale() -> None:
    """Densities of far-apart tokens underflow; their order must not."""
    near = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    data = torch.cat([near, near + 40, near - 40]) * 100
    tokens = TokenBatch.build(data, torch.zeros(120).double())
    label = DpcKnn(scale=100.0).decide(tokens, 3).dst.tolist()
    assert [len(set(label[i : i + 40])) for i in (0, 40, 80)] == [1, 1, 1]
    assert len(set(DpcKnn().decide(tokens, 3).anchor.tolist())) == 3


def test_dpc_knn_of_equal_tokens_takes_the_first() -> None:
    tokens = TokenBatch.build(torch.ones(9, 4), torch.zeros(9).double())
    assert DpcKnn().decide(tokens, 3).anchor.tolist() == [0, 1, 2]


def test_dpc_knn_blocks_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = vectors(60, 6)
    whole = DpcKnn().decide(tokens, 10)
    monkeypatch.setattr("tokpipe.compress._neighbors.BLOCK", 420)
    assert torch.equal(DpcKnn().decide(tokens, 10).dst, whole.dst)
    assert len(ToMe().decide(tokens, 10)) == 10


# --- max-min


def test_max_min_equals_naive_twin() -> None:
    tokens = vectors(60, 5)
    unit = tokens.data / tokens.data.norm(dim=1, keepdim=True)
    apart = 1 - unit @ unit.T
    picks = [int((apart + 9 * torch.eye(60)).amin(1).argmax())]
    while len(picks) < 20:
        least = apart[picks].amin(0)
        least[picks] = -1
        picks.append(int(least.argmax()))
    decision = MaxMin().decide(tokens, 20)
    assert decision.anchor.tolist() == picks
    assert decision.score is not None and (decision.score.diff() <= 0).all()


def test_max_min_never_picks_twice() -> None:
    tokens = TokenBatch.build(torch.ones(8, 3), torch.zeros(8).double())
    assert sorted(MaxMin().decide(tokens, 7).anchor.tolist()) == list(range(7))


# --- top-k


def test_top_k_breaks_ties_by_index_and_puts_nan_last() -> None:
    nan, inf = float("nan"), float("inf")
    score = torch.tensor([nan, 1.0, 2.0, 1.0, -inf, 2.0])
    tokens = TokenBatch.build(torch.zeros(6, 1), torch.zeros(6).double(), score=score)
    for budget, kept in ((1, [2]), (3, [1, 2, 5]), (5, [1, 2, 3, 4, 5])):
        assert TopK().decide(tokens, budget).anchor.tolist() == kept


def test_top_k_reads_any_column() -> None:
    tokens = vectors(4, 2).with_extras(cls=torch.tensor([1, 5, 3, 4]))
    assert TopK(by="cls", keep=2).decide(tokens, None).anchor.tolist() == [1, 3]


@pytest.mark.parametrize("by", ["score", "absent", "wide"])
def test_top_k_names_an_unmet_need(by: str) -> None:
    tokens = vectors(4, 2).with_extras(wide=torch.zeros(4, 3, 2))
    with pytest.raises(RecipeError, match=by):
        TopK(by=by).decide(tokens, 2)


# --- all


@given(st.integers(2, 40), st.integers(1, 45), st.floats(0.1, 100))
def test_cosine_rules_ignore_scale(n: int, budget: int, scale: float) -> None:
    tokens = vectors(n, 4, n)
    larger = tokens.with_columns(data=tokens.data * 2 ** round(scale % 7))
    for rule in (ToMe(), MaxMin()):
        one: TokenMap = rule.decide(tokens, budget)
        assert torch.equal(one.anchor, rule.decide(larger, budget).anchor)


def test_kept_rows_are_of_kind_kept() -> None:
    tokens = sample_tokens()
    for rule in (TopK(), MaxMin(), Uniform()):
        assert (tokens.reduce(rule.decide(tokens, 20)).kind == KIND_KEPT).all()
