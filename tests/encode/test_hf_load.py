"""Loading of transformers models: only the front end, only tensors, every lack by its name."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tokpipe.encode._hf.load import front_end, placed, read_config
from tokpipe.encode._weights import digest_of
from tokpipe.encode.hf_vision import FAMILIES, HfVision, family_of
from tokpipe.errors import ModelError, RecipeError, ResourceError, WeightsMismatch, WeightsMissing

tf = pytest.importorskip("transformers", minversion="5.18")
pytest.importorskip("torchvision")

LAYERS = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
}  # fmt: skip
VISION = LAYERS | {"image_size": 32, "patch_size": 8}
TEXT = LAYERS | {"vocab_size": 64, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
FILE = "model.safetensors"


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    tf.logging.set_verbosity_error()
    tf.logging.disable_progress_bar()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture
def clip(tmp_path: Path) -> HfVision:
    """A tiny CLIP in a folder of its own."""
    torch.manual_seed(0)
    config = tf.CLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=16)
    folder = tmp_path / "clip"
    tf.CLIPModel(config).save_pretrained(folder)
    tf.CLIPImageProcessor(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    ).save_pretrained(folder)
    return HfVision(model=str(folder))


def state_of(settings: HfVision) -> dict[str, Tensor]:
    return load_file(Path(settings.model) / FILE)


def write(settings: HfVision, state: dict[str, Tensor]) -> None:
    save_file(state, Path(settings.model) / FILE, metadata={"format": "pt"})


# What is read.


def test_only_the_vision_half_is_built_and_read(clip: HfVision) -> None:
    """Without any tensor of the text half it still loads, and to the same digest."""
    whole = clip.load().weights
    write(clip, {n: t for n, t in state_of(clip).items() if not n.startswith("text")})
    tower: Any = clip.load()
    assert tower.weights == whole
    names = {name for name, _ in tower._model.named_parameters()}
    assert not any("text" in name for name in names)
    assert len(names) > 30


@pytest.mark.parametrize("names", ["as saved", "until 4.51", "since 4.52"])
def test_the_front_end_of_a_multimodal_model_has_no_language_model(
    tmp_path: Path, names: str
) -> None:
    config = tf.LlavaConfig(
        vision_config=tf.CLIPVisionConfig(**VISION),
        text_config=tf.LlamaConfig(**TEXT | {"num_key_value_heads": 4}),
        image_token_index=63,
    )
    torch.manual_seed(1)
    model = tf.LlavaForConditionalGeneration(config).eval()
    own: Any = model.model
    # In several files, as large models come.
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    if names != "as saved":
        rename(tmp_path, names)
    made = front_end(
        tf.LlavaModel, read_config(str(tmp_path)), HfVision(model=str(tmp_path)),
        drop=("language_model",),
    )  # fmt: skip
    assert digest_of(made.vision_tower) == digest_of(own.vision_tower)
    assert digest_of(made.multi_modal_projector) == digest_of(own.multi_modal_projector)
    assert not list(made.language_model.parameters())
    assert not any(p.requires_grad for p in made.parameters()) and not made.training
    pixels = torch.randn(1, 3, 32, 32)
    with torch.inference_mode():
        here: Tensor = made.get_image_features(pixels).pooler_output[0]
        there: Tensor = own.get_image_features(pixels).pooler_output[0]
    assert torch.equal(here, there)


def rename(folder: Path, names: str) -> None:
    """Give tensors the names they had in checkpoints of other versions."""
    shards = list(folder.glob("*.safetensors"))
    assert len(shards) > 3
    index = folder / "model.safetensors.index.json"
    weight_map = json.loads(index.read_text())
    for shard in shards:
        state = load_file(shard)
        renamed = {}
        for name, tensor in state.items():
            old = name.replace("vision_tower.", "vision_tower.vision_model.")
            if names == "since 4.52":
                old = old.replace("language_model.lm_head", "lm_head")
                old = old.replace("language_model.model", "language_model")
                old = old if old.startswith("lm_head") else f"model.{old}"
            renamed[old] = tensor
            weight_map["weight_map"][old] = weight_map["weight_map"].pop(name)
        save_file(renamed, shard, metadata={"format": "pt"})
    index.write_text(json.dumps(weight_map))


def test_names_of_older_versions_are_understood(clip: HfVision, tmp_path: Path) -> None:
    config = tf.CLIPVisionConfig(**VISION, projection_dim=16)
    torch.manual_seed(1)
    model = tf.CLIPVisionModelWithProjection(config)
    model.save_pretrained(tmp_path / "alone")
    for file in Path(clip.model).glob("*processor*.json"):
        (tmp_path / "alone" / file.name).write_bytes(file.read_bytes())
    alone = HfVision(model=str(tmp_path / "alone"))
    state = state_of(alone)
    assert all(n.startswith(("vision_model.", "visual_projection.")) for n in state)
    assert alone.load().weights == digest_of(model.vision_model, model.visual_projection)
    assert "text_space" in alone.outline().extras and not alone.outline().text


def test_stored_tensors_change_precision_and_computed_ones_do_not() -> None:
    module = torch.nn.Module()
    module.register_parameter("weight", torch.nn.Parameter(torch.randn(3)))
    module.register_buffer("stored", torch.randn(3))
    inner = torch.nn.Module()
    inner.register_buffer("table", torch.randn(3), persistent=False)
    module.add_module("inner", inner)
    before = inner.get_buffer("table")
    made = placed(module, torch.device("cpu"), torch.bfloat16)
    assert made.weight.dtype == made.stored.dtype == torch.bfloat16
    assert torch.equal(made.inner.table, before) and made.inner.table.dtype == torch.float32


# Where weights come from.


def test_weights_may_be_a_file_a_folder_or_torch_tensors(clip: HfVision, tmp_path: Path) -> None:
    here = clip.load().weights
    state = state_of(clip)
    torch.save(state, tmp_path / "weights.pt")
    old = tmp_path / "old"
    old.mkdir()
    torch.save(state, old / "pytorch_model.bin")
    bare = tmp_path / "bare"
    bare.mkdir()
    save_file(state, bare / FILE, metadata={"format": "pt"})
    (Path(clip.model) / FILE).unlink()
    for place in (tmp_path / "weights.pt", old, bare, bare / FILE):
        assert replace(clip, weights=str(place)).load().weights == here


def test_a_folder_with_its_own_configuration_is_the_model(clip: HfVision) -> None:
    settings = HfVision(model="somebody/not-here", weights=clip.model)
    assert settings.places(32, 32).grid == (4, 4)
    assert settings.load().weights == clip.load().weights


def test_random_weights_repeat_and_leave_the_generator_alone(clip: HfVision) -> None:
    drawn = replace(clip, weights="random")
    (Path(clip.model) / FILE).unlink()
    torch.manual_seed(5)
    first = torch.get_rng_state()
    one, two = drawn.load(), drawn.load()
    assert one.weights == two.weights
    assert torch.equal(torch.get_rng_state(), first)
    assert not torch.are_deterministic_algorithms_enabled()
    tokens = one.encode(one.prepare(torch.zeros(1, 32, 32, 3, dtype=torch.uint8))).data
    assert tokens.isfinite().all() and tokens.std() > 0.01


# Digests.


def test_the_digest_is_recorded_and_another_is_refused(clip: HfVision) -> None:
    tower = clip.load()
    assert tower.weights.startswith("sha256:") and len(tower.weights) == 71
    assert replace(clip, digest=tower.weights).load().weights == tower.weights
    state = state_of(clip)
    state["vision_model.post_layernorm.bias"][0] += 1e-6
    write(clip, state)
    with pytest.raises(WeightsMismatch, match="not those on record"):
        replace(clip, digest=tower.weights).load()
    # The text half does not count: no token depends on it.
    write(clip, state | {"text_projection.weight": torch.zeros(16, 32)})
    assert clip.load().weights != tower.weights


# What is refused.


def test_a_missing_tensor_is_named(clip: HfVision) -> None:
    state = state_of(clip)
    del state["vision_model.encoder.layers.1.mlp.fc1.bias"]
    write(clip, state)
    with pytest.raises(WeightsMissing, match=r"1 tensors .*encoder\.layers\.1\.mlp\.fc1\.bias"):
        clip.load()


def test_a_wrong_shape_is_named(clip: HfVision) -> None:
    state = state_of(clip)
    state["visual_projection.weight"] = torch.zeros(8, 32)
    write(clip, state)
    with pytest.raises(WeightsMismatch, match=r"visual_projection\.weight.*\[8, 32\].*\[16, 32\]"):
        clip.load()


class Code:
    """What a hostile checkpoint could hold."""

    ran = False

    def __reduce__(self) -> tuple[Any, ...]:
        return (setattr, (Code, "ran", True))


@pytest.mark.parametrize("name", ["weights.pt", "pytorch_model.bin"])
def test_pickled_code_is_refused_and_never_runs(clip: HfVision, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "hostile"
    folder.mkdir()
    with (folder / name).open("wb") as file:
        pickle.dump({"weight": Code()}, file)
    place = folder if name == "pytorch_model.bin" else folder / name
    with pytest.raises(WeightsMismatch, match="cannot be read"):
        replace(clip, weights=str(place)).load()
    assert not Code.ran


def test_code_of_a_model_repository_never_runs(clip: HfVision, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    folder = tmp_path / "foreign"
    folder.mkdir()
    (folder / "foreign.py").write_text(f"open({str(mark)!r}, 'w').close()\nclass Foreign: ...\n")
    config = {"model_type": "foreign", "auto_map": {"AutoConfig": "foreign.Foreign"}}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"config\.json.*cannot be used") as caught:
        HfVision(model=str(folder)).outline()
    assert caught.value.hint is not None and "no code" in caught.value.hint
    assert not mark.exists()


def test_an_unknown_kind_names_those_that_work(tmp_path: Path) -> None:
    tf.BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=4).save_pretrained(
        tmp_path
    )
    with pytest.raises(ModelError, match="kind `bert`") as caught:
        HfVision(model=str(tmp_path)).outline()
    assert all(kind in str(caught.value.hint) for kind in FAMILIES)


@pytest.mark.parametrize("name", ["openai/not-cached-here", "/no/such/folder", "./nor/this"])
def test_a_model_that_is_not_there_says_what_to_do(name: str) -> None:
    with pytest.raises(WeightsMissing, match=r"no config\.json of") as caught:
        HfVision(model=name).outline()
    local = name.startswith(("/", "."))
    assert ("check the folder" if local else "hf download") in str(caught.value.hint)


def test_weights_that_are_not_there(clip: HfVision, tmp_path: Path) -> None:
    with pytest.raises(WeightsMissing, match="no weights at"):
        replace(clip, weights=str(tmp_path / "none.safetensors")).load()
    (Path(clip.model) / FILE).unlink()
    with pytest.raises(WeightsMissing, match="no weights of"):
        clip.load()


def test_a_processor_that_is_not_there_is_named(clip: HfVision) -> None:
    for file in Path(clip.model).glob("*processor*.json"):
        file.unlink()
    with pytest.raises(WeightsMissing, match="image processor"):
        clip.outline()


def test_a_precision_that_is_none(clip: HfVision) -> None:
    with pytest.raises(ResourceError, match="cannot run in `int8`"):
        clip.load(dtype="int8")


def test_every_family_can_be_imported_and_is_asked_once(clip: HfVision) -> None:
    from importlib import import_module

    for target in FAMILIES.values():
        module, _, name = target.partition(":")
        kind = getattr(import_module(module), name)
        assert all(hasattr(kind, part) for part in ("outline", "places", "load"))
    assert family_of(clip) is family_of(replace(clip))
    assert clip.places(40, 50) is clip.places(40, 50)


def test_a_folder_has_no_revision(clip: HfVision) -> None:
    with pytest.raises(RecipeError, match="has no revision `main`"):
        replace(clip, revision="main").outline()
