"""Golden cases of the neural sound encoders: filter banks, lengths, windows, speech."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tokpipe.compress.transformation.stack import Stack
from tokpipe.compress.transformation.windows import Windows
from tokpipe.encode._sound import lengths
from tokpipe.encode._sound.kaldi_fbank import ast_fbank, kaldi_fbank
from tokpipe.encode._sound.speech_spans import SpeechRules, SpokenClock, merged, spans_of
from tokpipe.encode._sound.vad import available, speech_probabilities
from tokpipe.testing.golden import Adapter, Case, assert_index, assert_values

_RAW, _NORM = 2e-3, 2e-4
#: Silero's names of the rules, ours, and what one unit of theirs is.
_RULES = {
    "threshold": "threshold", "neg_threshold": "leave", "min_speech_duration_ms": "min_speech",
    "max_speech_duration_s": "max_speech", "min_silence_duration_ms": "min_silence",
    "speech_pad_ms": "pad", "min_silence_at_max_speech": "split_silence",
}  # fmt: skip


def _wave(pcm: Tensor) -> Tensor:
    return pcm.float() / 32768


def kaldi_beats(case: Case) -> None:
    """Raw and normalised banks of each stored wave, in the scale of 16-bit integers."""
    checked = 0
    for name in case.arrays:
        head, mark, _ = name.partition("wav_i16")
        if not mark:
            continue
        raw = kaldi_fbank(_wave(case(name)) * 2**15)
        if f"{head}raw" in case:
            assert_values(raw, case(f"{head}raw"), atol=_RAW, rtol=0)
            checked += 1
        if f"{head}norm" in case:
            made = (raw - case.value("mean")) / (2 * case.value("std"))
            assert_values(made, case(f"{head}norm"), atol=_NORM, rtol=0)
            checked += 1
    assert checked


def kaldi_ast(case: Case) -> None:
    """The repository's raw bank, and the extractor's: no mean taken off, filled, normalised."""
    wave, target = _wave(case("wav_i16")), case.value("target")
    raw = kaldi_fbank(wave - wave.mean(), window="hanning")
    assert_values(raw, case("fbank"), atol=_RAW, rtol=0)
    assert raw.shape[0] == case.value("n_frames") == lengths.kaldi_frames(len(wave))
    plain = case("fbank_no_mean_removal")
    found = kaldi_fbank(wave, window="hanning")[: len(plain)]
    assert_values(found, plain, atol=_RAW, rtol=0)
    made = ast_fbank(wave, target)
    first = case("hf_norm_first")
    assert made.shape[0] == target
    assert_values(made[: len(first)], first, atol=_NORM, rtol=0)
    rest = made[len(first) :]
    assert_values(rest, torch.full_like(rest, case.value("hf_pad_value")), atol=1e-6, rtol=0)


def kaldi_edge(case: Case) -> None:
    """Silence, exactly one frame, and one sample less."""
    shape = case("silence_shape")
    silent = kaldi_fbank(torch.zeros(lengths.COLUMN + (int(shape[0]) - 1) * lengths.HOP))
    assert_index(torch.tensor(silent.shape), shape)
    stored = case("silence")
    assert_values(silent[: len(stored)], stored, atol=1e-6, rtol=0)
    wave = _wave(case("wav400_i16")) * 2**15
    assert_values(kaldi_fbank(wave), case("len400"), atol=_RAW, rtol=0)
    assert kaldi_fbank(wave[:-1]).shape == (0, 128)


def token_lengths(case: Case) -> None:
    """Counts for every stored length."""
    columns, samples = case("mel_frames").tolist(), case("samples").tolist()
    by_columns = {
        "whisper_conv": lengths.halved,
        "qwen2_audio": lengths.qwen2_audio_tokens,
        "qwen2_5_omni": lengths.qwen2_audio_tokens,
        "qwen3_omni": lengths.qwen3_omni_tokens,
    }
    for name, rule in by_columns.items():
        assert_index([rule(n) for n in columns], case(name))
    by_samples: dict[str, Callable[[int], int]] = {
        "wav2vec2_hubert": lengths.conv_tokens,
        "whisper_mel_cols": lengths.mel_columns,
        "kaldi_frames": lengths.kaldi_frames,
        "beats_tokens": lengths.beats_tokens,
    }
    for name, count in by_samples.items():
        assert_index([count(n) for n in samples], case(name))
    for name in ("ast_stride10", "ast_stride16"):
        stride = int(name.removeprefix("ast_stride"))
        rows, cols = lengths.patch_grid(128, 1024, 16, (stride, stride))
        assert_index([rows, cols, rows * cols], case(name))
    steps = range(len(case("stack5")))
    assert_index([Stack(size=5).out_count(n, None)[0] for n in steps], case("stack5"))
    windows = case("salmonn_window_L")
    made = [Windows(size=17).out_count(n, None)[0] for n in range(len(windows))]
    assert_index(made, windows)


def qwen_omni_windows(case: Case) -> None:
    """Stretches, borders of attention and averaged pairs of a packed batch of clips."""
    columns = case("feature_lens").tolist()
    window = case.value("q25_n_window", 100)
    pieces = lengths.stretches(columns, window)
    assert_index(pieces, case("q25_chunk_lengths"))
    assert_index(lengths.qwen25_borders(pieces), case("q25_cu_seqlens"))
    assert_index(lengths.qwen25_pairs(columns), case("q25_pool_indices"))
    window, reach = case.value("q3_n_window", 50), case.value("q3_n_window_infer", 800)
    assert_index(lengths.stretches(columns, window), case("q3_chunk_lengths"))
    assert_index(lengths.qwen3_borders(columns, window, reach), case("q3_cu_seqlens"))


def silero_probabilities(case: Case) -> None:
    """Probability of every frame, the last filled with zeros."""
    if not available():
        pytest.skip("silero-vad and onnxruntime are not installed")
    found = torch.from_numpy(speech_probabilities(_wave(case("wav_i16"))))
    assert_values(found, case("probs"), atol=1e-4, rtol=0)


def _rules(given: dict[str, float | bool]) -> SpeechRules:
    made = {_RULES[name]: value for name, value in given.items() if name in _RULES}
    last = given.get("use_max_poss_sil_at_max_speech") is False
    assert set(given) - set(_RULES) <= {"use_max_poss_sil_at_max_speech"}
    return SpeechRules(**made, split="last" if last else "longest")


def _spans(probabilities: list[float], length: int | None, rules: SpeechRules) -> Tensor:
    return torch.tensor(spans_of(probabilities, length, rules), dtype=torch.int64).reshape(-1, 2)


def state_machine(case: Case) -> None:
    """Spans of stored probabilities under each set of rules."""
    rules = {name: _rules(given) for name, given in json.loads(case.value("params_json")).items()}
    checked = 0
    for name in case.arrays:
        kind, _, rule = name.partition("seg_")
        if not rule:
            continue
        source = {"": "full", "syn": "syn"}[kind]
        probabilities = case(f"{source}_probs").tolist()
        found = _spans(probabilities, case.value(f"{source}_len"), rules[rule])
        assert_index(found, case(name))
        checked += 1
    assert checked
    if "empty" in case:
        assert_index(_spans([], 0, SpeechRules()), case("empty"))
        assert_index(_spans([0.0] * 100, None, SpeechRules()), case("empty"))
    loud = {"allspeech": (100, SpeechRules()), "allspeech_max1": (200, SpeechRules(max_speech=1))}
    for name, (frames, limits) in loud.items():
        if name in case:
            assert_index(_spans([0.9] * frames, None, limits), case(name))


def whisperx_merge(case: Case) -> None:
    """Chunks of segments for each size in the names."""
    segments = [(a, b) for a, b in case("segments_s").tolist()]
    names = [name for name in case.arrays if name.startswith("wx_")]
    assert names
    for name in names:
        chunks = merged(segments, float(name.removeprefix("wx_")))
        found = [(start, stop, len(parts)) for start, stop, parts in chunks]
        assert_values(torch.tensor(found, dtype=torch.float64), case(name), atol=1e-9, rtol=0)


def timestamp_map(case: Case) -> None:
    """Times in the file of times without the silence, to 10 ms as the released code rounds."""
    clock = SpokenClock(tuple((a, b) for a, b in case("chunks").tolist()))
    times = case("compressed_t").tolist()
    for name, end in (("original_t", False), ("original_t_is_end", True)):
        found = [round(clock.to_file(t, end=end), 2) for t in times]
        assert_values(torch.tensor(found, dtype=torch.float64), case(name), atol=1e-9, rtol=0)


ADAPTERS: dict[str, Adapter] = {
    "kaldi_fbank_beats": kaldi_beats,
    "kaldi_fbank_ast": kaldi_ast,
    "kaldi_fbank_edge": kaldi_edge,
    "token_lengths": token_lengths,
    "qwen_omni_windows": qwen_omni_windows,
    "vad_silero_probs": silero_probabilities,
    "vad_state_machine": state_machine,
    "vad_whisperx_merge": whisperx_merge,
    "vad_timestamp_map": timestamp_map,
}
