"""Local models that are damaged or of another kind: what is wrong is said by its name."""

from __future__ import annotations

import json
import logging
import pickle
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tokpipe.encode._compiled import quiet_compiler
from tokpipe.encode._weights import load_state
from tokpipe.encode.hf_vision import HfVision
from tokpipe.errors import ModelError, TokpipeError, WeightsMismatch, WeightsMissing

tf = pytest.importorskip("transformers", minversion="5.18")
pytest.importorskip("torchvision")
FILE, INDEX = "model.safetensors", "model.safetensors.index.json"
WEIGHT = "encoder.layers.0.mlp.fc1.weight"


@pytest.fixture
def clip(tmp_path: Path) -> HfVision:
    """A tiny tower in a folder of its own."""
    tf.logging.disable_progress_bar()
    torch.manual_seed(0)
    config = tf.CLIPVisionConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=64,
        image_size=32, patch_size=8,
    )  # fmt: skip
    folder = tmp_path / "clip"
    tf.CLIPVisionModel(config).save_pretrained(folder)
    size = {"height": 32, "width": 32}
    tf.CLIPImageProcessor(size=size, crop_size=size).save_pretrained(folder)
    return HfVision(model=str(folder))


@pytest.mark.parametrize(
    ("text", "words"),
    [("{", "is no JSON"), ("", "is no JSON"), ("[]", "no JSON object"), (None, "no config.json")],
)
def test_a_configuration_that_cannot_be_read(clip: HfVision, text: str | None, words: str) -> None:
    path = Path(clip.model) / "config.json"
    path.unlink()
    if text is not None:
        path.write_text(text)
    with pytest.raises(ModelError, match=words) as caught:
        clip.outline()
    assert "folder" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("index", "words"),
    [({"weight_map": {}}, "no table `metadata`"), ({"metadata": {}}, "no table `weight_map`"),
     ([], "no table"), ({"metadata": {}, "weight_map": {"a": "gone"}}, "`gone`, which is not"),
     (None, "is no JSON")],
)  # fmt: skip
def test_an_index_that_cannot_be_used(clip: HfVision, index: Any, words: str) -> None:
    folder = Path(clip.model)
    (folder / FILE).rename(folder / "model-00001-of-00001.safetensors")
    (folder / INDEX).write_text("{" if index is None else json.dumps(index))
    with pytest.raises(TokpipeError, match=words):
        clip.load()


def test_whole_numbers_are_no_weights(clip: HfVision) -> None:
    path = Path(clip.model) / FILE
    state = load_file(path)
    name = next(name for name in state if name.endswith(WEIGHT))
    state[name] = state[name].sign().to(torch.int8)
    # What holds no parameter may be of whole numbers: old checkpoints number their positions.
    state["vision_model.embeddings.position_ids"] = torch.arange(17)[None]
    save_file(state, path, metadata={"format": "pt"})
    torch.save(state, path.with_name("own.pt"))
    own = replace(clip, weights=str(path.with_name("own.pt")))
    with pytest.raises(WeightsMismatch, match=f"{WEIGHT}` of `own.pt` holds whole numbers"):
        own.load()
    with pytest.raises(WeightsMismatch, match=f"{WEIGHT}` of `/.*holds whole numbers"):
        clip.load()
    path.unlink()
    path.with_name("own.pt").replace(path.with_name("pytorch_model.bin"))
    with pytest.raises(WeightsMismatch, match="holds whole numbers"):
        clip.load()
    state[name] = state[name].half()
    torch.save(state, path.with_name("pytorch_model.bin"))
    clip.load()


class Code:
    """What a hostile checkpoint could hold."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (exec, ("raise SystemExit",))


@pytest.mark.parametrize("protocol", [2, 4])
def test_pickles_are_refused_in_our_own_words(clip: HfVision, protocol: int) -> None:
    folder = Path(clip.model)
    (folder / FILE).unlink()
    evil = folder / "pytorch_model.bin"
    evil.write_bytes(pickle.dumps({"weight": Code()}, protocol))
    for load in (clip.load, replace(clip, weights=str(evil)).load):
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            with pytest.raises(WeightsMismatch, match="more than tensors") as caught:
                load()
        assert not said and "weights_only" not in f"{caught.value} {caught.value.hint}"


def test_what_is_no_checkpoint_at_all(tmp_path: Path) -> None:
    path = tmp_path / "notes.pt"
    path.write_text("hello")
    with pytest.raises(WeightsMismatch, match="no file of torch"):
        load_state(path)
    with pytest.raises(WeightsMissing, match="no weights at"):
        load_state(tmp_path / "none.pt")


def test_a_path_of_several_folders_is_no_name_on_the_hub(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(WeightsMissing) as caught:
        HfVision(model="models/of/mine").outline()
    assert "hf download" not in str(caught.value.hint)


def test_the_compiler_does_not_say_that_there_is_no_gpu(tmp_path: Path) -> None:
    """In a process of its own: the library looks for a toolkit once, when it is imported."""
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    run = (
        "from tokpipe.encode._compiled import quiet_compiler\n"
        "quiet_compiler()\n"
        "import torch.utils.cpp_extension as c\n"
        "assert c.CUDA_HOME\n"
        "c.logger.warning('something else')"
    )
    found = subprocess.run(
        [sys.executable, "-c", run], env={"CUDA_HOME": str(tmp_path), "PATH": ""},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "No CUDA runtime" not in found.stderr and "something else" in found.stderr
    quiet_compiler()
    quiet_compiler()
    assert len(logging.getLogger("torch.utils.cpp_extension").filters) == 1
