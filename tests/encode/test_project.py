"""Caches before a projector become those after it, bit for bit; what does not fit is refused."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import tokpipe
from tokpipe.cache.verify import verify
from tokpipe.errors import CacheError, ModelError, OutputExists, TokpipeError, WeightsMismatch
from tokpipe.testing.media import AudioTrack, VideoTrack, write_media

Front = Callable[[str], Any]
FRONTS = (
    "llava", "llava_next", "llava_onevision", "llava_next_video", "video_llava", "paligemma",
    "gemma3", "internvl", "smolvlm",
)  # fmt: skip
QWEN = ("qwen2_5_vl", "qwen3_vl", "video_llama_3")
PLACES = ("at", "pts", "frame", "cell", "extent", "tile", "mass", "kind", "segment")


def _beside(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None and spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    sys.modules[name] = made
    spec.loader.exec_module(made)
    return made


def draw(number: int, time: float) -> NDArray[np.uint8]:
    """Another picture each second."""
    rng = np.random.default_rng(int(time))
    return np.kron(rng.integers(0, 255, (4, 6, 3)), np.ones((16, 16, 1))).astype(np.uint8)


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """3 s of 96 x 64 at 4 fps, with sound."""
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    sound = np.sin(np.arange(3 * 16000) * 0.1).astype(np.float32) * 0.4
    write_media(path, VideoTrack(size=(96, 64), fps=Fraction(4), frames=12, draw=draw),
                AudioTrack(samples=sound))  # fmt: skip
    return path


@pytest.fixture(scope="module")
def folder_of(front_of: Front, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    def of(name: str) -> Path:
        if name not in QWEN:
            return Path(front_of(name).folder)
        folder = tmp_path_factory.mktemp(name)
        _beside("qwen_models").make(name, folder)
        return folder

    return of


def encoded(film: Path, out: Path, folder: Path, budget: Any = "100%", **how: Any) -> Path:
    """A cache of the film's pictures alone; small pictures fill the tower."""
    step = tokpipe.encoder_step(f"hf_vision:{folder}", **{"fit": "squash", **how})
    tokpipe.compress_file(
        film, out, recipe=tokpipe.with_encoders(tokpipe.load_recipe("auto"), [step]), budget=budget,
        options=tokpipe.Options(audio_stream="none"),
    )  # fmt: skip
    return out


def checked(path: Path) -> Path:
    report = verify(path, deep=True)
    assert report.ok, report.problems
    return path


@pytest.mark.parametrize("name", [*FRONTS, *QWEN])
def test_projected_is_what_the_model_would_have_made(
    name: str, film: Path, folder_of: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = folder_of(name)
    before = encoded(film, tmp_path / "pre.tokpipe.safetensors", folder, stage="pre_projector")
    after = encoded(film, tmp_path / "post.tokpipe.safetensors", folder, stage="post_projector")
    record = tokpipe.project_cache(before, tmp_path / "made.tokpipe.safetensors", model=str(folder))
    assert record.status == "done" and record.warnings == []
    with (
        tokpipe.open_cache(checked(Path(record.output))) as made,
        tokpipe.open_cache(after) as wanted,
    ):
        mine, theirs = made.tokens()["video"], wanted.tokens()["video"]
        assert np.array_equal(mine.tokens, theirs.tokens)
        for column in PLACES:
            assert np.array_equal(getattr(mine, column), getattr(theirs, column)), column
        for level in (k for k in theirs.extras if k.startswith("deepstack")):
            assert np.array_equal(mine.extras[level], theirs.extras[level])
        entry = dict(made.metadata["tokpipe.encoder.video"])
        assert entry.pop("projected")["checked"] == "model" and "weights" in entry
        assert entry == wanted.metadata["tokpipe.encoder.video"]
        for key in ("counts", "layout", "source", "domain"):
            assert made.metadata[f"tokpipe.{key}"] == wanted.metadata[f"tokpipe.{key}"]


@pytest.mark.parametrize("name", ["llava", "internvl", "qwen2_5_vl"])
def test_of_a_smaller_budget_the_same_rows_stay(
    name: str, film: Path, folder_of: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = folder_of(name)
    before = encoded(film, tmp_path / "p.tokpipe.safetensors", folder, 20, stage="pre_projector")
    record = tokpipe.project_cache(before, model=str(folder))
    assert Path(record.output).name == f"p.{folder.name}.tokpipe.safetensors"
    whole = encoded(film, tmp_path / "w.tokpipe.safetensors", folder, stage="post_projector")
    with (
        tokpipe.open_cache(before) as pre,
        tokpipe.open_cache(checked(Path(record.output))) as made,
        tokpipe.open_cache(whole) as post,
    ):
        rows, mine, every = pre.tokens()["video"], made.tokens()["video"], post.tokens()["video"]
        for column in (*PLACES, "rank", "score"):
            assert np.array_equal(getattr(mine, column), getattr(rows, column), equal_nan=True)
        assert made.metadata["tokpipe.counts"] == pre.metadata["tokpipe.counts"]
        place = {(a, *c): i for i, (a, c) in enumerate(zip(every.at, every.cell.tolist()))}  # noqa: B905
        same = [place[(a, *c)] for a, c in zip(mine.at, mine.cell.tolist(), strict=True)]
        # How a product rounds depends on its number of rows.
        assert np.allclose(mine.tokens, every.tokens[same], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", ["llava_onevision", "llava_next_video", "gemma3"])
def test_pooling_wants_all_the_rows_of_a_token(
    name: str, film: Path, front_of: Front, tmp_path: Path
) -> None:
    folder = front_of(name).folder
    before = encoded(film, tmp_path / "p.tokpipe.safetensors", folder, 30, stage="pre_projector")
    out = tmp_path / "out.tokpipe.safetensors"
    with pytest.raises(CacheError, match="lack some") as caught:
        tokpipe.project_cache(before, out, model=str(folder))
    assert caught.value.code == "project.incomplete" and not out.exists()
    framed = encoded(film, tmp_path / "f.tokpipe.safetensors", folder, stage="pre_projector")
    with tokpipe.open_cache(framed) as cache:
        rows = cache.tokens()["video"].to_tokens()
        facts, source = cache.metadata["tokpipe.encoder.video"], cache.info
    last = rows.at < rows.at.max()
    last[-5:] = True  # of the last picture some rows alone
    few = tokpipe.save_cache(
        tmp_path / "few.tokpipe.safetensors", rows.take(last), encoder=facts, source=source,
        dropped=int((~last).sum()),
    )  # fmt: skip
    record = tokpipe.project_cache(few, out, model=str(folder), drop_incomplete=True)
    assert record.status == "warned" and record.warnings[0].startswith("incomplete: ")
    with tokpipe.open_cache(checked(out)) as cache:
        counts = cache.metadata["tokpipe.counts"]["video"]
        pictures = len(np.unique(rows.at))
        assert counts["source"] == pictures * front_of(name).of().places(64, 96).cell.shape[0]
        assert cache.layout == "ragged" and counts["dropped"] > 0


def test_a_tower_alone_serves_the_models_that_share_it(
    film: Path, front_of: Front, tmp_path: Path
) -> None:
    tf: Any = pytest.importorskip("transformers")
    front = front_of("llava")
    tower = front.model.vision_tower
    getattr(tower, "vision_model", tower).save_pretrained(tmp_path / "clip")
    front.image.save_pretrained(tmp_path / "clip")
    # Hidden state -2 of three blocks is that after the second.
    alone = encoded(film, tmp_path / "a.tokpipe.safetensors", tmp_path / "clip", layer=2)
    record = tokpipe.project_cache(alone, model=str(front.folder))
    whole = encoded(film, tmp_path / "w.tokpipe.safetensors", front.folder, stage="post_projector")
    with tokpipe.open_cache(record.output) as made, tokpipe.open_cache(whole) as post:
        told = made.metadata["tokpipe.encoder.video"]
        assert told["projected"]["checked"] == "tower"
        assert told["weights"] == post.metadata["tokpipe.encoder.video"]["weights"]
        assert np.array_equal(made.column("video.tokens"), post.column("video.tokens"))
    other = tf.AutoModelForImageTextToText.from_pretrained(front.folder)
    with torch.no_grad():
        next(other.model.vision_tower.parameters()).add_(1)
    other.save_pretrained(tmp_path / "other")
    front.image.save_pretrained(tmp_path / "other")
    with pytest.raises(WeightsMismatch, match="another tower"):
        tokpipe.project_cache(alone, model=str(tmp_path / "other"))
    unread = tokpipe.project_cache(alone, model=str(tmp_path / "other"), check=False)
    assert unread.status == "warned" and unread.warnings[0].startswith("tower-unchecked: ")
    _unproven(unread.output)
    half = other.to(torch.bfloat16)
    half.save_pretrained(tmp_path / "half")
    front.image.save_pretrained(tmp_path / "half")
    narrow = tokpipe.project_cache(alone, model=str(tmp_path / "half"))
    assert "float32, the model in bfloat16" in narrow.warnings[0]
    _unproven(narrow.output)


def _unproven(path: str) -> None:
    """Nothing says that the rows are of the model's tower."""
    with tokpipe.open_cache(path) as cache:
        told = cache.metadata["tokpipe.encoder.video"]
    assert told["projected"]["checked"] == "nothing" and "weights" not in told


def _pre(film: Path, front: Any, tmp_path: Path, **how: Any) -> Path:
    out = tmp_path / "pre.tokpipe.safetensors"
    return encoded(film, out, front.folder, stage="pre_projector", **how)


@pytest.mark.parametrize(
    ("to", "how", "said"),
    [
        ("internvl", {}, r"32 wide, the projector .* takes 128"),
        ("llava_onevision", {}, "layer 2"),
        ("llava", {"layer": 1}, "layer 1"),
    ],
)
def test_rows_that_do_not_fit_are_refused(
    film: Path, front_of: Front, tmp_path: Path, to: str, how: dict[str, Any], said: str
) -> None:
    path = _pre(film, front_of("llava"), tmp_path, **how)
    with pytest.raises(CacheError, match=said) as caught:
        tokpipe.project_cache(path, model=str(front_of(to).folder))
    assert caught.value.hint


def test_deepstack_must_be_stored(
    film: Path, folder_of: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = folder_of("qwen3_vl")
    path = encoded(film, tmp_path / "q.tokpipe.safetensors", folder, stage="pre_projector")
    with tokpipe.open_cache(path) as cache:
        rows = cache.tokens()["video"].to_tokens()
        facts = {**cache.metadata["tokpipe.encoder.video"], "deepstack": 0}
    bare = rows.with_columns(extras={})
    plain = tokpipe.save_cache(tmp_path / "b.tokpipe.safetensors", bare, encoder=facts)
    with pytest.raises(CacheError, match=r"takes 3 deepstack rows .* holds 0"):
        tokpipe.project_cache(plain, model=str(folder))


def test_merged_rows_are_projected_and_it_is_said(
    film: Path, front_of: Front, tmp_path: Path
) -> None:
    front = front_of("llava")
    step = tokpipe.encoder_step(f"hf_vision:{front.folder}", fit="squash")
    recipe = tokpipe.with_encoders(tokpipe.load_recipe("tome"), [step])
    out = tmp_path / "m.tokpipe.safetensors"
    tokpipe.compress_file(film, out, recipe=recipe, budget=20,
                          options=tokpipe.Options(audio_stream="none"))  # fmt: skip
    record = tokpipe.project_cache(out, model=str(front.folder))
    assert record.warnings[0].startswith("merged-rows: ")
    with tokpipe.open_cache(checked(Path(record.output))) as made, tokpipe.open_cache(out) as pre:
        assert made.metadata["tokpipe.counts"] == pre.metadata["tokpipe.counts"]


def test_a_cache_is_projected_once(film: Path, front_of: Front, tmp_path: Path) -> None:
    front = front_of("llava")
    path = _pre(film, front, tmp_path)
    first = tokpipe.project_cache(path, model=str(front.folder))
    bytes_ = Path(first.output).read_bytes()
    assert tokpipe.project_cache(path, model=str(front.folder)).status == "skipped"
    with pytest.raises(OutputExists):
        tokpipe.project_cache(path, model=str(front.folder), precision="bfloat16")
    again = tokpipe.project_cache(path, model=str(front.folder), force=True)
    assert Path(again.output).read_bytes() == bytes_
    with pytest.raises(CacheError, match="nothing to project") as caught:
        tokpipe.project_cache(first.output, model=str(front.folder))
    assert caught.value.code == "project.stage"


def test_what_is_not_to_be_projected(film: Path, front_of: Front, tmp_path: Path) -> None:
    signal = tmp_path / "s.tokpipe.safetensors"
    tokpipe.compress_file(film, signal, budget=50)
    with pytest.raises(CacheError, match="video signal, audio signal"):
        tokpipe.project_cache(signal, model=str(front_of("llava").folder))
    tf: Any = pytest.importorskip("transformers")
    config = tf.BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1,
                           intermediate_size=8, vocab_size=8)  # fmt: skip
    tf.BertModel(config).save_pretrained(tmp_path / "bert")
    path = _pre(film, front_of("llava"), tmp_path)
    with pytest.raises(ModelError, match="no projector for the video"):
        tokpipe.project_cache(path, model=str(tmp_path / "bert"))
    with pytest.raises(TokpipeError, match="no such file"):
        tokpipe.project_cache(tmp_path / "none", model="x")


@pytest.mark.parametrize("name", ["qwen2_audio", "voxtral", "qwen2_5_omni"])
def test_sound_is_projected_and_pictures_stay(name: str, film: Path, tmp_path: Path) -> None:
    folder = tmp_path / name
    _beside("sound_models").make(name, folder)
    made = {}
    for stage in ("pre_projector", "post_projector"):
        step = tokpipe.encoder_step(f"hf_audio:{folder}", stage=stage)
        made[stage] = tmp_path / f"{stage}.tokpipe.safetensors"
        tokpipe.compress_file(
            film, made[stage], budget="video=40,audio=1000",
            recipe=tokpipe.with_encoders(tokpipe.load_recipe("auto"), [step]),
        )  # fmt: skip
    # The last of Voxtral's groups of four ends with what follows the sound, which no cache holds.
    record = tokpipe.project_cache(
        made["pre_projector"], model=str(folder), drop_incomplete=name == "voxtral"
    )
    with (
        tokpipe.open_cache(checked(Path(record.output))) as found,
        tokpipe.open_cache(made["post_projector"]) as wanted,
    ):
        mine, theirs = found.tokens(), wanted.tokens()
        n = len(mine["audio"])
        assert len(theirs["audio"]) - n in ((0, 1) if name == "voxtral" else (0,))
        assert np.allclose(mine["audio"].tokens, theirs["audio"].tokens[:n], atol=1e-6, rtol=1e-5)
        assert np.allclose(mine["audio"].pts, theirs["audio"].pts[:n])
        assert np.array_equal(mine["audio"].cell, theirs["audio"].cell[:n])
        for column in ("tokens", *PLACES):
            a, b = getattr(mine["video"], column), getattr(theirs["video"], column)
            assert np.array_equal(a, b), column
        assert np.array_equal(found.column("video.atlas"), wanted.column("video.atlas"))
        assert "stage" not in found.metadata["tokpipe.encoder.video"]
        assert found.metadata["tokpipe.encoder.audio"]["stage"] == "post_projector"
