"""Segmentation and clustering on video: what golden cases and the shared suite do not cover."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations, pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tokpipe.compress import _cluster, _neighbors
from tokpipe.compress._cluster import density_peaks, mixed, peaks_of_each
from tokpipe.compress._fit import expanded, fit_budget
from tokpipe.compress._segment import cut_lowest, refine_labels, runs, static_windows
from tokpipe.compress._windows import best_places, joined, kept, quotas, segment_rows
from tokpipe.compress.attention.fastvid import FastVid
from tokpipe.compress.attention.holitom import HoliTom
from tokpipe.compress.attention.streamingtom import StreamingTom
from tokpipe.compress.similarity.chat_univi import ChatUniVi
from tokpipe.compress.similarity.prunevid import PruneVid
from tokpipe.compress.transformation.metok_events import MetokEvents
from tokpipe.errors import BudgetError, RecipeError
from tokpipe.tensors import Query, TokenBatch, TokenMap
from tokpipe.testing.suites import sample_tokens

RULES: list[Any] = [
    PruneVid(), HoliTom(), HoliTom(contextual=0.5), FastVid(), StreamingTom(), ChatUniVi(),
    ChatUniVi(scope="frame", levels=(6, 3, 2)), MetokEvents(),
]  # fmt: skip


def scenes(frames: int = 12, rows: int = 4, cols: int = 5, dim: int = 8) -> TokenBatch:
    """Frames of two scenes whose left half stays nearly still, with every column needed."""
    tokens = sample_tokens(
        frames, rows, cols, dim=dim, extras=("attention", "frame_embedding"), seed=frames
    )
    data = tokens.data.reshape(frames, rows, cols, dim).clone()
    for t in range(frames):
        first = 0 if t < frames // 2 else frames // 2
        data[t, :, : cols // 2] = data[first, :, : cols // 2] + 0.01 * data[t, :, : cols // 2]
    return tokens.with_columns(data=data.flatten(0, 2))


def column_sums(decision: TokenMap) -> Tensor:
    total = torch.zeros(decision.num_sources)
    return total.index_add_(0, decision.src, decision.share)


def test_cuts_are_the_lowest_and_the_earlier_of_equals() -> None:
    similarity = torch.tensor([0.5, 0.1, 0.5, 0.9, 0.1])
    assert cut_lowest(similarity, 1) == [(0, 2), (2, 6)]
    assert cut_lowest(similarity, 3) == [(0, 1), (1, 2), (2, 5), (5, 6)]
    assert cut_lowest(similarity, 0, 0.6) == [(0, 1), (1, 2), (2, 3), (3, 5), (5, 6)]
    assert len(cut_lowest(similarity, 99)) == 6
    assert cut_lowest(similarity[:0], 4) == [(0, 1)]


@given(st.lists(st.integers(0, 3), min_size=2, max_size=24))
def test_refined_labels_have_no_single_frames(labels: list[int]) -> None:
    refined = refine_labels(labels)
    assert len(refined) == len(labels)
    assert all(b - a > 1 for a, b in runs(refined))
    assert set(refined) <= {0, *labels}


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 7), st.integers(1, 4), st.integers(1, 8), st.integers(0, 1 << 30))
def test_static_windows_are_the_best_of_all(
    frames: int, places: int, longest: int, seed: int
) -> None:
    draw = torch.Generator().manual_seed(seed)
    still = torch.rand(frames - 1, places, generator=draw) > 0.4

    def gain(windows: list[tuple[int, int]]) -> int:
        return sum(
            (b - a - 1) * int(still[a : b - 1].all(0).sum()) for a, b in windows if b - a > 1
        )

    every = []
    for count in range(frames):
        for cuts in combinations(range(1, frames), count):
            ends = [0, *cuts, frames]
            windows = list(pairwise(ends))
            if all(b - a <= longest for a, b in windows):
                every.append(gain(windows))
    found, saved = static_windows(still, longest)
    assert saved == gain(found) == max(every)
    assert found[0][0] == 0 and found[-1][1] == frames
    assert all(b - a <= longest for a, b in found)


@pytest.mark.parametrize(("n", "dim"), [(40, 8), (40, 64), (20, 64), (7, 3), (1, 4)])
def test_many_clouds_are_clustered_like_each(n: int, dim: int) -> None:
    draw = torch.Generator().manual_seed(n + dim)
    data = torch.randn(4, n, dim, generator=draw)
    valid = torch.rand(4, n, generator=draw) > 0.4
    valid[0], valid[1], valid[1, -1] = True, False, True
    count = torch.tensor([5, 1, 3, 0]).clamp(max=n)
    near = torch.tensor([4, 2, 3, 2]).clamp(max=n)
    found = peaks_of_each(data, count, near, valid=valid)
    ordered = peaks_of_each(data, count, near, valid=valid, by_index=True)
    for i in range(4):
        places = torch.nonzero(valid[i]).flatten()
        clusters = min(int(count[i]), len(places))
        assert (found.label[i][~valid[i]] == -1).all()
        assert (found.centre[i, clusters:] == -1).all()
        if not clusters:
            assert (found.label[i] == -1).all()
            continue
        own = data[i][valid[i]] / dim**0.5
        alone = density_peaks(own, clusters, min(int(near[i]), len(places)))
        assert found.centre[i, :clusters].tolist() == places[alone.centre].tolist()
        assert found.label[i][valid[i]].tolist() == alone.label.tolist()
        assert ordered.centre[i, :clusters].tolist() == sorted(places[alone.centre].tolist())
        heart = ordered.centre[i][ordered.label[i][valid[i]]]
        assert heart.tolist() == places[alone.centre[alone.label]].tolist()


def test_blocks_and_one_piece_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    data = torch.randn(60, 40, generator=torch.Generator().manual_seed(2))
    whole = density_peaks(data, 7, 4)
    for module in (_cluster, _neighbors):
        monkeypatch.setattr(module, "BLOCK", 600)
    blocked = density_peaks(data, 7, 4)
    assert whole.centre.tolist() == blocked.centre.tolist()
    assert whole.label.tolist() == blocked.label.tolist()
    torch.testing.assert_close(whole.score, blocked.score, rtol=1e-4, atol=1e-4)


def test_lower_separation_is_from_less_dense_rows() -> None:
    data = torch.randn(1, 12, 3, generator=torch.Generator().manual_seed(5))
    score = peaks_of_each(data, 2, 3, lower=True).score[0]
    apart = torch.cdist(data[0], data[0]).double() / 3**0.5
    density = -apart.square().topk(3, largest=False).values.mean(1)
    for i in range(12):
        less = density < density[i]
        separation = apart[i][less].min() if less.any() else apart.max()
        assert float(score[i]) == pytest.approx(float(density[i] + separation.log()), abs=1e-4)


def test_mixed_weights_sum_to_one_per_cluster() -> None:
    label = torch.tensor([[0, 0, 1, 0, -1], [-1, 0, 0, 0, 0]])
    centre = torch.tensor([[1, 2], [4, -1]])
    weight = mixed(label, centre, 0.6)
    torch.testing.assert_close(weight[0], torch.tensor([0.2, 0.6, 1.0, 0.2, 0.0]))
    torch.testing.assert_close(weight[1], torch.tensor([0.0, 0.4 / 3, 0.4 / 3, 0.4 / 3, 0.6]))


def test_best_places_takes_only_what_it_may() -> None:
    score = torch.tensor([[1.0, -torch.inf, 3.0, 3.0]])
    among = torch.tensor([[False, True, True, True]])
    for count, expected in ((1, [2]), (2, [2, 3]), (3, [1, 2, 3])):
        found = best_places(score, torch.tensor([count]), among)
        assert torch.nonzero(found[0]).flatten().tolist() == expected


def test_rows_of_segments_come_still_first_then_frame_by_frame() -> None:
    still = kept(torch.tensor([[True, False], [False, False]]))
    moving = kept(torch.tensor([[False, True], [False, True], [True, True]]))
    decision = segment_rows([(0, 2), (2, 3)], 2, still, moving)
    assert decision.anchor.tolist() == [0, 1, 3, 4, 5]
    data = torch.arange(6.0)[:, None]
    reduced = TokenBatch.build(data, torch.zeros(6).double()).reduce(decision)
    assert reduced.data.flatten().tolist() == [1, 1, 3, 4, 5]


def test_joined_rows_follow_the_first_ones() -> None:
    first = kept(torch.tensor([[True, False, False], [False, False, False]]))
    then = kept(torch.tensor([[False, True, True], [False, True, False]]))
    both = joined(first, then)
    assert both.label.tolist() == [[0, 1, 2], [-1, 0, -1]]
    assert both.centre.tolist() == [[0, 1, 2], [1, -1, -1]]


def test_quotas_leave_no_group_out_where_they_reach() -> None:
    assert quotas(3, [100, 0, 1, 1]) == [1, 0, 1, 1]
    assert quotas(2, [100, 0, 1, 1]) == [2, 0, 0, 0]
    assert sum(quotas(500, [100, 0, 1, 1])) == 102


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
def test_budgets_are_met_over_scenes(rule: Any) -> None:
    tokens = scenes()
    for budget in (1, 5, 13, 50, 199, 240):
        decision = expanded(rule.decide(tokens, budget))
        assert len(decision) <= budget
        assert not rule.exact or len(decision) == budget
        shares = column_sums(decision)
        assert ((shares - 1).abs().minimum(shares.abs()) < 1e-4).all()
        assert len(fit_budget(rule, tokens, budget)) == budget
        weights = torch.zeros(len(decision)).index_add_(0, decision.dst, decision.weight)
        torch.testing.assert_close(weights, torch.ones(len(decision)))


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
def test_frames_of_different_size_are_refused(rule: Any) -> None:
    tokens = scenes()
    with pytest.raises(RecipeError, match="whole frames"):
        rule.decide(tokens.take(torch.arange(1, len(tokens))), 7)


@pytest.mark.parametrize("rule", [HoliTom(), FastVid(), StreamingTom()])
def test_missing_columns_are_named(rule: Any) -> None:
    with pytest.raises(RecipeError, match="attention") as raised:
        rule.decide(sample_tokens(), 7)
    assert raised.value.code == "recipe.needs"


def test_prunevid_takes_still_tokens_once() -> None:
    data = torch.randn(1, 20, 8, generator=torch.Generator().manual_seed(1)).repeat(6, 1, 1)
    tokens = sample_tokens(6).with_columns(data=data.flatten(0, 1))
    assert len(PruneVid().decide(tokens, None)) == 10
    # As many rows as there are still places: they come back as they were.
    rows = tokens.reduce(PruneVid().decide(tokens, 20))
    torch.testing.assert_close(rows.data.sort(0).values, data[0].sort(0).values)
    assert (rows.pts[:, 1] == 4.0).all() and (rows.pts[:, 0] == 1.0).all()


def test_holitom_merges_what_attention_passes_over() -> None:
    tokens = scenes()
    plain = HoliTom(ratio=0.3).decide(tokens, None)
    merged = HoliTom(ratio=0.3, contextual=0.5).decide(tokens, None)
    assert len(plain) == len(merged)
    assert column_sums(merged).sum() > column_sums(plain).sum()


def test_fastvid_budget_returns_what_rounding_lost() -> None:
    tokens = scenes()
    rule = FastVid(ratio=0.25, segments=2, tau=-1, every=4)
    by_ratio = len(rule.decide(tokens, None))
    assert by_ratio < 12 * 5
    assert len(rule.decide(tokens, 60)) == 60


def test_fastvid_tokens_join_one_anchor_of_each_anchor_frame() -> None:
    tokens = scenes()
    rule = FastVid(ratio=0.5, segments=1, tau=-1, every=4)
    assert rule.anchor_frames([(0, 12)]) == [3, 7, 11]
    decision = rule.decide(tokens, None)
    times = torch.bincount(decision.src, minlength=240)
    assert set(times.tolist()) == {1, 3}
    own = decision.anchor[decision.dst] == decision.src
    assert own[torch.isin(decision.src, decision.anchor)].any()
    assert torch.unique(decision.dst[own]).tolist() == list(range(len(decision)))


def test_streamingtom_forms_differ_in_their_centres() -> None:
    tokens = scenes()
    rule = StreamingTom(tokens=6, tau=0.5)
    released = replace(rule, compat="released").decide(tokens, None)
    paper = rule.decide(tokens, None)
    assert len(paper) == len(released) == 72
    assert not torch.equal(paper.anchor, released.anchor)


def test_streamingtom_remembers_the_frame_before() -> None:
    tokens, rule = scenes(), StreamingTom(tokens=6, tau=0.5)
    state, parts = rule.start(None, None), []
    for a, b in ((0, 1), (1, 5), (5, 12)):
        block = tokens.take(slice(a * 20, b * 20))
        state, step = rule.push(state, None, block)
        parts.append(block.reduce(step))
    whole = tokens.reduce(rule.decide(tokens, None))
    torch.testing.assert_close(TokenBatch.cat(parts).data, whole.data)


def test_streamingtom_refuses_a_budget_for_unknown_frames() -> None:
    with pytest.raises(BudgetError, match="unknown number of frames"):
        StreamingTom().start(100, None)


def test_chat_univi_gives_up_coarse_levels_first() -> None:
    tokens = scenes()
    rule = ChatUniVi(levels=(8, 4, 2), rate=0.1)
    for budget, parts in ((16, 1), (24, 2), (28, 3), (56, 3)):
        decision = rule.decide(tokens, budget)
        assert len(decision) == budget
        assert (torch.bincount(decision.src, minlength=240) == parts).all()


def test_chat_univi_counts_official_levels() -> None:
    tokens = scenes()
    assert len(ChatUniVi(levels=(8, 4, 2), rate=0.25).decide(tokens, None)) == 3 * 14
    assert len(ChatUniVi(levels=(8, 4), scope="frame").decide(tokens, None)) == 12 * 12


def test_metok_ranks_frames_by_what_is_asked() -> None:
    tokens = scenes(rows=8, cols=8)
    score = torch.arange(12.0).repeat_interleave(64)
    by_column = MetokEvents(score="column", cuts=0, frames=2)
    decision = by_column.decide(tokens.with_columns(score=score), None)
    assert torch.bincount(decision.anchor // 64).tolist() == [4] * 10 + [16] * 2
    asked = Query(text="", pooled=tokens.data[5 * 64 : 6 * 64].mean(0, keepdim=True))
    by_query = MetokEvents(score="query", cuts=0, frames=1)
    assert by_query.needs == ("query",)
    found = torch.bincount(by_query.decide(tokens, None, asked).anchor // 64)
    assert found.tolist() == [4] * 5 + [16] + [4] * 6
    with pytest.raises(RecipeError, match="needs a query"):
        by_query.decide(tokens, None)


def test_metok_budget_scales_every_stride() -> None:
    tokens = scenes(rows=8, cols=8)
    counts = [len(MetokEvents().decide(tokens, budget)) for budget in range(1, 700, 31)]
    assert counts == sorted(counts)
    assert len(MetokEvents().decide(tokens, 7)) == 7
