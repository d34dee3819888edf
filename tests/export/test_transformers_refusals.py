"""What to_model_inputs refuses and notes; weights of merged tokens."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

pytest.importorskip("transformers")
pytest.importorskip("torchvision")

import tokpipe
from tokpipe.errors import CacheError, ModelError, WeightsMismatch
from tokpipe.export.transformers import Transformers, batch_inputs, to_model_inputs

MAKERS: dict[str, Callable[[], Any]] = import_module("tiny_models").MAKERS
tiny: Any = import_module("tiny_case")
logits = tiny.logits
Made = Callable[[str], Any]
ASKED = tiny.QUESTION


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
    case = MAKERS["llava"]()
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
    case = MAKERS[name]()
    cache = case.cache(tmp_path, tiny.pictures())
    case.model.config.get_text_config()._attn_implementation_internal = kernel
    with pytest.raises(CacheError, match=why) as caught:
        to_model_inputs(cache, case.model, case.processor, ASKED, use=use, weights=True)
    assert caught.value.code == "export.weights" and caught.value.hint


@pytest.mark.parametrize("how", ["deleted", "nothing", "identity"])
def test_a_model_without_its_tower_takes_a_cache(tmp_path: Path, how: str) -> None:
    case = MAKERS["llava_onevision_video"]()
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
    case = MAKERS["llava"]()
    cache = case.cache(tmp_path, tiny.pictures(), weights="sha256:" + "0" * 64)
    with pytest.raises(WeightsMismatch, match="made by other weights") as caught:
        to_model_inputs(cache, case.model, case.processor, ASKED)
    assert caught.value.code == "export.weights" and "allow_mismatch" in str(caught.value.hint)
    made = to_model_inputs(cache, case.model, case.processor, ASKED, allow_mismatch=True)
    assert any("other weights" in note for note in made.notes)


@pytest.mark.skipif(not tiny.NEW, reason="the record is made by transformers 5")
def test_weights_are_compared_as_they_lie_in_the_checkpoint(tmp_path: Path) -> None:
    case = MAKERS["llava"]()
    cache = case.cache(tmp_path, tiny.pictures())
    assert not to_model_inputs(cache, case.model, case.processor, ASKED).notes
    with torch.no_grad():
        next(case.model.model.vision_tower.parameters()).add_(1)
    with pytest.raises(WeightsMismatch):
        to_model_inputs(cache, case.model, case.processor, ASKED)
    # A checkpoint in bfloat16 that runs in float32 is the same checkpoint.
    case = MAKERS["llava"]()
    case.model.to(torch.bfloat16)
    narrow = tokpipe.encoder_facts(case.model)["weights"]
    case.model.to(torch.float32)
    cache = case.cache(tmp_path, tiny.pictures(), weights=narrow)
    assert not to_model_inputs(cache, case.model, case.processor, ASKED).notes
    # The other way round nobody can tell.
    case = MAKERS["llava"]()
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
    case = MAKERS["llava"]()
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


def test_rows_projected_without_a_look_at_their_tower_are_noted(
    case_of: Made, tmp_path: Path
) -> None:
    """Whatever digest such a cache has: it is the model's, not that of what made the rows."""
    case = case_of("llava")
    told = {"projected": {"checked": "nothing", "rows": None}, "weights": "sha256:" + "0" * 64}
    cache = case.cache(tmp_path, tiny.pictures(), **told)
    made = to_model_inputs(cache, case.model, case.processor, ASKED)
    assert any("not checked when they were projected" in note for note in made.notes)


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
    case = MAKERS["gemma3"]()
    case.model.config.text_config.sliding_window = 16
    keep = torch.rand(48, generator=torch.manual_seed(1)) < 0.5
    cache = case.cache(tmp_path, tiny.pictures(), keep=keep)
    made = to_model_inputs(cache, case.model, case.processor, case.asked(), use="forward")
    assert any("see the last 16 tokens" in note for note in made.notes)


@pytest.mark.parametrize("window", [12, 4096])
def test_a_window_of_all_layers_is_said_and_not_weighted(tmp_path: Path, window: int) -> None:
    case = import_module("tiny_models").sliding(window)
    asked = (case.model, case.processor, case.asked())
    whole = case.cache(tmp_path / "whole", tiny.pictures())
    plain = to_model_inputs(whole, *asked, use="forward")
    assert not any("see the last" in note for note in plain.notes)
    keep = torch.rand(48, generator=torch.manual_seed(1)) < 0.5
    some = case.cache(tmp_path / "some", tiny.pictures(), keep=keep)
    made = to_model_inputs(some, *asked, use="forward")
    assert any(f"see the last {window} tokens" in note for note in made.notes) == (window == 12)
    if window == 12:
        with pytest.raises(CacheError, match="see the last 12 tokens alone") as caught:
            to_model_inputs(whole, *asked, use="forward", weights=True)
        assert caught.value.code == "export.weights" and caught.value.hint
        return
    # Within the window the mask is exact: every mass is 1.
    weighted = to_model_inputs(whole, *asked, use="forward", weights=True)
    want = logits(case.model, **plain)
    assert torch.allclose(logits(case.model, **weighted), want, atol=1e-5, rtol=0)


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
