"""Anchor frames and updates: what is chosen, what goes first, what stands for what."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tokpipe.compress.similarity.anchor_updates import AnchorUpdates
from tokpipe.encode.pixels import cell_tokens
from tokpipe.grid import ragged_partition, regular_shape
from tokpipe.spec import KIND_POOLED, Layout
from tokpipe.tensors import TokenBatch

Scores = NDArray[np.float32]
ROWS, COLS = 2, 3
C = ROWS * COLS


def tokens_of(scores: Scores, first: int = 0) -> TokenBatch:
    """Tokens of whole frames whose scores [T, C] are given; data is the cell's number."""
    t = len(scores)
    start = torch.arange(first, first + t).double()
    ids = first * C + torch.arange(t * C)
    made = cell_tokens(
        ids[:, None].float(), start, start + 1, torch.arange(first, first + t),
        torch.arange(first, first + t, dtype=torch.int32), ROWS, COLS,
    )  # fmt: skip
    return made.with_columns(score=torch.from_numpy(scores.reshape(-1).astype(np.float32)))


def choose(
    scores: Scores, budget: int, layout: Layout = "ragged", each: int | None = None,
    block: int = 64, anchors: float = 0.75, limit: int | None = None,
) -> tuple[TokenBatch, list[int]]:  # fmt: skip
    """Kept rows in the cache's order, and the order in which they are given up last."""
    operator = AnchorUpdates(anchors=anchors)
    state = operator.begin(scores.size if limit is None else limit, ROWS, COLS)
    blocks = [tokens_of(scores[a : a + block], a) for a in range(0, len(scores), block)]
    for tokens in blocks:
        operator.observe(state, tokens)
    operator.settle(state, budget, layout, each)
    carried: TokenBatch | None = None
    out = []
    for new in blocks:
        state, tmap = operator.push(state, carried, new)
        made = (new if carried is None else TokenBatch.cat([carried, new])).reduce(tmap)
        assert state.settled is not None
        out.append(made.take(state.settled))
        carried = made.take(~state.settled)
    assert carried is not None
    out.append(carried.reduce(operator.finish(state, carried)))
    kept = TokenBatch.cat(out).sorted()
    if (pooled := operator.conclude(state, kept)) is not None:
        kept = kept.reduce(pooled).sorted()
    return kept, operator.order(state, kept).tolist()


def ids_of(kept: TokenBatch) -> list[int]:
    t, y, x = kept.cell.long().T
    ids: list[int] = (t * C + y * COLS + x).tolist()
    return ids


def random_scores(frames: int, share: float, seed: int = 0) -> Scores:
    draw = np.random.default_rng(seed)
    scores = draw.uniform(0, 0.99, (frames, C)).astype(np.float32)
    novel = draw.random((frames, C)) < share
    novel[0] = True
    scores[novel] = draw.uniform(1, 20, int(novel.sum()))
    return scores


def test_novel_cells_come_first_then_repeats_by_change() -> None:
    scores = random_scores(20, 0.1)
    order = np.argsort(-scores.reshape(-1), kind="stable")
    for budget in (int((scores >= 1).sum()), 60, 119, 120, 500):
        kept, _ = choose(scores, budget)
        assert ids_of(kept) == sorted(order[:budget].tolist())


def test_anchors_are_whole_frames_at_the_middles_of_equal_spans() -> None:
    scores = random_scores(20, 0.9)
    kept, _ = choose(scores, 40)  # floor(0.75 x 40 / 6) = 5 frames
    frames = [(2 * i + 1) * 20 // 10 for i in range(5)]
    anchors = {f * C + c for f in frames for c in range(C)}
    best = [i for i in np.argsort(-scores.reshape(-1), kind="stable").tolist() if i not in anchors]
    assert ids_of(kept) == sorted(anchors | set(best[:10]))


def test_ties_go_to_the_lower_index() -> None:
    scores = np.ones((8, C), np.float32)
    kept, _ = choose(scores, 10, anchors=0.0)
    assert ids_of(kept) == list(range(10))


@pytest.mark.parametrize("budget", range(1, C))
def test_under_one_frame_the_middle_frame_is_tiled_exactly(budget: int) -> None:
    kept, _ = choose(random_scores(9, 0.5), budget)
    assert len(kept) == budget
    assert torch.unique(kept.cell[:, 0]).tolist() == [4]
    assert (kept.kind == KIND_POOLED).all()
    boxes = torch.cat([kept.cell[:, 1:], kept.extent[:, 1:]], 1).tolist()
    assert boxes == [list(tile) for tile in ragged_partition(ROWS, COLS, budget)]


@pytest.mark.parametrize("budget", [1, 2, 5, 6, 7, 17, 18, 53, 54, 1000])
def test_frames_layout_keeps_whole_frames(budget: int) -> None:
    kept, _ = choose(random_scores(9, 0.5), budget, "frames")
    if budget >= C:
        count = min(9, budget // C)
        assert len(kept) == count * C
        middles = sorted({(2 * i + 1) * 9 // (2 * count) for i in range(count)})
        assert torch.unique(kept.cell[:, 0]).tolist() == middles
    else:
        a, b = regular_shape(ROWS, COLS, budget)
        assert len(kept) == a * b


@pytest.mark.parametrize("budget", [1, 2, 5, 6, 9, 17, 40, 54, 1000])
def test_grid_layout_is_one_shape_within_the_budget(budget: int) -> None:
    kept, _ = choose(random_scores(9, 0.5), budget, "grid")
    assert 1 <= len(kept) <= budget
    _, counts = torch.unique(kept.cell[:, 0], return_counts=True)
    assert len(torch.unique(counts)) == 1
    if budget >= 9 * C:
        assert len(kept) == 9 * C


@pytest.mark.parametrize("each", [1, 2, 5, 6])
def test_each_bounds_every_frame(each: int) -> None:
    scores = random_scores(9, 0.3)
    kept, _ = choose(scores, 9 * each, each=each)
    for t in range(9):
        best = np.argsort(-scores[t], kind="stable")[:each]
        mine = kept.cell[kept.cell[:, 0] == t]
        assert sorted((mine[:, 1] * COLS + mine[:, 2]).tolist()) == sorted(best.tolist())


@settings(max_examples=80)
@given(
    st.integers(1, 25), st.integers(1, 160), st.floats(0, 1), st.integers(0, 5), st.integers(1, 30)
)
def test_choice_is_exact_and_does_not_depend_on_blocks(
    frames: int, budget: int, share: float, seed: int, block: int
) -> None:
    scores = random_scores(frames, share, seed)
    kept, order = choose(scores, budget)
    assert len(kept) == min(budget, scores.size)
    assert sorted(order) == list(range(len(kept)))
    again, same = choose(scores, budget, block=block, limit=min(budget, scores.size))
    assert same == order
    for name in ("data", "at", "pts", "cell", "mass", "kind"):
        assert torch.equal(getattr(kept, name), getattr(again, name)), name
    assert float(kept.mass.sum()) <= scores.size
    if (scores >= 1).sum() <= budget and budget >= C:
        assert float(kept.mass.sum()) == scores.size


def test_order_gives_up_the_smallest_change_first() -> None:
    scores = random_scores(20, 0.1)
    kept, order = choose(scores, 60)
    by_rank = kept.score[torch.tensor(order).argsort()]
    assert (by_rank.diff() <= 0).all()


def test_order_thins_anchor_frames_coarse_to_fine() -> None:
    """Any prefix of whole anchor frames is spread over the whole time."""
    kept, order = choose(random_scores(64, 1.0), 8 * C, anchors=1.0)
    times = kept.cell[:, 0][torch.tensor(order).argsort()].reshape(8, C)
    assert (times == times[:, :1]).all()
    first = times[:, 0].tolist()
    assert sorted(first) == [4 + 8 * i for i in range(8)]
    assert abs(first[0] - first[1]) >= 24
    for count in (2, 4):
        prefix = sorted(first[:count])
        assert np.diff(prefix).min() >= 64 // (2 * count)


def test_spans_reach_to_the_next_novel_cell() -> None:
    scores = np.full((6, C), 0.5, np.float32)
    scores[0] = scores[3] = 5
    kept, _ = choose(scores, 2 * C)
    assert kept.pts[:C].tolist() == [[0, 3]] * C
    assert kept.pts[C:].tolist() == [[3, 6]] * C
    assert kept.frame[:C].tolist() == [[0, 2]] * C
    assert kept.mass.tolist() == [3] * (2 * C)
