"""Late encoding of a signal cache: live tokens only, what else is in the file stays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tokpipe.cache.reader import open_cache
from tokpipe.cache.verify import verify
from tokpipe.encode.hf_audio import HfAudio
from tokpipe.encode.hf_vision import HfVision
from tokpipe.encoder_choice import encoder_step
from tokpipe.errors import BudgetError, CacheError, MediaNotFound, OutputExists
from tokpipe.late import Coverage
from tokpipe.late_cache import CacheSound
from tokpipe.late_run import encode_cache, encoded_path
from tokpipe.run import Options, RunRecord, compress_file


@pytest.fixture(scope="module")
def signal(film: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """300 tokens of the film: some whole frames, some cells."""
    out = tmp_path_factory.mktemp("signal") / "film.tokpipe.safetensors"
    compress_file(film, out, budget="video=150,audio=100", options=Options(audio_codec="flac"))
    return out


def encoded(signal: Path, out: Path, *folders: Path, **told: Any) -> RunRecord:
    families = {"clip": "hf_vision", "whisper": "hf_audio"}
    steps = [encoder_step(f"{families[f.name.rstrip('0123456789')]}:{f}") for f in folders]
    budget = told.pop("budget", None)
    record = encode_cache(signal, out, encoders=steps, budget=budget, options=Options(**told))
    report = verify(out, deep=True)
    assert report.ok, report.problems
    return record


def test_tokens_are_those_of_the_rebuilt_frames(
    signal: Path, clip_folder: Path, tmp_path: Path
) -> None:
    """Equal to tower(frame)[live], with live as half of the box in cells kept at that time."""
    out = tmp_path / "f.tokpipe.safetensors"
    record = encoded(signal, out, clip_folder, budget=1000)
    operator = HfVision(model=str(clip_folder))
    tower = operator.load()
    own, times, frames = [], [], 0
    with open_cache(signal) as cache:
        for frame in cache.frames():
            kept = torch.from_numpy(frame.mask == 3)[None]
            places = operator.places(*frame.pixels.shape[:2])
            live = Coverage.of(places, *frame.mask.shape).live(kept)[0]
            whole = tower.encode(tower.prepare(torch.from_numpy(frame.pixels)[None]))
            own.append(whole.data[0][live])
            times += [frame.pts] * len(own[-1])
            frames += bool(live.any())
        before = cache.tokens()["audio"]
        clip = np.asarray(cache.column("audio.clip"))
    with open_cache(out) as cache:
        rows = cache.tokens()["video"]
        assert np.array_equal(rows.tokens, torch.cat(own).numpy())
        assert rows.at.tolist() == times
        assert record.frames["encoded"] == frames
        assert cache.metadata["tokpipe.counts"]["video"]["dropped"] == 0
        after = cache.tokens()["audio"]
        assert np.array_equal(before.tokens, after.tokens)
        assert np.array_equal(before.at, after.at)
        assert np.array_equal(np.asarray(cache.column("audio.clip")), clip)
        assert cache.audio()[1] == 16000
        assert cache.info["fingerprint"]


def test_a_budget_is_met_and_nothing_is_encoded_twice(
    signal: Path, clip_folder: Path, tmp_path: Path
) -> None:
    encoded(signal, tmp_path / "a.tokpipe.safetensors", clip_folder)
    record = encoded(signal, tmp_path / "b.tokpipe.safetensors", clip_folder, budget=17)
    assert record.tokens["video"] == 17
    assert record.frames["encoded"] == 0
    again = encoded(signal, tmp_path / "b.tokpipe.safetensors", clip_folder, budget=17)
    assert again.status == "skipped"
    with pytest.raises(OutputExists):
        encoded(signal, tmp_path / "b.tokpipe.safetensors", clip_folder, budget=18)
    with pytest.raises(BudgetError):
        encoded(signal, tmp_path / "c.tokpipe.safetensors", clip_folder, budget="3/s")


def test_kept_context_sees_live_tokens_only(
    signal: Path, clip_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "k.tokpipe.safetensors"
    record = encoded(signal, out, clip_folder, context="kept", budget=1000)
    assert [w for w in record.warnings if w.startswith("kept-context")]
    operator = HfVision(model=str(clip_folder))
    tower = operator.load()
    own = []
    with open_cache(signal) as cache:
        for frame in cache.frames():
            kept = torch.from_numpy(frame.mask == 3)[None]
            places = operator.places(*frame.pixels.shape[:2])
            live = Coverage.of(places, *frame.mask.shape).live(kept)[0]
            if live.any():
                picture = tower.prepare(torch.from_numpy(frame.pixels)[None])
                own.append(tower.encode_kept(picture, live).data[0])
    with open_cache(out) as cache:
        assert np.array_equal(cache.tokens()["video"].tokens, torch.cat(own).numpy())


def test_sound_is_laid_back_on_its_clock(
    signal: Path, whisper_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "s.tokpipe.safetensors"
    record = encoded(signal, out, whisper_folder, budget=40)
    with open_cache(signal) as cache:
        sound = CacheSound(cache)
        wave, _ = cache.audio()
        offset = np.asarray(cache.column("audio.clip_offset"))
        kept = np.asarray(cache.column("audio.cell"))[:, 0]
    for cell, start in zip(kept.tolist(), offset.tolist(), strict=True):
        piece = sound(cell * 640, (cell + 1) * 640)
        assert np.array_equal(piece.numpy(), wave[start : start + 640])
    assert not sound(0, 640 * 20).any() or kept.min() < 22
    tower = HfAudio(model=str(whisper_folder)).load()
    with open_cache(out) as cache:
        assert cache.num_tokens("audio") == record.tokens["audio"] == 40
        assert cache.num_tokens("video") == record.tokens["video"] == 150
        assert "video.atlas" in cache.names
        at = cache.column("audio.at")
        assert cache.metadata["tokpipe.encoder.audio"]["weights"] == tower.weights
    # A token lies at least half in a kept cell.
    assert all(np.abs(kept * 0.04 + 0.02 - (t + 0.01)).min() <= 0.04 for t in at)


def test_the_other_stream_can_be_encoded_later(
    film: Path, clip_folder: Path, whisper_folder: Path, tmp_path: Path
) -> None:
    """Sound that stayed signal beside features of the pictures; those stay as they are."""
    first, second = tmp_path / "v.tokpipe.safetensors", tmp_path / "av.tokpipe.safetensors"
    compress_file(
        film, first, encoder=f"hf_vision:{clip_folder}", budget="video=60,audio=50",
        options=Options(precision="bfloat16"),
    )  # fmt: skip
    encoded(first, second, whisper_folder)
    with open_cache(first) as before, open_cache(second) as after:
        assert after.tokens()["video"].dtype == "BF16"
        assert np.array_equal(before.tokens()["video"].tokens, after.tokens()["video"].tokens)
        assert after.metadata["tokpipe.encoder.video"] == before.metadata["tokpipe.encoder.video"]
        assert after.num_tokens("audio") > 0
        assert "audio.clip" not in after.names
    with pytest.raises(CacheError, match="video of the cache is features already"):
        encoded(first, tmp_path / "x.tokpipe.safetensors", clip_folder)


def test_whole_frames_of_features(film: Path, clip_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "f.tokpipe.safetensors"
    compress_file(film, out, encoder=f"hf_vision:{clip_folder}", budget="video=150,audio=4",
                  options=Options(layout="frames"))  # fmt: skip
    with open_cache(out) as cache:
        counts = np.unique(cache.column("video.at"), return_counts=True)[1]
        assert counts.tolist() == [48] * 3


def test_damage_is_not_encoded(signal: Path, clip_folder: Path, tmp_path: Path) -> None:
    data = bytearray(signal.read_bytes())
    with open_cache(signal) as cache:
        atlas = np.asarray(cache.column("video.atlas")).tobytes()
    start = bytes(data).index(atlas) + len(atlas) // 2
    data[start : start + 8] = bytes(8)
    bad = tmp_path / "bad.tokpipe.safetensors"
    bad.write_bytes(bytes(data))
    with pytest.raises(CacheError):
        encoded(bad, tmp_path / "x.tokpipe.safetensors", clip_folder)
    with pytest.raises(OutputExists, match="is the cache itself"):
        encoded(signal, signal, clip_folder, force=True)


def test_what_cannot_be_encoded_says_so(
    signal: Path, clip_folder: Path, whisper_folder: Path, tmp_path: Path, samples: Path
) -> None:
    out = tmp_path / "f.tokpipe.safetensors"
    encoded(signal, out, clip_folder)
    with pytest.raises(CacheError, match="features already"):
        encoded(out, tmp_path / "x.tokpipe.safetensors", clip_folder)
    with pytest.raises(MediaNotFound):
        encoded(tmp_path / "no.tokpipe.safetensors", tmp_path / "x", clip_folder)
    mute = tmp_path / "mute.tokpipe.safetensors"
    compress_file(samples / "screen.mp4", mute, budget=50, options=Options(audio_stream="none"))
    with pytest.raises(CacheError, match="no audio"):
        encoded(mute, tmp_path / "x.tokpipe.safetensors", whisper_folder)
    assert not (tmp_path / "x.tokpipe.safetensors").exists()


def test_names_of_outputs(tmp_path: Path) -> None:
    steps = [encoder_step("open_clip:ViT-B-32")]
    cache = Path("talk.tokpipe.safetensors")
    assert encoded_path(cache, steps, None) == Path("talk.open-clip.tokpipe.safetensors")
    assert encoded_path(cache, steps, tmp_path).parent == tmp_path
    assert encoded_path(cache, steps, "a.safetensors") == Path("a.safetensors")
