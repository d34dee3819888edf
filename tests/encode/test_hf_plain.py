"""Plain transformers towers: tokens are the model's own, pictures its processor's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tokpipe.encode._fit import Fit
from tokpipe.encode.hf_vision import HfVision
from tokpipe.errors import ModelError

tf = pytest.importorskip("transformers", minversion="5.18")
pytest.importorskip("torchvision")

COMMON = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
VISION = COMMON | {"intermediate_size": 64}
TEXT = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
    "vocab_size": 64, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1,
    "max_position_embeddings": 12,
}  # fmt: skip
CROP = {"size": {"shortest_edge": 37}, "crop_size": {"height": 32, "width": 32}}


def clip() -> tuple[Any, Any]:
    config = tf.CLIPConfig(
        text_config=TEXT, vision_config=VISION | {"image_size": 32, "patch_size": 8},
        projection_dim=16,
    )  # fmt: skip
    return tf.CLIPModel(config), tf.CLIPImageProcessor(**CROP)


def siglip() -> tuple[Any, Any]:
    # As so400m-patch14-384: the input is no whole number of patches.
    config = tf.SiglipConfig(
        text_config=TEXT, vision_config=VISION | {"image_size": 35, "patch_size": 8}
    )
    return tf.SiglipModel(config), tf.SiglipImageProcessor(size={"height": 35, "width": 35})


def siglip2() -> tuple[Any, Any]:
    config = tf.Siglip2Config(
        text_config=TEXT, vision_config=VISION | {"num_patches": 16, "patch_size": 8}
    )
    return tf.Siglip2Model(config), tf.Siglip2ImageProcessor(patch_size=8, max_num_patches=20)


def dinov2() -> tuple[Any, Any]:
    # As the released ones: trained at another size than the processor makes.
    config = tf.Dinov2Config(**COMMON, image_size=40, patch_size=8)
    return tf.Dinov2Model(config), tf.BitImageProcessor(**CROP)


def dinov2_registers() -> tuple[Any, Any]:
    config = tf.Dinov2WithRegistersConfig(
        **COMMON, image_size=40, patch_size=8, use_swiglu_ffn=True
    )
    return tf.Dinov2WithRegistersModel(config), tf.BitImageProcessor(**CROP)


def dinov3() -> tuple[Any, Any]:
    config = tf.DINOv3ViTConfig(
        **VISION, image_size=32, patch_size=8, num_register_tokens=2, layerscale_value=0.5
    )
    processor = tf.DINOv3ViTImageProcessor(size={"height": 32, "width": 40})
    return tf.DINOv3ViTModel(config), processor


MAKERS: dict[str, Callable[[], tuple[Any, Any]]] = {
    "clip": clip, "siglip": siglip, "siglip2": siglip2, "dinov2": dinov2,
    "dinov2_registers": dinov2_registers, "dinov3": dinov3,
}  # fmt: skip
NATIVE: dict[str, Fit] = {"clip": "crop", "dinov2": "crop", "dinov2_registers": "crop"}
PREFIX = {"clip": 1, "dinov2": 1, "dinov2_registers": 5, "dinov3": 3}


@dataclass(frozen=True)
class Tiny:
    name: str
    folder: Path
    native: HfVision

    def own(self, **how: Any) -> Any:
        """The whole model as its users load it."""
        return tf.AutoModel.from_pretrained(self.folder, **how).eval()

    def inputs(self, prepared: Tensor) -> dict[str, Tensor]:
        if self.name != "siglip2":
            return {"pixel_values": prepared}
        t, _, high, wide = prepared.shape
        cut = prepared.unfold(2, 8, 8).unfold(3, 8, 8).permute(0, 2, 3, 4, 5, 1)
        patches = cut.reshape(t, -1, 192)
        return {
            "pixel_values": patches,
            "pixel_attention_mask": torch.ones(patches.shape[:2], dtype=torch.int32),
            "spatial_shapes": torch.tensor([[high // 8, wide // 8]] * t),
        }

    def vision(self, prepared: Tensor, model: Any = None, **how: Any) -> Any:
        model = model or self.own()
        with torch.inference_mode():
            return getattr(model, "vision_model", model)(**self.inputs(prepared), **how)

    @property
    def prefix(self) -> int:
        return PREFIX.get(self.name, 0)


def blocks_in(model: Any) -> Any:
    vision = getattr(model, "vision_model", model)
    return next(m for m in vision.modules() if isinstance(m, torch.nn.ModuleList))


def pictures(count: int = 2, height: int = 50, width: int = 91) -> Tensor:
    made = torch.Generator().manual_seed(3)
    small = torch.rand(count, 3, 7, 9, generator=made)
    large = torch.nn.functional.interpolate(small, (height, width), mode="bicubic")
    return large.mul(255).clamp(0, 255).byte().permute(0, 2, 3, 1).contiguous()


@pytest.fixture(scope="module", autouse=True)
def quiet() -> None:
    tf.logging.set_verbosity_error()
    tf.logging.disable_progress_bar()


@pytest.fixture(scope="module", params=list(MAKERS))
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return build(request.param, tmp_path_factory.mktemp(request.param))


def build(name: str, folder: Path) -> Tiny:
    torch.manual_seed(1)
    model, processor = MAKERS[name]()
    with torch.no_grad():
        # As after training: parts that start as nothing would hide mistakes.
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return Tiny(name, folder, HfVision(model=str(folder), fit=NATIVE.get(name, "squash")))


def test_tokens_are_the_models_own_to_the_bit(tiny: Tiny) -> None:
    tower = tiny.native.load()
    prepared = tower.prepare(pictures())
    made = tower.encode(prepared).data
    own = tiny.vision(prepared).last_hidden_state[:, tiny.prefix :]
    assert torch.equal(made, own)
    assert made.shape == (2, len(tiny.native.places(50, 91)), 32)
    assert tower.outline.dim == 32


@pytest.mark.parametrize("size", [(50, 91), (91, 50), (47, 47), (20, 33), (300, 299)])
def test_pictures_are_the_processors_own_to_the_bit(tiny: Tiny, size: tuple[int, int]) -> None:
    seen = pictures(2, *size)
    backend = {} if tiny.name == "dinov3" else {"backend": "pil"}
    processor = tf.AutoImageProcessor.from_pretrained(tiny.folder, **backend)
    own = processor(images=[p.numpy() for p in seen], return_tensors="pt")
    made = tiny.inputs(tiny.native.load().prepare(seen))
    n = made["pixel_values"].shape[1]
    assert torch.equal(made["pixel_values"], own["pixel_values"][:, :n])
    if tiny.name == "siglip2":
        assert torch.equal(made["spatial_shapes"], own["spatial_shapes"])
        assert own["pixel_attention_mask"][0].sum() == n


def test_pictures_of_the_torchvision_processor_are_a_grey_level_away(tiny: Tiny) -> None:
    processor = tf.AutoImageProcessor.from_pretrained(tiny.folder)
    assert processor.backend == "torchvision"
    seen = pictures()
    own = processor(images=[p.numpy() for p in seen], return_tensors="pt")["pixel_values"]
    made = tiny.inputs(tiny.native.load().prepare(seen))["pixel_values"]
    level = 1 / 255 / min(processor.image_std)
    assert (made - own[:, : made.shape[1]]).abs().max() <= 1.01 * level


@pytest.mark.parametrize("fit", ["pad", "squash", "crop"])
@pytest.mark.parametrize("size", [(60, 96), (96, 60)])
def test_boxes_say_where_a_patch_looks(tiny: Tiny, fit: Fit, size: tuple[int, int]) -> None:
    """A bright box in the picture lights up its own patch, and no other as much."""
    settings = replace(tiny.native, fit=fit)
    places, tower = settings.places(*size), settings.load()
    edges = (places.box * torch.tensor([*size, *size])).round().int()
    for k in range(len(places)):
        top, left, bottom, right = edges[k].tolist()
        if top < 0 or left < 0 or bottom > size[0] or right > size[1]:
            continue
        picture = torch.zeros(1, *size, 3, dtype=torch.uint8)
        picture[:, top:bottom, left:right] = 255
        seen = tower.prepare(picture) - tower.prepare(torch.zeros_like(picture))
        patches = seen.mean(1).unfold(1, 8, 8).unfold(2, 8, 8).mean((3, 4)).flatten()
        assert patches.argmax() == k
        assert patches[k] > 0.8 * seen.max()
    inside = ((places.box >= -1e-9) & (places.box <= 1 + 1e-9)).all(1)
    assert inside.all() or (fit == "pad" and inside.float().mean() >= 0.4)


def test_padding_keeps_whole_tokens_on_the_picture(tmp_path: Path) -> None:
    settings = replace(build("clip", tmp_path).native, fit="pad")
    places = settings.places(48, 96)
    # 96 -> 32 wide, 48 -> 16 high: rows 1 and 2 of four are the picture.
    assert places.grid == (4, 4)
    box = places.box.reshape(4, 4, 4)
    assert box[:, 0, 0].tolist() == [-0.5, 0.0, 0.5, 1.0]
    assert box[1, 3].tolist() == [0.0, 0.75, 0.5, 1.0]


def test_a_layer_is_the_models_hidden_state(tiny: Tiny) -> None:
    states = None
    for layer in range(4):
        tower = replace(tiny.native, layer=layer).load()
        prepared = tower.prepare(pictures())
        states = states or tiny.vision(prepared, output_hidden_states=True).hidden_states
        assert torch.equal(tower.encode(prepared).data, states[layer][:, tiny.prefix :])
    for wrong in (replace(tiny.native, layer=4), replace(tiny.native, attention_layer=3)):
        with pytest.raises(ModelError, match="has 3 blocks"):
            wrong.outline()


def test_columns_are_those_of_the_model_with_plain_attention(tiny: Tiny) -> None:
    tower = replace(tiny.native, attention_layer=1).load()
    prepared, p = tower.prepare(pictures()), tiny.prefix
    made = tower.encode(prepared, frozenset(tower.outline.extras))
    eager = tiny.own(attn_implementation="eager")
    out = tiny.vision(prepared, eager, output_attentions=True)
    assert torch.equal(made.data, tower.encode(prepared).data)
    close = partial(torch.testing.assert_close, rtol=1e-4, atol=1e-6)
    if p:
        close(made.columns["attention"], out.attentions[1][:, :, 0, p:].transpose(1, 2))
        close(
            made.columns["attention_shallow"],
            out.attentions[0][:, :, 0, p:].transpose(1, 2),
        )  # fmt: skip
    else:
        head, last = eager.vision_model.head, out.last_hidden_state
        with torch.inference_mode():
            probe = head.probe.expand(len(last), -1, -1)
            _, rows = head.attention(probe, last, last, average_attn_weights=False)
        close(made.columns["attention"], rows[:, :, 0].transpose(1, 2))
        assert "attention_shallow" not in tower.outline.extras
    for name in ("received", "received_middle"):
        close(made.columns[name], out.attentions[1].mean((1, 2))[:, p:])
    n = made.data.shape[1]
    assert made.columns["keys"].shape == made.columns["queries"].shape == (2, n, 4, 8)
    assert set(made.columns) == set(tower.outline.extras)


def test_keys_queries_and_shift_are_those_of_the_block(tiny: Tiny) -> None:
    tower = replace(tiny.native, attention_layer=2).load()
    prepared, model = tower.prepare(pictures()), tiny.own()
    caught: dict[str, Tensor] = {}
    dino = tiny.name.startswith("dino")
    block = blocks_in(model)[2]
    attention = block.attention if dino else block.self_attn
    for part, module in (
        ("keys", attention.k_proj), ("queries", attention.q_proj),
        ("shift", block.layer_scale2 if dino else block.mlp),
    ):  # fmt: skip
        module.register_forward_hook(lambda _m, _a, out, part=part: caught.__setitem__(part, out))
    tiny.vision(prepared, model)
    made = tower.encode(prepared, frozenset(("keys", "queries", "layer_shift"))).columns
    for part in ("keys", "queries"):
        assert torch.equal(made[part].flatten(2), caught[part][:, tiny.prefix :])
    torch.testing.assert_close(made["layer_shift"], caught["shift"][:, tiny.prefix :].norm(dim=-1))


def test_the_frame_vector_is_the_models_pooled_output(tiny: Tiny) -> None:
    tower, model = tiny.native.load(), tiny.own()
    prepared = tower.prepare(pictures())
    made = tower.encode(prepared, frozenset(("frame_embedding",))).columns["frame_embedding"]
    with torch.inference_mode():
        if hasattr(model, "get_image_features"):
            own = model.get_image_features(**tiny.inputs(prepared)).pooler_output
        else:
            own = model(prepared).pooler_output
    # torch's attention has several paths, which round differently.
    torch.testing.assert_close(made[:, 0], own, rtol=1e-5, atol=2e-6)
    assert torch.equal(made[:, 0], made[:, -1])


def test_a_picture_is_the_same_alone_and_among_others(tiny: Tiny) -> None:
    tower = tiny.native.load()
    prepared = tower.prepare(pictures(5))
    every = frozenset(tower.outline.extras)
    together, alone = tower.encode(prepared, every), tower.encode(prepared[3:4], every)
    assert torch.equal(together.data[3:4], alone.data)
    for name, column in together.columns.items():
        torch.testing.assert_close(column[3:4], alone.columns[name], rtol=1e-5, atol=1e-6)


def test_kept_tokens_see_only_each_other(tiny: Tiny) -> None:
    """Equal to the whole tower with all others masked, so every patch has its own position."""
    tower, model = tiny.native.load(), tiny.own()
    prepared = tower.prepare(pictures(1))
    n, p = len(tiny.native.places(50, 91)), tiny.prefix
    every = frozenset(tower.outline.extras)
    all_live = tower.encode_kept(prepared, torch.ones(n, dtype=torch.bool), every)
    whole = tower.encode(prepared, every)
    assert torch.equal(all_live.data, whole.data)
    assert all(torch.equal(all_live.columns[c], whole.columns[c]) for c in every)

    live = torch.arange(n) % 3 == 1
    seen = torch.cat([torch.ones(p, dtype=torch.bool), live])
    mask = torch.zeros(1, 1, 1, len(seen)).masked_fill(~seen, -torch.inf)
    mask = mask.expand(1, 1, len(seen), -1)
    for block in blocks_in(model):
        block.register_forward_pre_hook(
            lambda _m, args, named: (args[:1], named | {"attention_mask": mask}), with_kwargs=True
        )
    own = tiny.vision(prepared, model).last_hidden_state[:, p:][:, live]
    made = tower.encode_kept(prepared, live, every)
    torch.testing.assert_close(made.data, own, rtol=1e-5, atol=1e-5)
    assert all(column.shape[1] == live.sum() for column in made.columns.values())
    with pytest.raises(ModelError, match="live"):
        tower.encode_kept(prepared, torch.zeros(n, dtype=torch.bool))


def test_half_precision_runs_and_tables_keep_theirs(tiny: Tiny) -> None:
    full, half = tiny.native.load(), tiny.native.load(dtype="bfloat16")
    prepared = full.prepare(pictures())
    every = frozenset(half.outline.extras)
    made = half.encode(prepared, every)
    assert made.data.dtype == torch.bfloat16
    assert half.weights == full.weights
    cosine = torch.cosine_similarity(made.data.float(), full.encode(prepared).data, dim=-1)
    assert cosine.min() > 0.999
    own = tiny.vision(prepared.bfloat16(), tiny.own(dtype=torch.bfloat16)).last_hidden_state
    assert torch.equal(made.data, own[:, tiny.prefix :])
    assert all(c.isfinite().all() for c in made.columns.values())


def test_only_clip_projects_its_tokens(tiny: Tiny) -> None:
    post = replace(tiny.native, stage="post_projector")
    if tiny.name != "clip":
        with pytest.raises(ModelError, match="no projector"):
            post.outline()
        return
    tower, model = post.load(), tiny.own()
    prepared = tower.prepare(pictures())
    made = tower.encode(prepared, frozenset(("text_space",)))
    with torch.inference_mode():
        last = model.vision_model(prepared).last_hidden_state
        own = model.visual_projection(model.vision_model.post_layernorm(last[:, 1:]))
    assert torch.equal(made.data, own)
    assert torch.equal(made.columns["text_space"], own)
    assert post.outline().dim == 16


def test_configuration_files_are_enough_to_plan(tiny: Tiny, tmp_path: Path) -> None:
    for file in tiny.folder.glob("*.json"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    bare = replace(tiny.native, model=str(tmp_path))
    assert bare.outline().extras == tiny.native.outline().extras
    assert torch.equal(bare.places(50, 91).box, tiny.native.places(50, 91).box)
    about = bare.outline().about
    assert about["model"] == tmp_path.name
    assert about["stage"] == "pre_projector" and about["patch"] == [8, 8]


def test_an_unknown_column_is_named(tiny: Tiny) -> None:
    tower = tiny.native.load()
    with pytest.raises(ModelError, match="no column `spatial`"):
        tower.encode(tower.prepare(pictures()), frozenset(("spatial",)))
