"""Speech: the network piece by piece, the rules, chunks, and the clock of the spoken part."""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tokpipe.encode._sound import vad
from tokpipe.encode._sound.speech_spans import SpeechRules, SpokenClock, merged, spans_of
from tokpipe.encode._sound.vad import FRAME, SpeechDetector, speech_probabilities, speech_spans
from tokpipe.errors import MissingExtra

needs_network = pytest.mark.skipif(not vad.available(), reason="silero-vad is not installed")


#: First three formants in hertz of a few vowels.
VOWELS = torch.tensor(
    [[730, 1090, 2440], [270, 2290, 3010], [300, 870, 2240], [530, 1840, 2480], [570, 840, 2410.0]]
)


def _smooth(values: torch.Tensor) -> torch.Tensor:
    """Mean over 0.1 s."""
    wide = torch.nn.functional.pad(values[None, None], (801, 800), mode="replicate")[0, 0]
    total = wide.double().cumsum(0)
    return ((total[1601:] - total[:-1601]) / 1601).float()


def syllables(seconds: float) -> torch.Tensor:
    """A synthetic babble, four vowels and hisses a second, with a pause every three seconds."""
    made = torch.Generator().manual_seed(2)
    at = torch.arange(int(seconds * 16_000)) / 16_000
    beat = (at * 4).long()
    picked = VOWELS[torch.randint(5, (int(beat.max()) + 1,), generator=made)][beat]
    pitch = 130 + 15 * torch.sin(3.8 * at) + 5 * torch.sin(31 * at) - 10 * (at % 2)
    phase = 2 * torch.pi * torch.cumsum(pitch, 0) / 16_000
    formants = [_smooth(picked[:, i]) for i in range(3)]
    voice = torch.zeros(len(at))
    for k in range(1, 30):
        voice += 0.02 / k * torch.sin(k * phase)
        for i, formant in enumerate(formants):
            near = -(((k * pitch - formant) / (90 + 40 * i)) ** 2)
            voice += torch.exp(near) / (1 + i) * torch.sin(k * phase)
    on = (at % 3 < 2.2).float()
    hiss = torch.randn(len(at), generator=made) * _smooth((at * 4 % 1 > 0.8).float())
    return (0.2 * voice * _smooth((at * 4 % 1 < 0.7).float()) + 0.15 * hiss) * on


# Rules.


@given(
    st.lists(st.floats(0, 1, width=32), max_size=200),
    st.sampled_from([0, 30, 200]), st.sampled_from([math.inf, 0.5, 2.0]),
    st.sampled_from(["longest", "last"]),
)  # fmt: skip
def test_spans_are_in_order_and_inside(
    probabilities: list[float], pad: int, longest: float, split: Any
) -> None:
    length = max(0, len(probabilities) * FRAME - 100)
    rules = SpeechRules(pad=pad, max_speech=longest, split=split)
    spans = spans_of(probabilities, length, rules)
    assert all(0 <= a <= b <= length for a, b in spans)
    assert all(before[1] <= after[0] for before, after in pairwise(spans))
    if not pad and math.isinf(longest):
        # Nothing that is loud for long is missed, nothing quiet for long is inside.
        heard = np.zeros(len(probabilities), bool)
        for a, b in spans:
            heard[a // FRAME : -(-b // FRAME)] = True
            assert b - a > 4000
        run = 0
        for number, value in enumerate(probabilities):
            run = run + 1 if value < rules.quiet else 0
            assert run < 5 or not heard[number]


@pytest.fixture
def silero() -> Iterator[Any]:
    """Silero's own rules; its package sets the number of threads when it is imported."""
    pytest.importorskip("silero_vad")
    threads = torch.get_num_threads()
    yield importlib.import_module("silero_vad.utils_vad").get_speech_timestamps_from_probs
    torch.set_num_threads(threads)


def test_rules_are_those_of_silero(silero: Any) -> None:
    made = np.random.default_rng(0)
    for _ in range(600):
        frames, steady = int(made.integers(1, 300)), int(made.integers(1, 12))
        slow = np.repeat(made.random(frames // steady + 1), steady)[:frames]
        probabilities = (slow * 0.8 + made.random(frames) * 0.2) ** made.choice([0.3, 1.0])
        length = frames * FRAME - int(made.integers(0, FRAME))
        threshold = float(made.choice([0.3, 0.5, 0.7]))
        leave = float(made.choice([0.1, 0.25])) if made.random() < 0.3 else None
        split = str(made.choice(["longest", "last"]))
        numbers = {
            "min_speech": int(made.choice([0, 100, 250, 600])),
            "max_speech": float(made.choice([math.inf, 0.5, 1, 2, 3.3])),
            "min_silence": int(made.choice([0, 33, 100, 300, 2000])),
            "pad": int(made.choice([0, 30, 33, 200, 400])),
            "split_silence": int(made.choice([0, 32, 98, 200])),
        }
        own = silero(
            probabilities.tolist(), audio_length_samples=length, threshold=threshold,
            neg_threshold=leave, min_speech_duration_ms=numbers["min_speech"],
            max_speech_duration_s=numbers["max_speech"],
            min_silence_duration_ms=numbers["min_silence"], speech_pad_ms=numbers["pad"],
            min_silence_at_max_speech=numbers["split_silence"],
            use_max_poss_sil_at_max_speech=split == "longest",
        )  # fmt: skip
        rules: Any = {"threshold": threshold, "leave": leave, "split": split, **numbers}
        found = spans_of(probabilities.tolist(), length, SpeechRules(**rules))
        assert found == [(span["start"], span["end"]) for span in own]


# The network.


@needs_network
def test_pieces_give_what_the_whole_gives() -> None:
    wave = syllables(20.3)
    whole = speech_probabilities(wave)
    assert len(whole) == math.ceil(len(wave) / FRAME)
    detector, found, place = SpeechDetector(), [], 0
    for size in (1, 511, 512, 513, 7_000, 100_000, 1_000_000):
        found.append(detector.push(wave[place : place + size]))
        place += size
    found.append(detector.finish())
    np.testing.assert_allclose(np.concatenate(found), whole, atol=1e-6)
    assert whole.max() > 0.5 > whole.min()


@needs_network
def test_nothing_and_silence() -> None:
    assert speech_probabilities(torch.zeros(0)).shape == (0,)
    assert speech_spans(torch.zeros(0)).shape == (0, 2)
    assert speech_spans(torch.zeros(50_000)).shape == (0, 2)
    assert speech_probabilities(torch.full((700,), math.nan)).shape == (2,)


@needs_network
def test_what_is_too_quiet_is_no_speech() -> None:
    wave = syllables(6)
    loud = speech_spans(wave)
    assert loud.dtype == torch.float64 and len(loud)
    assert float(loud.max()) <= 6.0
    faint = wave * 1e-3
    assert not len(speech_spans(faint))
    assert torch.equal(speech_spans(faint, quietest=-math.inf), _spans_alone(faint))


def _spans_alone(wave: torch.Tensor) -> torch.Tensor:
    spans = spans_of(speech_probabilities(wave).tolist(), len(wave))
    return torch.tensor(spans, dtype=torch.float64).reshape(-1, 2) / 16_000


@needs_network
def test_threads_of_the_process_are_left_alone() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    speech_probabilities(torch.zeros(1_000))
    assert torch.get_num_threads() == before + 1
    torch.set_num_threads(before)


@needs_network
def test_real_speech(media: Path) -> None:
    import wave as wav

    with wav.open(str(media / "silero__test.wav")) as file:
        pcm = np.frombuffer(file.readframes(file.getnframes()), np.int16)
    spans = speech_spans(torch.from_numpy(pcm / np.float32(32768)))
    spoken = float((spans[:, 1] - spans[:, 0]).sum()) / (len(pcm) / 16_000)
    assert 0.75 < spoken < 0.9


def test_without_the_package_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    vad._session.cache_clear()
    with pytest.raises(MissingExtra, match="silero-vad") as caught:
        speech_spans(torch.zeros(2_000))
    assert caught.value.hint == "pip install 'tokpipe[audio]'"
    assert not vad.available()
    vad._session.cache_clear()


# Chunks and clocks.


def test_segments_are_joined_while_they_fit() -> None:
    segments = [(0.0, 2.0), (3.0, 4.5), (4.6, 5.2), (9.0, 21.0), (21.5, 22.0)]
    chunks = merged(segments, 5.0)
    assert chunks == [
        (0.0, 4.5, segments[:2]), (4.6, 5.2, segments[2:3]), (9.0, 21.0, segments[3:4]),
        (21.5, 22.0, segments[4:]),
    ]  # fmt: skip
    assert merged([], 5.0) == []


def test_spoken_clock_both_ways() -> None:
    clock = SpokenClock(((16_000, 32_000), (64_000, 72_000)))
    assert [clock.to_file(t) for t in (0.0, 0.5, 1.0, 1.25)] == [1.0, 1.5, 4.0, 4.25]
    # Where two spans meet: the start of the second, or the end of the first.
    assert clock.to_file(1.0, end=True) == 2.0
    assert clock.to_file(2.0) == 5.0
    assert [clock.to_spoken(t) for t in (0.0, 1.5, 3.0, 4.25, 9.0)] == [0.0, 0.5, 1.0, 1.25, 1.5]
    assert SpokenClock(()).to_file(3.0) == 3.0


@given(st.lists(st.integers(1, 50_000), min_size=2, max_size=12), st.floats(0, 0.999))
def test_spoken_clock_comes_back(steps: list[int], part: float) -> None:
    edges = np.cumsum(steps[: len(steps) // 2 * 2]).tolist()
    clock = SpokenClock(tuple(zip(edges[::2], edges[1::2], strict=True)))
    spoken = sum(b - a for a, b in clock.spans) / 16_000
    # To a sample: places between samples belong to the one before.
    assert clock.to_spoken(clock.to_file(spoken * part)) == pytest.approx(spoken * part, abs=1e-4)
