"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL: rows of a cache give them what their own pictures give."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("torchvision")

import tokpipe
from tokpipe.errors import CacheError, ModelError
from tokpipe.export.transformers import batch_inputs, to_model_inputs
from tokpipe.testing.media import VideoTrack, write_media

KINDS = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
transformers: Any = importlib.import_module("transformers")
OLD = tuple(int(part) for part in transformers.__version__.split(".")[:2]) < (5, 18)
HOW: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False}
new_only = pytest.mark.skipif(OLD, reason="generate and deeper rows take transformers 5.18")


@pytest.fixture(scope="module")
def parts(beside: Any) -> tuple[Any, Any]:
    return beside("mrope_models"), beside("mrope_paths")


@pytest.fixture(scope="module")
def talker_of(parts: tuple[Any, Any]) -> Callable[[str], Any]:
    return cache(parts[0].make)


@pytest.fixture(params=KINDS)
def talker(request: pytest.FixtureRequest, talker_of: Callable[[str], Any]) -> Any:
    if OLD and request.param == "qwen3_vl":
        pytest.skip("deeper rows take transformers 5.18")
    return talker_of(request.param)


@pytest.fixture
def paths(parts: tuple[Any, Any]) -> Any:
    return parts[1]


def roads(talker: Any) -> tuple[Any, ...]:
    own = ("inputs_embeds",) if talker.kind != "qwen3_vl" else ()
    return own if OLD else ("mm_encoder_outputs", *own)


def test_prompt_is_that_of_the_processor(talker: Any, paths: Any, tmp_path: Path) -> None:
    made = paths.clip(talker, tmp_path, 1.5)
    wanted = made.full["input_ids"]
    words = talker.processor.tokenizer
    words.chat_template = talker.processor.chat_template
    written = words.apply_chat_template(
        paths.chat("video"), tokenize=False, add_generation_prompt=True
    )
    ready = words(written)["input_ids"]
    for processor in (talker.processor, words):
        for asked in (paths.chat("video"), paths.QUESTION, ready, wanted):
            found = to_model_inputs(made.path, talker.model, processor, asked, use="forward")
            assert torch.equal(found.ids, wanted)
            assert found.media == 24 and bool((found["attention_mask"] == 1).all())


def test_a_question_without_a_template(talker: Any, paths: Any, tmp_path: Path) -> None:
    made = paths.clip(talker, tmp_path, 1.5, count=1)
    words = talker.processor.tokenizer
    words.chat_template = None
    found = to_model_inputs(made.path, talker.model, words, "What?", use="forward")
    said = words.decode(found.ids[0])
    stamp = "<0.0 seconds><|vision_start|>" if talker.kind == "qwen3_vl" else ""
    end = "<|vision_end|>" if stamp else ""
    assert said == f"<|vision_start|>{stamp}{'<|video_pad|>' * 6}{end}<|vision_end|>What?"


def test_whole_cache_is_bit_for_bit(talker: Any, paths: Any, tmp_path: Path) -> None:
    for step in (0.5, 1.5, 2.0):
        made = paths.clip(talker, tmp_path, step)
        wanted = paths.logits(talker.model, made.full)
        assert wanted.std() > 0.1
        for road in roads(talker):
            found = to_model_inputs(made.path, talker.model, talker.processor, "What?", road=road,
                                    use="forward")  # fmt: skip
            assert found.positions == "original" and found.road == {"video": road}
            assert torch.equal(paths.logits(talker.model, found), wanted)


def test_subset_is_the_model_with_the_rest_masked(talker: Any, paths: Any, tmp_path: Path) -> None:
    made = paths.clip(talker, tmp_path, 1.5)
    keep = paths.halves(made)
    mask = paths.shown(made, keep)
    few = paths.fewer(talker, made, tmp_path, keep)
    for road in roads(talker):
        how: dict[str, Any] = {"road": road, "use": "forward"}
        full = to_model_inputs(made.path, talker.model, talker.processor, "What?", **how)
        wanted = paths.logits(talker.model, {**full, "attention_mask": mask})[mask.bool()]
        found = to_model_inputs(few, talker.model, talker.processor, "What?", **how)
        assert torch.equal(found["position_ids"][1:], full["position_ids"][1:, :, mask[0].bool()])
        got = paths.logits(talker.model, found)[0]
        assert torch.allclose(got, wanted, atol=1e-5, rtol=0), float((got - wanted).abs().max())
        compact = to_model_inputs(few, talker.model, talker.processor, "What?",
                                  positions="compact", **how)  # fmt: skip
        moved = paths.logits(talker.model, compact)[0]
        assert float((moved - wanted).abs().max()) > 1e-3


@new_only
def test_generate_is_that_of_the_pictures(talker: Any, paths: Any, tmp_path: Path) -> None:
    made = paths.clip(talker, tmp_path, 1.5)
    found = to_model_inputs(made.path, talker.model, talker.processor, "What?")
    length = made.full["input_ids"].shape[1]
    for more in ({}, {"num_beams": 3, "num_return_sequences": 2}):
        wanted = talker.model.generate(**made.full, **HOW, **more)[:, length:]
        got = talker.model.generate(**found, **HOW, **more)[:, found.echo :]
        assert torch.equal(got, wanted)
    keep = paths.halves(made)
    few = to_model_inputs(
        paths.fewer(talker, made, tmp_path, keep), talker.model, talker.processor, "What?"
    )
    hidden = {**found, "attention_mask": paths.shown(made, keep)}
    for more in ({}, {"num_beams": 2}):
        wanted = talker.model.generate(**hidden, **HOW, **more)[:, length:]
        assert torch.equal(talker.model.generate(**few, **HOW, **more)[:, few.echo :], wanted)


@pytest.mark.skipif(not OLD, reason="newer versions count on")
def test_older_versions_refuse_gaps_and_generate_without(
    talker: Any, paths: Any, tmp_path: Path
) -> None:
    made = paths.clip(talker, tmp_path, 1.5)
    with pytest.raises(ModelError, match="count on") as caught:
        to_model_inputs(made.path, talker.model, talker.processor, "What?")
    assert caught.value.code == "export.positions"
    found = to_model_inputs(made.path, talker.model, talker.processor, "What?",
                            positions="compact")  # fmt: skip
    got = talker.model.generate(**found, **HOW)[0]
    inputs = dict(to_model_inputs(made.path, talker.model, talker.processor, "What?",
                                  positions="compact", use="forward"))  # fmt: skip
    table = talker.model.get_input_embeddings()
    for token in got:
        assert int(paths.logits(talker.model, inputs)[0, -1].argmax()) == int(token)
        inputs["inputs_embeds"] = torch.cat([inputs["inputs_embeds"], table(token)[None, None]], 1)
        inputs["attention_mask"] = torch.ones(inputs["inputs_embeds"].shape[:2], dtype=torch.long)
        last = inputs["position_ids"][..., -1:] + 1
        inputs["position_ids"] = torch.cat([inputs["position_ids"], last], -1)


def test_batch_is_its_single_prompts(talker: Any, paths: Any, tmp_path: Path) -> None:
    clips = [paths.clip(talker, tmp_path, 1.5), paths.clip(talker, tmp_path, 2.0, count=2, seed=1)]
    few = [paths.fewer(talker, c, tmp_path, paths.halves(c, seed=4)) for c in clips]
    singles = [
        to_model_inputs(path, talker.model, talker.processor, asked, use="forward")
        for path, asked in zip(few, ("What?", "And what is this?"), strict=True)
    ]
    both = batch_inputs(singles)
    found = paths.logits(talker.model, both)
    for row, one in zip(found, singles, strict=True):
        alone = paths.logits(talker.model, one)[0]
        assert torch.allclose(row[-len(alone) :], alone, atol=2e-5, rtol=0)
    if OLD:
        return
    for more in ({}, {"num_beams": 2}):
        answers = talker.model.generate(**both, **HOW, **more)[:, both.echo :]
        for row, one in zip(answers, singles, strict=True):
            alone = talker.model.generate(**one, **HOW, **more)[0, one.echo :]
            assert torch.equal(row, alone)


@new_only
def test_pictures_given_as_images(talker: Any, paths: Any, tmp_path: Path, parts: Any) -> None:
    made = paths.clip(talker, tmp_path, 1.5, count=2)
    chat = paths.chat("image", "image")
    full = talker.processor(
        text=[talker.processor.apply_chat_template(chat, tokenize=False,
                                                   add_generation_prompt=True)],
        images=list(parts[0].pictures(2)), return_tensors="pt",
    )  # fmt: skip
    found = to_model_inputs(
        made.path, talker.model, talker.processor, paths.chat("image"), use="forward"
    )
    assert torch.equal(found.ids, full["input_ids"])
    assert set(found["mm_encoder_outputs"]) == {"image"}
    assert torch.equal(paths.logits(talker.model, found), paths.logits(talker.model, full))


def test_uneven_times_are_those_of_the_pictures(talker: Any, paths: Any, tmp_path: Path) -> None:
    times = torch.tensor([1.0, 13.3, 13.7, 40.0], dtype=torch.float64)
    made = paths.of_times(talker, tmp_path, times)
    found = to_model_inputs(made.path, talker.model, talker.processor, "What?", use="forward")
    assert torch.equal(found.ids, made.full["input_ids"])
    first = (found.ids[0] == talker.model.config.video_token_id).nonzero()[::6, 0]
    t = found["position_ids"][1, 0, first]
    full = dict(made.full)
    if talker.kind == "qwen2_5_vl":
        # No processor can say such times; the model is told where its pictures stand.
        assert (t - t[0]).tolist() == [0, 24, 25, 78]
        full["position_ids"] = found["position_ids"]
    elif talker.kind == "qwen2_vl":
        assert (t - t[0]).tolist() == [0, 1, 2, 3]
    else:
        said = talker.processor.tokenizer.decode(found.ids[0])
        assert [f"<{s} seconds>" in said for s in (1.0, 13.3, 13.7, 40.0)] == [True] * 4
    assert torch.equal(paths.logits(talker.model, found), paths.logits(talker.model, full))


@new_only
def test_positions_with_gaps_are_not_taken_for_packed_sequences(
    talker_of: Callable[[str], Any], paths: Any, tmp_path: Path
) -> None:
    talker = talker_of("qwen2_5_vl")
    made = paths.clip(talker, tmp_path, 1.5)
    few = paths.fewer(talker, made, tmp_path, paths.halves(made))
    found = to_model_inputs(few, talker.model, talker.processor, "What?", use="forward")
    right = paths.logits(talker.model, {**found, "use_cache": False})
    # Three rows and no mask are taken for packed sequences; four rows and a mask never.
    trap = {k: v for k, v in found.items() if k != "attention_mask"}
    assert torch.equal(paths.logits(talker.model, {**trap, "use_cache": False}), right)
    rows = found["position_ids"][1:]
    masked = {**found, "position_ids": rows, "use_cache": False}
    assert torch.allclose(paths.logits(talker.model, masked), right, atol=1e-5, rtol=0)


def test_rows_of_no_grid_have_compact_positions(talker: Any, paths: Any, tmp_path: Path) -> None:
    made = paths.clip(talker, tmp_path, 1.5)
    rows = made.tokens["video"].take(torch.arange(10))
    nowhere = rows.with_columns(cell=torch.full_like(rows.cell, -1))
    path = paths.saved(talker, tmp_path / "merged.tokpipe.safetensors", {"video": nowhere})
    found = to_model_inputs(path, talker.model, talker.processor, "What?", use="forward")
    assert found.positions == "compact" and found.media == 10
    assert any("compact" in note for note in found.notes)
    assert torch.equal(found["position_ids"][1, 0], torch.arange(found.ids.shape[1]))
    paths.logits(talker.model, found)


def test_qwen3_needs_its_deeper_rows(
    talker_of: Callable[[str], Any], paths: Any, tmp_path: Path
) -> None:
    talker = talker_of("qwen3_vl")
    made = paths.clip(talker, tmp_path, 1.5)
    if OLD:
        with pytest.raises(ModelError, match="inputs_embeds cannot carry"):
            to_model_inputs(made.path, talker.model, talker.processor, "What?", use="forward")
        return
    with pytest.raises(ModelError, match="inputs_embeds cannot carry"):
        to_model_inputs(made.path, talker.model, talker.processor, "What?", road="inputs_embeds")
    bare = made.tokens["video"].with_columns(extras={})
    path = paths.saved(talker, tmp_path / "bare.tokpipe.safetensors", {"video": bare})
    with pytest.raises(CacheError, match="3 rows beside") as caught:
        to_model_inputs(path, talker.model, talker.processor, "What?")
    assert caught.value.code == "export.deepstack"


@new_only
def test_own_encoder_gives_the_same(talker: Any, paths: Any, parts: Any, tmp_path: Path) -> None:
    """Rows by ``hf_vision`` from a checkpoint, whose weights are then the model's."""
    from tokpipe.encode.hf_vision import HfVision

    made = paths.clip(talker, tmp_path, 1.5)
    folder = tmp_path / "model"
    talker.model.save_pretrained(folder)
    talker.processor.image_processor.save_pretrained(folder)
    tower = HfVision(model=str(folder), stage="post_projector").load()
    frames = parts[0].pictures(4).permute(0, 2, 3, 1).contiguous()
    encoded = tower.encode(tower.prepare(frames))
    rows = tokpipe.picture_tokens(
        encoded.data, made.times, (parts[0].ROWS, parts[0].COLUMNS),
        deepstack=list(encoded.deepstack),
    )  # fmt: skip
    path = tmp_path / "own.tokpipe.safetensors"
    tokpipe.save_cache(path, rows, encoder={**tower.outline.about, "weights": tower.weights})
    found = to_model_inputs(path, talker.model, talker.processor, "What?", use="forward")
    assert found.notes == ()
    wanted = paths.logits(talker.model, made.full)
    assert torch.equal(paths.logits(talker.model, found), wanted)
    other = parts[0].make(talker.kind)
    with torch.no_grad():
        next(other.owner.visual.parameters()).add_(1)
    with pytest.raises(tokpipe.errors.WeightsMismatch, match="other weights"):
        to_model_inputs(path, other.model, talker.processor, "What?")


@new_only
def test_a_film_runs_through_to_the_model(
    talker: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOKPIPE_CACHE_DIR", str(tmp_path / "bank"))
    folder = tmp_path / "model"
    for part in (talker.model, talker.processor):
        part.save_pretrained(folder)
    film = tmp_path / "film.mp4"
    write_media(film, VideoTrack(size=(48, 32), fps=Fraction(2), frames=6))
    step = tokpipe.encoder_step(f"hf_vision:{folder}", stage="post_projector")
    recipe = tokpipe.with_encoders(tokpipe.load_recipe("uniform"), [step])
    for budget in (100_000, 40):
        out = tmp_path / f"{budget}.tokpipe.safetensors"
        tokpipe.compress_file(film, out, recipe=recipe, budget=budget)
        found = to_model_inputs(out, talker.model, talker.processor, "What?")
        assert found.positions == "original" and found.notes == ()
        with tokpipe.open_cache(out) as opened:
            rows = opened.tokens(stream="video")["video"]
            high, wide = opened.metadata["tokpipe.encoder.video"]["grid"]
        assert found.media == len(rows.at)
        whole = high * wide * 6
        assert found.media == (40 if budget == 40 else whole)
        if talker.kind == "qwen3_vl":
            said = talker.processor.tokenizer.decode(found.ids[0])
            assert all(f"<{at:.1f} seconds>" in said for at in set(rows.at.tolist()))
        answer = talker.model.generate(**found, **HOW)[:, found.echo :]
        assert answer.shape == (1, 6)


@pytest.mark.parametrize("kept", [1, 2])
def test_ready_ids_of_one_row_a_picture_keep_their_times(
    talker: Any, paths: Any, tmp_path: Path, kept: int
) -> None:
    made = paths.clip(talker, tmp_path, 1.5)
    keep = torch.zeros(len(made.tokens["video"]), dtype=torch.bool)
    keep[[2, 8][:kept]] = True
    few = paths.fewer(talker, made, tmp_path, {"video": keep})
    asked: Any = {"use": "forward", "positions": "compact"}
    want = to_model_inputs(few, talker.model, talker.processor, paths.chat("video"), **asked)
    found = to_model_inputs(few, talker.model, talker.processor, want.ids, **asked)
    assert torch.equal(found.ids, want.ids)
    assert torch.equal(found["position_ids"], want["position_ids"])
