"""Qwen2-Audio and Voxtral: rows of a cache give them what their own sound gives."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("transformers")

import tokpipe
from tokpipe.errors import ModelError
from tokpipe.export.transformers import batch_inputs, to_model_inputs

transformers: Any = importlib.import_module("transformers")
OLD = tuple(int(part) for part in transformers.__version__.split(".")[:2]) < (5, 18)
HOW: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False}
new_only = pytest.mark.skipif(OLD, reason="generate from inputs_embeds takes transformers 5")
#: Tokens of 1.7 s.
COUNT = 42


@pytest.fixture(scope="module")
def models(beside: Any) -> Any:
    return beside("mrope_models")


@pytest.fixture
def paths(models: Any, beside: Any) -> Any:
    return beside("mrope_paths")


@pytest.fixture(scope="module")
def talker_of(models: Any) -> Callable[[str], Any]:
    return cache(models.make)


@pytest.fixture
def talker(talker_of: Callable[[str], Any]) -> Any:
    return talker_of("qwen2_audio")


@pytest.fixture
def made(talker: Any, paths: Any, tmp_path: Path) -> Any:
    return paths.heard(talker, tmp_path, 1.7)


def test_prompt_is_that_of_the_processor(made: Any, talker: Any, paths: Any) -> None:
    wanted = made.full["input_ids"]
    for asked in (paths.chat("audio"), paths.QUESTION, wanted):
        found = to_model_inputs(made.path, talker.model, talker.processor, asked, use="forward")
        assert torch.equal(found.ids, wanted)
        assert found.media == COUNT and found.road == {"audio": "inputs_embeds"}


def test_whole_cache_is_bit_for_bit(made: Any, talker: Any, paths: Any) -> None:
    found = to_model_inputs(made.path, talker.model, talker.processor, "What?", use="forward")
    wanted = paths.logits(talker.model, made.full)
    assert wanted.std() > 0.1
    assert torch.equal(paths.logits(talker.model, found), wanted)


@new_only
def test_generate_is_that_of_the_sound(made: Any, talker: Any, paths: Any) -> None:
    found = to_model_inputs(made.path, talker.model, talker.processor, "What?")
    length = made.full["input_ids"].shape[1]
    for more in ({}, {"num_beams": 3, "num_return_sequences": 2}):
        own = talker.model.generate(**made.full, **HOW, **more)[:, length:]
        assert torch.equal(talker.model.generate(**found, **HOW, **more), own)


def test_subset_is_the_model_with_the_rest_masked(
    made: Any, talker: Any, paths: Any, tmp_path: Path
) -> None:
    keep = paths.halves(made)
    mask = paths.shown(made, keep)
    full = to_model_inputs(made.path, talker.model, talker.processor, "What?", use="forward")
    wanted = paths.logits(talker.model, {**full, "attention_mask": mask})[mask.bool()]
    few = paths.fewer(talker, made, tmp_path, keep)
    found = to_model_inputs(few, talker.model, talker.processor, "What?", use="forward")
    assert torch.equal(found["position_ids"][0], mask[0].nonzero()[:, 0])
    got = paths.logits(talker.model, found)[0]
    assert torch.allclose(got, wanted, atol=1e-5, rtol=0), float((got - wanted).abs().max())
    compact = to_model_inputs(few, talker.model, talker.processor, "What?", positions="compact",
                              use="forward")  # fmt: skip
    assert float((paths.logits(talker.model, compact)[0] - wanted).abs().max()) > 1e-3


@new_only
def test_generate_with_gaps(made: Any, talker: Any, paths: Any, tmp_path: Path) -> None:
    keep = paths.halves(made)
    full = to_model_inputs(made.path, talker.model, talker.processor, "What?")
    few = to_model_inputs(
        paths.fewer(talker, made, tmp_path, keep), talker.model, talker.processor, "What?"
    )
    hidden = {**full, "attention_mask": paths.shown(made, keep)}
    for more in ({}, {"num_beams": 3}):
        wanted = talker.model.generate(**hidden, **HOW, **more)
        assert torch.equal(talker.model.generate(**few, **HOW, **more), wanted)


@pytest.mark.skipif(not OLD, reason="newer versions count on")
def test_older_versions_refuse_what_generate_cannot(
    made: Any, talker: Any, paths: Any, tmp_path: Path
) -> None:
    few = paths.fewer(talker, made, tmp_path, paths.halves(made))
    with pytest.raises(ModelError, match="count on") as caught:
        to_model_inputs(few, talker.model, talker.processor, "What?")
    assert caught.value.code == "export.positions"
    with pytest.raises(ModelError, match="takes no inputs_embeds") as caught:
        to_model_inputs(made.path, talker.model, talker.processor, "What?")
    assert caught.value.code == "export.road"


@new_only
def test_positions_with_gaps_are_not_taken_for_packed_sequences(
    made: Any, talker: Any, paths: Any, tmp_path: Path
) -> None:
    few = paths.fewer(talker, made, tmp_path, paths.halves(made))
    found = to_model_inputs(few, talker.model, talker.processor, "What?")
    right = paths.logits(talker.model, {**found, "use_cache": False})
    trap = {name: value for name, value in found.items() if name != "attention_mask"}
    wrong = paths.logits(talker.model, {**trap, "use_cache": False})
    assert float((wrong - right).abs().max()) > 1e-2


def test_batch_is_its_single_prompts(talker: Any, paths: Any, tmp_path: Path) -> None:
    clips = [paths.heard(talker, tmp_path, 1.7), paths.heard(talker, tmp_path, 0.9, seed=1)]
    few = [paths.fewer(talker, c, tmp_path, paths.halves(c)) for c in clips]
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
    answers = talker.model.generate(**both, **HOW)
    for row, one in zip(answers, singles, strict=True):
        assert torch.equal(row, talker.model.generate(**one, **HOW)[0])


def test_a_sound_of_several_windows_is_one_run(
    made: Any, talker: Any, paths: Any, tmp_path: Path
) -> None:
    rows = made.tokens["audio"]
    later = rows.with_columns(at=rows.at + 2, pts=rows.pts + 2, cell=rows.cell + torch.tensor(
        [50, 0, 0], dtype=torch.int32))  # fmt: skip
    long = {"audio": tokpipe.TokenBatch.cat([rows, later])}
    path = paths.saved(talker, tmp_path / "long.tokpipe.safetensors", long)
    found = to_model_inputs(path, talker.model, talker.processor, "What?", use="forward")
    assert found.media == 2 * COUNT
    assert any("one run of 92 tokens" in note for note in found.notes)
    # Eight tokens between the two are not there, and what follows stands behind them.
    first = int((found.ids[0] == talker.model.config.audio_token_id).nonzero()[0])
    places = found["position_ids"][0, first : first + 2 * COUNT] - first
    assert places.tolist() == [*range(COUNT), *range(50, 50 + COUNT)]


@new_only
def test_own_encoder_gives_the_same(
    made: Any, talker: Any, paths: Any, models: Any, tmp_path: Path
) -> None:
    """Rows by ``hf_audio`` from a checkpoint; the numbers differ by rounding alone."""
    from tokpipe.encode.hf_audio import HfAudio

    folder = tmp_path / "model"
    talker.model.save_pretrained(folder)
    operator = HfAudio(model=str(folder), stage="post_projector")
    tower = operator.load()
    wave = models.sound(1.7)
    rows = tokpipe.sound_tokens(tower.encode([wave])[0].data[0], tower.times(len(wave)))
    path = tmp_path / "own.tokpipe.safetensors"
    tokpipe.save_cache(path, rows, encoder={**tower.outline.about, "weights": tower.weights})
    found = to_model_inputs(path, talker.model, talker.processor, "What?")
    assert found.notes == () and torch.equal(found.ids, made.full["input_ids"])
    wanted = paths.logits(talker.model, made.full)
    assert torch.allclose(paths.logits(talker.model, found), wanted, atol=1e-5, rtol=0)


# Voxtral: its tokenizer has no chat template of the library's kind.


class Letters:
    """A tokenizer of Voxtral's marks and single letters, as far as a prompt needs one."""

    marks = ("<s>", "[INST]", "[/INST]", "[BEGIN_AUDIO]", "[AUDIO]")
    pad_token_id = 0

    def __call__(self, text: str, *, add_special_tokens: bool) -> dict[str, list[int]]:
        import re

        pieces = re.findall("|".join(re.escape(m) for m in self.marks) + "|.", text)
        ids = [self.marks.index(p) if p in self.marks else 5 + ord(p) % 64 for p in pieces]
        return {"input_ids": [*([0] if add_special_tokens else []), *ids]}

    def convert_ids_to_tokens(self, number: int) -> str:
        return self.marks[number]

    def convert_tokens_to_ids(self, text: str) -> int:
        return self.marks.index(text)


@pytest.fixture(scope="module")
def voxtral() -> Any:
    torch.manual_seed(3)
    config = transformers.VoxtralConfig(
        audio_config={
            "model_type": "voxtral_encoder", "hidden_size": 32, "intermediate_size": 128,
            "num_hidden_layers": 2, "num_attention_heads": 2, "num_mel_bins": 80,
            "max_source_positions": 100,
        },
        text_config={
            "model_type": "llama", "hidden_size": 48, "intermediate_size": 64, "vocab_size": 80,
            "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        },
        audio_token_id=4,
    )  # fmt: skip
    model = transformers.VoxtralForConditionalGeneration(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.15)
    model.generation_config.eos_token_id = None
    return model


def window(models: Any, seconds: float) -> Tensor:
    """Features [1, 80, 200] of a window of 2 s."""
    extractor = transformers.WhisperFeatureExtractor(feature_size=80, chunk_length=2)
    found = extractor(models.sound(seconds).numpy(), sampling_rate=16_000, return_tensors="pt")
    features: Tensor = found["input_features"]
    return features


@pytest.mark.parametrize("seconds", [2.0, 1.3])
def test_voxtral_hears_the_same(
    voxtral: Any, models: Any, paths: Any, tmp_path: Path, seconds: float
) -> None:
    features = window(models, seconds)
    with torch.no_grad():
        found: Any = voxtral.get_audio_features(features)
    rows = getattr(found, "pooler_output", found).reshape(25, -1)
    prompt = "<s>[INST][BEGIN_AUDIO]" + "[AUDIO]" * 25 + "What?[/INST]"
    ids = torch.tensor([Letters()(prompt, add_special_tokens=False)["input_ids"]])
    with torch.no_grad():
        wanted = voxtral(input_ids=ids, input_features=features).logits

    edges = torch.arange(26).double() * 0.08
    tokens = tokpipe.sound_tokens(rows, torch.stack([edges[:-1], edges[1:]], 1))
    # What the encoder keeps: no token of the silence that fills the window.
    count = -(-int(seconds * 100) // 8)
    facts = {"stage": "post_projector"}
    path = tmp_path / "sound.tokpipe.safetensors"
    tokpipe.save_cache(path, tokens.take(torch.arange(count)), encoder=facts)
    inputs = to_model_inputs(path, voxtral, Letters(), "What?", use="forward")
    assert inputs.media == count
    if count == 25:
        assert torch.equal(inputs.ids, ids)
        assert torch.equal(paths.logits(voxtral, inputs), wanted)
        if OLD:
            return
        own = voxtral.generate(input_ids=ids, input_features=features, **HOW)[:, ids.shape[1] :]
        again = to_model_inputs(path, voxtral, Letters(), "What?")
        assert torch.equal(voxtral.generate(**again, **HOW), own)
        return
    mask = torch.ones_like(ids)
    mask[0, 3 + count : 28] = 0
    places = torch.arange(ids.shape[1])[None]
    with torch.no_grad():
        hidden = voxtral(
            input_ids=ids, input_features=features, attention_mask=mask, position_ids=places
        ).logits[mask.bool()]
    got = paths.logits(voxtral, inputs)[0]
    assert torch.equal(inputs["position_ids"], places[:, mask[0].bool()])
    assert torch.allclose(got, hidden, atol=1e-5, rtol=0)
