"""TokenMap and GridMap: composition, mass, unmerge, grids equal to their expansion."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tokpipe.maps import GridMap, TokenMap, counted
from tokpipe.spec import KIND_KEPT, KIND_MERGED, KIND_POOLED
from tokpipe.tensors import TokenBatch
from tokpipe.testing.suites import sample_tokens


def tokens_of(n: int) -> TokenBatch:
    return sample_tokens(1, 1, n, dim=3, seed=n)


def as_matrix(decision: TokenMap) -> torch.Tensor:
    matrix = torch.zeros(len(decision), decision.num_sources)
    return matrix.index_put((decision.dst, decision.src), decision.weight, accumulate=True)


@st.composite
def maps(draw: st.DrawFn, n: int | None = None) -> TokenMap:
    """A keep, a mean, a mass mean or a keep-first, with drops; every row has a source."""
    n = draw(st.integers(1, 12)) if n is None else n
    k = draw(st.integers(1, n))
    rest = draw(st.lists(st.integers(-1, k - 1), min_size=n - k, max_size=n - k))
    order = draw(st.permutations([*range(k), *rest]))
    group = torch.tensor(order)
    kind = draw(st.sampled_from(["keep", "mean", "mass", "first"]))
    if kind == "keep":
        return TokenMap.keep(torch.tensor(draw(st.permutations(range(n)))[:k]), n)
    if kind == "mean":
        return TokenMap.mean(group, k)
    if kind == "mass":
        return TokenMap.mass_mean(group, k, 1 + torch.arange(n).float())
    return TokenMap.keep_first(group, k)


@st.composite
def chains(draw: st.DrawFn) -> tuple[TokenMap, TokenMap]:
    first = draw(maps())
    return first, draw(maps(len(first)))


@given(chains())
def test_then_equals_applying_in_turn(chain: tuple[TokenMap, TokenMap]) -> None:
    first, second = chain
    tokens = tokens_of(first.num_sources)
    in_turn = tokens.reduce(first).reduce(second)
    at_once = tokens.reduce(first.then(second))
    torch.testing.assert_close(at_once.data, in_turn.data, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(at_once.mass, in_turn.mass)
    for column in ("at", "pts", "frame", "cell", "tile", "segment", "score"):
        assert torch.equal(getattr(at_once, column), getattr(in_turn, column)), column


@given(chains(), st.data())
def test_then_is_associative(chain: tuple[TokenMap, TokenMap], data: st.DataObject) -> None:
    first, second = chain
    third = data.draw(maps(len(second)))
    left, right = first.then(second).then(third), first.then(second.then(third))
    torch.testing.assert_close(as_matrix(left), as_matrix(right), rtol=1e-5, atol=1e-6)
    assert torch.equal(left.anchor, right.anchor)


@given(maps())
def test_reduce_conserves_mass(decision: TokenMap) -> None:
    tokens = tokens_of(decision.num_sources)
    share = torch.zeros(len(tokens)).index_add_(0, decision.src, decision.share)
    assert torch.isin(share, torch.tensor([0.0, 1.0])).all()
    kept = float(tokens.reduce(decision).mass.sum())
    assert kept + float(tokens.mass[share == 0].sum()) == pytest.approx(float(tokens.mass.sum()))


@given(maps())
def test_reduce_equals_the_dense_matrix(decision: TokenMap) -> None:
    tokens = tokens_of(decision.num_sources)
    dense = as_matrix(decision) @ tokens.data
    torch.testing.assert_close(tokens.reduce(decision).data, dense, rtol=1e-5, atol=1e-5)


@given(maps())
def test_unmerge_copies_each_row_to_its_sources(decision: TokenMap) -> None:
    rows = torch.arange(1.0, len(decision) + 1)[:, None]
    back = decision.unmerge(rows).flatten()
    expected = torch.zeros(decision.num_sources)
    expected[decision.src] = rows.flatten()[decision.dst]
    assert torch.equal(back, expected)


def test_unmerge_follows_the_largest_share_then_the_first() -> None:
    decision = TokenMap(
        src=torch.tensor([0, 0, 1, 1]), dst=torch.tensor([0, 1, 1, 0]),
        weight=torch.ones(4), share=torch.tensor([0.3, 0.7, 0.5, 0.5]),
        anchor=torch.tensor([0, 1]), num_sources=2,
    )  # fmt: skip
    assert decision.unmerge(torch.tensor([[5.0], [6.0]])).flatten().tolist() == [6, 6]


def test_then_keeps_the_kind_and_score_of_rows_it_takes() -> None:
    """A composed map once forgot that a pooled or scored row was kept as it is."""
    tokens = sample_tokens(1, 2, 4)
    pool = GridMap(t=torch.eye(1), y=GridMap.average(2, 1), x=GridMap.average(4, 2)).expand()
    keep = TokenMap.keep(torch.tensor([1]), 2)
    assert tokens.reduce(pool.then(keep)).kind.tolist() == [KIND_POOLED]
    merge = TokenMap.mean(torch.tensor([0, 0]), 1)
    assert tokens.reduce(pool.then(merge)).kind.tolist() == [KIND_MERGED]
    scored = TokenMap.keep(torch.tensor([3, 5]), 8, score=torch.tensor([7.0, 9.0]))
    assert tokens.reduce(scored.then(keep)).score.tolist() == [9.0]


def test_keep_first_lets_the_first_stand_for_all() -> None:
    tokens = sample_tokens(3, 1, 1)
    reduced = tokens.reduce(TokenMap.keep_first(torch.tensor([0, 0, 0]), 1))
    assert torch.equal(reduced.data, tokens.data[:1])
    assert reduced.pts.tolist() == [[1.0, 2.5]] and reduced.frame.tolist() == [[0, 44]]
    assert reduced.at.tolist() == [1.0] and reduced.kind.tolist() == [KIND_KEPT]
    assert reduced.extent.tolist() == [[3, 1, 1]]


@pytest.mark.parametrize("bad", [{"src": 3}, {"dst": 1}, {"anchor": 3}, {"anchor": -2}])
def test_token_map_refuses_what_is_out_of_range(bad: dict[str, int]) -> None:
    value = {"src": 0, "dst": 0, "anchor": 0, **bad}
    with pytest.raises(ValueError, match="out of range"):
        TokenMap(weight=torch.ones(1), share=torch.ones(1), num_sources=3,
                 **{k: torch.tensor([v]) for k, v in value.items()})  # fmt: skip


def test_then_refuses_a_map_of_another_size() -> None:
    with pytest.raises(ValueError, match="cannot compose"):
        TokenMap.identity(3).then(TokenMap.identity(4))


axes = st.tuples(st.integers(1, 6), st.integers(1, 6)).filter(lambda pair: pair[1] <= pair[0])


@given(axes, axes, axes, st.booleans())
def test_grid_map_equals_its_expansion(
    t: tuple[int, int], y: tuple[int, int], x: tuple[int, int], signed: bool
) -> None:
    matrices = [GridMap.average(*pair) for pair in (t, y, x)]
    if signed:  # as a transform would have
        matrices = [m - 0.05 for m in matrices]
    grid = GridMap(t=matrices[0], y=matrices[1], x=matrices[2])
    tokens = sample_tokens(t[0], y[0], x[0])
    quick, slow = tokens.reduce(grid), tokens.reduce(grid.expand())
    torch.testing.assert_close(quick.data, slow.data, rtol=1e-4, atol=1e-5)
    for column in ("at", "pts", "cell", "extent", "mass", "kind"):
        assert torch.equal(getattr(quick, column), getattr(slow, column)), column
    assert float(quick.mass.sum()) == pytest.approx(float(tokens.mass.sum()), rel=1e-5)


def test_grid_map_expansion_of_a_long_clip_stays_sparse() -> None:
    """64 frames of 9 x 16 to 64 x 3 x 4: a dense K x N matrix would hold 28 million entries."""
    grid = GridMap(t=torch.eye(64), y=GridMap.average(9, 3), x=GridMap.average(16, 4))
    assert grid.expand().src.shape[0] == 64 * 9 * 16


def test_counting_is_that_of_bincount_with_and_without_a_mask() -> None:
    draw = torch.Generator().manual_seed(1)
    index = torch.randint(0, 9, (50,), generator=draw)
    live = torch.rand(50, generator=draw) > 0.5
    assert torch.equal(counted(index, 11), torch.bincount(index, minlength=11))
    assert torch.equal(counted(index, 11, live), torch.bincount(index[live], minlength=11))
    assert counted(index[:0], 2).tolist() == [0, 0]
