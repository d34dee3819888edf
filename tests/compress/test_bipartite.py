"""Bipartite matching: budgets over many frames, clips, and where released code differs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tokpipe.compress import _merge_rounds, _neighbors
from tokpipe.compress.similarity.dymu import DyMU
from tokpipe.compress.similarity.folder import Folder
from tokpipe.compress.similarity.hermes_setr import HermesSeTR
from tokpipe.compress.similarity.pumer import PuMer
from tokpipe.compress.similarity.tome import ToMe
from tokpipe.compress.similarity.tosa import ToSA
from tokpipe.errors import RecipeError
from tokpipe.tensors import TokenBatch
from tokpipe.testing.golden import frame_tokens, group_of


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def ragged(sizes: list[int], dim: int = 8) -> TokenBatch:
    """Frames of different size, 1 s apart."""
    at = torch.cat([torch.full((n,), float(t)) for t, n in enumerate(sizes)]).double()
    return TokenBatch.build(random(sum(sizes), dim), at)


def frames_of_rows(tokens: TokenBatch, anchor: Tensor) -> list[int]:
    return torch.bincount(tokens.at[anchor].long()).tolist()


def test_frames_of_different_size_are_merged_as_if_alone() -> None:
    tokens = ragged([7, 12, 1, 7, 12])
    both = tokens.reduce(ToMe(r=3).decide(tokens, None))
    start, alone = 0, []
    for size in (7, 12, 1, 7, 12):
        frame = tokens.take(slice(start, start + size))
        alone.append(frame.reduce(ToMe(r=3).decide(frame, None)))
        start += size
    torch.testing.assert_close(both.data, TokenBatch.cat(alone).data)


def test_frames_need_not_lie_side_by_side() -> None:
    tokens = ragged([6, 6, 6])
    mixed = tokens.take(torch.tensor([i + 6 * t for i in range(6) for t in range(3)]))
    expected = tokens.reduce(ToMe().decide(tokens, 9)).sorted()
    found = mixed.reduce(ToMe().decide(mixed, 9)).sorted()
    torch.testing.assert_close(found.data.sort(0).values, expected.data.sort(0).values)


@pytest.mark.parametrize("budget", [1, 3, 5, 20, 38])
def test_a_budget_is_shared_over_frames_and_met_exactly(budget: int) -> None:
    tokens = ragged([7, 12, 1, 7, 12])
    for rule in (ToMe(), Folder(), ToMe(rounds=3), DyMU(), ToMe(scope="video", clip=2)):
        assert len(rule.decide(tokens, budget)) == budget


def test_clips_are_merged_each_by_itself() -> None:
    tokens = frame_tokens(random(5, 8, 6))
    rule = ToMe(scope="video", clip=2, per_frame=3)
    decision = rule.decide(tokens, None)
    assert len(decision) == 6 + 6 + 3
    clip = tokens.at[decision.src].long() // 2
    assert torch.equal(clip, tokens.at[decision.anchor[decision.dst]].long() // 2)
    last = tokens.take(slice(32, 40))
    alone = last.reduce(ToMe(scope="video", clip=2, per_frame=3).decide(last, None))
    torch.testing.assert_close(tokens.reduce(decision).data[12:], alone.data)


def test_rounds_spread_the_merging_evenly() -> None:
    tokens = frame_tokens(random(1, 20, 6))
    spread = ToMe(rounds=3).decide(tokens, 12)
    scheduled = ToMe(schedule=(3, 3, 2)).decide(tokens, None)
    assert torch.equal(group_of(spread), group_of(scheduled))


def test_a_share_that_is_a_whole_number_is_not_rounded_up() -> None:
    tokens = frame_tokens(random(1, 100, 4))
    assert len(ToMe(keep=1 - 0.9).decide(tokens, None)) == 10
    assert len(ToMe(keep=0.101).decide(tokens, None)) == 11


def test_heads_are_averaged_in_the_metric_only_where_they_divide_the_width() -> None:
    data = random(1, 16, 12)
    tokens = frame_tokens(data)
    mean = tokens.with_extras(keys=data[0].reshape(16, 3, 4).mean(1))
    expected = group_of(ToMe(r=5).decide(mean, None))
    assert torch.equal(group_of(ToMe(r=5, head_width=4).decide(tokens, None)), expected)
    whole = group_of(ToMe(r=5).decide(tokens, None))
    assert torch.equal(group_of(ToMe(r=5, head_width=5).decide(tokens, None)), whole)


def test_plain_means_weigh_rounds_and_mass_means_weigh_tokens() -> None:
    data = torch.tensor([[1.0, 0.0], [1.0, 0.1], [1.0, 0.2], [1.0, 0.3]])
    tokens = frame_tokens(data).with_columns(mass=torch.tensor([3.0, 1.0, 1.0, 1.0]))
    by_mass = tokens.reduce(ToMe().decide(tokens, 1))
    assert by_mass.data[0, 1] == pytest.approx(0.6 / 6)
    plain = tokens.reduce(ToMe(weighting="plain").decide(tokens, 1))
    assert plain.data[0, 1] == pytest.approx(0.15)
    assert plain.mass.tolist() == by_mass.mass.tolist() == [6.0]


def test_a_class_token_stays_alone_in_every_frame() -> None:
    tokens = frame_tokens(random(1, 9, 4).expand(3, 9, 4).contiguous())
    for rule in (ToMe(class_token=True), Folder(class_token=True), DyMU(class_token=True)):
        decision = rule.decide(tokens, 12)
        for first in (0, 9, 18):
            assert (decision.dst == decision.dst[decision.src == first]).sum() == 1


def test_options_that_contradict_are_refused() -> None:
    with pytest.raises(ValueError, match="class_token"):
        ToMe(distill_token=True)
    with pytest.raises(ValueError, match="clip"):
        ToMe(clip=4)


def test_dymu_spends_a_budget_where_frames_are_rich() -> None:
    rich, dull = random(1, 16, 8), random(1, 1, 8).expand(1, 16, 8) + 0.01 * random(1, 16, 8)
    tokens = frame_tokens(torch.cat([rich, dull]))
    decision = DyMU().decide(tokens, 24)
    assert frames_of_rows(tokens, decision.anchor) == [16, 8]
    assert frames_of_rows(tokens, DyMU(r=4).decide(tokens, None).anchor) == [16, 8]
    above = DyMU(threshold=0.95).decide(tokens, None)
    assert frames_of_rows(tokens, above.anchor) == [16, 8]


def test_dymu_needs_several_rounds_for_a_small_budget() -> None:
    tokens = frame_tokens(random(3, 17, 8))
    for budget in (2, 4, 9, 25, 26, 27, 50):
        decision = DyMU().decide(tokens, budget)
        assert len(decision) == budget
    assert frames_of_rows(tokens, DyMU().decide(tokens, 3).anchor) == [1, 1, 1]


def test_dymu_shrinks_sums_of_several_frames_only_when_released() -> None:
    tokens = frame_tokens(torch.ones(2, 4, 3))
    paper = tokens.reduce(DyMU().decide(tokens, None)).data
    released = tokens.reduce(DyMU(compat="released").decide(tokens, None)).data
    assert paper.max() == paper.min() == 1
    assert 0.9999 < released.max() < 1
    alone = tokens.take(slice(0, 4))
    assert alone.reduce(DyMU(compat="released").decide(alone, None)).data.min() == 1


def test_tosa_mixes_what_tokens_look_like_and_where_they_are() -> None:
    data, spatial = random(1, 16, 8), random(1, 16, 4, seed=1)
    tokens = frame_tokens(data, spatial=spatial)
    for alpha, metric in ((1.0, data[0]), (0.0, spatial[0])):
        found = ToSA(r=6, alpha=alpha).decide(tokens, None)
        expected = ToMe(r=6).decide(tokens.with_extras(keys=metric), None)
        assert torch.equal(group_of(found), group_of(expected))
    with pytest.raises(RecipeError, match="spatial"):
        ToSA().decide(frame_tokens(data), 3)


def test_folder_keeps_the_order_and_rescales_only_when_released() -> None:
    tokens = frame_tokens(random(2, 31, 8))
    plain, released = Folder(r=20), Folder(r=20, compat="released")
    decision = plain.decide(tokens, None)
    assert torch.equal(decision.anchor, decision.anchor.sort().values)
    made, scaled = tokens.reduce(decision), tokens.reduce(released.decide(tokens, None))
    factor = 1 + made.mass.log()
    torch.testing.assert_close(scaled.data, made.data * factor[:, None])
    once = tokens.reduce(Folder(r=14, compat="released").decide(tokens, None))
    torch.testing.assert_close(once.data, tokens.reduce(Folder(r=14).decide(tokens, None)).data)


def test_folder_reaches_one_row_unless_released() -> None:
    tokens = frame_tokens(random(1, 8, 4))
    assert len(Folder(r=100).decide(tokens, None)) == 1
    assert len(Folder(r=100, compat="released").decide(tokens, None)) == 2


def test_pumer_matches_text_by_attention_alone() -> None:
    attention = torch.tensor([[0.1, 0.5, 0.52, 0.9]])
    tokens = frame_tokens(random(1, 4, 6), attention=attention)
    decision = PuMer(r=1, match="attention").decide(tokens, None)
    assert group_of(decision).tolist() == [0, 1, 1, 2]
    with pytest.raises(RecipeError, match="attention"):
        PuMer().decide(frame_tokens(random(1, 4, 6)), 2)


def test_hermes_drops_frames_after_the_last_destination_only_when_released() -> None:
    tokens = frame_tokens(random(10, 4, 6))
    paper = tokens.reduce(HermesSeTR().decide(tokens, None))
    released = tokens.reduce(HermesSeTR(compat="released").decide(tokens, None))
    assert len(paper) == len(released) == 8
    assert float(paper.mass.sum()) == 40
    assert float(released.mass.sum()) == 32


@pytest.mark.parametrize("budget", [1, 3, 4, 11, 12, 27, 39])
def test_hermes_keeps_whole_frames_within_a_budget(budget: int) -> None:
    tokens = frame_tokens(random(10, 4, 6))
    decision = HermesSeTR().decide(tokens, budget)
    assert len(decision) == (budget // 4 * 4 or budget)
    assert float(tokens.reduce(decision).mass.sum()) == 40


def test_hermes_of_fewer_frames_than_a_stride_makes_one() -> None:
    tokens = frame_tokens(random(3, 4, 6))
    reduced = tokens.reduce(HermesSeTR().decide(tokens, None))
    torch.testing.assert_close(reduced.data, tokens.data.reshape(3, 4, 6).mean(0))


def test_large_groups_are_folded_in_place_to_the_same_values(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tokens = frame_tokens(random(1, 64, 12))
    before = tokens.data.clone()
    expected = ToMe().decide(tokens, 5)
    monkeypatch.setattr(_merge_rounds, "BLOCK", 100)
    monkeypatch.setattr(_neighbors, "BLOCK", 100)
    found = ToMe().decide(tokens, 5)
    assert torch.equal(group_of(found), group_of(expected))
    assert torch.equal(tokens.data, before)
