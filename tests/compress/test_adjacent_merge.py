"""Merging of alike neighbours: runs, exact budgets, filling order, counting in pieces."""

from __future__ import annotations

import math
import os
import time
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tokpipe.compress.similarity.adjacent_merge import AdjacentMerge
from tokpipe.compress.transformation.silence_gate import SilenceGate
from tokpipe.encode.mel import MelStream
from tokpipe.errors import RecipeError
from tokpipe.tensors import TokenBatch

ROOT = Path(__file__).parents[2]
MEDIA = Path(os.environ.get("TOKPIPE_TEST_MEDIA", ROOT.parent / "shared" / "media"))
NAN = math.nan


def cells(
    change: list[float],
    score: list[float] | None = None,
    rms: list[float] | None = None,
    gap_before: int | None = None,
) -> TokenBatch:
    """Cells of 40 ms; data is the cell's number; a hole of a second before ``gap_before``."""
    count = len(change)
    at = torch.arange(count).double() / 25
    if gap_before is not None:
        at[gap_before:] += 1
    data = torch.arange(count).float()[:, None]
    marks = torch.tensor([NAN] * count if score is None else score, dtype=torch.float32)
    level = torch.tensor([-20.0] * count if rms is None else rms, dtype=torch.float32)
    return TokenBatch.build(
        data, at, pts=torch.stack([at, at + 0.04], 1), modality=1, score=marks
    ).with_extras(change=torch.tensor(change, dtype=torch.float32), rms_db=level)


streams = st.lists(
    st.tuples(
        st.sampled_from([0.0, 0.1, 0.24, 0.25, 0.3, 1.0]),
        st.sampled_from([0.0, 1.0, 1.0, NAN]),
        st.sampled_from([-90.0, -30.0, -20.0]),
    ),
    max_size=60,
)


def batch(stream: list[tuple[float, float, float]]) -> TokenBatch:
    return cells([s[0] for s in stream], [s[1] for s in stream], [s[2] for s in stream])


def test_rule_begins_runs_where_the_sound_changes() -> None:
    made = AdjacentMerge(threshold=0.25).decide(cells([100, 0.1, 0.2, 0.5, 0.1, 0.25]))
    assert made.anchor.tolist() == [0, 3, 5]


def test_rule_keeps_the_first_cell_unaltered_for_the_whole_run() -> None:
    tokens = cells([100, 0.1, 0.2, 0.5, 0.1])
    kept = tokens.reduce(AdjacentMerge().decide(tokens))
    assert kept.data.flatten().tolist() == [0, 3]
    assert kept.mass.tolist() == [3, 2]
    assert kept.pts[0].tolist() == pytest.approx([0, 0.12])
    assert kept.at.tolist() == pytest.approx([0, 0.12])
    assert kept.kind.tolist() == [0, 0]


def test_rule_mean_weighs_by_mass() -> None:
    tokens = cells([100, 0.1]).with_columns(mass=torch.tensor([1.0, 3.0]))
    kept = tokens.reduce(AdjacentMerge(mode="mean").decide(tokens))
    assert kept.data.flatten().tolist() == [0.75]
    assert kept.mass.tolist() == [4]
    assert kept.kind.tolist() == [1]


def test_rule_bounds_runs_of_heard_cells() -> None:
    made = AdjacentMerge(max_run=3).decide(cells([0.0] * 8))
    assert made.anchor.tolist() == [0, 3, 6]


def test_rule_makes_one_run_of_a_silence_of_any_length() -> None:
    made = AdjacentMerge(max_run=3).decide(cells([9.0] * 12, [0.0] * 10 + [1.0] * 2))
    assert made.anchor.tolist() == [0, 10, 11]


def test_rule_never_merges_across_silence_or_a_hole() -> None:
    assert AdjacentMerge().decide(cells([0.0] * 4, [1, 0, 1, 1])).anchor.tolist() == [0, 1, 2]
    assert AdjacentMerge().decide(cells([0.0] * 4, gap_before=2)).anchor.tolist() == [0, 2]


def test_budget_fills_in_the_stated_order() -> None:
    change = [100.0, 0.1, 0.9, 0.2, 0.0, 0.0, 0.1, 0.6]
    score = [1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 1.0, 1.0]
    level = [-20.0, -20.0, -20.0, -20.0, -80.0, -70.0, -20.0, -20.0]
    tokens, rule = cells(change, score, level), AdjacentMerge()
    # Spans (long first), runs by change, other heard cells by change, silence by level.
    order = [0, 6, 2, 7, 3, 1, 5, 4]
    for budget in range(9):
        assert rule.decide(tokens, budget).anchor.tolist() == sorted(order[:budget])
    made = rule.decide(tokens, 8)
    assert made.score is not None
    assert made.score.tolist() == [8, 3, 6, 4, 1, 2, 7, 5]


def test_budget_below_the_spans_takes_the_longest_and_drops_the_rest() -> None:
    score = [1.0, 0.0, 1.0, 1.0, 1.0, 0.0, 1.0, 1.0]
    tokens = cells([0.0] * 8, score)
    kept = tokens.reduce(AdjacentMerge().decide(tokens, 1))
    assert kept.pts.flatten().tolist() == pytest.approx([0.08, 0.20])
    assert kept.mass.tolist() == [3]


def test_budget_below_the_runs_still_covers_all_heard_cells() -> None:
    tokens = cells([100, 0.3, 0.9, 0.4, 0.0, 0.5, 0.3], [1, 1, 1, 1, 0, 1, 1])
    kept = tokens.reduce(AdjacentMerge().decide(tokens, 3))
    assert kept.data.flatten().tolist() == [0, 2, 5]
    assert kept.mass.tolist() == [2, 2, 2]


@given(stream=streams, budget=st.integers(0, 80), mode=st.sampled_from(["keep", "mean"]))
def test_budget_is_met_exactly(
    stream: list[tuple[float, float, float]], budget: int, mode: str
) -> None:
    tokens, rule = batch(stream), AdjacentMerge(mode=mode)  # type: ignore[arg-type]
    made = rule.decide(tokens, budget)
    kept = tokens.reduce(made)
    assert len(kept) == min(budget, len(tokens))
    assert made.score is not None
    assert sorted(made.score.tolist()) == list(range(1, len(kept) + 1))
    assert bool((kept.at[1:] > kept.at[:-1]).all())
    assert float(kept.mass.sum()) <= len(tokens)
    assert bool((kept.mass >= 1).all())


@given(stream=streams, budget=st.integers(1, 60))
def test_smaller_budgets_are_subsets(stream: list[tuple[float, float, float]], budget: int) -> None:
    tokens, rule = batch(stream), AdjacentMerge()
    small = rule.decide(tokens, budget).anchor.tolist()
    assert set(small) <= set(rule.decide(tokens, budget + 1).anchor.tolist())


@given(stream=streams)
def test_budget_of_the_worth_is_the_rule_without_silence(
    stream: list[tuple[float, float, float]],
) -> None:
    tokens, rule = batch(stream), AdjacentMerge()
    runs = rule.decide(tokens).anchor.tolist()
    heard = [i for i in runs if float(tokens.score[i]) != 0]
    assert rule.worth(tokens) == len(heard)
    assert rule.decide(tokens, len(heard)).anchor.tolist() == heard


@given(stream=streams, cuts=st.lists(st.integers(0, 60), max_size=6), longest=st.integers(1, 9))
def test_count_is_the_same_in_pieces(
    stream: list[tuple[float, float, float]], cuts: list[int], longest: int
) -> None:
    tokens, rule = batch(stream), AdjacentMerge(max_run=longest)
    count = rule.count_stream()
    index = torch.arange(len(tokens))
    for part in np.split(index.numpy(), sorted(cuts)):
        count.push(tokens.take(torch.from_numpy(part)))
    assert (count.novel, count.total) == (rule.worth(tokens), len(tokens))


@settings(max_examples=30)
@given(stream=streams)
def test_rule_matches_a_plain_loop(stream: list[tuple[float, float, float]]) -> None:
    tokens, heads, run = batch(stream), list[int](), 0
    for i, (change, score, _) in enumerate(stream):
        quiet = score == 0
        same = i > 0 and quiet == (stream[i - 1][1] == 0)
        if not same or (not quiet and (np.float32(change) >= 0.25 or run == 8)):
            heads.append(i)
            run = 0
        run += 1
    assert AdjacentMerge().decide(tokens).anchor.tolist() == heads


def test_merge_reads_no_data() -> None:
    tokens = cells([0.0, 0.5, 0.1])
    light = tokens.with_columns(data=torch.zeros(3, 0))
    assert AdjacentMerge().decide(light, 2).anchor.tolist() == [0, 1]


def test_merge_names_the_missing_column() -> None:
    tokens = TokenBatch.build(torch.zeros(2, 4), torch.zeros(2, dtype=torch.float64))
    with pytest.raises(RecipeError, match="change"):
        AdjacentMerge().decide(tokens)


def test_merge_of_an_hour_is_quick() -> None:
    random = np.random.default_rng(0)
    tokens = cells(random.random(90_000).tolist(), (random.random(90_000) > 0.2).tolist())
    start = time.process_time()
    assert len(AdjacentMerge().decide(tokens, 512)) == 512
    # Some 20 ms; a quadratic way would take minutes.
    assert time.process_time() - start < 5


def speech(name: str) -> TokenBatch:
    path = MEDIA / name
    if not path.exists():
        pytest.skip(f"{name} is not here; set TOKPIPE_TEST_MEDIA")
    resampler = av.AudioResampler("flt", "mono", 16000)
    with av.open(str(path)) as container:
        frames = [f for frame in container.decode(audio=0) for f in resampler.resample(frame)]
        frames += resampler.resample(None)
    wave: NDArray[np.float32] = np.concatenate([f.to_ndarray()[0] for f in frames])
    stream = MelStream()
    tokens = TokenBatch.cat(stream.push(wave) + stream.finish())
    return tokens.reduce(SilenceGate().decide(tokens))


@pytest.mark.parametrize("name", ["v2d__test_video.mp4", "whisper__jfk.flac"])
def test_speech_is_covered_by_a_few_cells(name: str) -> None:
    tokens = speech(name)
    budget = len(tokens) // 6
    made = AdjacentMerge().decide(tokens, budget)
    covered = torch.zeros(len(tokens), dtype=torch.bool)
    covered[made.src[made.share > 0]] = True
    assert len(made) == budget
    assert bool(covered[tokens.score > 0].all())
    assert bool((tokens.score[made.anchor] > 0).all())


def test_speech_merges_a_little_by_the_rule() -> None:
    tokens = speech("whisper__jfk.flac")
    heard = int((tokens.score > 0).sum())
    assert 0.75 * heard < AdjacentMerge().worth(tokens) < 0.97 * heard
