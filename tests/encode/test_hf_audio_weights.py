"""Weights and settings of sound towers through transformers, and Whisper's picture."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

from tokpipe.encode._sound.family import whisper_picture
from tokpipe.encode.hf_audio import HfAudio
from tokpipe.errors import ModelError, WeightsMismatch, WeightsMissing


def _beside(name: str) -> ModuleType:
    """A module that lies beside this one; tests are no package."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parent / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


kinds = _beside("sound_models")
KINDS = list(kinds.MAKERS)
PROJECTED = [kind for kind in KINDS if kind not in ("whisper", "ast")]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Any, str]]:
    """The model of each kind, and the folder it is saved in."""
    folder = tmp_path_factory.mktemp("models")
    return {kind: (kinds.make(kind, folder / kind), str(folder / kind)) for kind in KINDS}


def operator(models: dict[str, tuple[Any, str]], kind: str, **more: Any) -> HfAudio:
    """The operator at the stage the model's own path ends with."""
    stage = "post_projector" if kind in PROJECTED else "pre_projector"
    return HfAudio(**{"model": models[kind][1], "stage": stage, **more})


def test_digest_is_of_the_tensors(models: dict[str, tuple[Any, str]], tmp_path: Path) -> None:
    folder = Path(models["qwen2_audio"][1])
    tower = operator(models, "qwen2_audio").load()
    assert tower.weights.startswith("sha256:")
    shutil.copy(folder / "model.safetensors", tmp_path / "copy.safetensors")
    again = operator(models, "qwen2_audio", weights=str(tmp_path / "copy.safetensors"),
                     digest=tower.weights, stage="pre_projector").load()  # fmt: skip
    assert again.weights == tower.weights
    with pytest.raises(WeightsMismatch, match="not those on record"):
        operator(models, "qwen2_audio", digest="sha256:" + "0" * 64).load()


def test_weights_drawn_at_random_are_always_the_same(models: dict[str, tuple[Any, str]]) -> None:
    first, second = (operator(models, "whisper", weights="random").load() for _ in range(2))
    assert first.weights == second.weights
    assert first.weights != operator(models, "whisper").load().weights


@pytest.mark.parametrize("kind", ["qwen2_5_omni", "qwen3_omni"])
def test_whole_omni_checkpoints_as_published(
    models: dict[str, tuple[Any, str]], kind: str, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    folder = Path(models[kind][1])
    config = json.loads((folder / "config.json").read_text())
    whole = {"model_type": config["model_type"].removesuffix("_thinker"),
             "thinker_config": config, "enable_audio_output": False}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(whole))
    state = load_file(folder / "model.safetensors")
    named = {f"thinker.{name}": value for name, value in state.items()}
    save_file(named, tmp_path / "model.safetensors", metadata={"format": "pt"})
    found = HfAudio(model=str(tmp_path), stage="post_projector").load()
    assert found.weights == operator(models, kind).load().weights


def test_unknown_and_absent_models(tmp_path: Path) -> None:
    with pytest.raises(WeightsMissing):
        HfAudio(model=str(tmp_path / "none")).outline()
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ModelError, match="kind `bert`") as caught:
        HfAudio(model=str(tmp_path)).outline()
    assert "whisper" in str(caught.value.hint)


def test_another_extractor_than_the_configuration_asks_for(
    models: dict[str, tuple[Any, str]], tmp_path: Path
) -> None:
    transformers: Any = pytest.importorskip("transformers")
    shutil.copytree(models["whisper"][1], tmp_path / "model")
    transformers.WhisperFeatureExtractor(feature_size=128).save_pretrained(tmp_path / "model")
    with pytest.raises(ModelError, match="feature_size = 128"):
        HfAudio(model=str(tmp_path / "model")).load()


def test_a_chunk_too_long_is_refused(models: dict[str, tuple[Any, str]]) -> None:
    tower = operator(models, "whisper").load()
    with pytest.raises(ValueError, match="a chunk has 32000"):
        tower.encode([torch.zeros(32_001)])


def test_outline_reads_no_weights(models: dict[str, tuple[Any, str]], tmp_path: Path) -> None:
    shutil.copy(Path(models["voxtral"][1]) / "config.json", tmp_path)
    operated = HfAudio(model=str(tmp_path), stage="post_projector")
    outline = operated.outline()
    assert (outline.dim, outline.rate, outline.text, outline.sparse) == (48, 16_000, False, False)
    assert outline.about["family"] == "voxtral" and outline.about["chunk_exact"] is True
    assert operated.chunk() == 32_000
    with pytest.raises(WeightsMissing):
        operated.load()


# Whisper's picture.


@pytest.mark.parametrize("bins", [80, 128])
@pytest.mark.parametrize("samples", [480_000, 123_457, 300])
def test_picture_is_the_extractors_to_the_bit(bins: int, samples: int) -> None:
    transformers: Any = pytest.importorskip("transformers")
    wave = kinds.sound(samples)
    extractor = transformers.WhisperFeatureExtractor(feature_size=bins)
    own = extractor(wave.numpy(), sampling_rate=16_000, return_tensors="pt").input_features[0]
    assert torch.equal(whisper_picture(wave, bins, 480_000), own)


def test_picture_of_almost_nothing() -> None:
    made = whisper_picture(kinds.sound(180), 80, 180)
    assert made.shape == (80, 1) and made.isfinite().all()
