"""audio(): both codecs decode to the recorded length, in step with the original."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tokpipe.cache import open_cache
from tokpipe.cache._clip import decode_clip
from tokpipe.errors import CacheCorrupt, CacheError

Make = Callable[..., Any]


@pytest.mark.parametrize(("codec", "tolerance"), [("flac", 1e-4), ("opus", 0.05)])
def test_audio_is_in_step_with_the_source(
    tmp_path: Path, write_signal: Make, tone: Make, codec: str, tolerance: float
) -> None:
    with open_cache(write_signal(tmp_path / "a", codec=codec)) as cache:
        samples, rate = cache.audio()
    assert (samples.shape, samples.dtype, rate) == ((3200,), np.dtype("float32"), 16000)
    assert np.abs(samples - tone(3200)).max() < tolerance


@pytest.mark.parametrize("seconds", [0.005, 1.0, 7.3])
def test_opus_has_the_recorded_length(make_clip: Make, tone: Make, seconds: float) -> None:
    wave = tone(int(seconds * 16000))
    spec = {"codec": "opus", "rate": 16000, "samples": len(wave)}
    assert len(decode_clip(make_clip(wave, "opus"), spec)[0]) == len(wave)


def test_audio_of_a_cache_without_sound_is_refused(tmp_path: Path, write_feature: Make) -> None:
    with open_cache(write_feature(tmp_path / "a")) as cache, pytest.raises(CacheError) as caught:
        cache.audio()
    assert caught.value.code == "cache.no_audio"


def test_clip_of_another_length_or_codec_is_corrupt(make_clip: Make, tone: Make) -> None:
    data = make_clip(tone(16000), "flac")
    for spec in ({"codec": "flac", "samples": 8000}, {"codec": "flac", "samples": 32000},
                 {"codec": "opus", "samples": 16000}):  # fmt: skip
        with pytest.raises(CacheCorrupt):
            decode_clip(data, {"rate": 16000, **spec})
    with pytest.raises(CacheCorrupt):
        decode_clip(b"no sound at all", {"codec": "flac", "rate": 16000, "samples": 1})
