"""Exact neighbours: against sorting all pairs, over many blocks, and by faiss as by torch."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tokpipe.compress import _neighbors
from tokpipe.compress._neighbors import Backend, Metric, find_neighbors, top_neighbors

METRICS: tuple[Metric, ...] = ("cosine", "dot", "euclidean")


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def whole(near: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of each row by a stable sort: ties go to the lower index."""
    value, index = near.sort(dim=1, descending=True, stable=True)
    return value[:, :k], index[:, :k]


def pairs(queries: Tensor, keys: Tensor, metric: Metric) -> Tensor:
    """What every query has with every key, float64, larger is nearer."""
    q, x = queries.double(), keys.double()
    if metric == "euclidean":
        return -torch.cdist(q, x, compute_mode="donot_use_mm_for_euclid_dist")
    if metric == "cosine":
        q, x = (v / v.norm(dim=1, keepdim=True).clamp(min=1e-12) for v in (q, x))
    return q @ x.T


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("k", [1, 3, 9])
@pytest.mark.parametrize("block", [1 << 23, 900])
@pytest.mark.parametrize("exclude_self", [False, True])
def test_neighbours_are_those_of_a_full_sort(
    metric: Metric, k: int, block: int, exclude_self: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = draw(900, 24)
    queries = keys[:40] if exclude_self else draw(40, 24, seed=1)
    near = pairs(queries, keys, metric)
    if exclude_self:
        near.fill_diagonal_(-torch.inf)
    expected = whole(near, k)
    monkeypatch.setattr(_neighbors, "BLOCK", block)
    value, index = top_neighbors(queries, keys, k, metric=metric, exclude_self=exclude_self)
    assert value.dtype == torch.float32 and index.dtype == torch.int64
    assert torch.equal(index, expected[1])
    sign = -1 if metric == "euclidean" else 1
    torch.testing.assert_close(value.double(), sign * expected[0], rtol=0, atol=1e-5)


@settings(max_examples=60)
@given(
    st.integers(0, 2**31), st.integers(1, 200), st.integers(1, 12), st.integers(1, 3),
    st.sampled_from(METRICS), st.sampled_from([1 << 23, 64, 300]),
)  # fmt: skip
def test_ties_go_to_the_lower_index(
    seed: int, m: int, k: int, width: int, metric: Metric, block: int
) -> None:
    # Small whole numbers: products are exact, and many are equal. Cosines of one axis are +-1, 0.
    some = torch.Generator().manual_seed(seed)
    keys = torch.randint(-1, 2, (m, 1 if metric == "cosine" else width), generator=some).float()
    queries = torch.randint(-1, 2, (5, keys.shape[1]), generator=some).float()
    k = min(k, m)
    expected = whole(pairs(queries, keys, metric), k)[1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_neighbors, "BLOCK", block)
        assert torch.equal(top_neighbors(queries, keys, k, metric=metric)[1], expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("metric", METRICS)
def test_halves_are_worked_on_in_float32(dtype: torch.dtype, metric: Metric) -> None:
    queries, keys = draw(20, 40, seed=3).to(dtype), draw(300, 40, seed=4).to(dtype)
    found = top_neighbors(queries, keys, 6, metric=metric)
    expected = top_neighbors(queries.float(), keys.float(), 6, metric=metric)
    assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])


def test_zero_rows_are_like_nothing() -> None:
    keys = torch.tensor([[0.0, 0.0], [0.0, -1.0], [1.0, 0.0]])
    value, index = top_neighbors(torch.tensor([[0.0, 2.0], [0.0, 0.0]]), keys, 3)
    assert value.tolist() == [[0, 0, -1], [0, 0, 0]]
    assert index.tolist() == [[0, 2, 1], [0, 1, 2]]


def test_close_points_far_from_the_origin_are_told_apart() -> None:
    place = torch.full((1, 16), 100.0)
    keys = place + draw(200, 16, seed=5) * 0.01
    value, index = top_neighbors(keys[:50], keys, 2, metric="euclidean")
    assert torch.equal(index[:, 0], torch.arange(50))
    assert not value[:, 0].any()
    assert torch.equal(index, whole(pairs(keys[:50], keys, "euclidean"), 2)[1])


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("exclude_self", [False, True])
@pytest.mark.parametrize(("m", "k"), [(40, 39), (3000, 1), (3000, 17)])
def test_faiss_finds_the_same(metric: Metric, exclude_self: bool, m: int, k: int) -> None:
    pytest.importorskip("faiss")
    keys = draw(m, 48, seed=6)
    queries = keys[:400] if exclude_self else draw(70, 48, seed=7)
    given = {"metric": metric, "exclude_self": exclude_self}
    ours = find_neighbors(queries, keys, k, backend="torch", **given)  # type: ignore[arg-type]
    theirs = find_neighbors(queries, keys, k, backend="faiss", **given)  # type: ignore[arg-type]
    torch.testing.assert_close(ours[0], theirs[0], rtol=1e-6, atol=1e-5)
    near = pairs(queries, keys, metric)
    for mine, other, row in zip(ours[1], theirs[1], near, strict=True):
        # Products that differ in the last bit may swap; nothing else may.
        odd = torch.unique(torch.cat([mine, other]), return_counts=True)
        swapped = odd[0][odd[1] == 1]
        assert not len(swapped) or row[swapped].max() - row[swapped].min() <= 1e-6
    assert (ours[1] == theirs[1]).float().mean() > 0.999


def test_faiss_leaves_out_the_row_itself_among_equal_rows() -> None:
    pytest.importorskip("faiss")
    keys = torch.ones(30, 8)
    value, index = find_neighbors(keys, keys, 5, exclude_self=True, backend="faiss")
    torch.testing.assert_close(value, torch.ones(30, 5))
    assert not (index == torch.arange(30)[:, None]).any()
    assert all(len(set(row)) == 5 for row in index.tolist())


def test_large_banks_go_to_faiss(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("faiss")
    keys = torch.ones(64, 4)  # all equal: only the torch search promises the lowest indices
    monkeypatch.setattr(_neighbors, "_LARGE", 64 * 64)
    chosen = find_neighbors(keys, keys, 3)
    assert torch.equal(chosen[1], find_neighbors(keys, keys, 3, backend="faiss")[1])
    few = find_neighbors(keys[:63], keys, 3)
    assert few[1].tolist() == [[0, 1, 2]] * 63


@pytest.mark.parametrize("backend", ["torch", "faiss"])
def test_wrong_arguments_are_named(backend: Backend) -> None:
    if backend == "faiss":
        pytest.importorskip("faiss")
    keys = draw(4, 3)
    with pytest.raises(ValueError, match="k: expected 1 to 3, got 4"):
        find_neighbors(keys, keys, 4, exclude_self=True, backend=backend)
    with pytest.raises(ValueError, match=r"got \[4, 3\] and \[4, 2\]"):
        find_neighbors(keys, keys[:, :2], 1, backend=backend)
    with pytest.raises(ValueError, match="5 queries are not among 4 keys"):
        find_neighbors(draw(5, 3), keys, 1, exclude_self=True, backend=backend)
    with pytest.raises(ValueError, match="got 'l3'"):
        find_neighbors(keys, keys, 1, metric="l3", backend=backend)  # type: ignore[arg-type]


def test_an_unknown_backend_is_named() -> None:
    with pytest.raises(ValueError, match="got 'annoy'"):
        find_neighbors(draw(4, 3), draw(4, 3), 1, backend="annoy")  # type: ignore[arg-type]


def test_without_faiss_the_remedy_is_named() -> None:
    code = (
        "import sys; sys.modules['faiss'] = None\n"
        "import torch\n"
        "from tokpipe.compress._neighbors import find_neighbors\n"
        "from tokpipe.errors import MissingExtra\n"
        "x = torch.eye(3)\n"
        "assert find_neighbors(x, x, 1)[1].flatten().tolist() == [0, 1, 2]\n"
        "try:\n    find_neighbors(x, x, 1, backend='faiss')\n"
        "except MissingExtra as error:\n    print(error.hint)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install 'tokpipe[faiss]'" in done.stdout


@pytest.mark.gpu
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("backend", ["torch", "faiss"])
def test_a_gpu_finds_what_the_processor_finds(metric: Metric, backend: Backend) -> None:
    if not torch.cuda.is_available() and os.environ.get("TOKPIPE_REQUIRE_CUDA") != "1":
        pytest.skip("no CUDA device; TOKPIPE_REQUIRE_CUDA=1 makes this a failure")
    if backend == "faiss":
        pytest.importorskip("faiss")
    keys = draw(5000, 64, seed=8)
    expected = top_neighbors(keys[:500], keys, 8, metric=metric, exclude_self=True)
    there = keys.cuda()
    value, index = find_neighbors(
        there[:500], there, 8, metric=metric, exclude_self=True, backend=backend
    )
    torch.testing.assert_close(value.cpu(), expected[0], rtol=0, atol=1e-5)
    assert (index.cpu() == expected[1]).float().mean() > 0.999
