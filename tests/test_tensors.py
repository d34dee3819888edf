"""TokenBatch: construction, order, and what reduce makes of each column."""

from __future__ import annotations

import pytest
import torch

from tokpipe.maps import TokenMap
from tokpipe.spec import KIND_KEPT, KIND_MERGED
from tokpipe.tensors import AudioChunk, FrameBatch, TokenBatch
from tokpipe.testing.suites import sample_tokens


def merge(group: list[int], count: int, anchor: list[int] | None = None) -> TokenMap:
    place = None if anchor is None else torch.tensor(anchor)
    return TokenMap.mean(torch.tensor(group), count, anchor=place)


def test_build_gives_neutral_columns() -> None:
    tokens = TokenBatch.build(torch.zeros(2, 3), torch.tensor([1.0, 2.0]).double(), modality=1)
    assert tokens.pts.tolist() == [[1, 1], [2, 2]] and tokens.mass.tolist() == [1, 1]
    assert tokens.cell.tolist() == [[-1] * 3] * 2 and tokens.score.isnan().all()
    assert tokens.modality.tolist() == [1, 1] and tokens.segment.tolist() == [-1, -1]


@pytest.mark.parametrize(
    ("column", "value"),
    [("mass", torch.ones(3)), ("at", torch.zeros(4)), ("cell", torch.zeros(4, 3))],
)
def test_batch_refuses_wrong_shape_or_dtype(column: str, value: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=rf"TokenBatch\.{column}: expected"):
        sample_tokens(1, 2, 2).with_columns(**{column: value})


def test_batch_refuses_extras_of_another_length() -> None:
    with pytest.raises(ValueError, match="keys"):
        sample_tokens(1, 2, 2).with_extras(keys=torch.zeros(3))


def test_repr_shows_shapes_and_spans() -> None:
    assert repr(sample_tokens(2, 1, 3)) == "TokenBatch([6, 8] torch.float32, 1.000..1.500 s)"
    assert "empty" in repr(sample_tokens(1, 1, 1).take(torch.arange(0)))
    frames = FrameBatch(
        pixels=torch.zeros(2, 4, 6, 3, dtype=torch.uint8), pts=torch.tensor([0.0, 0.5]).double(),
        duration=torch.full((2,), 0.5).double(), index=torch.arange(2),
    )  # fmt: skip
    assert repr(frames) == "FrameBatch([2, 4, 6, 3], 0.000..0.500 s)"
    chunk = AudioChunk(samples=torch.zeros(1, 8000), pts=2.0, sample_rate=16000, index=32000)
    assert repr(chunk) == "AudioChunk([1, 8000], 2.000..2.500 s)"


def test_reduce_spans_are_hulls_of_what_a_row_stands_for() -> None:
    tokens = sample_tokens(3, 1, 2)
    reduced = tokens.reduce(merge([0, 1, -1, 1, 0, -1], 2, anchor=[4, 1]))
    assert reduced.pts.tolist() == [[1.0, 2.5], [1.0, 2.0]]
    assert reduced.frame.tolist() == [[0, 44], [0, 29]]
    assert reduced.at.tolist() == [2.0, 1.0]
    assert reduced.cell.tolist() == [[2, 0, 0], [0, 0, 1]]
    assert reduced.extent.tolist() == [[3, 1, 1], [2, 1, 1]]


def test_reduce_ignores_the_span_of_an_entry_without_share() -> None:
    tokens = sample_tokens(3, 1, 1)
    decision = TokenMap(
        src=torch.tensor([0, 2]), dst=torch.tensor([0, 0]), weight=torch.tensor([0.5, 0.5]),
        share=torch.tensor([1.0, 0.0]), anchor=torch.tensor([0]), num_sources=3,
    )  # fmt: skip
    reduced = tokens.reduce(decision)
    assert reduced.pts.tolist() == [[1.0, 1.5]] and reduced.kind.tolist() == [KIND_MERGED]
    torch.testing.assert_close(reduced.data, (tokens.data[:1] + tokens.data[2:]) / 2)


def test_reduce_places_a_row_without_anchor_at_its_heaviest_source() -> None:
    tokens = sample_tokens(1, 1, 4).with_columns(mass=torch.tensor([1.0, 3.0, 3.0, 1.0]))
    group = torch.zeros(4, dtype=torch.int64)
    decision = TokenMap.mass_mean(group, 1, tokens.mass, anchor=torch.tensor([-1]))
    assert tokens.reduce(decision).cell.tolist() == [[0, 0, 1]]


def test_reduce_follows_the_rule_of_each_extra() -> None:
    tokens = sample_tokens(1, 1, 3).with_extras(
        rules={"a": "linear", "b": "sum", "c": "max", "d": "drop"},
        a=torch.tensor([1.0, 2.0, 6.0]), b=torch.tensor([1, 2, 6]),
        c=torch.tensor([[-1.0], [-3.0], [-2.0]]), d=torch.zeros(3), e=torch.tensor([7, 8, 9]),
    )  # fmt: skip
    reduced = tokens.reduce(merge([0, 0, 0], 1, anchor=[1]))
    assert {k: v.tolist() for k, v in reduced.extras.items()} == {
        "a": [3.0], "b": [9], "c": [[-1.0]], "e": [8],
    }  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_reduce_sums_in_float32_and_keeps_the_dtype(dtype: torch.dtype) -> None:
    data = torch.full((4096, 1), 100.0, dtype=dtype)
    tokens = TokenBatch.build(data, torch.zeros(4096).double())
    reduced = tokens.reduce(merge([0] * 4096, 1))
    assert reduced.data.dtype == dtype and float(reduced.data) == pytest.approx(100, rel=1e-3)


def test_reduce_gathers_single_sources_bit_for_bit() -> None:
    tokens = sample_tokens(1, 2, 3)
    index = torch.tensor([4, 0, 5])
    reduced = tokens.reduce(TokenMap.keep(index, 6))
    assert torch.equal(reduced.data, tokens.data[index])
    assert reduced.kind.tolist() == [KIND_KEPT] * 3 and torch.equal(
        reduced.mass, tokens.mass[index]
    )


def test_reduce_refuses_a_map_of_another_size() -> None:
    with pytest.raises(ValueError, match="3 sources applied to 4"):
        sample_tokens(1, 2, 2).reduce(TokenMap.identity(3))


def test_sorted_is_stable_by_time_tile_row_column() -> None:
    tokens = sample_tokens(2, 2, 2)
    tile = torch.tensor([1, 0, 0, 0, 0, 0, 0, 0], dtype=torch.int32)
    tokens = tokens.with_columns(tile=tile, segment=torch.arange(8, dtype=torch.int32))
    mixed = tokens.take(torch.tensor([7, 6, 5, 4, 3, 2, 1, 0]))
    assert mixed.sorted().segment.tolist() == [1, 2, 3, 0, 4, 5, 6, 7]


def test_cat_and_take_move_every_column_alike() -> None:
    tokens = sample_tokens(2, 1, 2, extras=("keys",))
    parts = [tokens.take(torch.tensor([0, 1])), tokens.take(torch.tensor([2, 3]))]
    whole = TokenBatch.cat(parts)
    for column in ("data", "at", "pts", "cell", "mass", "score"):
        assert torch.equal(getattr(whole, column), getattr(tokens, column))
    assert torch.equal(whole.extras["keys"], tokens.extras["keys"])
