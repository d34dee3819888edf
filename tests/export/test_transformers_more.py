"""What to_model_inputs takes, counts, notes and refuses; weights of merged tokens; whole runs."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("transformers")
pytest.importorskip("torchvision")

import tokpipe
from tokpipe.errors import CacheError, ModelError, WeightsMismatch
from tokpipe.export.transformers import Transformers, batch_inputs, to_model_inputs
from tokpipe.testing.media import VideoTrack, write_media


def _beside(name: str) -> Any:
    """A module of this folder."""
    path = Path(__file__).parent / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"export_{name}", path)
    assert spec and spec.loader
    module = sys.modules.setdefault(spec.name, importlib.util.module_from_spec(spec))
    if not hasattr(module, "MAKERS"):
        spec.loader.exec_module(module)
    return module


tiny = _beside("tiny_models")
Made = Callable[[str], Any]
ASKED = tiny.QUESTION


@pytest.fixture(scope="module")
def case_of() -> Made:
    """Makes a tiny model by name, each once."""
    tiny.tf.utils.logging.set_verbosity_error()
    made: dict[str, Any] = {}

    def make(name: str) -> Any:
        if name not in made:
            made[name] = tiny.MAKERS[name]()
        return made[name]

    return make


def fresh(name: str) -> Any:
    """A model that a test may change."""
    return tiny.MAKERS[name]()


def logits(model: Any, **inputs: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(**inputs).logits
    return found


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
    assert torch.equal(logits(case.model, **made), logits(case.model, **tiny.alone(two))) or (
        name == "gemma3"
    )


def test_rows_that_are_no_cells_have_compact_positions(case_of: Made, tmp_path: Path) -> None:
    case, seen = case_of("llava_onevision_video"), tiny.pictures()
    rows = case.rows(case, case.own(seen))
    tokens = case.tokens([r.detach() for r in rows], tiny.TIMES, torch.float32)
    tokens = tokens.with_columns(cell=torch.full_like(tokens.cell, -1))
    cache = tokpipe.save_cache(tmp_path / "a.tokpipe.safetensors", tokens, encoder=case.about(9))
    made = to_model_inputs(cache, case.model, case.processor, case.asked())
    assert made.positions == "compact"
    assert any("positions are compact" in note for note in made.notes)


def merged(case: Any, folder: Path, times: int) -> tuple[Path, Path]:
    """A cache whose last row of the first picture stands for ``times``, and one that has them."""
    seen = tiny.pictures()
    rows = [r.detach() for r in case.rows(case, case.own(seen))]
    tokens = case.tokens(rows, tiny.TIMES, torch.float32)
    tokens = tokens.with_columns(cell=torch.full_like(tokens.cell, -1))
    mass = tokens.mass.clone()
    mass[15] = times
    heavy = tokens.with_columns(mass=mass)
    order = torch.cat([torch.arange(15), torch.full((times,), 15), torch.arange(16, len(tokens))])
    paths = []
    for name, batch in (("heavy", heavy), ("repeated", tokens.take(order))):
        path = folder / f"{name}.tokpipe.safetensors"
        paths.append(tokpipe.save_cache(path, batch, encoder=case.about(16), force=True))
    return paths[0], paths[1]


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
def test_weights_are_as_many_tokens(case_of: Made, tmp_path: Path, kernel: str) -> None:
    case = fresh("llava")
    case.model.set_attn_implementation(kernel)
    heavy, repeated = merged(case, tmp_path, 5)
    asked = (case.model, case.processor, case.asked())
    weighted = to_model_inputs(heavy, *asked, use="forward", weights=True)
    assert weighted.weighted and weighted["attention_mask"].shape[1] == 1
    # The five stand at one place and see one another, as a token that stands for five does.
    five = to_model_inputs(repeated, *asked, use="forward")
    place = five["position_ids"].clone()
    slots = (five.ids[0] == tiny.ID["<image>"]).nonzero()[:, 0]
    place[0, slots[15] : slots[19] + 1] = slots[15]
    place[0, slots[19] + 1 :] -= 4
    seen = torch.ones(five.ids.shape[1], five.ids.shape[1]).tril()
    seen[slots[15] : slots[19] + 1, slots[15] : slots[19] + 1] = 1
    mask = torch.where(seen > 0, 0.0, torch.finfo(torch.float32).min)[None, None]
    want = logits(case.model, **{**five, "position_ids": place, "attention_mask": mask})
    got = logits(case.model, **weighted)
    plain = logits(case.model, **to_model_inputs(heavy, *asked, use="forward"))
    after = slice(-20, None)
    assert torch.allclose(got[0, after], want[0, after], atol=1e-5, rtol=0)
    assert float((plain[0, after] - want[0, after]).abs().max()) > 1e-2


def test_weighted_batch_is_its_single_prompts(case_of: Made, tmp_path: Path) -> None:
    case = case_of("llava")
    heavy, repeated = merged(case, tmp_path, 3)
    both = [
        to_model_inputs(cache, case.model, case.processor, case.asked(), use="forward",
                        weights=True)
        for cache in (heavy, repeated)
    ]  # fmt: skip
    found = logits(case.model, **batch_inputs(both))
    for row, one in zip(found, both, strict=True):
        want = logits(case.model, **one)[0]
        assert torch.allclose(row[-len(want) :], want, atol=2e-5, rtol=0)


@pytest.mark.parametrize(
    ("name", "use", "kernel", "why"),
    [("llava", "generate", "sdpa", "generate takes no mask"),
     ("llava", "forward", "flash_attention_2", "flash_attention_2 takes no mask"),
     ("gemma3", "forward", "sdpa", "makes its own masks"),
     ("paligemma", "forward", "sdpa", "makes its own masks")],
)  # fmt: skip
def test_weights_that_are_not_exact_are_refused(
    tmp_path: Path, name: str, use: Any, kernel: str, why: str
) -> None:
    case = fresh(name)
    cache = case.cache(tmp_path, tiny.pictures())
    case.model.config.get_text_config()._attn_implementation_internal = kernel
    with pytest.raises(CacheError, match=why) as caught:
        to_model_inputs(cache, case.model, case.processor, ASKED, use=use, weights=True)
    assert caught.value.code == "export.weights" and caught.value.hint


@pytest.mark.parametrize("how", ["deleted", "nothing", "identity"])
def test_a_model_without_its_tower_takes_a_cache(tmp_path: Path, how: str) -> None:
    case = fresh("llava_onevision_video")
    cache = case.cache(tmp_path, tiny.pictures())
    asked = (case.processor, case.asked())
    want = case.model.generate(
        **to_model_inputs(cache, case.model, *asked), max_new_tokens=5, do_sample=False
    )
    if how == "deleted":
        del case.model.model.vision_tower
        del case.model.model.multi_modal_projector
    else:
        case.model.model.vision_tower = nn.Identity() if how == "identity" else None
    made = to_model_inputs(cache, case.model, *asked)
    if tiny.NEW:
        assert any("not checked" in note for note in made.notes)
    got = case.model.generate(**made, max_new_tokens=5, do_sample=False)
    assert torch.equal(got, want)


def test_rows_of_other_weights_are_refused(tmp_path: Path) -> None:
    case = fresh("llava")
    cache = case.cache(tmp_path, tiny.pictures(), weights="sha256:" + "0" * 64)
    with pytest.raises(WeightsMismatch, match="made by other weights") as caught:
        to_model_inputs(cache, case.model, case.processor, ASKED)
    assert caught.value.code == "export.weights" and "allow_mismatch" in str(caught.value.hint)
    made = to_model_inputs(cache, case.model, case.processor, ASKED, allow_mismatch=True)
    assert any("other weights" in note for note in made.notes)


@pytest.mark.skipif(not tiny.NEW, reason="the record is made by transformers 5")
def test_weights_are_compared_as_they_lie_in_the_checkpoint(tmp_path: Path) -> None:
    case = fresh("llava")
    cache = case.cache(tmp_path, tiny.pictures())
    assert not to_model_inputs(cache, case.model, case.processor, ASKED).notes
    with torch.no_grad():
        next(case.model.model.vision_tower.parameters()).add_(1)
    with pytest.raises(WeightsMismatch):
        to_model_inputs(cache, case.model, case.processor, ASKED)
    # A checkpoint in bfloat16 that runs in float32 is the same checkpoint.
    case = fresh("llava")
    case.model.to(torch.bfloat16)
    narrow = tokpipe.encoder_facts(case.model)["weights"]
    case.model.to(torch.float32)
    cache = case.cache(tmp_path, tiny.pictures(), weights=narrow)
    assert not to_model_inputs(cache, case.model, case.processor, ASKED).notes
    # The other way round nobody can tell.
    case = fresh("llava")
    cache = case.cache(tmp_path, tiny.pictures())
    case.model.to(torch.bfloat16)
    with pytest.raises(WeightsMismatch, match="unless they were cast to bfloat16"):
        to_model_inputs(cache, case.model, case.processor, ASKED)


@pytest.mark.parametrize(
    ("facts", "code"),
    [({"stage": "pre_projector"}, "export.stage"), ({"width": 32}, "export.width"),
     ({"deep": 1}, "export.deepstack")],
)  # fmt: skip
def test_rows_that_are_not_the_models_are_refused(
    case_of: Made, tmp_path: Path, facts: dict[str, Any], code: str
) -> None:
    case = case_of("llava")
    features = torch.randn(3, 16, int(facts.get("width", 48)))
    deep = [features] * int(facts.get("deep", 0))
    tokens = tokpipe.picture_tokens(features, tiny.TIMES, (4, 4), deepstack=deep)
    stage = str(facts.get("stage", "post_projector"))
    cache = tokpipe.save_cache(tmp_path / "a.tokpipe.safetensors", tokens, encoder={"stage": stage})
    with pytest.raises(CacheError) as caught:
        to_model_inputs(cache, case.model, case.processor, ASKED)
    assert caught.value.code == code and caught.value.hint


def test_streams_a_model_does_not_take_are_refused_or_left_out(
    case_of: Made, tmp_path: Path
) -> None:
    case = case_of("llava")
    spans = torch.stack([torch.arange(4.0), torch.arange(1.0, 5.0)], 1).double()
    sound = tokpipe.sound_tokens(torch.randn(4, 48), spans)
    facts = {"stage": "post_projector"}
    alone = tokpipe.save_cache(tmp_path / "s.tokpipe.safetensors", sound, encoder=facts)
    with pytest.raises(CacheError, match="takes video, the cache has audio") as caught:
        to_model_inputs(alone, case.model, case.processor, ASKED)
    assert caught.value.code == "cache.stream"
    pictures = tokpipe.picture_tokens(torch.randn(3, 16, 48), tiny.TIMES, (4, 4))
    both = tokpipe.save_cache(
        tmp_path / "b.tokpipe.safetensors", {"video": pictures, "audio": sound},
        encoder={"video": facts, "audio": facts},
    )  # fmt: skip
    made = to_model_inputs(both, case.model, case.processor, ASKED)
    assert "the audio of the cache is not given" in made.notes
    with pytest.raises(CacheError, match="takes video"):
        to_model_inputs(both, case.model, case.processor, ASKED, streams=["audio"])


def test_models_that_are_not_known_are_refused(case_of: Made, tmp_path: Path) -> None:
    case = case_of("llava")
    cache = case.cache(tmp_path, tiny.pictures())
    text = case.model.model.language_model
    with pytest.raises(ModelError, match="kind `llama`") as caught:
        to_model_inputs(cache, text, case.processor, ASKED)
    assert "llava_onevision" in str(caught.value.hint)


def test_frames_of_a_video_are_no_images_of_onevision(case_of: Made, tmp_path: Path) -> None:
    case = case_of("llava_onevision_video")
    cache = case.cache(tmp_path, tiny.pictures())
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": ASKED}]}]
    with pytest.raises(CacheError, match="ask for images") as caught:
        to_model_inputs(cache, case.model, case.processor, chat)
    assert caught.value.code == "export.modality"


def test_pictures_without_crops_end_in_the_newline_of_llava_next(
    case_of: Made, tmp_path: Path
) -> None:
    case = case_of("llava_next")
    tokens = tokpipe.picture_tokens(torch.randn(3, 16, 48), tiny.TIMES, (4, 4))
    facts = {"stage": "post_projector"}
    cache = tokpipe.save_cache(tmp_path / "a.tokpipe.safetensors", tokens, encoder=facts)
    made = to_model_inputs(cache, case.model, case.processor, ASKED, road="inputs_embeds")
    assert (made.media, made.layout) == (48, 3)
    newline = case.model.model.image_newline
    slots = (made.ids[0] == tiny.ID["<image>"]).nonzero()[:, 0]
    assert torch.equal(made["inputs_embeds"][0, slots[16]], newline)


def test_crops_without_a_recorded_size_are_found_by_their_newlines(
    case_of: Made, tmp_path: Path
) -> None:
    case, seen = case_of("llava_next"), tiny.pictures()
    keep = torch.rand(156, generator=torch.manual_seed(1)) < 0.5
    known = case.cache(tmp_path / "a", seen, keep=keep)
    blind = case.cache(tmp_path / "b", seen, keep=keep, picture=None)
    asked = (case.model, case.processor, case.asked())
    want, made = (to_model_inputs(c, *asked, use="forward") for c in (known, blind))
    assert torch.equal(want["position_ids"], made["position_ids"])
    rows = tiny.rows_of(case.cache(tmp_path / "c", seen))
    bare = case.cache(tmp_path / "c", seen, keep=rows.kind < 3, picture=None)
    assert to_model_inputs(bare, *asked).positions == "compact"


def test_rows_take_the_models_type(tmp_path: Path) -> None:
    case = fresh("llava")
    cache = case.cache(tmp_path, tiny.pictures())
    case.model.to(torch.bfloat16)
    for road in ("auto", "inputs_embeds"):
        made = to_model_inputs(cache, case.model, case.processor, ASKED, road=road,
                               allow_mismatch=True)  # fmt: skip
        assert logits(case.model, **made).dtype == torch.bfloat16
    assert made["inputs_embeds"].dtype == torch.bfloat16
    case.model.to(torch.float16)
    tokens = tokpipe.picture_tokens(torch.full((1, 16, 48), 1e5), [0.0], (4, 4))
    huge = tokpipe.save_cache(
        tmp_path / "h.tokpipe.safetensors", tokens, encoder={"stage": "post_projector"}
    )
    with pytest.raises(CacheError, match="too large for a model in float16"):
        to_model_inputs(huge, case.model, case.processor, ASKED)


def test_inputs_of_other_options_are_not_joined(case_of: Made, tmp_path: Path) -> None:
    case = case_of("llava")
    cache = case.cache(tmp_path, tiny.pictures())
    one, other = (
        to_model_inputs(cache, case.model, case.processor, ASKED, positions=positions)
        for positions in ("original", "compact")
    )
    with pytest.raises(CacheError, match="differ") as caught:
        batch_inputs([one, other])
    assert caught.value.code == "export.batch"
    with pytest.raises(CacheError, match="no inputs"):
        batch_inputs([])
    again = batch_inputs([batch_inputs([one, one]), one])
    assert again.ids.shape[0] == 3


def test_a_window_that_slides_is_said(tmp_path: Path) -> None:
    case = fresh("gemma3")
    case.model.config.text_config.sliding_window = 16
    keep = torch.rand(48, generator=torch.manual_seed(1)) < 0.5
    cache = case.cache(tmp_path, tiny.pictures(), keep=keep)
    made = to_model_inputs(cache, case.model, case.processor, case.asked(), use="forward")
    assert any("see the last 16 tokens" in note for note in made.notes)


@pytest.mark.skipif(not tiny.NEW, reason="transformers 4 has no mm_encoder_outputs")
def test_roads_that_are_not_there_are_refused(case_of: Made, tmp_path: Path) -> None:
    case = case_of("gemma3")
    cache = case.cache(tmp_path, tiny.pictures())
    with pytest.raises(ModelError, match="takes no inputs_embeds") as caught:
        to_model_inputs(cache, case.model, case.processor, ASKED, road="inputs_embeds")
    assert caught.value.code == "export.road"


def test_the_command_says_that_this_is_python(tmp_path: Path) -> None:
    with pytest.raises(CacheError, match="in Python"):
        Transformers().write(None, tmp_path)  # type: ignore[arg-type]


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
    case = fresh(name)
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
