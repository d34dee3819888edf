"""Sound methods: budgets, edges, and what differs from the released code."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tokpipe.compress._adjacent import adjacent_cosine, every_other, greedy_pairs, grown, ranks
from tokpipe.compress._audio_guide import drop_rates
from tokpipe.compress.attention.omnizip import OmniZip
from tokpipe.compress.attention.sa_map import SaMap, attention_weights
from tokpipe.compress.attention.segmentwise import Segmentwise
from tokpipe.compress.query.speechprune import SpeechPrune
from tokpipe.compress.similarity.a_tome_greedy import ATomeGreedy
from tokpipe.compress.similarity.a_tome_pairs import ATomePairs
from tokpipe.compress.similarity.a_tome_scan import ATomeScan
from tokpipe.compress.similarity.affinity_pooling import AffinityPooling
from tokpipe.compress.similarity.fastadasp import FastAdaSP
from tokpipe.compress.transformation.pool_1d import Pool1d
from tokpipe.compress.transformation.stack import Stack
from tokpipe.compress.transformation.windows import Windows
from tokpipe.errors import RecipeError
from tokpipe.tensors import Query, TokenBatch

MERGERS = [ATomeScan(), ATomePairs(), ATomeGreedy(), FastAdaSP(), AffinityPooling()]


def sound(data: Tensor, **extras: Tensor) -> TokenBatch:
    """Tokens [N, D] of 40 ms."""
    place = torch.arange(len(data))
    cell = torch.stack([place, 0 * place, 0 * place], 1).int()
    at = place.double() * 0.04
    pts = torch.stack([at, at + 0.04], 1)
    tokens = TokenBatch.build(data, at, pts=pts, cell=cell, modality=1)
    return tokens.with_extras(None, **extras)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def at_angles(*degrees: float) -> Tensor:
    """Unit vectors in the plane."""
    angle = torch.tensor(degrees).deg2rad()
    return torch.stack([angle.cos(), angle.sin()], 1)


@pytest.mark.parametrize("seed", range(40))
def test_pairing_without_a_loop_equals_the_loop(seed: int) -> None:
    links = drawn(1 + seed % 13, seed=seed)
    links = links.round() if seed % 2 else links
    used: set[int] = set()
    greedy = [False] * len(links)
    for i in torch.argsort(links, descending=True, stable=True).tolist():
        if i not in used and i + 1 not in used:
            greedy[i] = True
            used |= {i, i + 1}
    assert greedy_pairs(ranks(links)).tolist() == greedy
    mask, scanned, i = links > -0.5, [False] * len(links), 0
    while i < len(links):
        scanned[i] = bool(mask[i])
        i += 1 + scanned[i]
    assert every_other(mask).tolist() == scanned


@pytest.mark.parametrize("rule", MERGERS, ids=lambda rule: type(rule).__name__)
def test_mergers_meet_every_budget_with_neighbours_only(rule: Any) -> None:
    tokens = sound(drawn(23, 6))
    for budget in (1, 2, 5, 11, 12, 22, 23, 24):
        made = rule.decide(tokens, budget)
        assert len(made) == min(budget, 23)
        assert (made.dst[torch.argsort(made.src)].diff() >= 0).all()
        total = torch.zeros(len(made)).index_add_(0, made.dst, made.weight)
        torch.testing.assert_close(total, torch.ones(len(made)))


def test_scan_marks_inside_runs_are_lost() -> None:
    tokens = sound(at_angles(0, 1, 2, 3, 90, 180))
    assert len(ATomeScan(ratio=0.5).decide(tokens, None)) == 4
    assert len(FastAdaSP(ratio=0.5).decide(tokens, None)) == 3


def test_later_rounds_average_averages_unless_sizes_count() -> None:
    tokens = sound(at_angles(0, 0, 10)).with_columns(mass=torch.tensor([1.0, 3.0, 4.0]))
    plain = ATomeGreedy().decide(tokens, 1)
    assert plain.weight.tolist() == [0.25, 0.25, 0.5]
    sized = ATomeGreedy(size_weighted=True).decide(tokens, 1)
    assert sized.weight.tolist() == [0.125, 0.375, 0.5]


def test_pairs_stop_at_half_without_a_budget() -> None:
    tokens = sound(drawn(9, 4))
    assert len(ATomePairs(keep=0.1).decide(tokens, None)) == 5
    assert len(ATomePairs(keep=0.1).decide(tokens, 3)) == 3


def test_greedy_threshold_is_strict() -> None:
    tokens = sound(torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]))
    assert len(ATomeGreedy(threshold=1.0).decide(tokens, None)) == 3
    assert len(ATomeGreedy(threshold=0.99).decide(tokens, None)) == 2


def test_keys_decide_instead_of_the_data() -> None:
    data, keys = at_angles(0, 0, 90, 180), at_angles(0, 90, 90, 180)
    for rule in (ATomeScan(), ATomeGreedy(), FastAdaSP()):
        assert rule.decide(sound(data, keys=keys[:, None]), 3).dst.tolist() == [0, 1, 1, 2]


def test_attention_weighs_runs_and_is_left_alone() -> None:
    weight = torch.tensor([[1.0, 0.0], [1.0, 2.0], [0.0, 0.0], [0.0, 0.0]])
    tokens = sound(at_angles(0, 0, 90, 90), attention=weight)
    made = FastAdaSP().decide(tokens, 2)
    # The second run has no attention at all: a plain mean.
    assert made.weight.tolist() == [0.25, 0.75, 0.5, 0.5]
    assert tokens.extras["attention"].tolist() == weight.tolist()
    assert FastAdaSP(weights="none").decide(tokens, 2).weight.tolist() == [0.5] * 4


def test_affinity_threshold_is_reached_not_passed() -> None:
    tokens = sound(at_angles(0, 60, 121))
    assert AffinityPooling(threshold=0.499).decide(tokens, None).dst.tolist() == [0, 0, 1]


def test_neighbour_cosines_of_zero_rows_are_zero() -> None:
    data = torch.tensor([[0.0, 0.0], [1.0, 0.0], [2.0, 0.0]])
    assert adjacent_cosine(data).tolist() == [0.0, 1.0]
    assert adjacent_cosine(data[:1]).shape == (0,)


def test_groups_grow_by_their_mean_not_by_their_last() -> None:
    data = at_angles(0, 20, 40, 60)
    # 60 to 40 is near, but its mean cosine to 0, 20 and 40 is 0.74.
    assert grown(data, 0.85).tolist() == [0, 0, 0, 1]
    assert grown(data, 0.7).tolist() == [0, 0, 0, 0]


def rows_of(n: int, heads: int = 2) -> Tensor:
    return drawn(n, heads, n).softmax(2)


def test_attention_weights_of_pooled_rows_follow_their_definition() -> None:
    full = drawn(3, 8, 8).softmax(2)
    received, own = attention_weights(full.permute(1, 0, 2).reshape(4, 2, 3, 8))
    for j in range(4):
        pairs = [full.amax(0)[2 * i : 2 * i + 2, 2 * j : 2 * j + 2].sum(1).mean() for i in range(4)]
        assert float(received[j]) == pytest.approx(float(torch.stack(pairs).mean()), rel=1e-5)
        block = full.mean(0)[2 * j : 2 * j + 2, 2 * j : 2 * j + 2]
        assert float(own[j]) == pytest.approx(float(block.sum(1).mean()), rel=1e-5)


def test_sa_map_keeps_enough_beyond_the_rank_of_the_features() -> None:
    tokens = sound(drawn(20, 3), attention_rows=rows_of(20))
    made = SaMap(threshold=1.0, keep=0.5).decide(tokens, None)
    assert len(made) == 10
    assert made.score is not None and bool(made.score.isfinite().all())


def test_sa_map_returns_the_groups_there_are() -> None:
    data = at_angles(0, 1, 2, 90, 91, 180).repeat_interleave(2, 0)
    tokens = sound(data, attention_rows=rows_of(12))
    made = SaMap(keep=0.9).decide(tokens, None)
    assert made.dst.tolist() == [0] * 6 + [1] * 4 + [2] * 2
    # With a budget the threshold rises until there are as many.
    assert len(SaMap(keep=0.9).decide(tokens, 5)) == 5


def test_sa_map_needs_whole_items() -> None:
    tokens = sound(drawn(8, 4), attention_rows=rows_of(8))
    for bad in (sound(drawn(8, 4)), tokens.take(slice(0, 5))):
        with pytest.raises(RecipeError) as caught:
            SaMap().decide(bad, 2)
        assert caught.value.code == "recipe.needs"


def test_segments_share_what_is_left_over() -> None:
    tokens = sound(torch.zeros(103, 1), attention=drawn(103).abs())
    assert len(Segmentwise(segments=10).decide(tokens, 25)) == 25
    assert len(Segmentwise(segments=10, compat="released").decide(tokens, 25)) == 20
    assert len(Segmentwise(segments=1000).decide(tokens, 25)) == 25


def query_of(*words: Tensor) -> Query:
    return Query(text="what is said", pooled=torch.stack(words))


def test_speechprune_meets_the_count_where_the_paper_loses_some() -> None:
    data = drawn(60, 8)
    query = query_of(data[3], data[40])
    tokens = sound(data)
    assert len(SpeechPrune().decide(tokens, None, query)) == 30
    assert len(SpeechPrune(compat="released").decide(tokens, None, query)) < 30
    for budget in (1, 13, 59):
        assert len(SpeechPrune().decide(tokens, budget, query)) == budget


def test_speechprune_seconds_follow_the_clock() -> None:
    tokens = sound(drawn(130, 4))
    stretch, parts = SpeechPrune().parts(tokens.at + 7.3, torch.zeros(130))
    assert torch.bincount(stretch).tolist() == [25] * 5 + [5]
    assert parts == pytest.approx([1 / 6] * 6)


def test_speechprune_second_phase_needs_its_columns() -> None:
    data = drawn(50, 8)
    query, rule = query_of(data[0]), SpeechPrune(attended=0.5)
    with pytest.raises(RecipeError, match="queries"):
        rule.decide(sound(data), 10, query)
    with pytest.raises(RecipeError, match="query"):
        rule.decide(sound(data), 10)
    tokens = sound(data, queries=drawn(50, 2, 4), keys=drawn(50, 2, 4, seed=1))
    assert len(rule.decide(tokens, 11, query)) == 11
    assert len(rule.decide(tokens, None, query)) == 12


def test_pool_tail_and_even_bins() -> None:
    tokens = sound(torch.arange(7.0)[:, None])
    assert tokens.reduce(Pool1d(size=3).decide(tokens, None)).data.flatten().tolist() == [1, 4]
    kept = tokens.reduce(Pool1d(size=3, tail="keep").decide(tokens, None))
    assert kept.data.flatten().tolist() == [1, 4, 6]
    binned = tokens.reduce(Pool1d().decide(tokens, 3))
    assert binned.mass.tolist() == [3, 2, 2] and (binned.kind == 2).all()


@pytest.mark.parametrize("n", [0, 1, 4, 7, 9])
def test_stacks_and_windows_keep_clock_and_mass(n: int) -> None:
    tokens = sound(drawn(n, 3).half())
    for tail, whole in (("drop", n // 4 * 4), ("pad", n)):
        made = Stack(size=4, tail=tail).project(tokens)  # type: ignore[arg-type]
        assert made.data.shape == (-(-whole // 4), 12) and made.data.dtype == torch.float16
        assert float(made.mass.sum()) == whole
        assert Stack(size=4, tail=tail).out_count(n, None) == (len(made), True)  # type: ignore[arg-type]
        if whole:
            assert made.pts[-1, 1] == tokens.pts[whole - 1, 1]


def test_overlapping_windows_split_the_share() -> None:
    tokens = sound(torch.arange(5.0)[:, None])
    made = Windows(size=3, stride=1).project(tokens)
    assert made.data.tolist() == [[0, 1, 2], [1, 2, 3], [2, 3, 4]]
    assert made.mass.tolist() == pytest.approx([11 / 6, 4 / 3, 11 / 6])
    padded = Windows(size=3, stride=2, tail="pad").project(sound(torch.ones(4, 1)))
    assert padded.data.tolist() == [[1, 1, 1], [1, 1, 0]]


def joint(frames: int = 8, cells: int = 6, sounds: int = 80, seed: int = 0) -> TokenBatch:
    """Picture at two frames a second and sound at 20 tokens a second, in order of time."""
    at = torch.cat([torch.arange(frames * cells) // cells * 0.5, torch.arange(sounds) * 0.05])
    modality = torch.cat([torch.zeros(frames * cells), torch.ones(sounds)]).to(torch.uint8)
    n = len(at)
    tokens = TokenBatch.build(drawn(n, 5, seed=seed), at.double()).with_columns(modality=modality)
    tokens = tokens.with_extras(None, attention=drawn(n, seed=seed + 1).abs())
    return tokens.take(torch.argsort(tokens.at, stable=True))


def test_omnizip_shares_a_budget_in_proportion_and_conserves_mass() -> None:
    tokens = joint()
    for budget in (1, 2, 17, 64, 127):
        made = OmniZip().decide(tokens, budget)
        assert len(made) == budget
        heard = int((tokens.modality[made.anchor] == 1).sum())
        assert abs(heard - budget * 80 / 128) <= 1
        total = torch.zeros(len(tokens)).index_add_(0, made.src, made.share)
        assert set(total.tolist()) <= {0.0, 1.0}


def test_omnizip_keeps_more_picture_where_more_sound_stays() -> None:
    tokens = joint()
    loud = (tokens.at < 2) & (tokens.modality == 1)
    tokens = tokens.with_extras(None, attention=tokens.extras["attention"] + loud * 10.0)
    made = OmniZip(contextual=0).decide(tokens, None)
    seen = tokens.at[made.anchor][tokens.modality[made.anchor] == 0]
    assert int((seen < 2).sum()) > int((seen >= 2).sum())


@pytest.mark.parametrize("modality", [0, 1])
def test_omnizip_of_one_modality(modality: int) -> None:
    tokens = joint()
    tokens = tokens.take(tokens.modality == modality)
    assert len(OmniZip().decide(tokens, 10)) == 10
    made = OmniZip(contextual=0.1).decide(tokens, None)
    assert len(made) == (24 if modality == 0 else 48)


def test_drop_rates_reach_the_target_unless_clipped() -> None:
    sizes = torch.full((4,), 24)
    retention = torch.tensor([0.2, 0.4, 0.6, 0.8]).double()
    rates = drop_rates(retention, sizes, 0.6)
    assert rates[0] == pytest.approx(0.67) and rates[3] == pytest.approx(0.43)
    assert sum(rates) / 4 == pytest.approx(0.6)
    assert sum(drop_rates(retention, sizes, 0.9)) / 4 < 0.7
    silent = torch.tensor([0.5, torch.nan, 0.5]).double()
    assert drop_rates(silent, sizes[:3], 0.8) == pytest.approx([0.55, 0.8, 0.55])
