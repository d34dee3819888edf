"""What to_model_inputs takes and counts, and whole runs from a film to the model."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("torchvision")

import tokpipe
from tokpipe.errors import CacheError, ModelError
from tokpipe.export.transformers import to_model_inputs
from tokpipe.testing.media import VideoTrack, write_media

MAKERS: dict[str, Callable[[], Any]] = import_module("tiny_models").MAKERS
tiny: Any = import_module("tiny_case")
logits = tiny.logits
Made = Callable[[str], Any]
ASKED = tiny.QUESTION


@pytest.mark.parametrize(
    ("name", "layout", "written"),
    [("llava", 0, 0), ("llava_onevision_video", 1, 0), ("llava_next", 12, 0),
     ("internvl_video", 0, 3 * len("Frame1: ") + 6 + 2)],
)  # fmt: skip
def test_counts_tell_media_from_what_the_model_adds(
    case_of: Made, tmp_path: Path, name: str, layout: int, written: int
) -> None:
    case = case_of(name)
    cache = case.cache(tmp_path, tiny.pictures())
    made = to_model_inputs(cache, case.model, case.processor, case.asked())
    rows = tiny.rows_of(cache)
    assert made.layout == layout
    assert made.media == int((rows.kind < 3).sum())
    assert made.written == written
    assert made.media + made.layout + made.text == made.ids.numel()
    assert "media=" in repr(made)


def test_a_question_takes_the_chat_template(case_of: Made, tmp_path: Path) -> None:
    case = case_of("llava_onevision_video")
    cache = case.cache(tmp_path, tiny.pictures())
    asked = to_model_inputs(cache, case.model, case.processor, ASKED)
    chat = to_model_inputs(cache, case.model, case.processor, case.asked())
    assert torch.equal(asked.ids, chat.ids)
    bare = tiny.tokenizer()
    plain = to_model_inputs(cache, case.model, bare, ASKED)
    assert bare.decode(plain.ids[0]) == "<video>" * 28 + "\n" + ASKED
    with pytest.raises(ModelError, match="chat template"):
        to_model_inputs(cache, case.model, bare, case.asked())


def test_a_marker_stays_where_it_is_and_is_put_first_where_there_is_none(
    case_of: Made, tmp_path: Path
) -> None:
    case = case_of("llava_onevision_video")
    cache = case.cache(tmp_path, tiny.pictures())

    def text(*content: Any, system: bool = False) -> str:
        head = [{"role": "system", "content": [{"type": "text", "text": "Hi."}]}] if system else []
        chat = [*head, {"role": "user", "content": list(content)}]
        made = to_model_inputs(cache, case.model, case.processor, chat)
        return str(case.processor.tokenizer.decode(made.ids[0]))

    video, words, more = {"type": "video"}, {"type": "text", "text": "A"}, {"type": "text",
                                                                           "text": "B"}  # fmt: skip
    assert text(words, video, more).startswith("user: A<video>")
    assert text(words, more).startswith("user: <video>")
    assert text(words, system=True).startswith("system: Hi.user: <video>")
    with pytest.raises(CacheError, match="mark video") as caught:
        text(video, video, words)
    assert caught.value.code == "export.placeholders"
    with pytest.raises(CacheError, match="mark audio"):
        text(video, {"type": "audio"}, words)


def test_a_video_is_images_to_a_model_that_has_no_videos(case_of: Made, tmp_path: Path) -> None:
    case = case_of("llava")
    cache = case.cache(tmp_path, tiny.pictures())
    chat = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": ASKED}]}]
    for messages in (chat, ASKED):
        made = to_model_inputs(cache, case.model, case.processor, messages)
        assert torch.equal(made.ids, case.own(tiny.pictures())["input_ids"])


@pytest.mark.skipif(not tiny.NEW, reason="transformers 4 has no mm_encoder_outputs")
def test_what_is_taken_out_may_be_changed(case_of: Made, tmp_path: Path) -> None:
    case = case_of("llava")
    made = to_model_inputs(case.cache(tmp_path, tiny.pictures()), case.model, case.processor, ASKED)
    for outputs in (made["mm_encoder_outputs"], made.get("mm_encoder_outputs"),
                    dict(made)["mm_encoder_outputs"], dict(**made)["mm_encoder_outputs"],
                    dict(made.items())["mm_encoder_outputs"]):  # fmt: skip
        outputs["image"].pooler_output = None
    assert made["mm_encoder_outputs"]["image"].pooler_output is not None
    assert set(made) == set(made.keys()) and len(list(made.values())) == len(made)
    assert made.get("labels") is None


@pytest.mark.parametrize("name", ["llava_onevision_video", "internvl_video", "llava"])
def test_ready_ids_with_one_placeholder_or_all(case_of: Made, tmp_path: Path, name: str) -> None:
    case = case_of(name)
    cache = case.cache(tmp_path, tiny.pictures())
    want = to_model_inputs(cache, case.model, case.processor, case.asked()).ids[0]
    for ids in (want, want[None], want.tolist()):
        made = to_model_inputs(cache, case.model, case.processor, ids)
        assert torch.equal(made.ids[0], want)
    marker = "<image>" if name == "llava" else "<video>"
    words = case.processor.tokenizer
    one = words(f"user: {marker}\n{ASKED}assistant:", add_special_tokens=False)["input_ids"]
    made = to_model_inputs(cache, case.model, case.processor, one)
    if name == "llava":
        assert words.decode(made.ids[0]) == "user: " + "<image>" * 48 + f"\n{ASKED}assistant:"
    else:
        assert torch.equal(made.ids[0], want)
    with pytest.raises(CacheError, match="placeholders") as caught:
        to_model_inputs(cache, case.model, case.processor, want[:-30])
    assert caught.value.code == "export.placeholders" and caught.value.hint


@pytest.mark.parametrize("few", [False, True])
def test_ready_ids_of_gemma_have_its_marks_already(
    case_of: Made, tmp_path: Path, few: bool
) -> None:
    """A marker of Gemma 3 stays in the prompt, beside its placeholders."""
    case, seen = case_of("gemma3"), tiny.pictures()
    keep = (torch.rand(48, generator=torch.manual_seed(1)) < 0.5) | (not few)
    cache = case.cache(tmp_path, seen, keep=keep)
    own = case.own(seen)["input_ids"]
    for positions in ("original", "compact"):
        asked: Any = {"use": "forward", "positions": positions}
        want = to_model_inputs(cache, case.model, case.processor, case.asked(), **asked)
        for ids in (own, own[0].tolist(), *([want.ids] if positions == "compact" else [])):
            made = to_model_inputs(cache, case.model, case.processor, ids, **asked)
            assert torch.equal(made.ids, want.ids)
            assert torch.equal(made["position_ids"], want["position_ids"])
            assert torch.equal(made["token_type_ids"], want["token_type_ids"])


@pytest.mark.parametrize(
    "name", ["internvl_video", "internvl_image", "idefics3", "llava", "gemma3"]
)
def test_ready_ids_of_one_row_a_picture_are_no_markers(
    case_of: Made, tmp_path: Path, name: str
) -> None:
    case, seen = case_of(name), tiny.pictures()
    whole = tiny.rows_of(case.cache(tmp_path / "whole", seen))
    keep = (whole.tile == 0) & (whole.cell[:, 1] == 2) & (whole.cell[:, 2] == 1)
    if name == "internvl_image":  # a row of each crop is a placeholder between marks
        keep |= torch.isin(whole.tile, whole.tile.unique()) & (whole.cell[:, 1:] == 0).all(1)
    cache = case.cache(tmp_path, seen, keep=keep)
    asked: Any = {"use": "forward", "positions": "compact"}
    want = to_model_inputs(cache, case.model, case.processor, case.asked(), **asked)
    made = to_model_inputs(cache, case.model, case.processor, want.ids, **asked)
    assert torch.equal(made.ids, want.ids)


def test_ready_ids_of_the_rows_alone_are_compact(case_of: Made, tmp_path: Path) -> None:
    case, seen = case_of("llava"), tiny.pictures()
    keep = torch.rand(48, generator=torch.manual_seed(1)) < 0.5
    cache = case.cache(tmp_path, seen, keep=keep)
    want = to_model_inputs(cache, case.model, case.processor, case.asked(), positions="compact")
    made = to_model_inputs(cache, case.model, case.processor, want.ids, positions="compact")
    assert torch.equal(made.ids, want.ids)
    with pytest.raises(CacheError, match="placeholders"):
        to_model_inputs(cache, case.model, case.processor, want.ids, use="forward")


@pytest.mark.parametrize("name", ["internvl_video", "llava", "llava_onevision_video", "gemma3"])
def test_pictures_of_which_nothing_is_kept_are_not_in_the_prompt(
    case_of: Made, tmp_path: Path, name: str
) -> None:
    case, seen = case_of(name), tiny.pictures()
    whole = tiny.rows_of(case.cache(tmp_path, seen))
    cache = case.cache(tmp_path, seen, keep=whole.at != tiny.TIMES[1])
    made = to_model_inputs(cache, case.model, case.processor, case.asked())
    two = case.own(seen[[0, 2]], (tiny.TIMES[0], tiny.TIMES[2]))
    assert torch.equal(made.ids, two["input_ids"])
    assert torch.equal(logits(case.model, **made), logits(case.model, **tiny.alone(two)))


def test_rows_that_are_no_cells_have_compact_positions(case_of: Made, tmp_path: Path) -> None:
    case, seen = case_of("llava_onevision_video"), tiny.pictures()
    rows = case.rows(case, case.own(seen))
    tokens = case.tokens([r.detach() for r in rows], tiny.TIMES, torch.float32)
    tokens = tokens.with_columns(cell=torch.full_like(tokens.cell, -1))
    cache = tokpipe.save_cache(tmp_path / "a.tokpipe.safetensors", tokens, encoder=case.about(9))
    made = to_model_inputs(cache, case.model, case.processor, case.asked())
    assert made.positions == "compact"
    assert any("positions are compact" in note for note in made.notes)


#: How each kind's front end is asked for, by the name of a case.
RUNS: dict[str, dict[str, Any]] = {
    "llava": {"fit": "crop"}, "llava_next": {"tiles": True}, "llava_next_video": {"fit": "crop"},
    "llava_onevision_video": {"fit": "squash"}, "llava_onevision_image": {"tiles": True},
    "video_llava": {"fit": "crop"}, "internvl_video": {"fit": "squash"},
    "internvl_image": {"tiles": True}, "smolvlm_video": {"fit": "squash"},
    "smolvlm_tiles": {"tiles": True}, "idefics3_tiles": {"tiles": True},
    "gemma3": {"fit": "squash"}, "paligemma": {"fit": "squash"}, "video_llama_3_video": {},
}  # fmt: skip


@pytest.mark.skipif(not tiny.NEW, reason="encoders need transformers 5.18")
@pytest.mark.parametrize("name", RUNS)
def test_a_film_runs_through_to_the_model(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "smolvlm" in name:
        pytest.importorskip("num2words")
    monkeypatch.setenv("TOKPIPE_CACHE_DIR", str(tmp_path / "bank"))
    case = MAKERS[name]()
    folder = tmp_path / "model"
    for part in (case.model, case.processor):
        part.save_pretrained(folder)
    write_media(tmp_path / "film.mp4", VideoTrack(size=(144, 80), fps=Fraction(2), frames=4))
    step = tokpipe.encoder_step(f"hf_vision:{folder}", stage="post_projector", **RUNS[name])
    recipe = tokpipe.with_encoders(tokpipe.load_recipe("uniform"), [step])
    for budget in (100_000, 60):
        out = tmp_path / f"{budget}.tokpipe.safetensors"
        tokpipe.compress_file(tmp_path / "film.mp4", out, recipe=recipe, budget=budget)
        made = to_model_inputs(out, case.model, case.processor, case.asked())
        assert made.positions == "original" and not any("weights" in n for n in made.notes)
        with tokpipe.open_cache(out) as cache:
            rows = cache.tokens(stream="video")["video"].to_tokens()
        slots = made.media + (0 if name == "llava_onevision_video" else made.layout)
        assert slots == len(rows)
        answer = case.model.generate(**made, max_new_tokens=3, do_sample=False, pad_token_id=0)
        assert answer.shape[1] > made.echo
