"""A rule inside towers as encoders load them: layer, stage and projector hold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tokpipe.compress.similarity.tome import ToMe
from tokpipe.encode._merging.in_encoder import InEncoder
from tokpipe.encode._merging.options import rule_of, with_inside
from tokpipe.encode.hf_vision import HfVision
from tokpipe.encode.open_clip import OpenClip
from tokpipe.errors import ModelError, RecipeError
from tokpipe.tensors import TokenBatch

VIT = {"image_size": 32, "patch_size": 8, "width": 64, "layers": 3, "head_width": 16}
SIGLIP = {"image_size": 160, "timm_model_name": "test_vit", "timm_model_pretrained": False,
          "timm_pool": "map", "timm_proj": "none"}  # fmt: skip
COCA = VIT | {"attentional_pool": True, "attn_pooler_heads": 4, "output_tokens": True}
RESNET = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 16, "patch_size": None}
TEXT = {"context_length": 8, "vocab_size": 64, "width": 32, "heads": 2, "layers": 1}


def open_clip_tower(folder: Path, vision: dict[str, Any], **how: Any) -> Any:
    pytest.importorskip("open_clip")
    config = {"model_cfg": {"embed_dim": 64, "vision_cfg": vision, "text_cfg": TEXT}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    return OpenClip(model=f"local-dir:{folder}", weights="random", **how).load()


def hf_tower(folder: Path, name: str, **how: Any) -> Any:
    tf = pytest.importorskip("transformers", minversion="5.18")
    pytest.importorskip("torchvision")
    config = getattr(tf, f"{name}Config")(
        hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=64,
        image_size=32, patch_size=8,
    )  # fmt: skip
    torch.manual_seed(0)
    getattr(tf, f"{name}Model")(config).save_pretrained(folder)
    size = {"height": 32, "width": 32}
    tf.CLIPImageProcessor(size=size, crop_size=size).save_pretrained(folder)
    return HfVision(model=str(folder), **how).load()


def pictures(count: int = 3) -> Tensor:
    draw = torch.Generator().manual_seed(3)
    return torch.randint(0, 256, (count, 32, 32, 3), dtype=torch.uint8, generator=draw)


TOWERS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "open_clip": (open_clip_tower, VIT, {}),
    "open_clip-layer": (open_clip_tower, VIT, {"layer": -2}),
    "open_clip-projected": (open_clip_tower, VIT, {"stage": "post_projector"}),
    "timm": (open_clip_tower, SIGLIP, {}), "coca": (open_clip_tower, COCA, {}),
    "clip": (hf_tower, "CLIPVision", {}), "clip-layer": (hf_tower, "CLIPVision", {"layer": 2}),
    "siglip": (hf_tower, "SiglipVision", {}), "dinov2": (hf_tower, "Dinov2", {}),
}  # fmt: skip


@pytest.fixture(params=TOWERS)
def tower(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    make, what, how = TOWERS[request.param]
    return make(tmp_path, what, **how)


def test_an_idle_rule_leaves_every_token_as_it_is(tower: Any) -> None:
    inside = with_inside(tower, InEncoder(ToMe()), "tome")
    prepared = inside.prepare(pictures())
    found, own = inside.encode(prepared).data, tower.encode(prepared).data
    # The last norm and a projector run on rows of another shape.
    torch.testing.assert_close(found, own, atol=1e-6, rtol=1e-6)
    assert inside.outline.about["inside"] == "tome" and inside.weights == tower.weights


def test_a_rule_merges_what_the_tower_has_patches_for(tower: Any) -> None:
    inside = with_inside(tower, rule_of("tome:r=3", "0-1"))
    found, maps = inside.encode_merged(inside.prepare(pictures()))
    own = tower.encode(tower.prepare(pictures())).data
    patches = own.shape[1]
    for one, each in zip(found, maps, strict=True):
        assert one.data.shape == (1, patches - 6, own.shape[2])
        assert one.data.dtype == own.dtype and one.data.isfinite().all()
        sources = TokenBatch.build(torch.zeros(patches, 1), torch.zeros(patches).double())
        assert sources.reduce(each).mass.sum() == patches
    alone = inside.encode(inside.prepare(pictures())[1:2]).data
    torch.testing.assert_close(alone, found[1].data, atol=1e-5, rtol=1e-5)


def test_towers_without_blocks_to_merge_in_are_refused(tmp_path: Path) -> None:
    maps = open_clip_tower(tmp_path, RESNET)
    for other in (maps, object()):
        with pytest.raises(ModelError, match="cannot merge inside"):
            with_inside(other, InEncoder(ToMe(r=2)))


def test_rotary_towers_are_refused(tmp_path: Path) -> None:
    tower = hf_tower(tmp_path, "DINOv3ViT")
    with pytest.raises(ModelError, match="rotary"):
        with_inside(tower, InEncoder(ToMe(r=2)))


def test_layers_count_blocks_that_run(tmp_path: Path) -> None:
    tower = open_clip_tower(tmp_path, VIT, layer=1)
    with pytest.raises(RecipeError, match="tower of 2 blocks") as caught:
        with_inside(tower, InEncoder(ToMe(r=2), (2,)))
    assert caught.value.hint == "name blocks 0 .. 1, each once"


def test_rules_are_read_from_text() -> None:
    rule = rule_of("tome:r=4,class_token=true", "0-2, 5,-1", inflection=-1)
    assert rule.reducer == ToMe(r=4, class_token=True) and rule.layers == (0, 1, 2, 5, -1)
    assert rule.plan(8) == {0: 8, 1: 6, 2: 4, 5: 2}
    assert rule_of("a-tome-greedy:ratio=0.1").plan(2) == {0: None, 1: None}
    for step, layers in (("tome | dymu", ""), ("tome", "x"), ("nothing", ""), ("fps", "")):
        with pytest.raises(RecipeError):
            rule_of(step, layers)
    with pytest.raises(RecipeError, match="without an `r`"):
        rule_of("ast-topk", inflection=-1)


@pytest.mark.parametrize(
    ("text", "layers", "words"),
    [(" ", "", "not one step"), ("tome | tome", "", "not one step"), ("fps", "", "decides nothing"),
     ("nonsense", "", "nonsense"), ("divprune", "", "preset"), ("tome:r=8", "3-1", "backwards"),
     ("tome:r=8", "x", "cannot read layers")],
)  # fmt: skip
def test_a_wrong_rule_shows_before_anything_is_loaded(text: str, layers: str, words: str) -> None:
    from tokpipe.encode.open_clip import OpenClip

    pytest.importorskip("open_clip")
    operator = OpenClip(model="ViT-B-32", weights="random", inside=text, inside_layers=layers)
    with pytest.raises(RecipeError, match=words):
        operator.outline()


@pytest.mark.parametrize(
    ("how", "words"),
    [({"inside_layers": "3"}, "tower of 3 blocks"), ({"inside_layers": "-4"}, "tower of 3 blocks"),
     ({"inside_layers": "1,,2"}, "cannot read layers"), ({"inside_layers": " "}, "cannot read"),
     ({"inside_layers": "1", "layer": 0}, "tower of 1 blocks"),
     ({"inside": "tome:r=-1"}, "`tome`: r"), ({"inside": "trim"}, "`trim` needs `query`"),
     ({"inside": "tome:r=2,class_token=true,distill_token=true"}, "`tome` needs 2 class tokens")],
)  # fmt: skip
def test_what_does_not_fit_the_tower_shows_in_its_outline(
    tmp_path: Path, how: dict[str, Any], words: str
) -> None:
    pytest.importorskip("open_clip")
    config = {"model_cfg": {"embed_dim": 64, "vision_cfg": VIT, "text_cfg": TEXT}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    # Weights that are not there: nothing of them is looked for.
    base = {"model": f"local-dir:{tmp_path}", "weights": "/none.safetensors", "inside": "tome:r=2"}
    with pytest.raises(RecipeError, match=words) as caught:
        OpenClip(**{**base, **how}).outline()
    assert caught.value.exit_code == 2 and caught.value.hint


CONVNEXT = {"image_size": 96, "timm_model_name": "test_convnext", "timm_model_pretrained": False,
            "timm_pool": "", "timm_proj": "linear"}  # fmt: skip


@pytest.mark.parametrize("vision", [RESNET, CONVNEXT])
def test_feature_maps_refuse_a_rule_in_their_outline(
    tmp_path: Path, vision: dict[str, Any]
) -> None:
    pytest.importorskip("open_clip")
    config = {"model_cfg": {"embed_dim": 64, "vision_cfg": vision, "text_cfg": TEXT}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    operator = OpenClip(model=f"local-dir:{tmp_path}", weights="random", inside="tome:r=2")
    with pytest.raises(ModelError, match=r"cannot merge inside `local-dir:.*feature map"):
        operator.outline()


def test_models_of_transformers_refuse_a_rule_in_their_outline(
    tmp_path: Path, front_of: Any
) -> None:
    hf_tower(tmp_path, "DINOv3ViT")
    for model, words in ((str(tmp_path), "rotary"), (str(front_of("llava").folder), "llava")):
        with pytest.raises(ModelError, match=f"cannot merge inside `/.*{words}"):
            HfVision(model=model, inside="tome:r=2").outline()
    clip = tmp_path / "clip"
    hf_tower(clip, "CLIPVision")
    for layers, found in (("0-2", 3), ("", 3)):
        made = HfVision(model=str(clip), inside="tome:r=2", inside_layers=layers).outline()
        assert made.about["inside"] == "tome:r=2" and made.about["layers"] == found
    with pytest.raises(RecipeError, match="tower of 2 blocks"):
        HfVision(model=str(clip), layer=2, inside="tome:r=2", inside_layers="2").outline()
