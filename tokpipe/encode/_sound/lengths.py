"""How many tokens a sound tower makes of a length, and the windows the Omni towers look through.

Counts are of transformers' ``_get_feat_extract_output_lengths``, of torchaudio and of BEATs;
integers everywhere, so that a plan and a run agree.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

#: Kernels and strides of the seven convolutions of wav2vec 2.0, HuBERT and WavLM.
WAV2VEC2_CONVS = ((10, 5), (3, 2), (3, 2), (3, 2), (3, 2), (2, 2), (2, 2))
#: Samples and hop of a column, the same for Whisper's picture and for Kaldi's at 16 kHz.
COLUMN, HOP = 400, 160
#: Tokens that Qwen3-Omni makes of a whole second: three halvings of 100, rounded up.
QWEN3_STEPS = 13


def halved(n: int) -> int:
    """Places after a convolution of kernel 3, stride 2 and padding 1."""
    return (n - 1) // 2 + 1


def pairs(n: int) -> int:
    """Whole pairs of ``n``; an odd last one is dropped."""
    return (n - 2) // 2 + 1


def mel_columns(samples: int, *, filled: bool = False) -> int:
    """Columns of Whisper's picture.

    Args:
        samples: Length at 16 kHz.
        filled: The sound is followed by zeros, so that its last piece has a column too.
    """
    return -(-samples // HOP) if filled else samples // HOP


def qwen2_audio_tokens(columns: int) -> int:
    """Tokens of Qwen2-Audio and of Qwen2.5-Omni, 25 a second."""
    return pairs(halved(columns))


def qwen3_omni_tokens(columns: int, window: int = 50) -> int:
    """Tokens of Qwen3-Omni: 13 a stretch of ``2 * window`` columns, and those of the rest."""
    whole, rest = divmod(columns, 2 * window)
    return halved(halved(halved(rest))) + QWEN3_STEPS * whole


def conv_tokens(samples: int, convs: Sequence[tuple[int, int]] = WAV2VEC2_CONVS) -> int:
    """Places left by unpadded convolutions (kernel, stride), 0 where the sound is too short."""
    for kernel, stride in convs:
        samples = max(0, (samples - kernel) // stride + 1)
    return samples


def kaldi_frames(samples: int) -> int:
    """Whole frames of 25 ms every 10 ms at 16 kHz."""
    return max(0, (samples - COLUMN) // HOP + 1)


def beats_tokens(samples: int) -> int:
    """Tokens of BEATs: 8 patches of 16 bins for every 16 whole frames."""
    return kaldi_frames(samples) // 16 * 8


def patch_grid(bins: int, frames: int, patch: int, strides: tuple[int, int]) -> tuple[int, int]:
    """Rows (frequency) and columns (time) of square patches laid out with ``strides``."""
    return (bins - patch) // strides[0] + 1, (frames - patch) // strides[1] + 1


def stretches(columns: Sequence[int], window: int) -> list[int]:
    """Lengths of the pieces of ``2 * window`` columns that each clip is cut into.

    Args:
        columns: Columns of each clip, 1 or more.
    """
    size = 2 * window
    return [min(size, n - a) for n in columns for a in range(0, n, size)]


def qwen25_borders(pieces: Sequence[int]) -> list[int]:
    """Borders between the stretches that attend within themselves in Qwen2.5-Omni.

    Args:
        pieces: From :func:`stretches`.
    """
    return [0, *accumulate(halved(n) for n in pieces)]


def qwen25_pairs(columns: Sequence[int]) -> list[int]:
    """First place of each averaged pair; no pair reaches over the end of a clip."""
    halves = [halved(n) for n in columns]
    starts = [0, *accumulate(halves)]
    return [a + 2 * i for a, n in zip(starts, halves, strict=False) for i in range(pairs(n))]


def qwen3_borders(columns: Sequence[int], window: int, reach: int) -> list[int]:
    """Borders between what attends within itself in Qwen3-Omni.

    Args:
        columns: Columns of each clip.
        window: Half the columns of one convolved stretch.
        reach: Columns that attend to each other.
    """
    longest = max(qwen3_omni_tokens(n, window) for n in stretches(columns, window))
    size = longest * (reach // (2 * window))
    counts = [qwen3_omni_tokens(n, window) for n in columns]
    return [0, *accumulate(min(size, n - a) for n in counts for a in range(0, n, size))]


def filled_places(counts: Sequence[int]) -> list[int]:
    """Flat places of what is no filling, where pieces of ``counts`` are padded to the longest."""
    longest = max(counts)
    return [row * longest + i for row, n in enumerate(counts) for i in range(n)]
