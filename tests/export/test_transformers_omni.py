"""Thinkers of Qwen2.5-Omni and Qwen3-Omni: pictures, sound and both from a cache."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from fractions import Fraction
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("torchvision")

import tokpipe
from tokpipe.errors import ModelError
from tokpipe.export.transformers import batch_inputs, to_model_inputs
from tokpipe.testing.media import AudioTrack, VideoTrack, write_media

#: The library's own processors give tensors to numpy in a way that it will not take for long.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
KINDS = ("qwen2_5_omni", "qwen3_omni")
#: What is given: seconds of sound, and seconds between pictures above it.
MEDIA = {
    "sound": (1.7, 0, 0.0), "pictures": (0.0, 4, 1.5), "both": (5.3, 4, 1.5),
    "short": (1.1, 3, 1.0), "long": (7.9, 3, 2.0),
}  # fmt: skip
transformers: Any = importlib.import_module("transformers")
OLD = tuple(int(part) for part in transformers.__version__.split(".")[:2]) < (5, 18)
HOW: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False}
new_only = pytest.mark.skipif(OLD, reason="generate and deeper rows take transformers 5.18")


@pytest.fixture(scope="module")
def models(beside: Any) -> Any:
    return beside("mrope_models")


@pytest.fixture
def paths(models: Any, beside: Any) -> Any:
    return beside("mrope_paths")


@pytest.fixture(scope="module")
def talker_of(models: Any) -> Callable[[str], Any]:
    return cache(models.make)


@pytest.fixture(params=KINDS)
def talker(request: pytest.FixtureRequest, talker_of: Callable[[str], Any]) -> Any:
    return talker_of(request.param)


def given(talker: Any, paths: Any, folder: Path, name: str, seed: int = 0) -> tuple[Any, Any]:
    """A clip, and a chat that asks for it."""
    seconds, count, step = MEDIA[name]
    if OLD and count and talker.kind == "qwen3_omni":
        pytest.skip("deeper rows take transformers 5.18")
    times = torch.arange(count).double() * step
    if not seconds:
        made = paths.clip(talker, folder, step, count=count, seed=seed)
    else:
        made = paths.talked(talker, folder, seconds, times, step=step, seed=seed)
    return made, paths.chat("video" if count else "audio")


@pytest.mark.parametrize("name", MEDIA)
def test_whole_cache_is_bit_for_bit(talker: Any, paths: Any, tmp_path: Path, name: str) -> None:
    made, chat = given(talker, paths, tmp_path, name)
    wanted = paths.logits(talker.model, made.full)
    assert wanted.std() > 0.1
    for asked in (chat, paths.QUESTION, made.full["input_ids"]):
        found = to_model_inputs(made.path, talker.model, talker.processor, asked, use="forward")
        assert torch.equal(found.ids, made.full["input_ids"])
        assert found.media == sum(map(len, made.tokens.values()))
        assert torch.equal(paths.logits(talker.model, found), wanted)
    if not OLD and "video" in made.tokens:
        assert found.road["video"] == "mm_encoder_outputs"
    if not OLD and talker.kind == "qwen2_5_omni":
        direct = to_model_inputs(made.path, talker.model, talker.processor, chat,
                                 road="inputs_embeds")  # fmt: skip
        assert torch.equal(paths.logits(talker.model, direct), wanted)


@pytest.mark.parametrize("name", MEDIA)
def test_subset_is_the_model_with_the_rest_masked(
    talker: Any, paths: Any, tmp_path: Path, name: str
) -> None:
    made, chat = given(talker, paths, tmp_path, name)
    keep = paths.halves(made)
    mask = paths.shown(made, keep)
    full = to_model_inputs(made.path, talker.model, talker.processor, chat, use="forward")
    wanted = paths.logits(talker.model, {**full, "attention_mask": mask})[mask.bool()]
    few = paths.fewer(talker, made, tmp_path, keep)
    found = to_model_inputs(few, talker.model, talker.processor, chat, use="forward")
    assert torch.equal(found["position_ids"][1:], full["position_ids"][1:, :, mask[0].bool()])
    got = paths.logits(talker.model, found)[0]
    assert torch.allclose(got, wanted, atol=1e-5, rtol=0), float((got - wanted).abs().max())
    compact = to_model_inputs(few, talker.model, talker.processor, chat, positions="compact",
                              use="forward")  # fmt: skip
    assert float((paths.logits(talker.model, compact)[0] - wanted).abs().max()) > 1e-3


@new_only
@pytest.mark.parametrize("name", MEDIA)
def test_generate_is_that_of_the_media(talker: Any, paths: Any, tmp_path: Path, name: str) -> None:
    made, chat = given(talker, paths, tmp_path, name)
    found = to_model_inputs(made.path, talker.model, talker.processor, chat)
    length = made.full["input_ids"].shape[1]
    own = talker.model.generate(**made.full, **HOW)[:, length:]
    assert torch.equal(talker.model.generate(**found, **HOW)[:, found.echo :], own)
    keep = paths.halves(made)
    few = to_model_inputs(
        paths.fewer(talker, made, tmp_path, keep), talker.model, talker.processor, chat
    )
    hidden = {**found, "attention_mask": paths.shown(made, keep)}
    for more in ({}, {"num_beams": 3, "num_return_sequences": 2}):
        wanted = talker.model.generate(**hidden, **HOW, **more)[:, found.echo :]
        assert torch.equal(talker.model.generate(**few, **HOW, **more)[:, few.echo :], wanted)


@new_only
def test_batch_is_its_single_prompts(talker: Any, paths: Any, tmp_path: Path) -> None:
    singles = []
    for name, seed in (("both", 0), ("short", 1)):
        made, chat = given(talker, paths, tmp_path, name, seed)
        few = paths.fewer(talker, made, tmp_path, paths.halves(made))
        singles.append(to_model_inputs(few, talker.model, talker.processor, chat))
    both = batch_inputs(singles)
    found = paths.logits(talker.model, both)
    for row, one in zip(found, singles, strict=True):
        alone = paths.logits(talker.model, one)[0]
        assert torch.allclose(row[-len(alone) :], alone, atol=2e-5, rtol=0)
    answers = talker.model.generate(**both, **HOW)
    for row, one in zip(answers, singles, strict=True):
        assert torch.equal(row, talker.model.generate(**one, **HOW)[0])


@new_only
@pytest.mark.parametrize("names", [("sound", "pictures"), ("pictures", "both", "sound")])
def test_batch_of_other_streams_is_its_single_prompts(
    talker: Any, paths: Any, tmp_path: Path, names: tuple[str, ...]
) -> None:
    singles = []
    for seed, name in enumerate(names):
        made, chat = given(talker, paths, tmp_path, name, seed)
        singles.append(to_model_inputs(made.path, talker.model, talker.processor, chat))
    joined = batch_inputs(singles)
    found = paths.logits(talker.model, joined)
    answers = talker.model.generate(**joined, **HOW)[:, joined.echo :]
    for row, answer, one in zip(found, answers, singles, strict=True):
        alone = paths.logits(talker.model, one)[0]
        assert torch.allclose(row[-len(alone) :], alone, atol=3e-5, rtol=0)
        assert torch.equal(answer, talker.model.generate(**one, **HOW)[0, one.echo :])


@new_only
def test_uneven_pictures_stand_where_they_are_heard(
    talker: Any, paths: Any, models: Any, tmp_path: Path
) -> None:
    made, chat = given(talker, paths, tmp_path, "both")
    times = torch.tensor([0.3, 0.5, 4.1, 4.9], dtype=torch.float64)
    video = made.tokens["video"]
    moved = video.with_columns(
        at=times.repeat_interleave(6), pts=torch.stack([times, times + 0.1], 1)
        .repeat_interleave(6, 0),
    )  # fmt: skip
    path = paths.saved(
        talker, tmp_path / "moved.tokpipe.safetensors", {**made.tokens, "video": moved}
    )
    found = to_model_inputs(path, talker.model, talker.processor, chat, use="forward")
    assert sorted(found.ids[0].tolist()) == sorted(made.full["input_ids"][0].tolist())
    per_second = models.PER_SECOND[talker.kind]
    ids, t = found.ids[0], found["position_ids"][1, 0]
    seen, noise = (t[ids == models.ID[name]] for name in ("video", "audio"))
    late = 7 if talker.kind == "qwen2_5_omni" else 0.3 * per_second
    assert abs(float(seen[0] - noise[0]) - late) < 1e-4
    assert torch.equal(noise - noise[0], torch.arange(len(noise)).to(noise.dtype))
    ticks = (times * per_second + 1e-3).floor() if talker.kind == "qwen2_5_omni" else (
        times * per_second
    )  # fmt: skip
    assert torch.allclose((seen - noise[0]).double(), ticks.repeat_interleave(6), atol=1e-4)
    if talker.kind == "qwen3_omni":
        both = t[(ids == models.ID["video"]) | (ids == models.ID["audio"])]
        assert bool((both.diff() >= 0).all())
    else:
        # Two seconds of pictures, then two of sound: 12 pictures' tokens come first.
        laid = ids[(ids == models.ID["video"]) | (ids == models.ID["audio"])]
        assert bool((laid[:12] == models.ID["video"]).all())
        assert bool((laid[12 : 12 + 100] == models.ID["audio"]).all())
    paths.logits(talker.model, found)


@new_only
def test_pictures_given_as_images(talker: Any, paths: Any, models: Any, tmp_path: Path) -> None:
    made = paths.clip(talker, tmp_path, 1.5, count=2)
    words = talker.processor.apply_chat_template(
        paths.chat("image", "image"), tokenize=False, add_generation_prompt=True
    )
    full = talker.processor(
        text=[words], images=list(models.pictures(2)), return_tensors="pt",
        images_kwargs={"size": {"shortest_edge": 64, "longest_edge": 40_000}},
    )  # fmt: skip
    found = to_model_inputs(
        made.path, talker.model, talker.processor, paths.chat("image"), use="forward"
    )
    assert torch.equal(found.ids, full["input_ids"])
    assert torch.equal(paths.logits(talker.model, found), paths.logits(talker.model, full))
    woven, _ = given(talker, paths, tmp_path, "short")
    both = to_model_inputs(woven.path, talker.model, talker.processor, paths.chat("image"))
    assert torch.equal(both.ids, woven.full["input_ids"])
    assert any("as a video" in note for note in both.notes)


@new_only
def test_merged_tokens_are_laid_by_their_times(talker: Any, paths: Any, tmp_path: Path) -> None:
    made, chat = given(talker, paths, tmp_path, "both")
    nowhere = {
        name: rows.with_columns(cell=torch.full_like(rows.cell, -1))
        for name, rows in made.tokens.items()
    }
    path = paths.saved(talker, tmp_path / "merged.tokpipe.safetensors", nowhere)
    found = to_model_inputs(path, talker.model, talker.processor, chat)
    assert found.positions == "compact"
    assert torch.equal(found.ids, made.full["input_ids"])
    paths.logits(talker.model, found)


def test_one_stream_of_two(talker: Any, paths: Any, tmp_path: Path) -> None:
    made, _ = given(talker, paths, tmp_path, "both")
    for stream in ("video", "audio"):
        alone = to_model_inputs(
            made.path, talker.model, talker.processor, "What?", streams=(stream,), use="forward"
        )
        assert alone.media == len(made.tokens[stream]) and set(alone.road) == {stream}


def test_the_whole_model_is_refused(talker: Any, paths: Any, tmp_path: Path) -> None:
    made, _ = given(talker, paths, tmp_path, "sound")
    kind = "qwen2_5_omni" if talker.kind == "qwen2_5_omni" else "qwen3_omni_moe"
    whole = SimpleNamespace(config=SimpleNamespace(model_type=kind), thinker=talker.model)
    with pytest.raises(ModelError, match="through its thinker"):
        to_model_inputs(made.path, whole, talker.processor, "What?")


@new_only
def test_own_encoders_give_the_same(talker: Any, paths: Any, models: Any, tmp_path: Path) -> None:
    """Rows by ``hf_vision`` and ``hf_audio`` from one checkpoint."""
    from tokpipe.encode.hf_audio import HfAudio
    from tokpipe.encode.hf_vision import HfVision

    made, chat = given(talker, paths, tmp_path, "both")
    folder = str(tmp_path / "model")
    talker.model.save_pretrained(folder)
    talker.processor.save_pretrained(folder)
    sees = HfVision(model=folder, stage="post_projector").load()
    frames = models.pictures(4).permute(0, 2, 3, 1).contiguous()
    seen = sees.encode(sees.prepare(frames))
    hears = HfAudio(model=folder, stage="post_projector").load()
    wave = models.sound(5.3)
    rows = {
        "video": tokpipe.picture_tokens(
            seen.data, made.times, (models.ROWS, models.COLUMNS), deepstack=list(seen.deepstack)
        ),
        "audio": tokpipe.sound_tokens(hears.encode([wave])[0].data[0], hears.times(len(wave))),
    }
    for name, own in made.tokens.items():
        assert torch.equal(own.at, rows[name].at) or name == "audio"
        assert len(own) == len(rows[name])
    facts = {
        name: {**tower.outline.about, "weights": tower.weights}
        for name, tower in (("video", sees), ("audio", hears))
    }
    path = tmp_path / "own.tokpipe.safetensors"
    tokpipe.save_cache(path, rows, encoder=facts)
    found = to_model_inputs(path, talker.model, talker.processor, chat)
    assert found.notes == () and torch.equal(found.ids, made.full["input_ids"])
    wanted = paths.logits(talker.model, made.full)
    assert torch.allclose(paths.logits(talker.model, found), wanted, atol=2e-5, rtol=0)


@new_only
def test_a_film_with_sound_runs_through_to_the_thinker(
    talker: Any, models: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOKPIPE_CACHE_DIR", str(tmp_path / "bank"))
    folder = tmp_path / "model"
    for part in (talker.model, talker.processor):
        part.save_pretrained(folder)
    film = tmp_path / "film.mp4"
    write_media(
        film, VideoTrack(size=(48, 32), fps=Fraction(2), frames=8), AudioTrack(duration=Fraction(4))
    )
    steps = [
        tokpipe.encoder_step(f"{name}:{folder}", stage="post_projector", **more)
        for name, more in (("hf_vision", {"max_pixels": 1536}), ("hf_audio", {}))
    ]
    recipe = tokpipe.with_encoders(tokpipe.load_recipe("uniform"), steps)
    for number, budget in enumerate(("video=100000,audio=100000", "video=40,audio=20")):
        out = tmp_path / f"{number}.tokpipe.safetensors"
        tokpipe.compress_file(film, out, recipe=recipe, budget=budget)
        found = to_model_inputs(out, talker.model, talker.processor, "What?")
        assert found.positions == "original" and found.notes == ()
        with tokpipe.open_cache(out) as opened:
            counts = {name: len(rows.at) for name, rows in opened.tokens().items()}
        assert set(counts) == {"video", "audio"}
        for name, count in counts.items():
            assert int((found.ids == models.ID[name]).sum()) == count
        assert talker.model.generate(**found, **HOW).shape == (1, 6)
