"""Vision towers of the Omni thinkers against the models' own paths, at random weights."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("transformers", minversion="5.18")
pytest.importorskip("torchvision")

import tokpipe
from tokpipe.encode.hf_vision import HfVision, family_of

transformers: Any = importlib.import_module("transformers")
KINDS = {
    "qwen2_5_omni": "Qwen2_5OmniThinkerForConditionalGeneration",
    "qwen3_omni": "Qwen3OmniMoeThinkerForConditionalGeneration",
}
_VISION = {
    "depth": 3, "hidden_size": 32, "intermediate_size": 40, "out_hidden_size": 48, "num_heads": 2,
    "patch_size": 4, "spatial_merge_size": 2,
}  # fmt: skip
_MORE: dict[str, dict[str, Any]] = {
    "qwen2_5_omni": {"window_size": 16, "fullatt_block_indexes": [1]},
    "qwen3_omni": {"num_position_embeddings": 36, "deepstack_visual_indexes": [0, 1]},
}
_TEXT = {
    "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 100, "head_dim": 12, "num_experts": 2,
    "moe_intermediate_size": 16,
    "rope_parameters": {"rope_type": "default", "mrope_section": [2, 2, 2], "rope_theta": 1e4},
}  # fmt: skip
_AUDIO = {
    "d_model": 32, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 32,
    "num_mel_bins": 80, "output_dim": 48,
}  # fmt: skip


@dataclass(frozen=True)
class Tiny:
    model: Any
    image: Any
    path: Path

    def of(self, **more: Any) -> HfVision:
        return HfVision(model=str(self.path), **{"stage": "post_projector", **more})

    @torch.inference_mode()
    def own(self, pixels: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Tokens of pictures uint8 [T, H, W, 3], and the rows beside them, by the model."""
        fed = self.image(images=list(pixels.permute(0, 3, 1, 2)), return_tensors="pt")
        owner = self.model if hasattr(self.model, "visual") else self.model.model
        found = owner.get_image_features(fed["pixel_values"], fed["image_grid_thw"])
        rows = found.pooler_output
        deep = getattr(found, "deepstack_features", None) or []
        return torch.cat(list(rows)), [torch.cat(list(level)) for level in deep]


@pytest.fixture(scope="module")
def tiny_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Tiny]:
    return cache(lambda kind: make(kind, tmp_path_factory.mktemp(kind)))


@pytest.fixture(params=KINDS)
def tiny(request: pytest.FixtureRequest, tiny_of: Callable[[str], Tiny]) -> Tiny:
    return tiny_of(request.param)


def make(kind: str, folder: Path) -> Tiny:
    transformers.utils.logging.set_verbosity_error()
    torch.manual_seed(5)
    made = getattr(transformers, KINDS[kind])
    config = made.config_class(
        audio_config=_AUDIO, vision_config={**_VISION, **_MORE[kind]}, text_config=_TEXT
    )
    model = made(config).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.15)
    image = transformers.Qwen2VLImageProcessor(
        patch_size=4, size={"shortest_edge": 64, "longest_edge": 40_000}
    )
    model.save_pretrained(folder)
    image.save_pretrained(folder)
    return Tiny(model, image, folder)


def pictures(count: int) -> Tensor:
    made = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 32, 48, 3), dtype=torch.uint8, generator=made)


def test_tokens_are_the_models_own(tiny: Tiny) -> None:
    tower, seen = tiny.of().load(), pictures(3)
    made = tower.encode(tower.prepare(seen))
    rows, deep = tiny.own(seen)
    assert torch.equal(made.data.flatten(0, 1), rows)
    assert len(made.deepstack) == len(deep) == tower.outline.deepstack
    for mine, own in zip(made.deepstack, deep, strict=True):
        assert torch.equal(mine.flatten(0, 1), own)


def test_some_groups_alone_keep_their_places(tiny: Tiny) -> None:
    tower, seen = tiny.of().load(), pictures(1)
    prepared = tower.prepare(seen)
    whole = tower.encode(prepared).data[0]
    every = tower.encode_kept(prepared, torch.ones(24, dtype=torch.bool))
    assert torch.allclose(every.data[0], whole, atol=1e-5)
    live = torch.rand(24, generator=torch.manual_seed(1)) < 0.5
    few = tower.encode_kept(prepared, live)
    assert few.data.shape == (1, int(live.sum()), 48)


def test_projecting_the_rows_before_gives_the_tokens(tiny: Tiny) -> None:
    before: Any = tiny.of(stage="pre_projector").load()
    after, seen = tiny.of().load(), pictures(2)
    made = before.encode(before.prepare(seen))
    wanted = after.encode(after.prepare(seen))
    assert made.data.shape[-1] == 4 * 32 and before.weights == after.weights
    with torch.inference_mode():
        # The merger takes a group's patches one after another.
        projected = before.project(made.data.reshape(-1, 32))
    assert torch.equal(projected.reshape(wanted.data.shape), wanted.data)
    for check in (False, True):
        alone = family_of(tiny.of()).load_projector(torch.device("cpu"), torch.float32, check=check)
        with torch.inference_mode():
            assert torch.equal(alone.project(made.data.flatten(0, 1)), wanted.data.flatten(0, 1))
            for project, before_it, after_it in zip(
                alone.levels, made.deepstack, wanted.deepstack, strict=True
            ):
                assert torch.equal(project(before_it.flatten(0, 1)), after_it.flatten(0, 1))


def test_columns_show_the_last_block_that_sees_whole_pictures(tiny: Tiny) -> None:
    tower = tiny.of().load()
    made = tower.encode(tower.prepare(pictures(2)), frozenset(tower.outline.extras)).columns
    assert set(made) == {"received", "received_middle", "keys", "queries"}
    assert made["keys"].shape == (2, 24, 2, 16)
    # A group's is the mean over its four patches; what all patches receive sums to one.
    assert torch.allclose(made["received"].sum(1) * 4, torch.ones(2), atol=1e-4)


def test_weights_are_those_of_the_model_in_memory_and_of_the_whole_checkpoint(
    tiny: Tiny, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    weights = tiny.of().load().weights
    assert tokpipe.encoder_facts(tiny.model)["weights"] == weights
    config = json.loads((tiny.path / "config.json").read_text())
    whole = {"model_type": config["model_type"].removesuffix("_thinker"),
             "thinker_config": config, "enable_audio_output": False}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(whole))
    tiny.image.save_pretrained(tmp_path)
    state = load_file(tiny.path / "model.safetensors")
    named = {f"thinker.{name}": value for name, value in state.items()}
    save_file(named, tmp_path / "model.safetensors", metadata={"format": "pt"})
    found = HfVision(model=str(tmp_path), stage="post_projector").load()
    assert found.weights == weights
    seen = pictures(1)
    assert torch.equal(found.encode(found.prepare(seen)).data[0], tiny.own(seen)[0])
