"""Golden cases of the sound's way in: log-mel, filters, resampled lengths."""

from __future__ import annotations

import importlib
import importlib.util
import os
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from tokpipe.decode._audio import resampled_length
from tokpipe.encode.mel import log_mel, slaney_filterbank
from tokpipe.testing.golden import Adapter, Case, assert_index, assert_values

_ROOT = Path(__file__).parents[3]
_MEL_ATOL = 2e-5
#: Arguments of torchaudio's resampler that stand for librosa's ``kaiser_best``.
_KAISER_BEST = {
    "lowpass_filter_width": 64, "rolloff": 0.9475937167399596,
    "resampling_method": "sinc_interp_kaiser", "beta": 14.769656459379492,
}  # fmt: skip


def _wave(pcm: Tensor) -> Tensor:
    return pcm.float() / 32768


def _library(name: str) -> ModuleType:
    """A library that only the stored arrays of its family need; skips where it is absent."""
    try:
        return importlib.import_module(name)
    except (ImportError, OSError) as error:
        if os.environ.get("TOKPIPE_REQUIRE_ALL") == "1":
            raise
        pytest.skip(f"{name} is not installed, its arrays are not compared: {error}")


def whisper_mel(case: Case) -> None:
    """Log-mel of the stored waves, of silence, and of a clip where that is at hand."""
    for name in case.arrays:
        head, mark, bins = name.rpartition("mel")
        if mark and f"{head}wav_i16" in case:
            made = log_mel(_wave(case(f"{head}wav_i16")), int(bins))
            assert_values(made, case(name), atol=_MEL_ATOL, rtol=0)
    if "silence_frames" in case:
        made = log_mel(torch.zeros(160 * case.value("silence_frames")))
        assert made.shape[1] == case.value("silence_frames")
        stored = case("silence_mel80")
        assert_values(made[:, : stored.shape[1]], stored, atol=_MEL_ATOL, rtol=0)
    if "jfk30_shape" in case:
        _padded_clip(case)


def _padded_clip(case: Case) -> None:
    """The clip filled with zeros to 30 s, as whisper pads it."""
    folder = Path(os.environ.get("TOKPIPE_TEST_MEDIA", _ROOT.parent / "shared" / "media"))
    clip = folder / "whisper__jfk.flac"
    if not clip.exists():
        return
    wave, rate = _mean_channel(clip)
    wave = _library("soxr").resample(wave, rate, 16000, quality="VHQ")
    # Written with 32767 steps and read with 32768, as the stored waves were.
    full = np.zeros(480_000, np.float32)
    full[: len(wave)] = np.rint(wave * 32767) / 32768
    made = log_mel(full)
    assert_index(torch.tensor(made.shape), case("jfk30_shape"))
    assert_values(made[:, -1], case("jfk30_last_col"), atol=_MEL_ATOL, rtol=0)
    assert float(made.min()) == pytest.approx(case.value("jfk30_min"), abs=_MEL_ATOL)
    assert float(made.max()) == pytest.approx(case.value("jfk30_max"), abs=_MEL_ATOL)
    assert_values(made.double().sum(0), case("jfk30_col_sums"), atol=80 * _MEL_ATOL, rtol=0)


def _mean_channel(clip: Path) -> tuple[NDArray[np.float32], int]:
    import av

    with av.open(str(clip)) as media:
        stream = media.streams.audio[0]
        # The same rate and layout: only the sample format changes, to full precision.
        convert = av.AudioResampler(format="dblp", layout=stream.layout.name, rate=stream.rate)
        frames = [f for frame in media.decode(stream) for f in convert.resample(frame)]
        frames += convert.resample(None)
        parts: list[NDArray[Any]] = [frame.to_ndarray() for frame in frames]
        return np.concatenate(parts, axis=1).mean(0).astype(np.float32), int(stream.rate)


def mel_filterbank(case: Case) -> None:
    """The filters of each size, and the window."""
    for name in case.arrays:
        if name.startswith("mel"):
            made = slaney_filterbank(int(name.removeprefix("mel")))
            assert_values(made, case(name), atol=1e-6, rtol=0)
    assert_values(torch.hann_window(400), case("window"), atol=1e-6, rtol=0)


def resample(case: Case) -> None:
    """Lengths by our rule, which is torchaudio's; arrays where their library is installed."""
    if "odd_lengths" in case:
        made = [resampled_length(n, 44100) for n in case("odd_lengths").tolist()]
        assert_index(made, case("ta_out_lengths"))
    absent: list[str] = []
    checked = 0
    for source, rate in (("x_i16", 44100), ("x48_i16", 48000), ("x8_i16", 8000)):
        if source not in case:
            continue
        wave = _wave(case(source))
        tag = source.removeprefix("x").removesuffix("_i16")
        options = [tag] if tag else ["_default", "_kaiser_best", "_hq", "_vhq"]
        for name in [f"{family}{option}" for family in ("ta", "soxr") for option in options]:
            if name not in case:
                continue
            assert resampled_length(len(wave), rate) == len(case(name))
            checked += 1
            library = "torchaudio" if name.startswith("ta") else "soxr"
            if library in absent or not _installed(library):
                absent.append(library)
                continue
            found = _resampled(wave, rate, name)
            atol = 1e-5 if library == "torchaudio" else 2e-5
            assert_values(found, case(name), atol=atol, rtol=1e-4)
    assert checked
    for library in absent:
        _library(library)


def _installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def _resampled(wave: Tensor, rate: int, name: str) -> Tensor:
    """What the library of an array's family makes of ``wave`` at 16 kHz."""
    if name.startswith("ta"):
        options = _KAISER_BEST if name == "ta_kaiser_best" else {}
        made: Tensor = _library("torchaudio").functional.resample(wave, rate, 16000, **options)
        return made
    quality = "VHQ" if name == "soxr_vhq" else "HQ"
    return torch.from_numpy(_library("soxr").resample(wave.numpy(), rate, 16000, quality=quality))


ADAPTERS: dict[str, Adapter] = {
    "whisper_mel": whisper_mel,
    "mel_filterbank": mel_filterbank,
    "resample": resample,
}
