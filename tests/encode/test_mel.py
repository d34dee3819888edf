"""Whisper's log-mel: goldens, streaming equal to whole files, levels and change."""

from __future__ import annotations

import math
import os
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tokpipe.encode.mel import (
    CELL,
    FIRST_CHANGE,
    Mel,
    MelStream,
    apply_floor,
    log_mel,
    raw_log_mel,
    slaney_filterbank,
)
from tokpipe.errors import UnsupportedMedia
from tokpipe.spec import AudioInfo, MediaInfo
from tokpipe.tensors import AudioChunk, TokenBatch

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden" / "data" / "audio"
SHARED = Path(os.environ.get("TOKPIPE_GOLDENS", ROOT.parent / "shared" / "goldens"))
Wave = NDArray[np.float32]


def golden(name: str) -> dict[str, NDArray[Any]]:
    """Arrays of one case, from the shared folder where the repository does not hold them."""
    paths = [SHARED / "audio" / name, GOLDEN / name]
    path = next((p for p in paths if p.exists()), None)
    if path is None:
        pytest.skip(f"{name} is not here; set TOKPIPE_GOLDENS")
    with np.load(path) as arrays:
        return dict(arrays)


def wave_of(pcm: NDArray[Any]) -> Wave:
    return (pcm / 32768).astype(np.float32)


def noise(length: int, seed: int = 0, level: float = 0.1) -> Wave:
    return (np.random.default_rng(seed).standard_normal(length) * level).astype(np.float32)


def tokens_of(wave: Wave, cuts: list[int] | None = None, bins: int = 80) -> TokenBatch:
    stream = MelStream(bins)
    out = [batch for piece in np.split(wave, sorted(cuts or [])) for batch in stream.push(piece)]
    out += stream.finish()
    return TokenBatch.cat([stream.empty(), *out])


@pytest.mark.parametrize("bins", [80, 128])
def test_filterbank_equals_whispers(bins: int) -> None:
    expected = golden("mel_filterbank_slaney.npz")[f"mel{bins}"]
    np.testing.assert_allclose(slaney_filterbank(bins).numpy(), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", ["whisper_mel_jfk.npz", "whisper_mel_synth.npz"])
@pytest.mark.parametrize("bins", [80, 128])
def test_log_mel_equals_whispers(name: str, bins: int) -> None:
    case = golden(name)
    made = log_mel(wave_of(case["wav_i16"]), bins).numpy()
    np.testing.assert_allclose(made, case[f"mel{bins}"], atol=2e-5, rtol=0)


def test_log_mel_of_silence_is_whispers() -> None:
    case = golden("whisper_mel_edge.npz")
    made = log_mel(np.zeros(160 * int(case["silence_frames"]), dtype=np.float32)).numpy()
    assert made.shape == (80, int(case["silence_frames"]))
    np.testing.assert_array_equal(made[:, :4], case["silence_mel80"])


def test_log_mel_of_321_samples_is_whispers() -> None:
    case = golden("whisper_mel_edge.npz")
    made = log_mel(wave_of(case["short_wav_i16"])).numpy()
    np.testing.assert_allclose(made, case["short_mel80"], atol=2e-5, rtol=0)


@pytest.mark.parametrize(("length", "columns"), [(0, 0), (1, 0), (159, 0), (160, 1), (201, 1)])
def test_raw_log_mel_counts_columns_of_short_files(length: int, columns: int) -> None:
    made = raw_log_mel(noise(length))
    assert made.shape == (80, columns)
    assert bool(made.isfinite().all())


def test_raw_log_mel_equals_a_direct_transform() -> None:
    wave = torch.from_numpy(noise(16000 * 12 + 77))
    spectrum = torch.stft(
        wave, 400, 160, window=torch.hann_window(400), center=True, return_complex=True
    )
    power = spectrum[:, :-1].abs() ** 2
    columns = len(wave) // 160
    expected = (slaney_filterbank(80) @ power).clamp(min=1e-10).log10()[:, :columns]
    torch.testing.assert_close(raw_log_mel(wave), expected, atol=1e-5, rtol=0)


@settings(max_examples=15, deadline=None)
@given(
    length=st.integers(1, 16000 * 23),
    cuts=st.lists(st.integers(0, 16000 * 23), max_size=8),
    bins=st.sampled_from([80, 128]),
)
def test_stream_gives_the_same_bits_for_any_pieces(length: int, cuts: list[int], bins: int) -> None:
    wave = noise(length, seed=length)
    whole = raw_log_mel(np.pad(wave, (0, -length % CELL)), bins)
    made = tokens_of(wave, cuts, bins)
    once = tokens_of(wave, bins=bins)
    assert torch.equal(made.data, whole.T.reshape(-1, 4 * bins).half())
    for name in once.extras:
        assert torch.equal(made.extras[name], once.extras[name]), name


@pytest.mark.parametrize("extra", [-641, -640, -639, -1, 0, 1, 40, 639, 640, 641])
@pytest.mark.parametrize("blocks", [1, 2])
def test_stream_is_exact_around_block_borders(extra: int, blocks: int) -> None:
    wave = noise(160_000 * blocks + extra, seed=3)
    whole = raw_log_mel(np.pad(wave, (0, -len(wave) % CELL)))
    made = tokens_of(wave, [1, 160_000 * blocks - 7])
    assert torch.equal(made.data, whole.T.reshape(-1, 320).half())


@pytest.mark.parametrize(
    ("length", "cells"), [(0, 0), (1, 1), (640, 1), (641, 2), (160_000, 250), (160_001, 251)]
)
def test_stream_counts_cells_and_loses_no_sound(length: int, cells: int) -> None:
    assert len(tokens_of(noise(length))) == cells


def test_stream_places_cells_on_the_clock() -> None:
    made = tokens_of(noise(16000 * 21))
    rank = np.arange(len(made))
    np.testing.assert_allclose(made.at.numpy(), rank * 0.04, atol=1e-12)
    assert torch.equal(made.pts[1:, 0], made.pts[:-1, 1])
    np.testing.assert_allclose((made.pts[:, 1] - made.pts[:, 0]).numpy(), 0.04, atol=1e-9)
    np.testing.assert_array_equal(made.cell.numpy(), np.stack([rank, rank * 0, rank * 0], 1))
    assert bool((made.modality == 1).all())
    assert bool((made.frame == -1).all())
    assert made.data.dtype == torch.float16


def test_stream_threads_do_not_change_bits() -> None:
    wave, threads = noise(16000 * 11), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = tokens_of(wave)
        torch.set_num_threads(2)
        two = tokens_of(wave)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(one.data, two.data)
    assert all(torch.equal(one.extras[k], two.extras[k]) for k in one.extras)


def test_stream_holds_a_bounded_stretch() -> None:
    stream, most = MelStream(), 0
    for _ in range(40):
        stream.push(noise(40_000))
        most = max(most, sum(t.untyped_storage().nbytes() // 4 for t in stream._held))
    assert most <= 2 * 160_000 + 40_000


def test_stream_survives_samples_that_are_no_numbers() -> None:
    wave = noise(3200)
    wave[[5, 900, 2000]] = [np.nan, np.inf, 1e30]
    made = tokens_of(wave)
    assert bool(made.data.isfinite().all())
    assert all(bool(v.isfinite().all()) for v in made.extras.values())


def test_stream_takes_read_only_arrays() -> None:
    wave = noise(3200)
    wave.flags.writeable = False
    assert len(tokens_of(wave)) == 5


def test_stream_refuses_more_after_its_end() -> None:
    stream = MelStream()
    stream.push(noise(700))
    assert sum(map(len, stream.finish())) == 2
    assert stream.finish() == []
    with pytest.raises(ValueError, match="after finish"):
        stream.push(noise(1))


def test_rms_is_the_level_of_each_cell() -> None:
    time = np.arange(CELL) / 16000
    sine = (0.5 * np.sin(2 * np.pi * 500 * time)).astype(np.float32)
    made = tokens_of(np.concatenate([np.zeros(CELL, np.float32), sine, sine[:320]]))
    loud = 20 * math.log10(0.5 / math.sqrt(2))
    half = loud - 10 * math.log10(2)
    np.testing.assert_allclose(made.extras["rms_db"].numpy(), [-120, loud, half], atol=1e-3)
    np.testing.assert_allclose(made.extras["near_db"].numpy(), [loud, loud, loud], atol=1e-3)


def test_near_is_the_loudest_of_three_also_across_blocks() -> None:
    wave = noise(16000 * 31, level=0.01)
    wave[::CELL] = np.linspace(0, 1, len(wave[::CELL]), dtype=np.float32) % 0.1
    made = tokens_of(wave, [123_457])
    level = np.pad(made.extras["rms_db"].numpy(), 1, constant_values=-120)
    expected = np.maximum(np.maximum(level[:-2], level[1:-1]), level[2:])
    np.testing.assert_array_equal(made.extras["near_db"].numpy(), expected)


def test_noise_is_the_background_not_the_sound() -> None:
    wave = noise(16000 * 10, level=1e-3)
    wave[: 16000 * 7] += noise(16000 * 7, 1, level=0.2)
    assert float(tokens_of(wave).extras["noise_db"][0]) == pytest.approx(-60, abs=1)


def test_noise_stays_far_below_a_steady_sound() -> None:
    made = tokens_of(noise(16000 * 10, level=0.1))
    gap = made.extras["rms_db"] - made.extras["noise_db"]
    assert float(gap.min()) > 28


def test_change_is_zero_for_a_steady_sound_and_large_at_an_onset() -> None:
    time = np.arange(16000) / 16000
    low = np.sin(2 * np.pi * 500 * time).astype(np.float32) * 0.3
    high = np.sin(2 * np.pi * 2000 * time).astype(np.float32) * 0.3
    change = tokens_of(np.concatenate([low, high])).extras["change"]
    assert float(change[0]) == FIRST_CHANGE
    assert float(change[2:24].max()) < 0.01
    assert float(change[25:27].max()) > 0.5
    assert int(change[1:].argmax()) + 1 in (24, 25, 26)


def test_change_matches_its_definition() -> None:
    wave = noise(16000 * 11, 5) * np.linspace(0.01, 1, 16000 * 11, dtype=np.float32)
    mel = raw_log_mel(wave).T.reshape(-1, 4, 80)
    change = tokens_of(wave, [99_999]).extras["change"]
    for i in (1, 17, 249, 250, 251, 274):
        floor = max(float(mel[i].max()), float(mel[i - 1].max())) - 3
        step = mel[i].clamp(min=floor).mean(0) - mel[i - 1].clamp(min=floor).mean(0)
        assert float(change[i]) == pytest.approx(float(step.square().mean().sqrt()), rel=1e-4)


def test_maxima_are_those_of_the_file_and_of_its_windows() -> None:
    wave = noise(16000 * 65)
    wave[16000 * 30 :] *= 0.1
    stream = MelStream()
    assert stream.maximum is None
    stream.push(wave)
    stream.finish()
    raw = raw_log_mel(wave)
    assert stream.maximum == float(raw.max())
    windows = [float(raw[:, a : a + 3000].max()) for a in (0, 3000, 6000)]
    assert stream.window_maxima == windows


def test_floor_over_the_file_is_log_mels() -> None:
    wave = noise(16000)
    wave[8000:] = 0
    raw = raw_log_mel(wave)
    floored = apply_floor(raw, "file")
    assert float(floored.min()) == pytest.approx(float(raw.max()) - 8)
    assert torch.equal((floored + 4) / 4, log_mel(wave))


def test_floor_over_windows_has_a_maximum_for_each() -> None:
    raw = np.full((2, 3002), -10, dtype=np.float32)
    raw[0, 0], raw[0, 3001] = 1.0, -3.0
    floored = apply_floor(raw, "window")
    assert isinstance(floored, np.ndarray)
    assert (floored[1, :3000] == -7).all()
    assert (floored[1, 3000:] == -10).all()


@pytest.mark.parametrize("policy", ["window", "file"])
def test_floor_of_a_part_takes_the_recorded_maxima(policy: str) -> None:
    wave = noise(16000 * 40)
    wave[16000 * 29 : 16000 * 33] = 0
    raw = raw_log_mel(wave)
    tops = [float(raw[:, :3000].max()), float(raw[:, 3000:].max())]
    whole = apply_floor(raw, policy)  # type: ignore[arg-type]
    maximum = tops if policy == "window" else max(tops)
    part = apply_floor(raw[:, 2950:3100], policy, maximum=maximum, start=2950)  # type: ignore[arg-type]
    assert torch.equal(part, whole[:, 2950:3100])


def test_floor_of_nothing_is_nothing() -> None:
    assert apply_floor(torch.zeros(80, 0), "window").shape == (80, 0)


def info(duration: float | None, audio: AudioInfo | None) -> MediaInfo:
    return MediaInfo(
        name="a", container="wav", fingerprint="x", size=1, duration=duration, audio=audio
    )


def audio(duration: float | None, start: float | None = 0.0) -> AudioInfo:
    return AudioInfo(
        index=0, codec="pcm", sample_rate=16000, channels=1, time_base=Fraction(1, 16000),
        start=start, duration=duration,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("media", "tokens"),
    [
        (info(10.0, audio(10.0)), 250),
        (info(10.0, audio(4.01)), 101),
        (info(10.0, audio(4.0, start=2.0)), 150),
        (info(10.0, audio(1e9)), 250),
        (info(10.0, audio(None)), 250),
        (info(None, audio(None)), None),
        (info(10.0, None), 0),
    ],
)
def test_out_spec_counts_cells(media: MediaInfo, tokens: int | None) -> None:
    spec = Mel(bins=128).out_spec(media, None)
    assert (spec.tokens, spec.dim, spec.grid, spec.dtype) == (tokens, 512, (1, 1), "F16")
    assert spec.exact == (media.audio is None)


def test_encode_takes_a_chunk_at_its_place() -> None:
    wave = torch.from_numpy(noise(6400))
    chunk = AudioChunk(samples=torch.stack([wave, wave]), pts=2.0, sample_rate=16000, index=32000)
    made, alone = Mel().encode(chunk), tokens_of(wave.numpy())
    assert torch.equal(made.data, alone.data)
    assert float(made.at[0]) == 2.0
    assert int(made.cell[0, 0]) == 50


def test_encode_of_no_sound_gives_no_tokens() -> None:
    chunk = AudioChunk(samples=torch.zeros(1, 0), pts=0.0, sample_rate=16000, index=0)
    made = Mel().encode(chunk)
    assert made.data.shape == (0, 320)
    assert set(made.extras) == set(Mel.extras)


def test_encode_refuses_another_rate() -> None:
    chunk = AudioChunk(samples=torch.zeros(1, 100), pts=0.0, sample_rate=44100, index=0)
    with pytest.raises(UnsupportedMedia, match="44100 Hz"):
        Mel().encode(chunk)
