"""Rows of a cache give a transformers model what its own pictures give it.

Every kind of model once or more, at random weights: whole caches bit for bit, caches of a subset as
the model with the other tokens masked.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("transformers")
pytest.importorskip("torchvision")

from tokpipe.errors import ModelError
from tokpipe.export.transformers import batch_inputs, to_model_inputs

MAKERS: dict[str, Callable[[], Any]] = import_module("tiny_models").MAKERS
tiny: Any = import_module("tiny_case")
logits = tiny.logits
NAMES = tuple(
    name
    for name in MAKERS
    if "smolvlm" not in name or importlib.util.find_spec("num2words") is not None
)
ROADS = ("mm_encoder_outputs", "inputs_embeds") if tiny.NEW else ("inputs_embeds",)
#: Whose ``generate`` takes no ``inputs_embeds``.
NO_EMBEDS = ("gemma3", "paligemma") if tiny.NEW else ()
#: Positions that ``generate`` goes on from when tokens are left out.
SCHEME: Any = "original" if tiny.NEW else "compact"
Made = Callable[[str], Any]


def subset(count: int, seed: int = 3) -> Tensor:
    """About half of the rows."""
    return torch.rand(count, generator=torch.Generator().manual_seed(seed)) < 0.5


def masked(case: Any, full: dict[str, Any], keep: Tensor) -> dict[str, Tensor]:
    """What hides the other rows from ``generate``, which without positions leaves no gaps."""
    shown = tiny.shown(case, full["input_ids"], keep)
    made = {"attention_mask": shown.long()[None]}
    return made | ({"position_ids": torch.arange(len(shown))[None]} if tiny.NEW else {})


def kept_of(case: Any, folder: Path, seen: Tensor) -> Tensor:
    return subset(len(tiny.rows_of(case.cache(folder / "all", seen))))


@pytest.mark.parametrize("name", NAMES)
def test_prompt_is_that_of_the_processor(case_of: Made, tmp_path: Path, name: str) -> None:
    case, seen = case_of(name), tiny.pictures()
    cache = case.cache(tmp_path, seen)
    own = case.own(seen)
    for processor in (case.processor, case.processor.tokenizer):
        if processor is not case.processor:
            processor.chat_template = tiny.template_of(case)
        made = to_model_inputs(cache, case.model, processor, case.asked())
        assert torch.equal(made.ids, own["input_ids"])
        assert made.media + made.layout + made.text == own["input_ids"].shape[1]
        assert bool((made["attention_mask"] == 1).all())


@pytest.mark.parametrize("road", ROADS)
@pytest.mark.parametrize("name", NAMES)
def test_whole_cache_is_bit_for_bit(case_of: Made, tmp_path: Path, name: str, road: Any) -> None:
    case, seen = case_of(name), tiny.pictures()
    made = to_model_inputs(
        case.cache(tmp_path, seen), case.model, case.processor, case.asked(), road=road,
        use="forward",
    )  # fmt: skip
    assert made.positions == "original" and made.road == {"video": road}
    want = logits(case.model, **tiny.alone(case.own(seen)))
    assert torch.equal(logits(case.model, **made), want)
    assert want.std() > 0.1


@pytest.mark.parametrize("road", ROADS)
@pytest.mark.parametrize("name", NAMES)
def test_subset_is_the_model_with_the_rest_masked(
    case_of: Made, tmp_path: Path, name: str, road: Any
) -> None:
    case, seen = case_of(name), tiny.pictures()
    keep = kept_of(case, tmp_path, seen)
    cache = case.cache(tmp_path, seen, keep=keep)
    made = to_model_inputs(cache, case.model, case.processor, case.asked(), road=road,
                           use="forward")  # fmt: skip
    full = tiny.alone(case.own(seen))
    shown = tiny.shown(case, full["input_ids"], keep)
    full["attention_mask"] = shown.long()[None]
    full["position_ids"] = tiny.places(case, len(shown))
    want = logits(case.model, **full)[:, shown]
    got = logits(case.model, **made)
    assert torch.allclose(got, want, atol=1e-5, rtol=0), float((got - want).abs().max())
    compact = to_model_inputs(cache, case.model, case.processor, case.asked(), road=road,
                              use="forward", positions="compact")  # fmt: skip
    assert compact.positions == "compact"
    moved = logits(case.model, **compact)
    assert float((moved - want).abs().max()) > 1e-3


@pytest.mark.parametrize("road", ROADS)
@pytest.mark.parametrize("name", NAMES)
def test_generate_is_that_of_the_pictures(
    case_of: Made, tmp_path: Path, name: str, road: Any
) -> None:
    case, seen = case_of(name), tiny.pictures()
    if road == "inputs_embeds" and name in NO_EMBEDS:
        pytest.skip("generate of this model takes no inputs_embeds")
    full = tiny.alone(case.own(seen))
    keep = kept_of(case, tmp_path, seen)
    how = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    for chosen in (None, keep):
        made = to_model_inputs(
            case.cache(tmp_path, seen, keep=chosen), case.model, case.processor, case.asked(),
            road=road, positions=SCHEME,
        )  # fmt: skip
        if chosen is not None:
            full |= masked(case, full, keep)
        want = case.model.generate(**full, **how)[:, full["input_ids"].shape[1] :]
        got = case.model.generate(**made, **how)[:, made.echo :]
        assert torch.equal(got, want)


@pytest.mark.parametrize("road", ROADS)
@pytest.mark.parametrize("name", NAMES)
def test_beams_and_several_answers(case_of: Made, tmp_path: Path, name: str, road: Any) -> None:
    case, seen = case_of(name), tiny.pictures()
    if road == "inputs_embeds" and name in NO_EMBEDS:
        pytest.skip("generate of this model takes no inputs_embeds")
    keep = kept_of(case, tmp_path, seen)
    made = to_model_inputs(case.cache(tmp_path, seen, keep=keep), case.model, case.processor,
                           case.asked(), road=road, positions=SCHEME)  # fmt: skip
    how = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    one = case.model.generate(**made, **how)[:, made.echo :]
    beams = case.model.generate(**made, **how, num_beams=3, num_return_sequences=2)
    assert len(beams) == 2
    # The same inputs once more: nothing of them was changed in place.
    assert torch.equal(case.model.generate(**made, **how)[:, made.echo :], one)
    if not tiny.NEW and (case.kind == "image" or case.name == "internvl"):
        return  # transformers 4 mixes the pictures of a prompt up when it multiplies them
    full = tiny.alone(case.own(seen))
    full |= masked(case, full, keep)
    want = case.model.generate(**full, **how, num_beams=3, num_return_sequences=2)
    assert torch.equal(beams[:, made.echo :], want[:, full["input_ids"].shape[1] :])


@pytest.mark.parametrize("road", ROADS)
@pytest.mark.parametrize("name", NAMES)
def test_batch_is_its_single_prompts(case_of: Made, tmp_path: Path, name: str, road: Any) -> None:
    case, seen = case_of(name), tiny.pictures()
    keep = kept_of(case, tmp_path, seen)
    caches = [
        case.cache(tmp_path / "a", seen, keep=keep),
        case.cache(tmp_path / "b", seen, keep=subset(len(keep), 8) & keep),
    ]
    forward = [
        to_model_inputs(cache, case.model, case.processor, case.asked(), road=road, use="forward")
        for cache in caches
    ]
    together = batch_inputs(forward)
    assert together.ids.shape[0] == 2 and together.media == sum(one.media for one in forward)
    found = logits(case.model, **together)
    for row, one in zip(found, forward, strict=True):
        want = logits(case.model, **one)[0]
        assert torch.allclose(row[-len(want) :], want, atol=2e-5, rtol=0)
    if road == "inputs_embeds" and name in NO_EMBEDS:
        return
    singles = [
        to_model_inputs(
            cache, case.model, case.processor, case.asked(), road=road, positions=SCHEME
        )
        for cache in caches
    ]
    how = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0, "num_beams": 2}
    both = batch_inputs(singles)
    made = case.model.generate(**both, **how)[:, both.echo :]
    for row, one in zip(made, singles, strict=True):
        alone = case.model.generate(**one, **how)[0, one.echo :]
        assert torch.equal(row[: len(alone)], alone)


@pytest.mark.skipif(tiny.NEW, reason="generate of transformers 5 goes on from positions with gaps")
def test_generate_of_an_old_version_refuses_gaps(case_of: Made, tmp_path: Path) -> None:
    case, seen = case_of("llava"), tiny.pictures()
    cache = case.cache(tmp_path, seen, keep=kept_of(case, tmp_path, seen))
    with pytest.raises(ModelError, match="count on"):
        to_model_inputs(cache, case.model, case.processor, case.asked())


def test_positions_with_gaps_are_not_taken_for_packed_sequences(
    case_of: Made, tmp_path: Path
) -> None:
    case, seen = case_of("llava"), tiny.pictures()
    keep = kept_of(case, tmp_path, seen)
    made = to_model_inputs(case.cache(tmp_path, seen, keep=keep), case.model, case.processor,
                           case.asked(), use="forward")  # fmt: skip
    right = logits(case.model, **made, use_cache=False)
    trap = {key: value for key, value in dict(made).items() if key != "attention_mask"}
    wrong = logits(case.model, **trap, use_cache=False)
    assert float((wrong - right).abs().max()) > 1e-2


@pytest.mark.skipif(not tiny.NEW, reason="transformers 4 has not all of them")
def test_every_kind_that_counts_ids_is_covered() -> None:
    from tokpipe.export._models.kinds import KINDS

    others = {"qwen", "omni", "sound"}
    mine = {kind for kind, where in KINDS.items() if where.partition(":")[0] not in others}
    covered = {
        kind for kind in mine
        for name in MAKERS if name in (kind, f"{kind}_video", f"{kind}_image", f"{kind}_tiles")
    }  # fmt: skip
    assert mine == covered
