"""Filling a bank entry: what is in it, how threads and errors behave."""

from __future__ import annotations

import threading
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tokpipe.chain import Chain, build_chain
from tokpipe.decode import _wanted, probe
from tokpipe.encode.mel import Mel
from tokpipe.encode.pixels import describe
from tokpipe.errors import DecodeError, TokpipeError
from tokpipe.ingest import Ingested, ingest
from tokpipe.recipe import load_recipe
from tokpipe.testing.damage import damage_frames
from tokpipe.testing.media import AudioTrack, VideoTrack, write_media


@pytest.fixture(autouse=True)
def _small_files_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clips here are small, and read in part all the same."""
    monkeypatch.setattr(_wanted, "SMALL", 0.0)


def chains_of(recipe: str = "auto") -> dict[str, Chain]:
    return {name: build_chain(name, c) for name, c in load_recipe(recipe).chains.items()}


def fill(path: Path, recipe: str = "auto", **options: Any) -> Ingested:
    options.setdefault("keep", False)
    return ingest(path, probe(path), chains_of(recipe), **options)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three seconds with sound, first picture half a second late."""
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    video = VideoTrack(frames=75, fps=Fraction(30), start=Fraction(1, 2))
    write_media(path, video, AudioTrack(duration=Fraction(3)))
    return path


def test_frames_keep_time_index_and_duration(clip: Path) -> None:
    bank = fill(clip).bank
    records = bank.frames()
    assert records["pts"].tolist() == pytest.approx([0.5, 1.0, 1.5, 2.0, 2.5], abs=1e-4)
    assert records["index"].tolist() == [0, 15, 30, 45, 60]
    assert records["duration"].tolist() == pytest.approx([1 / 30] * 5, abs=1e-4)
    assert bank.meta["steps"] == 5
    assert bank.meta["decoded"] == 75
    assert bank.meta["video_end"] == pytest.approx(3.0, abs=0.01)
    bank.close()


def test_descriptors_are_those_of_the_pictures(clip: Path) -> None:
    """They are taken before the pictures are coded: near, and never far, from what is stored."""
    bank = fill(clip).bank
    rows, cols = bank.meta["grid"][:2]
    stored = bank.rows("descriptors", 0, 5 * rows * cols, np.dtype("<f2"), 24)
    pictures = np.stack([picture for _, picture in bank.pictures(list(range(5)))])
    again = describe(torch.from_numpy(pictures)).reshape(-1, 24).float().numpy()
    step = stored.astype(np.float32) - again
    assert np.linalg.norm(step[:, :16], axis=1).max() / 28 < 1.5
    bank.close()


def test_sound_and_mel_cover_the_track(clip: Path) -> None:
    bank = fill(clip).bank
    samples, cells = bank.meta["samples"], bank.meta["cells"]
    assert samples == pytest.approx(48000, abs=1100)
    assert cells == -(-samples // 640)
    wave = bank.rows("audio", 0, samples, np.dtype("<i2")).astype(np.float32) / 32767
    stream = Mel().stream()
    parts = stream.push(torch.from_numpy(wave)) + stream.finish()
    expected = torch.cat([p.data for p in parts]).float().numpy()
    found = bank.rows("mel", 0, cells, np.dtype("<f2"), 320).astype(np.float32)
    # The stored sound is rounded to 16 bits, which shows only in what is nearly silent.
    loud = expected > -3.5
    assert loud.sum() > 1000
    assert np.abs(found - expected)[loud].max() < 0.05
    assert bank.meta["columns"] == sorted(Mel.extras)
    bank.close()


@pytest.mark.parametrize(("batch_size", "depth"), [(1, 0), (3, 8), (64, 1)])
def test_entry_does_not_depend_on_batches_or_threads(
    clip: Path, batch_size: int, depth: int
) -> None:
    one, two = fill(clip).bank, fill(clip, batch_size=batch_size, depth=depth).bank
    assert one.meta == two.meta
    for name in ("descriptors", "pictures", "frames", "audio", "mel", "mel_columns"):
        size = one._size(name)
        assert size > 0
        a, b = (bank.rows(name, 0, size, np.dtype("u1")) for bank in (one, two))
        assert (a == b).all(), name
    one.close()
    two.close()


@pytest.mark.parametrize(
    ("recipe", "there", "absent"),
    [("fps | pixels", "descriptors", "mel"), ("audio: mel", "mel", "descriptors")],
)
def test_streams_without_a_chain_are_not_kept(
    clip: Path, recipe: str, there: str, absent: str
) -> None:
    bank = fill(clip, recipe).bank
    assert bank._size(there) > 0
    assert bank._size(absent) == 0
    bank.close()


def test_kept_entry_is_found_again(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOKPIPE_CACHE_DIR", str(tmp_path))
    first, second = fill(clip, keep=True), fill(clip, keep=True)
    assert (first.reused, second.reused) == (False, True)
    assert first.bank.meta == second.bank.meta
    assert second.seconds["decode"] == 0
    tail = fill(clip, "video: fps | pixels | tome; audio: mel", keep=True)
    assert tail.reused
    for found in (first, second, tail):
        found.bank.close()


def raiser(error: Exception) -> Callable[[str, float, float | None], None]:
    def progress(_stage: str, _at: float, _end: float | None) -> None:
        raise error

    return progress


@pytest.mark.parametrize("depth", [0, 2])
def test_error_of_the_caller_stops_the_thread_and_leaves_nothing(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, depth: int
) -> None:
    monkeypatch.setenv("TOKPIPE_CACHE_DIR", str(tmp_path))
    threads = threading.active_count()
    with pytest.raises(KeyError):
        fill(clip, keep=True, depth=depth, progress=raiser(KeyError("stop")))
    assert threading.active_count() == threads
    assert list((tmp_path / "bank").iterdir()) == []


def test_error_of_the_decoder_surfaces_as_itself(samples: Path) -> None:
    with pytest.raises(DecodeError, match="damage"):
        fill(samples / "damaged.mp4", strict=True)


def test_progress_counts_media_seconds(samples: Path) -> None:
    seen: list[tuple[str, float, float | None]] = []
    fill(samples / "action.mp4", progress=lambda *x: seen.append(x)).bank.close()
    times = [at for _, at, _ in seen]
    assert times == sorted(times)
    assert times[-1] > 13
    assert {end for _, _, end in seen} == {14.0}


def test_wrong_parameters_are_found_before_anything_is_read() -> None:
    with pytest.raises(TokpipeError, match="cells"):
        chains_of("fps | pixels:cells=1000")


@pytest.fixture(scope="module")
def long_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty seconds with sound, a key picture every four."""
    path = tmp_path_factory.mktemp("long") / "clip.mp4"
    video = VideoTrack(frames=300, fps=Fraction(15), gop=60)
    write_media(path, video, AudioTrack(duration=Fraction(20)))
    return path


def same_bytes(one: Any, two: Any) -> bool:
    """Two entries hold the same; the pictures of one without a key may be stored otherwise."""
    names = ("descriptors", "audio", "mel", "mel_columns")
    parts = [
        [b.rows(n, 0, b._size(n), np.dtype("u1")).tobytes() for n in names]
        + [b.frames()[n].tobytes() for n in b.frames().dtype.names if n != "offset"]
        + [picture.tobytes() for _, picture in b.pictures(range(b.num_frames))]
        for b in (one, two)
    ]
    return bool(parts[0] == parts[1])


def test_effort_decodes_less_and_is_recorded(long_clip: Path) -> None:
    found = {e: fill(long_clip, effort=e).bank for e in ("fast", "balanced", "thorough")}
    decoded = [found[e].meta["decoded"] for e in found]
    assert decoded == sorted(decoded)
    assert decoded[0] < 30
    assert decoded[2] == 300
    assert found["fast"].meta["steps"] < found["thorough"].meta["steps"]
    for effort, bank in found.items():
        assert bank.meta["reader"]["effort"] == effort
        assert bank.meta["whole"] is None
        assert bank.meta["video_end"] == pytest.approx(20.0, abs=0.01)
        bank.close()


@pytest.mark.parametrize("effort", ["balanced", "thorough"])
def test_entry_does_not_depend_on_decoding_threads(long_clip: Path, effort: str) -> None:
    one, two = (fill(long_clip, effort=effort, threads=n).bank for n in (1, 3))
    assert one.meta == two.meta
    assert same_bytes(one, two)
    one.close()
    two.close()


def test_effort_has_entries_of_its_own(
    long_clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOKPIPE_CACHE_DIR", str(tmp_path))
    found = [fill(long_clip, keep=True, effort=e) for e in ("fast", "thorough", "fast")]
    assert [f.reused for f in found] == [False, False, True]
    for one in found:
        one.bank.close()


def test_damage_met_in_part_is_read_again_from_end_to_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "damaged.mp4"
    write_media(path, VideoTrack(frames=300, fps=Fraction(15), gop=30))
    damage_frames(path, [150, 151, 152], count=60)
    monkeypatch.setenv("TOKPIPE_CACHE_DIR", str(tmp_path))
    seen: list[float] = []
    found = fill(path, keep=True, threads=3, progress=lambda _s, at, _e: seen.append(at))
    bank = found.bank
    assert bank.meta["whole"] == "damage"
    assert "scout-sequential" in [code for code, _ in bank.meta["notes"]]
    assert bank.meta["damaged"] > 0
    assert bank.meta["decoded"] > 250
    assert seen == sorted(seen)
    assert [p.name for p in (tmp_path / "bank").iterdir()] == [found.key]
    monkeypatch.setattr(_wanted, "SHORT", 60.0)
    plain = fill(path).bank
    assert plain.meta["whole"] != "damage"
    assert same_bytes(bank, plain)
    bank.close()
    plain.close()
