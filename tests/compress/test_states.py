"""States of a grid's cells over time, against a slow twin that sees everything at once."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tokpipe.compress._states import StateMapper, frame_slices, stands_for
from tokpipe.tensors import TokenBatch

Flags = NDArray[np.bool_]


def naive(novel: Flags, chosen: Flags) -> dict[int, set[int]]:
    """Kept cell -> cells it stands for, ids counted frame by frame."""
    frames, cells = novel.shape
    owners: dict[int, set[int]] = {}
    for x in range(cells):
        begins = [t for t in range(frames) if t == 0 or novel[t, x]]
        for start, stop in zip(begins, [*begins[1:], frames], strict=True):
            kept = [t for t in range(start, stop) if chosen[t, x]]
            for t in range(start, stop) if kept else ():
                keeper = max([k for k in kept if k <= t], default=kept[0])
                owners.setdefault(keeper * cells + x, set()).add(t * cells + x)
    return owners


def tokens(first: int, frames: int, cells: int) -> TokenBatch:
    step = torch.arange(first, first + frames).repeat_interleave(cells)
    place = torch.stack([step, step * 0, torch.arange(cells).repeat(frames)], 1).int()
    at = step.double()
    ids = first * cells + torch.arange(frames * cells)
    return TokenBatch.build(
        ids[:, None].float(), at, pts=torch.stack([at, at + 1], 1), cell=place,
        frame=torch.stack([step, step], 1),
    )  # fmt: skip


def run(novel: Flags, chosen: Flags, blocks: list[int]) -> TokenBatch:
    """Rows that come out, blocks of frames pushed one after the other."""
    mapper, cells = StateMapper(), novel.shape[1]
    carried = tokens(0, 0, cells)
    out, a = [], 0
    for size in blocks:
        new = tokens(a, size, cells)
        tmap = mapper.push(len(carried), novel[a : a + size], chosen[a : a + size])
        rows = TokenBatch.cat([carried, new]).reduce(tmap)
        assert mapper.settled is not None
        out.append(rows.take(mapper.settled))
        carried, a = rows.take(~mapper.settled), a + size
    out.append(carried.reduce(mapper.finish(len(carried))))
    return TokenBatch.cat(out).sorted()


@st.composite
def cases(draw: st.DrawFn) -> tuple[Flags, Flags, list[int]]:
    frames, cells = draw(st.integers(1, 9)), draw(st.integers(1, 4))
    flags = st.lists(st.booleans(), min_size=frames * cells, max_size=frames * cells)
    novel = np.array(draw(flags)).reshape(frames, cells)
    chosen = np.array(draw(flags)).reshape(frames, cells)
    blocks: list[int] = []
    while sum(blocks) < frames:
        blocks.append(draw(st.integers(1, frames - sum(blocks))))
    return novel, chosen, blocks


@settings(max_examples=150)
@given(cases(), st.integers(1, 4))
def test_spans_equal_naive_twin_in_any_blocks(
    case: tuple[Flags, Flags, list[int]], block: int
) -> None:
    novel, chosen, _ = case
    ids = np.flatnonzero(chosen)
    scores = novel.astype(np.float32)
    frames, cells = novel.shape
    begin, end = stands_for(lambda a, b: scores[a:b], ids, frames, cells, block)
    expected = naive(novel, chosen)
    for kept, first, last in zip(ids.tolist(), begin.tolist(), end.tolist(), strict=True):
        times = sorted(member // novel.shape[1] for member in expected[kept])
        assert times == list(range(first, last))


@settings(max_examples=150)
@given(cases())
def test_mapper_equals_naive_twin_in_any_blocks(case: tuple[Flags, Flags, list[int]]) -> None:
    novel, chosen, blocks = case
    expected = naive(novel, chosen)
    rows = run(novel, chosen, blocks)
    assert rows.data[:, 0].long().tolist() == sorted(expected)
    for i, row in enumerate(sorted(expected)):
        times = [member // novel.shape[1] for member in expected[row]]
        assert rows.mass[i] == len(times)
        assert rows.pts[i].tolist() == [min(times), max(times) + 1]
        assert rows.frame[i].tolist() == [min(times), max(times)]


def test_mapper_repeat_enters_with_weight_0_and_share_1() -> None:
    novel = np.array([[True], [False], [False]])
    tmap = StateMapper().push(0, novel, novel)
    assert tmap.weight.tolist() == [1, 0, 0]
    assert tmap.share.tolist() == [1, 1, 1]
    assert tmap.anchor.tolist() == [0]


def test_mapper_drops_a_state_without_a_chosen_cell() -> None:
    novel = np.array([[True], [False], [True]])
    chosen = np.array([[False], [False], [True]])
    rows = run(novel, chosen, [3])
    assert rows.at.tolist() == [2.0]
    assert rows.mass.tolist() == [1.0]


@pytest.mark.parametrize("frames", [0, 1, 3])
def test_frame_slices_cut_where_the_step_changes(frames: int) -> None:
    found = frame_slices(tokens(5, frames, 4))
    assert found == [(4 * i, 4 * i + 4) for i in range(frames)]
