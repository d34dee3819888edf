"""Choices of LLaVA and InternVL configurations: hidden states, towers, newlines; refusals."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tokpipe.encode.hf_vision import HfVision
from tokpipe.errors import ModelError

Front = Callable[[str], Any]


def changed(front: Any, folder: Path, **values: Any) -> HfVision:
    """The same model with other values in its configuration."""
    shutil.copytree(front.folder, folder / "m")
    path = folder / "m" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    found: HfVision = front.of(model=str(folder / "m"))
    return found


def saved(model: Any, front: Any, folder: Path) -> Any:
    """The model, in eval mode, saved beside another's processor."""
    model.save_pretrained(folder)
    front.image.save_pretrained(folder)
    return model.eval()


def frames() -> torch.Tensor:
    drawn = torch.Generator().manual_seed(7)
    return torch.randint(0, 256, (2, 40, 60, 3), generator=drawn, dtype=torch.uint8)


def test_several_hidden_states_lie_side_by_side(front_of: Front, tmp_path: Path) -> None:
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    front = front_of("llava")
    config = LlavaConfig.from_pretrained(front.folder)
    config.vision_feature_layer = [0, 2, -1]
    torch.manual_seed(3)
    model = saved(LlavaForConditionalGeneration(config), front, tmp_path)
    post = front.of(model=str(tmp_path)).load()
    prepared = post.prepare(frames())
    with torch.inference_mode():
        expected = model.model.get_image_features(prepared[:, 0]).pooler_output
    assert torch.equal(post.encode(prepared).data, torch.stack(expected))
    assert post.outline.about["layer"] == [0, 2, 3]
    pre = front.of(model=str(tmp_path), stage="pre_projector")
    assert pre.outline().dim == pre.load().encode(prepared).data.shape[2] == 96


def test_a_tower_without_class_token_keeps_all_patches(front_of: Front, tmp_path: Path) -> None:
    from transformers import (
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        SiglipVisionConfig,
    )

    text = json.loads((front_of("llava").folder / "config.json").read_text())["text_config"]
    vision = SiglipVisionConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        image_size=32, patch_size=8, vision_use_head=False,
    )  # fmt: skip
    config = LlavaConfig(
        vision_config=vision, text_config=LlamaConfig(**text), image_token_index=1,
        vision_feature_select_strategy="full",
    )  # fmt: skip
    torch.manual_seed(3)
    model = saved(LlavaForConditionalGeneration(config), front_of("llava"), tmp_path)
    tower = front_of("llava").of(model=str(tmp_path)).load()
    prepared = tower.prepare(frames())
    with torch.inference_mode():
        expected = model.model.get_image_features(prepared[:, 0]).pooler_output
    assert torch.equal(tower.encode(prepared).data, torch.stack(expected))
    assert "attention" not in tower.outline.extras and "received" in tower.outline.extras


def test_a_class_token_among_the_tokens_is_refused(front_of: Front, tmp_path: Path) -> None:
    operator = changed(front_of("llava"), tmp_path, vision_feature_select_strategy="full")
    with pytest.raises(ModelError, match="`full`") as caught:
        operator.outline()
    assert "class token" in str(caught.value.hint)


def test_a_tower_of_another_kind_is_named(front_of: Front, tmp_path: Path) -> None:
    vision = {"model_type": "pixtral", "hidden_size": 32, "num_attention_heads": 4}
    operator = changed(front_of("llava"), tmp_path, vision_config=vision)
    with pytest.raises(ModelError, match="`pixtral`") as caught:
        operator.places(20, 30)
    assert "clip_vision_model" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("name", "values", "said"),
    [
        ("internvl", {"downsample_ratio": 0.2}, "do not fill groups of 5"),
        ("internvl", {"vision_feature_select_strategy": "full"}, "`full`"),
        ("internvl", {"vision_feature_layer": [1, 2]}, "several layers"),
        ("smolvlm", {"scale_factor": 3}, "do not fill groups of 3"),
    ],
)
def test_a_configuration_that_cannot_be_is_named(
    front_of: Front, tmp_path: Path, name: str, values: dict[str, Any], said: str
) -> None:
    with pytest.raises(ModelError, match=said) as caught:
        changed(front_of(name), tmp_path, **values).outline()
    assert caught.value.hint


def test_crops_packed_by_an_unknown_rule_are_refused(front_of: Front, tmp_path: Path) -> None:
    operator = changed(front_of("llava_onevision"), tmp_path, vision_aspect_ratio="pad")
    assert len(operator.places(50, 91)) == 9
    tiled = front_of("llava_onevision").of(model=operator.model, tiles=True)
    with pytest.raises(ModelError, match="`pad`"):
        tiled.places(50, 91)


def test_a_hidden_state_between_is_taken_before_pixel_shuffle(
    front_of: Front, tmp_path: Path
) -> None:
    front = front_of("internvl")
    operator = changed(front, tmp_path, vision_feature_layer=-2)
    tower = operator.load()
    prepared = tower.prepare(frames())
    with torch.inference_mode():
        expected = front.model.get_image_features(prepared[:, 0], vision_feature_layer=-2)
    assert torch.equal(tower.encode(prepared).data, expected.pooler_output)
    assert tower.outline.about["layer"] == 2 and not tower.outline.about["final_norm"]


def test_the_newline_of_a_video_is_left_to_the_export(front_of: Front) -> None:
    front = front_of("llava_onevision")
    about = front.of().outline().about
    assert about["newlines"] == "one a video, added at export" and about["pool"] != "none"
    tower = front.of().load()
    prepared = tower.prepare(frames())
    with torch.inference_mode():
        video = front.model.get_video_features(prepared[:, 0][None]).pooler_output[0]
    flat = tower.encode(prepared).data.flatten(0, 1)
    assert torch.equal(torch.cat([flat, front.model.image_newline[None]]), video)


def test_cropping_with_an_odd_border_rounds_as_the_processor(
    front_of: Front, tmp_path: Path
) -> None:
    front = front_of("llava")
    path = tmp_path / "m" / "preprocessor_config.json"
    operator = changed(front, tmp_path)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"size": {"shortest_edge": 37}}))
    own = type(front)(front.name, tmp_path / "m", "crop").image
    found = operator.load().prepare(frames())[:, 0]
    expected = own(list(frames().permute(0, 3, 1, 2)), return_tensors="pt")["pixel_values"]
    assert torch.equal(found, torch.as_tensor(expected))
    # 37 of 55 pixels wide, 32 are seen: from 11 and 2 on.
    assert operator.places(40, 60).box[0, :2].tolist() == pytest.approx([2 / 37, 11 / 55])
