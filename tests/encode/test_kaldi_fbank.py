"""Kaldi's filter bank against torchaudio's, and its edges."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch

from tokpipe.encode._sound.kaldi_fbank import ast_fbank, beats_fbank, kaldi_fbank


def sound(samples: int) -> torch.Tensor:
    made = torch.Generator().manual_seed(5)
    at = torch.arange(samples) / 16_000
    return torch.randn(samples, generator=made) * 0.1 + 0.3 * torch.sin(6000 * at * at) + 0.02


@pytest.mark.parametrize("window", ["povey", "hanning"])
@pytest.mark.parametrize("bins", [23, 64, 80, 128])
def test_is_torchaudios(window: Any, bins: int) -> None:
    pytest.importorskip("torchaudio")
    kaldi: Any = importlib.import_module("torchaudio.compliance.kaldi")
    wave = sound(20_001) * 2**15
    own = kaldi.fbank(
        wave[None], num_mel_bins=bins, window_type=window, sample_frequency=16_000.0,
        frame_length=25.0, frame_shift=10.0, dither=0.0,
    )  # fmt: skip
    found = kaldi_fbank(wave, bins=bins, window=window)
    torch.testing.assert_close(found, own, atol=2e-3, rtol=0)
    assert (found - own).abs().mean() < 5e-5


@pytest.mark.parametrize(("samples", "frames"), [(0, 0), (399, 0), (400, 1), (559, 1), (560, 2)])
def test_only_whole_frames(samples: int, frames: int) -> None:
    assert kaldi_fbank(sound(samples)).shape == (frames, 128)


def test_a_constant_is_silence() -> None:
    made = kaldi_fbank(torch.full((800,), 0.25))
    torch.testing.assert_close(made, torch.full_like(made, -15.942385))


def test_inputs_of_the_two_models() -> None:
    wave = sound(16_000)
    raw = kaldi_fbank(wave * 2**15)
    torch.testing.assert_close(beats_fbank(wave), (raw - 15.41663) / 13.11164)
    made = ast_fbank(wave, 120)
    assert made.shape == (120, 128)
    torch.testing.assert_close(made[98:], torch.full((22, 128), 4.2677393 / 9.1379948))
    assert torch.equal(ast_fbank(wave, 50), made[:50])
    assert torch.equal(ast_fbank(wave, 120, centred=True), ast_fbank(wave - wave.mean(), 120))
