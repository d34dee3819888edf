"""Temporal drop and merge: budgets, odd lengths, tokens with holes, released against paper."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tokpipe.compress._cell_change import values_of
from tokpipe.compress._tracks import Tracks, cosines
from tokpipe.compress.similarity.dtd_feature import DtdFeature
from tokpipe.compress.similarity.dtd_pixel import DtdPixel
from tokpipe.compress.similarity.dycoke import DyCoke
from tokpipe.compress.similarity.dyntok import DynTok
from tokpipe.compress.similarity.framefusion import FrameFusion, prune_ratio
from tokpipe.compress.similarity.longvu_frames import LongvuFrames
from tokpipe.compress.similarity.longvu_stc import LongvuStc
from tokpipe.compress.similarity.rlt import Rlt
from tokpipe.compress.similarity.stc_pruner import StcPruner
from tokpipe.compress.similarity.vidcom2 import VidCom2
from tokpipe.encode.pixels import describe
from tokpipe.errors import RecipeError
from tokpipe.spec import KIND_POOLED
from tokpipe.tensors import TokenBatch, TokenMap
from tokpipe.testing.golden import frame_tokens
from tokpipe.testing.suites import sample_tokens

ALL = [
    DtdFeature(), DtdFeature(reference="kept"), DtdPixel(), Rlt(), DyCoke(), LongvuStc(),
    FrameFusion(), VidCom2(), StcPruner(), DynTok(),
]  # fmt: skip


def scenes(frames: int, size: int, dim: int = 8, seed: int = 0) -> Tensor:
    """Data [frames, size, dim]: scenes of four frames with a little noise."""
    draw = torch.Generator().manual_seed(seed)
    still = torch.randn(-(-frames // 4), size, dim, generator=draw).repeat_interleave(4, 0)
    return still[:frames] + 0.2 * torch.randn(frames, size, dim, generator=draw)


def turn(degrees: float, frames: int) -> TokenBatch:
    """One token a frame that turns by so many degrees from frame to frame."""
    angle = torch.arange(frames) * degrees * torch.pi / 180
    return frame_tokens(torch.stack([angle.cos(), angle.sin()], 1)[:, None])


@pytest.mark.parametrize("operator", ALL, ids=repr)
@pytest.mark.parametrize("budget", [1, 3, 17, 40, 100])
def test_tokens_with_holes_meet_the_budget_exactly(operator: Any, budget: int) -> None:
    tokens = sample_tokens(6, 3, 4)
    holes = torch.rand(len(tokens), generator=torch.Generator().manual_seed(3)) < 0.7
    ragged = tokens.take(holes)
    decision = operator.decide(ragged, budget)
    assert len(decision) == min(budget, len(ragged))
    assert len(operator.decide(ragged, None)) <= len(ragged)


@pytest.mark.parametrize("operator", ALL, ids=repr)
def test_a_single_token_and_a_single_frame(operator: Any) -> None:
    for rows in (1, 3):
        tokens = sample_tokens(1, rows, rows)
        made = tokens.reduce(operator.decide(tokens, None))
        assert 1 <= len(made) <= len(tokens) and made.data.isfinite().all()


def test_cosines_are_the_same_by_frames_and_by_rows() -> None:
    tokens = frame_tokens(scenes(5, 6))
    tracks = Tracks.of(tokens)
    before = tracks.previous()
    assert tracks.size == 6
    by_frame, by_row = cosines(tokens.data, before, 6), cosines(tokens.data, before)
    expected = torch.cosine_similarity(tokens.data[6:], tokens.data[:-6], dim=1)
    torch.testing.assert_close(by_frame[6:], expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(by_frame, by_row, rtol=1e-5, atol=1e-6)


def test_slow_drift_is_seen_only_against_the_kept_token() -> None:
    tokens = turn(5, 37)
    assert DtdFeature(threshold=0.9).decide(tokens, None).anchor.tolist() == [0]
    kept = DtdFeature(threshold=0.9, reference="kept").decide(tokens, None).anchor
    assert kept.tolist() == [0, 6, 12, 18, 24, 30, 36]


def test_a_hole_is_bridged_to_the_token_before_it() -> None:
    tokens = frame_tokens(torch.ones(3, 4, 2)).take(torch.tensor([0, 1, 2, 3, 4, 6, 8, 9, 10, 11]))
    decision = DtdFeature().decide(tokens, None)
    assert decision.anchor.tolist() == [0, 1, 2, 3]
    assert tokens.reduce(decision).mass.tolist() == [3, 2, 3, 2]


def test_frames_in_any_order_are_told_apart_by_time() -> None:
    tokens = frame_tokens(scenes(8, 6))
    shuffled = torch.randperm(48, generator=torch.Generator().manual_seed(1))
    for operator in (DtdFeature(threshold=0.9), DyCoke(), VidCom2(), DynTok(), StcPruner()):
        straight = tokens.reduce(operator.decide(tokens, 20)).sorted()
        mixed = tokens.take(shuffled)
        other = mixed.reduce(operator.decide(mixed, 20)).sorted()
        torch.testing.assert_close(straight.data, other.data)
        assert torch.equal(straight.mass, other.mass)


def test_dycoke_as_released_spares_the_last_group_and_loses_an_odd_frame() -> None:
    tokens = frame_tokens(scenes(9, 10))
    paper, released = DyCoke(), DyCoke(compat="released")
    per_frame = [
        torch.bincount(o.decide(tokens, None).anchor // 10, minlength=9).tolist()
        for o in (paper, released)
    ]
    assert per_frame[0] == [10, 3, 3, 3, 10, 3, 3, 3, 10]
    assert per_frame[1] == [10, 3, 3, 3, 10, 3, 3, 3, 0]
    eight = tokens.take(slice(0, 80))
    counts = torch.bincount(released.decide(eight, None).anchor // 10).tolist()
    assert counts == [10, 3, 3, 3, 10, 3, 10, 3]
    with pytest.raises(RecipeError, match="4 frames"):
        released.decide(tokens.take(slice(0, 40)), None)
    assert float(tokens.reduce(paper.decide(tokens, None)).mass.sum()) == 90
    assert float(tokens.reduce(released.decide(tokens, None)).mass.sum()) == 80


def test_dycoke_budget_is_shared_by_the_compared_frames_then_by_the_whole_ones() -> None:
    tokens = frame_tokens(scenes(8, 10))
    counts = [
        torch.bincount(DyCoke().decide(tokens, budget).anchor // 10, minlength=8).tolist()
        for budget in (32, 12)
    ]
    assert counts[0] == [10, 2, 2, 2, 10, 2, 2, 2]
    assert counts[1] == [6, 0, 0, 0, 6, 0, 0, 0]


def test_longvu_stc_keeps_first_frames_whole_while_they_fit() -> None:
    tokens = frame_tokens(scenes(12, 10))
    anchor = LongvuStc(chunk=4).decide(tokens, 40).anchor
    for first in (0, 40, 80):
        assert set(range(first, first + 10)) <= set(anchor.tolist())
    few = torch.bincount(LongvuStc(chunk=4).decide(tokens, 9).anchor // 40)
    assert few.tolist() == [3, 3, 3]
    assert len(LongvuStc(threshold=1.0, max_tokens=50).decide(tokens, None)) == 50


def test_longvu_frames_below_one_frame_gives_a_smaller_grid() -> None:
    tokens = frame_tokens(scenes(6, 16))
    made = tokens.reduce(LongvuFrames().decide(tokens, 5))
    assert len(made) == 4 and (made.kind == KIND_POOLED).all()
    assert made.mass.tolist() == [4, 4, 4, 4]
    assert len(LongvuFrames().decide(tokens, 40)) == 32


def test_longvu_frames_of_different_size_are_compared_by_their_means() -> None:
    tokens = frame_tokens(torch.ones(5, 4, 2)).take(slice(0, 18))
    anchor = LongvuFrames().decide(tokens, None).anchor
    assert anchor.tolist() == [8, 9, 10, 11]


def test_longvu_frames_stand_for_the_frames_before_the_first_kept_one() -> None:
    tokens = frame_tokens(torch.ones(20, 4, 2))
    made = tokens.reduce(LongvuFrames().decide(tokens, None))
    assert made.at.tolist() == [8] * 4 + [18] * 4 and made.mass.tolist() == [18] * 4 + [2] * 4
    assert made.pts[0].tolist() == [0, 18]


def test_framefusion_rounds_are_means_of_means() -> None:
    # Round one joins 1 with 2; their mean is then near enough to 0.
    angles = torch.tensor([0.0, 25.0, 15.0]) * torch.pi / 180
    data = torch.stack([angles.cos(), angles.sin()], 1)
    tokens = frame_tokens(data[:, None])
    one, two = (
        FrameFusion(threshold=0.933, cost=0.2, stop_below=0.0, rounds=rounds).decide(tokens, None)
        for rounds in (1, 2)
    )
    assert one.dst.tolist() == [0, 1, 1] and one.weight.tolist() == [1, 0.5, 0.5]
    assert two.dst.tolist() == [0, 0, 0] and two.weight.tolist() == [0.5, 0.25, 0.25]


def test_framefusion_rounds_that_cost_too_much_merge_what_they_may() -> None:
    tokens = frame_tokens(torch.ones(8, 3, 2))
    made = FrameFusion(cost=0.01, stop_below=0.0, rounds=3).decide(tokens, None)
    assert made.anchor.tolist() == [0, 1, 2]


def test_framefusion_costs() -> None:
    assert prune_ratio([], 1.0, 28) == 0
    with pytest.raises(ValueError, match="cost more"):
        prune_ratio([0.0, 0.0], 0.05, 28)
    with pytest.raises(ValueError, match="layers"):
        FrameFusion(rounds=5, layers=5)
    made = FrameFusion().decide(frame_tokens(scenes(4, 12)), 5)
    assert made.anchor.tolist() == [0, 3, 5, 8, 10]


def test_vidcom2_gives_the_odd_frame_more() -> None:
    data = torch.ones(8, 20, 8) + 0.01 * scenes(8, 20)
    data[5] = scenes(1, 20, seed=9)[0]
    tokens = frame_tokens(data)
    counts = torch.bincount(VidCom2().decide(tokens, None).anchor // 20)
    assert int(counts.argmax()) == 5 and int(counts[5]) == 9
    assert len(VidCom2().decide(tokens, 41)) == 41


def streamed(
    operator: Any, tokens: TokenBatch, sizes: list[int], **start: int | None
) -> TokenBatch:
    """What the stream form makes of blocks of so many frames."""
    size = int((tokens.at == tokens.at[0]).sum())
    state, carried, done, a = operator.start(**start), None, [], 0
    for frames in sizes:
        new = tokens.take(slice(a, a + frames * size))
        a += frames * size
        state, step = operator.push(state, carried, new)
        both = new if carried is None else TokenBatch.cat([carried, new])
        rows = both.reduce(step)
        done.append(rows.take(state.settled))
        carried = rows.take(~state.settled)
    assert a == len(tokens) and carried is not None
    done.append(carried.reduce(operator.finish(state, carried)))
    return TokenBatch.cat(done).sorted()


@pytest.mark.parametrize("sizes", [[12], [1] * 12, [5, 1, 6], [3, 9]])
@pytest.mark.parametrize(
    "operator",
    [
        DtdPixel(threshold=0.15), DtdPixel(relative=0.6), Rlt(threshold=0.15),
        StcPruner(per_frame=3),
        StcPruner(per_frame=3, chunk=4), StcPruner(per_frame=2, chunk=5, compat="released"),
    ],
    ids=repr,
)  # fmt: skip
@pytest.mark.parametrize("budget", [None, 31, 7])
def test_blocks_of_any_size_give_the_same(operator: Any, sizes: list[int], budget: int) -> None:
    tokens = frame_tokens(scenes(12, 10))
    whole = tokens.reduce(operator.decide(tokens, budget)).sorted()
    found = streamed(operator, tokens, sizes, budget=budget, steps=12)
    assert torch.equal(found.cell, whole.cell) and torch.equal(found.pts, whole.pts)
    torch.testing.assert_close(found.mass, whole.mass)
    torch.testing.assert_close(found.data, whole.data)


def test_a_stream_hands_on_what_is_closed() -> None:
    tokens, operator = frame_tokens(scenes(12, 10)), Rlt(threshold=0.15)
    state = operator.start()
    state, step = operator.push(state, None, tokens)
    assert state.settled is not None and int((~state.settled).sum()) == 10 < len(step)


def test_stc_pruner_spreads_a_budget_and_never_exceeds_it() -> None:
    tokens = frame_tokens(scenes(12, 10))
    frames = StcPruner().decide(tokens, 6).anchor // 10
    assert frames.tolist() == [1, 3, 5, 7, 9, 11]
    unknown = streamed(StcPruner(per_frame=4), tokens, [6, 6], budget=30, steps=None)
    assert len(unknown) == 30


def test_stc_pruner_memory_is_over_all_channels_unless_released() -> None:
    tokens = frame_tokens(scenes(12, 10, dim=16))
    paper = StcPruner(per_frame=3).decide(tokens, None).anchor
    released = StcPruner(per_frame=3, compat="released").decide(tokens, None).anchor
    assert torch.equal(paper[:3], released[:3]) and not torch.equal(paper, released)


def flat(colours: list[tuple[int, int, int]]) -> TokenBatch:
    """`pixels` tokens of frames of one flat cell."""
    pixels = torch.tensor(colours, dtype=torch.uint8)[:, None, None].expand(-1, 28, 28, 3)
    return frame_tokens(describe(pixels.contiguous()).reshape(len(colours), 1, 24))


def test_descriptors_are_compared_as_colours() -> None:
    tokens = flat([(100, 100, 100), (110, 120, 95), (110, 120, 95)])
    border = (10 + 20 + 5) / 3 / 255
    over, under = DtdPixel(threshold=border * 1.02), DtdPixel(threshold=border * 0.98)
    assert over.decide(tokens, None).anchor.tolist() == [0]
    assert under.decide(tokens, None).anchor.tolist() == [0, 1]
    border = (10 / 0.229 + 20 / 0.224 + 5 / 0.225) / 3 / 255
    assert Rlt(threshold=border * 1.02).decide(tokens, None).anchor.tolist() == [0]
    assert Rlt(threshold=border * 0.98).decide(tokens, None).anchor.tolist() == [0, 1]


def test_descriptors_give_back_the_small_picture() -> None:
    ramp = torch.linspace(40, 200, 28).round().to(torch.uint8)
    pixels = ramp[None, None, :, None].expand(1, 28, 28, 3).contiguous()
    small, _ = values_of(frame_tokens(describe(pixels).reshape(1, 1, 24)), 2, normalised=False)
    expected = ramp.float().reshape(4, 7).mean(1) / 255
    found = small.reshape(4, 4, 3)
    assert (found.std(0) < 2e-3).all() and (found.std(2) < 2e-3).all()
    assert ((found[0, :, 0] - 0.5) - (expected - 0.5)).abs().max() < 0.02


def test_dyntok_begins_anew_in_each_row_and_drops_frames_it_cannot_pay() -> None:
    tokens = frame_tokens(torch.ones(3, 6, 2), (2, 3))
    assert DynTok().decide(tokens, None).dst.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3,
                                                          4, 4, 4, 5, 5, 5]  # fmt: skip
    assert DynTok().decide(tokens, 3).dst.tolist() == [0] * 6 + [1] * 6 + [2] * 6
    few: TokenMap = DynTok().decide(tokens, 2)
    assert few.src.tolist() == list(range(12)) and few.dst.tolist() == [0] * 6 + [1] * 6
