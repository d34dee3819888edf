"""Whisper's log-mel picture of 16 kHz sound, in blocks of fixed shape.

Every column is computed inside a block of ``BLOCK_COLUMNS`` columns that starts at a multiple of
that number, short blocks filled with zeros. Shapes never differ, so neither do the bits: a file
gives the same columns whole or in any pieces.

Letters: L samples, T columns of 10 ms, B mel bins.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Floor = Literal["window", "file"]
A = TypeVar("A", Tensor, NDArray[np.float32])

SAMPLE_RATE = 16_000
WINDOW = 400
HOP = 160
#: Samples of context on each side of a block.
CONTEXT = WINDOW // 2
#: 10 s: long enough for batched transforms, short enough for flat memory.
BLOCK_COLUMNS = 1000
BLOCK = BLOCK_COLUMNS * HOP
#: Columns that share one maximum under the ``window`` policy: 30 s, Whisper's input.
FLOOR_COLUMNS = 3000
#: Decades below the maximum where Whisper cuts.
FLOOR_DEPTH = 8.0
_LOUDEST = 16.0
_TINY = 1e-10


@cache
def slaney_filterbank(bins: int) -> Tensor:
    """Triangular filters on the Slaney mel scale, 0 to 8000 Hz, each of unit area.

    The scale is linear (66.7 Hz a mel) up to 1 kHz and logarithmic (27 steps per factor 6.4)
    above.

    Returns:
        float32 [B, 201], weights of the power spectrum.
    """
    linear, knee, step = 200 / 3, 1000.0, math.log(6.4) / 27
    top = knee / linear + math.log(SAMPLE_RATE / 2 / knee) / step
    mels = torch.linspace(0, top, bins + 2, dtype=torch.float64)
    bent = knee * torch.exp(step * (mels - knee / linear))
    edges = torch.where(mels < knee / linear, mels * linear, bent)
    freqs = torch.linspace(0, SAMPLE_RATE / 2, WINDOW // 2 + 1, dtype=torch.float64)
    low, peak, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    rise, fall = (freqs - low) / (peak - low), (high - freqs) / (high - peak)
    return (torch.minimum(rise, fall).clamp(min=0) * 2 / (high - low)).float()


@cache
def _filters_of_parts(bins: int) -> Tensor:
    """The filters [402, B], each frequency's twice: for the squares of both its parts."""
    return slaney_filterbank(bins).repeat_interleave(2, 1).T.contiguous()


@cache
def _hann() -> Tensor:
    return torch.hann_window(WINDOW)


def clean(samples: Tensor | NDArray[np.float32]) -> Tensor:
    """Samples as float32 [L]; values that are not finite become 0, absurd ones are clipped.

    Float recordings may hold anything, and one such value would spoil every column it touches.
    """
    # A copy: torch warns about views of read-only arrays.
    wave = samples if isinstance(samples, Tensor) else torch.from_numpy(np.array(samples))
    wave = wave.to(torch.float32).flatten()
    return torch.nan_to_num(wave, nan=0.0, posinf=0.0, neginf=0.0).clamp(-_LOUDEST, _LOUDEST)


def block_columns(samples: Tensor, bins: int) -> Tensor:
    """Raw log10 mel of one block.

    Args:
        samples: float32 [L], L at most BLOCK + WINDOW - HOP: the block with CONTEXT samples
            before it and after its last column's centre; filled up with zeros.
        bins: 80 or 128.

    Returns:
        float32 [BLOCK_COLUMNS, B], log10 of the mel power, at least -10.
    """
    full = samples.new_zeros(BLOCK + WINDOW - HOP)
    full[: samples.shape[0]] = samples
    spectrum = torch.fft.rfft(full.unfold(0, WINDOW, HOP) * _hann())
    # Both parts squared and summed by the filters: half the time of taking magnitudes first.
    parts = torch.view_as_real(spectrum).square_().reshape(BLOCK_COLUMNS, -1)
    return (parts @ _filters_of_parts(bins)).clamp_(min=_TINY).log10_()


def mirror(samples: Tensor, before: int, after: int) -> Tensor:
    """Continue samples [L] by reflection at the ends, the end sample not repeated; any L >= 1."""
    length = samples.shape[0]
    if length == 1:
        return samples.expand(before + 1 + after)
    place = torch.arange(-before, length + after) % (2 * (length - 1))
    return samples[torch.minimum(place, 2 * (length - 1) - place)]


def raw_log_mel(samples: Tensor | NDArray[np.float32], bins: int = 80) -> Tensor:
    """Log10 mel power of a whole file, before floor and scaling.

    Args:
        samples: float32 [L] at 16 kHz in [-1, 1].
        bins: 80 or 128.

    Returns:
        float32 [B, L // 160], -10 or more (digital silence is -10).
    """
    wave = clean(samples)
    columns = wave.shape[0] // HOP
    if not columns:
        return torch.zeros(bins, 0)
    padded = mirror(wave, CONTEXT, CONTEXT)
    starts = range(0, columns * HOP, BLOCK)
    blocks = [block_columns(padded[a : a + BLOCK + WINDOW - HOP], bins) for a in starts]
    return torch.cat(blocks)[:columns].T.contiguous()


def apply_floor(
    raw: A,
    policy: Floor,
    *,
    maximum: float | Sequence[float] | None = None,
    start: int = 0,
) -> A:
    """Raise everything more than 8 decades below the maximum, as Whisper does.

    Args:
        raw: [B, T] raw log10 mel.
        policy: ``file``: one maximum; ``window``: one for each 30 s (3000 columns from column 0).
        maximum: The maximum (``file``), or that of each 30 s of the file (``window``), where
            ``raw`` is only a part. Default: taken from ``raw``.
        start: Column of the file that ``raw`` begins at.

    Returns:
        float32 [B, T], of the kind that was given.
    """
    values = np.asarray(raw, dtype=np.float32)
    window = (start + np.arange(values.shape[1])) // FLOOR_COLUMNS
    if policy == "file":
        window = np.zeros_like(window)
    if maximum is None:
        tops = np.full(int(window.max(initial=0)) + 1, -np.inf, dtype=np.float32)
        np.maximum.at(tops, window, values.max(0, initial=-np.inf))
    else:
        tops = np.atleast_1d(np.asarray(maximum, dtype=np.float32))
    floor = tops[window] - np.float32(FLOOR_DEPTH)
    result: NDArray[np.float32] = np.maximum(values, floor[None])
    return torch.from_numpy(result) if isinstance(raw, Tensor) else result


def log_mel(samples: Tensor | NDArray[np.float32], bins: int = 80) -> Tensor:
    """Whisper's input picture of a whole file: floor over the file, then (x + 4) / 4.

    Args:
        samples: float32 [L] at 16 kHz in [-1, 1].
        bins: 80 or 128 (large-v3).

    Returns:
        float32 [B, L // 160].
    """
    return (apply_floor(raw_log_mel(samples, bins), "file") + 4.0) / 4.0
