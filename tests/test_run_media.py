"""Media of every kind: exact valid caches, right times, pictures and sound that come back."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from av.video.reformatter import Interpolation, VideoReformatter
from numpy.typing import NDArray
from safetensors.numpy import load_file

import tokpipe
from tokpipe.errors import TokpipeError, UnsupportedMedia
from tokpipe.run import Options, RunRecord, compress_file
from tokpipe.testing.media import AudioTrack, VideoTrack, write_media
from tokpipe.testing.odd_media import odd_file

Pixels = NDArray[np.uint8]
FRESH = Options(keep_bank=False, force=True)


def run(source: Path, target: Path, budget: str | int = 300, **options: Any) -> RunRecord:
    return compress_file(source, target, budget=budget, options=replace(FRESH, **options))


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Odd media by name, made when first asked for."""
    folder = tmp_path_factory.mktemp("odd")

    def make(name: str) -> Path:
        path = folder / name
        if not path.exists():
            odd_file(name).make(path)
        return path

    return make


def check_whole(path: Path) -> None:
    assert tokpipe.verify(path, deep=True).ok


# Every kind of media.

KINDS = {
    "audio_only.mp4": {"audio"}, "no_audio.mp4": {"video"}, "one_frame.mp4": {"video", "audio"},
    "animation.gif": {"video"}, "black.mp4": {"video", "audio"}, "cover_art.m4a": {"audio"},
    "late_video.mp4": {"video", "audio"}, "late_audio_gap.mp4": {"video", "audio"},
    "edit_list.mp4": {"video", "audio"}, "vfr.mp4": {"video", "audio"},
    "timestamp_reset.ts": {"video", "audio"}, "truncated.mp4": {"video", "audio"},
    "rotated_90.mp4": {"video", "audio"}, "size_change.ts": {"video"},
}  # fmt: skip


@pytest.mark.parametrize("name", KINDS)
def test_odd_media_gives_an_exact_valid_cache(odd: Any, tmp_path: Path, name: str) -> None:
    facts, target = odd_file(name), tmp_path / "out"
    record = run(odd(name), target, 40)
    assert record.tokens["total"] == min(40, record.candidates)
    check_whole(target)
    everything = tmp_path / "all"
    record = run(odd(name), everything, 100_000)
    assert record.tokens["total"] == record.candidates
    with tokpipe.open_cache(everything) as cache:
        assert set(cache.streams) == KINDS[name]
        for stream in cache.streams:
            at = cache.column(f"{stream}.at")
            assert (np.diff(at) >= 0).all()
            assert (cache.column(f"{stream}.pts")[:, 1] >= at).all()
        if "video" in cache.streams:
            at = cache.column("video.at")
            assert at[0] == pytest.approx(facts.first, abs=1e-3)
            assert facts.last is not None
            assert facts.last - 0.5 <= at[-1] <= facts.last + 1e-3
        if facts.audio is not None:
            assert cache.column("audio.pts")[-1, 1] == pytest.approx(facts.audio[1], abs=0.15)
    codes = {text.partition(":")[0] for text in record.warnings}
    assert set(facts.warnings) <= codes


@pytest.mark.parametrize("name", ["no_moov.mp4", "empty.mp4", "text.mp4", "noise.mp4"])
def test_unreadable_media_is_a_named_error(odd: Any, tmp_path: Path, name: str) -> None:
    with pytest.raises(TokpipeError) as caught:
        run(odd(name), tmp_path / "out")
    assert type(caught.value).__name__ == odd_file(name).error
    assert list(tmp_path.iterdir()) == []


def test_a_recipe_without_a_chain_for_the_media_is_named(odd: Any, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedMedia, match="chain"):
        compress_file(odd("no_audio.mp4"), tmp_path / "out", recipe="audio: mel", options=FRESH)


ONE_STREAM = [("fps | pixels", "video"), ("audio: mel", "audio")]


@pytest.mark.parametrize(("recipe", "stream"), ONE_STREAM)
def test_a_recipe_for_one_stream_leaves_the_other_alone(
    samples: Path, tmp_path: Path, recipe: str, stream: str
) -> None:
    target = tmp_path / "out"
    record = compress_file(samples / "action.mp4", target, recipe=recipe, budget=200, options=FRESH)
    assert record.tokens[stream] == record.tokens["total"] == 200
    check_whole(target)


@pytest.mark.parametrize(("recipe", "stream"), ONE_STREAM)
def test_a_stream_left_out_is_no_truncation(tmp_path: Path, recipe: str, stream: str) -> None:
    """Nothing is missing when what nobody asked for is longer."""
    source, long = tmp_path / "clip.mp4", stream == "audio"
    write_media(
        source, VideoTrack(frames=120 if long else 60),
        AudioTrack(duration=Fraction(2 if long else 4)),
    )  # fmt: skip
    record = compress_file(source, tmp_path / "out", recipe=recipe, budget=20, options=FRESH)
    assert not [text for text in record.warnings if text.startswith("truncated")]


def test_damage_is_said_and_strict_refuses_it(samples: Path, tmp_path: Path) -> None:
    record = run(samples / "damaged.mp4", tmp_path / "out")
    assert record.status == "warned"
    assert any(text.startswith("damaged:") for text in record.warnings)
    with pytest.raises(TokpipeError, match="damage"):
        run(samples / "damaged.mp4", tmp_path / "strict", strict=True)
    assert not (tmp_path / "strict").exists()


# The clock.


def heard_spans(path: Path) -> list[list[float]]:
    with tokpipe.open_cache(path) as cache:
        return list(cache.metadata["tokpipe.speech"])


def test_late_sound_keeps_its_offset(samples: Path, tmp_path: Path) -> None:
    truth = json.loads((samples / "ground_truth.json").read_text(encoding="utf-8"))
    facts = truth["files"]["late_audio.mp4"]
    target = tmp_path / "out"
    run(samples / "late_audio.mp4", target, 100_000)
    rms = levels(target)
    start = 0.5
    loud = np.flatnonzero(rms > 0.2) * 0.04
    assert (rms[: int(start / 0.04)] < 1e-3).all()
    assert loud[0] == pytest.approx(facts["bursts"][0], abs=0.045)
    for burst in facts["bursts"]:
        assert np.abs(loud - burst).min() < 0.045
    assert heard_spans(target)[0][0] >= start - 0.09


def levels(path: Path) -> NDArray[np.float64]:
    """Root mean square of each cell's sound in the clip, all cells being kept."""
    with tokpipe.open_cache(path) as cache:
        sound, rate = cache.audio()
        assert rate == 16000
        offsets = cache.column("audio.clip_offset")
        assert cache.column("audio.at")[0] == 0
        cells = [sound[o : o + 640].astype(np.float64) for o in offsets]
    return np.array([math.sqrt(float((c**2).mean())) if len(c) else 0.0 for c in cells])


def test_kept_sound_is_only_what_is_heard(samples: Path, tmp_path: Path) -> None:
    """With few tokens the first one stands at or after the late start of the sound."""
    target = tmp_path / "out"
    run(samples / "late_audio.mp4", target, "video=0,audio=5")
    with tokpipe.open_cache(target) as cache:
        assert cache.streams == ("audio",)
        assert float(cache.column("audio.at")[0]) >= 0.5 - 0.08


# The pictures and the sound that come back.


def decoded(path: Path, width: int, height: int) -> Iterator[tuple[float, Pixels]]:
    """Every frame by a reader of our own, resized by the same filter."""
    resize = VideoReformatter()
    with av.open(str(path)) as box:
        for frame in box.decode(video=0):
            assert frame.time is not None
            small: Any = resize.reformat(
                frame, width=width, height=height, format="rgb24",
                interpolation=Interpolation.BICUBIC, threads=1,
            )  # fmt: skip
            yield frame.time, small.to_ndarray()


def worst_psnr(source: Path, cache_path: Path) -> tuple[float, int]:
    """Lowest luma PSNR of the rebuilt frames, and how many there are; every cell is its own."""
    worst, count = math.inf, 0
    with tokpipe.open_cache(cache_path) as cache:
        grid = cache.metadata["tokpipe.grid"]
        frames = decoded(source, grid["width"], grid["height"])
        for rebuilt in cache.frames():
            assert (rebuilt.mask == 3).all()
            truth = next(p for time, p in frames if abs(time - rebuilt.pts) < 1e-6)
            step = (truth.astype(np.float64) - rebuilt.pixels) @ [0.299, 0.587, 0.114]
            worst = min(worst, 10 * math.log10(255**2 / max(1e-9, float((step**2).mean()))))
            count += 1
    return worst, count


def test_rebuilt_frames_reach_35_db(samples: Path, tmp_path: Path) -> None:
    target = tmp_path / "out"
    run(samples / "action.mp4", target, 100_000)
    psnr, count = worst_psnr(samples / "action.mp4", target)
    assert count == 28
    assert psnr >= 35


def source_sound(path: Path) -> NDArray[np.float64]:
    """The first audio track at 16 kHz by a reader of our own; it must start at zero."""
    resampler = av.AudioResampler(format="s16", layout="mono", rate=16000)
    parts = []
    with av.open(str(path)) as box:
        for frame in box.decode(audio=0):
            parts += [f.to_ndarray()[0] for f in resampler.resample(frame)]
        parts += [f.to_ndarray()[0] for f in resampler.resample(None)]
    return np.concatenate(parts).astype(np.float64) / 32767


def lag_of(piece: NDArray[np.float64], around: NDArray[np.float64]) -> int:
    """Samples by which ``piece`` lies off the middle of ``around``, by normalised correlation."""
    views = np.lib.stride_tricks.sliding_window_view(around, len(piece))
    scores = views @ piece / np.maximum(1e-9, np.linalg.norm(views, axis=1))
    return int(np.argmax(scores)) - (len(scores) - 1) // 2


@pytest.mark.parametrize("codec", ["opus", "flac"])
def test_clip_cells_are_the_sound_of_their_time(samples: Path, tmp_path: Path, codec: str) -> None:
    source, target = samples / "lecture.mp4", tmp_path / "out"
    run(source, target, "video=0,audio=300", audio_codec=codec)
    truth = source_sound(source)
    checked = 0
    with tokpipe.open_cache(target) as cache:
        clip, _ = cache.audio()
        rows = zip(cache.column("audio.at"), cache.column("audio.clip_offset"), strict=True)
        for at, offset in rows:
            begin = round(float(at) * 16000)
            true, found = truth[begin : begin + 640], clip[offset : offset + 640]
            if codec == "flac":
                assert np.abs(found[: len(true)] - true).max() <= 2 / 32767
                checked += 1
            elif begin > 400 and np.sqrt((true**2).mean()) > 0.02:
                # Context on both sides makes the peak of the correlation a sharp one.
                around = truth[begin - 400 : begin + 1040]
                piece = clip[offset - 200 : offset + 840].astype(np.float64)
                assert abs(lag_of(piece, around)) < 0.002 * 16000, float(at)
                checked += 1
    assert checked > 100


def test_safetensors_alone_reads_the_same(samples: Path, tmp_path: Path) -> None:
    target = tmp_path / "out"
    run(samples / "action.mp4", target)
    plain = load_file(target)
    with tokpipe.open_cache(target) as cache:
        assert set(cache.names) <= set(plain)
        for name in cache.names:
            np.testing.assert_array_equal(cache.column(name), plain[name], err_msg=name)


@pytest.mark.slow
def test_annotated_talk_at_2048(media: Path, tmp_path: Path) -> None:
    source, target = media / "v2d__test_video.mp4", tmp_path / "out"
    if not source.is_file():
        pytest.skip(f"{source} is absent")
    assert run(source, target, 2048).tokens["total"] == 2048
    check_whole(target)
    facts = json.loads((media / "annotations.json").read_text(encoding="utf-8"))[source.name]
    with tokpipe.open_cache(target) as cache:
        at, pts = cache.column("video.at"), cache.column("video.pts")
        edges = [0.0, *facts["slide_changes_s"], cache.duration or 1e9]
        for start, stop in pairwise(edges):
            inside = (at >= start - 0.1) & (at < stop)
            held = (pts[:, 0] < stop) & (pts[:, 1] > start)
            assert inside.any() or held.any(), (start, stop)
    everything = tmp_path / "all"
    # Finer grids for slides would take the place of cells that repeat.
    plain = "fps | pixels | temporal-drop | coverage-updates:detail=low"
    tokpipe.compress_file(source, everything, recipe=plain, budget=1_000_000)
    psnr, _ = worst_psnr(source, everything)
    assert psnr >= 35, psnr
