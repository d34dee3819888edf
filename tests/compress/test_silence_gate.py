"""The silence gate: what counts as silent, and that it only orders unless asked to remove."""

from __future__ import annotations

import os
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from tokpipe.compress.transformation.silence_gate import SilenceGate
from tokpipe.encode.mel import CELL, MelStream
from tokpipe.errors import RecipeError
from tokpipe.tensors import TokenBatch

ROOT = Path(__file__).parents[2]
MEDIA = Path(os.environ.get("TOKPIPE_TEST_MEDIA", ROOT.parent / "shared" / "media"))


def cells(near: list[float], noise: float = -120.0, rms: list[float] | None = None) -> TokenBatch:
    at = torch.arange(len(near)).double() / 25
    pts = torch.stack([at, at + 0.04], 1)
    return TokenBatch.build(torch.zeros(len(near), 0), at, pts=pts, modality=1).with_extras(
        near_db=torch.tensor(near),
        noise_db=torch.full((len(near),), noise),
        rms_db=torch.tensor(near if rms is None else rms),
    )


def sound(name: str) -> NDArray[np.float32]:
    path = MEDIA / name
    if not path.exists():
        pytest.skip(f"{name} is not here; set TOKPIPE_TEST_MEDIA")
    resampler = av.AudioResampler("flt", "mono", 16000)
    with av.open(str(path)) as container:
        frames = [f for frame in container.decode(audio=0) for f in resampler.resample(frame)]
        frames += resampler.resample(None)
    return np.concatenate([f.to_ndarray()[0] for f in frames])


def encoded(wave: NDArray[np.float32]) -> TokenBatch:
    stream = MelStream()
    return TokenBatch.cat(stream.push(wave) + stream.finish())


def speech(name: str) -> TokenBatch:
    return encoded(sound(name))


def turns(length: int) -> NDArray[np.bool_]:
    """Cells inside somebody's turn in the dialogue, at least a cell from its ends."""
    inside = np.zeros(length, dtype=bool)
    for line in (MEDIA / "speech" / "pyannote__sample.rttm").read_text().splitlines():
        start, span = (float(part) for part in line.split()[3:5])
        inside[int(start * 25) + 1 : int((start + span) * 25) - 1] = True
    return inside


def test_gate_scores_silent_cells_zero() -> None:
    tokens = cells([-120.0, -61.0, -59.0, -10.0])
    made = SilenceGate().decide(tokens)
    assert made.score is not None
    assert made.score.tolist() == [0, 0, 1, 1]
    assert made.anchor.tolist() == [0, 1, 2, 3]


def test_gate_rises_with_the_background() -> None:
    tokens = cells([-45.0, -43.0, -41.0], noise=-50.0)
    assert SilenceGate(margin_db=8.0).silent(tokens).tolist() == [True, True, False]
    assert SilenceGate(margin_db=3.0).silent(tokens).tolist() == [False, False, False]


def test_gate_keeps_data_and_columns_of_every_cell() -> None:
    tokens = cells([-100.0, -10.0])
    kept = tokens.reduce(SilenceGate().decide(tokens))
    assert torch.equal(kept.at, tokens.at)
    assert kept.mass.tolist() == [1, 1]
    assert kept.score.tolist() == [0, 1]


def test_gate_drop_removes_silent_cells() -> None:
    made = SilenceGate(drop=True).decide(cells([-100.0, -10.0, -90.0, -20.0]))
    assert made.anchor.tolist() == [1, 3]
    assert made.score is not None
    assert made.score.tolist() == [1, 1]


def test_gate_drop_of_pure_silence_leaves_nothing() -> None:
    tokens = cells([-120.0] * 5)
    assert len(tokens.reduce(SilenceGate(drop=True).decide(tokens))) == 0


def test_gate_budget_takes_heard_then_loud_cells() -> None:
    tokens = cells([-70.0, -30.0, -65.0, -20.0, -30.0])
    gate = SilenceGate()
    assert gate.decide(tokens, 2).anchor.tolist() == [1, 3]
    assert gate.decide(tokens, 4).anchor.tolist() == [1, 2, 3, 4]


@given(
    near=st.lists(st.floats(-120, 0, width=32), max_size=40),
    budget=st.integers(0, 50),
    cut=st.integers(0, 40),
)
def test_gate_is_exact_and_the_same_in_pieces(near: list[float], budget: int, cut: int) -> None:
    gate, tokens = SilenceGate(), cells(near)
    assert len(gate.decide(tokens, budget)) == min(budget, len(near))
    index = torch.arange(len(near))
    parts = [gate.silent(tokens.take(part)) for part in (index[:cut], index[cut:])]
    assert torch.equal(torch.cat(parts), gate.silent(tokens))


def test_gate_names_the_missing_column() -> None:
    tokens = TokenBatch.build(torch.zeros(2, 4), torch.zeros(2, dtype=torch.float64))
    with pytest.raises(RecipeError, match="rms_db"):
        SilenceGate().decide(tokens)


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("v2d__test_video.mp4", 0.08, 0.20),
        ("whisper__jfk.flac", 0.20, 0.40),
        ("moviepy__chaplin.mp4", 0.0, 0.02),
        ("curator__audio_1.opus", 0.0, 0.02),
    ],
)
def test_gate_finds_pauses_of_speech_and_none_in_music(name: str, low: float, high: float) -> None:
    share = float(SilenceGate().silent(speech(name)).float().mean())
    assert low <= share <= high


def test_gate_keeps_speakers_and_drops_pauses() -> None:
    tokens = speech("pyannote__sample.wav")
    silent, inside = SilenceGate().silent(tokens).numpy(), turns(len(tokens))
    assert silent[inside].mean() < 0.02
    assert silent[~inside].mean() > 0.6


def test_gate_keeps_quiet_speech_after_loud_speech() -> None:
    wave = sound("pyannote__sample.wav")
    half = len(wave) // CELL // 2
    plain = SilenceGate().silent(encoded(wave))[half + 1 :]
    wave[half * CELL :] *= 0.3
    quiet = SilenceGate().silent(encoded(wave))[half + 1 :]
    lost = (quiet & ~plain).sum() / (~plain).sum()
    assert float(lost) < 0.08
