"""Sound keeps its clock: exact lengths, any partition, holes filled, late starts kept."""

from __future__ import annotations

import os
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tokpipe.decode._audio import BLOCK, RATE, AudioPlacer, resampled_length
from tokpipe.decode._timeline import common_scale

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def goldens() -> Path:
    folder = Path(os.environ.get("TOKPIPE_GOLDENS", ROOT.parent / "shared" / "goldens"))
    if not folder.is_dir():
        pytest.skip(f"no goldens in {folder}; set TOKPIPE_GOLDENS")
    return folder


def frame_of(samples: NDArray[np.float32], rate: int) -> av.AudioFrame:
    frame = av.AudioFrame.from_ndarray(samples[None], format="fltp", layout="mono")
    frame.sample_rate = rate
    return frame


def place(
    pieces: list[tuple[Fraction, NDArray[np.float32]]], rate: int
) -> tuple[NDArray[np.float32], AudioPlacer]:
    """Place pieces of sound that start at these seconds; all blocks but the last are full."""
    placer = AudioPlacer(common_scale([RATE, rate, *(t.denominator for t, _ in pieces)]))
    blocks = []
    for start, samples in pieces:
        blocks += list(placer.push(frame_of(samples, rate), round(start * placer.scale)))
    blocks += list(placer.finish())
    assert all(len(block) == BLOCK for block in blocks[:-1])
    assert all(block.dtype == np.float32 for block in blocks)
    out = np.concatenate([np.zeros(0, np.float32), *blocks])
    assert placer.written == len(out)
    return out, placer


def noise(length: int) -> NDArray[np.float32]:
    return np.random.default_rng(3).uniform(-0.5, 0.5, length).astype(np.float32)


def cut(
    samples: NDArray[np.float32], at: list[int], rate: int, start: Fraction = Fraction(0)
) -> list[tuple[Fraction, NDArray[np.float32]]]:
    edges = [0, *sorted({place for place in at if 0 < place < len(samples)}), len(samples)]
    return [(start + Fraction(a, rate), samples[a:b]) for a, b in pairwise(edges)]


def test_lengths_equal_the_goldens(goldens: Path) -> None:
    path = goldens / "audio" / "resample_48000_8000.npz"
    if not path.exists():
        pytest.skip(f"no {path}")
    with np.load(path, allow_pickle=False) as golden:
        lengths, expected = golden["odd_lengths"], golden["ta_out_lengths"]
    for length, count in zip(lengths.tolist(), expected.tolist(), strict=True):
        assert resampled_length(length, 44100) == count
        out, _ = place([(Fraction(0), noise(length))], 44100)
        assert len(out) == count


@pytest.mark.parametrize("rate", [8000, 11025, 16000, 22050, 32000, 44100, 48000, 96000])
@pytest.mark.parametrize("length", [1, 2, 159, 4410, 100_001])
def test_length_is_rounded_up(rate: int, length: int) -> None:
    out, placer = place([(Fraction(0), noise(length))], rate)
    assert len(out) == -(-length * RATE // rate)
    assert (placer.gaps, placer.overlaps, placer.late) == (0, 0, 0)


@settings(max_examples=30)
@given(
    st.sampled_from([8000, 16000, 44100, 48000]),
    st.lists(st.integers(1, 39_999), max_size=30),
)
def test_any_partition_into_frames_gives_the_same_samples(rate: int, at: list[int]) -> None:
    samples = noise(40_000)
    whole, _ = place([(Fraction(0), samples)], rate)
    pieces, placer = place(cut(samples, at, rate), rate)
    assert whole.tobytes() == pieces.tobytes()
    assert (placer.gaps, placer.overlaps) == (0, 0)


def test_sound_at_16_khz_passes_unchanged() -> None:
    samples = noise(50_000)
    out, _ = place(cut(samples, [777, 20_000], RATE), RATE)
    np.testing.assert_array_equal(out, samples)


@pytest.mark.parametrize("rate", [8000, 44100, 48000])
def test_resampling_has_no_delay(rate: int) -> None:
    """A tone keeps its phase, so every click stays where it was."""
    time = np.arange(rate * 2) / rate
    tone = np.sin(2 * np.pi * 440 * time).astype(np.float32)
    out, _ = place(cut(tone, list(range(0, rate * 2, 1024)), rate), rate)
    expected = np.sin(2 * np.pi * 440 * np.arange(len(out)) / RATE)
    assert np.abs(out - expected)[400:-400].max() < 0.005


@given(st.integers(321, 40_000), st.sampled_from([16000, 44100]))
@settings(max_examples=20)
def test_hole_is_filled_with_silence(hole: int, rate: int) -> None:
    samples = noise(8000)
    first, second = cut(samples, [4000], rate)
    gap = Fraction(hole, RATE)
    out, placer = place([first, (second[0] + gap, second[1])], rate)
    lead = resampled_length(4000, rate)
    begin = round((second[0] + gap) * RATE)
    assert abs(placer.gaps - hole) <= 1
    assert begin - lead == placer.gaps
    assert not out[lead:begin].any()
    assert out[begin : begin + 100].any()
    assert len(out) == begin + resampled_length(4000, rate)


def test_small_jitter_is_no_hole() -> None:
    samples = noise(20_000)
    pieces = cut(samples, list(range(1000, 20_000, 1000)), RATE)
    shaken = [(t + Fraction(n % 3 - 1, 100), piece) for n, (t, piece) in enumerate(pieces)][1:]
    out, placer = place([pieces[0], *shaken], RATE)
    np.testing.assert_array_equal(out, samples)
    assert (placer.gaps, placer.overlaps) == (0, 0)


def test_overlap_is_dropped_and_counted() -> None:
    samples = noise(16_000)
    pieces = [(Fraction(0), samples[:10_000]), (Fraction(8000, RATE), samples[8000:])]
    out, placer = place(pieces, RATE)
    assert (placer.overlaps, placer.gaps) == (2000, 0)
    np.testing.assert_array_equal(out, samples)


def test_overlap_longer_than_its_frame_adds_nothing() -> None:
    samples = noise(16_000)
    again = (Fraction(1, 2), samples[8000:9000])
    out, placer = place([(Fraction(0), samples), again, (Fraction(1), samples)], RATE)
    np.testing.assert_array_equal(out, np.concatenate([samples, samples]))
    assert placer.overlaps == 8000


@given(st.integers(1, 100_000))
@settings(max_examples=20)
def test_late_start_is_kept(late: int) -> None:
    samples = noise(3000)
    out, placer = place([(Fraction(late, RATE), samples)], RATE)
    assert (placer.late, placer.gaps) == (late, 0)
    assert not out[:late].any()
    np.testing.assert_array_equal(out[late:], samples)


def test_what_lies_before_zero_is_discarded() -> None:
    samples = noise(5000)
    pieces = cut(samples, [700, 1024, 3000], RATE, start=Fraction(-1024, RATE))
    out, placer = place(pieces, RATE)
    np.testing.assert_array_equal(out, samples[1024:])
    assert (placer.gaps, placer.overlaps, placer.late) == (0, 0, 0)


def test_form_may_change_between_frames() -> None:
    placer = AudioPlacer(common_scale([RATE, 48000]))
    low = frame_of(noise(8000), RATE)
    high = av.AudioFrame.from_ndarray(
        np.zeros((1, 48_000), dtype=np.int16), format="s16", layout="stereo"
    )
    high.sample_rate = 48000
    blocks = [*placer.push(low, 0), *placer.push(high, placer.scale // 2), *placer.finish()]
    assert sum(len(block) for block in blocks) == 16_000
    assert (placer.gaps, placer.overlaps) == (0, 0)


@pytest.mark.parametrize("form", ["fltp", "s16p"])
@pytest.mark.parametrize("rate", [RATE, 44100])
def test_channels_are_averaged_at_any_form(form: str, rate: int) -> None:
    """Float sources must not come out louder than whole-number ones, or full scale would clip."""
    left, right = noise(8000), noise(8000)[::-1]
    both = np.stack([left, right])
    if form == "s16p":
        both = np.round(both * 32767).astype(np.int16)
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(both), format=form, layout="stereo")
    frame.sample_rate = rate
    placer = AudioPlacer(common_scale([RATE, rate]))
    out = np.concatenate([*placer.push(frame, 0), *placer.finish()])
    mean, _ = place([(Fraction(0), ((left + right) / 2).astype(np.float32))], rate)
    np.testing.assert_allclose(out, mean, atol=1e-6 if form == "fltp" else 1e-4)


def test_nothing_in_gives_nothing_out() -> None:
    placer = AudioPlacer(common_scale([RATE]))
    assert list(placer.finish()) == []
