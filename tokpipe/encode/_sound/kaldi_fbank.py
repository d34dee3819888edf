"""Kaldi's log-mel filter bank, as BEATs and the Audio Spectrogram Transformer take it.

Frames of 25 ms every 10 ms that lie wholly inside the sound, the mean of each taken off,
pre-emphasis 0.97, a window, 512-point power spectrum, triangular filters on the HTK mel scale
from 20 Hz to 8 kHz, natural logarithm. No dither, so the same sound gives the same bits.

Letters: L samples, M frames, B bins.
"""

from __future__ import annotations

from functools import cache
from typing import Literal

import torch
from torch import Tensor

from tokpipe.encode._sound.lengths import COLUMN, HOP, kaldi_frames

Window = Literal["povey", "hanning"]

SAMPLE_RATE = 16_000
FFT = 512
LOWEST = 20.0
PREEMPHASIS = 0.97
#: What both checkpoints' recordings were shifted and scaled by.
BEATS_MEAN, BEATS_STD = 15.41663, 6.55582
AST_MEAN, AST_STD = -4.2677393, 4.5689974
_FLOOR = torch.finfo(torch.float32).eps


@cache
def _window(kind: Window, device: str) -> Tensor:
    hann = torch.hann_window(COLUMN, periodic=False, device=device)
    return hann if kind == "hanning" else hann.pow(0.85)


@cache
def _filters(bins: int, device: str) -> Tensor:
    """Weights float32 [FFT // 2, B]: triangles whose sides are straight on the mel scale."""

    def mel(hertz: Tensor) -> Tensor:
        return 1127.0 * torch.log1p(hertz / 700.0)

    low, high = mel(torch.tensor([LOWEST, SAMPLE_RATE / 2], dtype=torch.float64)).tolist()
    edges = torch.linspace(low, high, bins + 2, dtype=torch.float64)
    place = mel(torch.arange(FFT // 2, dtype=torch.float64) * SAMPLE_RATE / FFT)[:, None]
    rise = (place - edges[:-2]) / (edges[1:-1] - edges[:-2])
    fall = (edges[2:] - place) / (edges[2:] - edges[1:-1])
    return torch.minimum(rise, fall).clamp(min=0).float().to(device)


def kaldi_fbank(wave: Tensor, *, bins: int = 128, window: Window = "povey") -> Tensor:
    """Log filter bank of a sound.

    Args:
        wave: float32 [L] at 16 kHz, in the scale the model was trained with: BEATs takes
            ``x * 2**15``, AST takes x in [-1, 1].
        bins: Filters B, 1 or more.
        window: ``povey`` (Kaldi's own, a Hann window to the power of 0.85) or ``hanning`` (AST).

    Returns:
        float32 [M, B] on the wave's device, M = (L - 400) // 160 + 1, 0 below 400 samples.
        Silence is log(2**-23) = -15.94.
    """
    if not kaldi_frames(wave.shape[0]):
        return wave.new_zeros((0, bins), dtype=torch.float32)
    device = str(wave.device)
    frames: Tensor = wave.float().unfold(0, COLUMN, HOP)
    frames = frames - frames.mean(1, keepdim=True)
    # The first sample has none before it: it is its own predecessor.
    before = torch.cat([frames[:, :1], frames[:, :-1]], 1)
    frames = (frames - PREEMPHASIS * before) * _window(window, device)
    # In double precision: the powers of quiet bins are small differences of large numbers.
    power: Tensor = torch.fft.rfft(frames.double(), FFT).abs().square().float()
    return (power[:, : FFT // 2] @ _filters(bins, device)).clamp(min=_FLOOR).log()


def beats_fbank(wave: Tensor) -> Tensor:
    """Input of BEATs, float32 [M, 128], of float32 [L] in [-1, 1]."""
    return (kaldi_fbank(wave * 2.0**15) - BEATS_MEAN) / (2 * BEATS_STD)


def ast_fbank(
    wave: Tensor,
    frames: int,
    *,
    bins: int = 128,
    mean: float = AST_MEAN,
    std: float = AST_STD,
    centred: bool = False,
) -> Tensor:
    """Input of the Audio Spectrogram Transformer: cut or filled up to a number of frames.

    Args:
        wave: float32 [L] in [-1, 1].
        frames: Frames the model takes; missing ones are 0 before shift and scale.
        mean, std: Shift and half the scale.
        centred: Take off the clip's mean first, as the authors' loader does; transformers'
            extractor does not.

    Returns:
        float32 [frames, B].
    """
    wave = wave - wave.mean() if centred and wave.shape[0] else wave
    raw = kaldi_fbank(wave, bins=bins, window="hanning")[:frames]
    full = torch.nn.functional.pad(raw, (0, 0, 0, frames - raw.shape[0]))
    return (full - mean) / (2 * std)
