"""Whole towers with a rule inside: every kind of block, against the library's own forward."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tokpipe.compress.attention.ast_topk import AstTopK
from tokpipe.compress.similarity.dymu import DyMU
from tokpipe.compress.similarity.tome import ToMe
from tokpipe.encode._merging.in_encoder import InEncoder, Merged
from tokpipe.encode._merging.towers import (
    MergedTower,
    Parts,
    hf_parts,
    open_clip_parts,
    timm_parts,
)
from tokpipe.encode._tower import Encoded, Outline
from tokpipe.errors import ModelError, RecipeError

WIDTH, HEADS, SIDE = 32, 4, 4


@dataclass(frozen=True)
class Tower:
    """A tiny random tower, what it takes and what its library makes of it."""

    parts: Parts
    given: Tensor
    own: Tensor


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def random_weights(model: nn.Module) -> nn.Module:
    """Weights large enough that attention is not flat; the same at every call."""
    torch.manual_seed(0)
    for name, value in model.named_parameters():
        spread = 0.2 if value.ndim > 1 else 0.1
        value.data = torch.randn_like(value) * spread + (1.0 if "norm" in name else 0.0)
    return model.eval().requires_grad_(False)


def timm_model(**how: Any) -> Any:
    vit = pytest.importorskip("timm").models.vision_transformer.VisionTransformer
    base = {"img_size": 8 * SIDE, "patch_size": 8, "embed_dim": WIDTH, "depth": 4,
            "num_heads": HEADS, "num_classes": 0}  # fmt: skip
    return random_weights(vit(**{**base, **how}))


def of_timm(**how: Any) -> Callable[[], Tower]:
    def make() -> Tower:
        model, given = timm_model(**how), draw(3, 3, 8 * SIDE, 8 * SIDE)
        return Tower(timm_parts(model), given, model.forward_features(given))

    return make


def of_open_clip(**how: Any) -> Callable[[], Tower]:
    def make() -> Tower:
        kind = pytest.importorskip("open_clip.transformer").VisionTransformer
        base = {"image_size": 8 * SIDE, "patch_size": 8, "width": WIDTH, "layers": 4,
                "heads": HEADS, "mlp_ratio": 2.0, "output_dim": 16,
                "output_tokens": True}  # fmt: skip
        model, given = random_weights(kind(**{**base, **how})), draw(3, 3, 8 * SIDE, 8 * SIDE)
        return Tower(open_clip_parts(model), given, model(given)[1])

    return make


def of_hf(name: str, **how: Any) -> Callable[[], Tower]:
    def make() -> Tower:
        library = pytest.importorskip("transformers")
        base = {"hidden_size": WIDTH, "num_hidden_layers": 4, "num_attention_heads": HEADS,
                "intermediate_size": 64, "image_size": 8 * SIDE, "patch_size": 8}  # fmt: skip
        config = getattr(library, name.replace("Model", "Config"))(**{**base, **how})
        model, given = random_weights(getattr(library, name)(config)), draw(3, 3, 32, 32)
        if name == "ASTModel":
            given = draw(3, config.max_length, config.num_mel_bins)
        return Tower(hf_parts(model), given, model(given).last_hidden_state)

    return make


def whisper() -> Tower:
    library = pytest.importorskip("transformers")
    kind = pytest.importorskip("transformers.models.whisper.modeling_whisper").WhisperEncoder
    config = library.WhisperConfig(
        d_model=WIDTH, encoder_layers=4, encoder_attention_heads=HEADS, encoder_ffn_dim=64,
        num_mel_bins=8, max_source_positions=20,
    )  # fmt: skip
    model, given = random_weights(kind(config)), draw(2, 8, 40)
    return Tower(hf_parts(model), given, model(given).last_hidden_state)


TOWERS = {
    "open_clip": of_open_clip(), "open_clip-scaled": of_open_clip(ls_init_value=0.1),
    "open_clip-late-norm": of_open_clip(final_ln_after_pool=True),
    "timm": of_timm(), "timm-siglip": of_timm(class_token=False, global_pool="map"),
    "timm-registers": of_timm(reg_tokens=4, init_values=0.5, qk_norm=True, no_embed_class=True),
    "timm-inner-norm": of_timm(scale_attn_norm=True, pre_norm=True),
    "clip": of_hf("CLIPVisionModel"), "siglip": of_hf("SiglipVisionModel"),
    "dinov2": of_hf("Dinov2Model"), "dinov2-swiglu": of_hf("Dinov2Model", use_swiglu_ffn=True),
    "dinov2-registers": of_hf("Dinov2WithRegistersModel"), "vit": of_hf("ViTModel"),
    "ast": of_hf("ASTModel", num_mel_bins=16, max_length=24, patch_size=8, frequency_stride=8,
                 time_stride=8), "whisper": whisper,
}  # fmt: skip


@pytest.fixture(params=TOWERS)
def tower(request: pytest.FixtureRequest) -> Tower:
    with torch.inference_mode():
        return TOWERS[request.param]()


def own_rows(tower: Tower, made: Merged) -> Tensor:
    """Rows beside those of the library, which leaves out open_clip's class token."""
    rows = torch.stack(made.pictures())
    return rows[:, rows.shape[1] - tower.own.shape[1] :]


def test_nothing_to_merge_is_the_plain_tower_bit_for_bit(tower: Tower) -> None:
    rules = [InEncoder(ToMe()), InEncoder(ToMe(r=4), amounts=(0, 0))]
    if tower.parts.prefix:
        rules.append(InEncoder(AstTopK(ratio=1), (1,)))
    for rule in rules:
        assert torch.equal(own_rows(tower, tower.parts.merge(rule, tower.given)), tower.own)


def test_blocks_taken_apart_are_the_blocks(tower: Tower) -> None:
    for class_token in (False, True)[: 1 + min(1, tower.parts.prefix)]:
        # No cosine is above 1: the rule runs everywhere and merges nothing.
        rule = InEncoder(DyMU(threshold=1.0, class_token=class_token))
        made = tower.parts.merge(rule, tower.given)
        torch.testing.assert_close(own_rows(tower, made), tower.own, atol=2e-5, rtol=1e-5)
        assert all(one.is_identity for one in made.maps)


def test_every_kind_of_tower_merges(tower: Tower) -> None:
    made = tower.parts.merge(InEncoder(ToMe(r=2)), tower.given)
    patches = made.maps[0].num_sources
    assert [len(one) for one in made.maps] == [n - tower.parts.prefix for n in made.counts]
    assert made.counts == (patches - 2 * min(4, patches) + tower.parts.prefix,) * len(tower.given) \
        or patches < 16  # fmt: skip
    for one in made.maps:
        shares = torch.zeros(patches).index_add_(0, one.src, one.share)
        assert torch.equal(shares, torch.ones(patches))
    assert made.rows.isfinite().all()


def test_ast_merges_with_both_of_its_tokens_protected() -> None:
    with torch.inference_mode():
        tower = TOWERS["ast"]()
        both = InEncoder(ToMe(r=1, class_token=True, distill_token=True))
        for rule in (both, InEncoder(AstTopK(ratio=0.8, special=2), (1, 2))):
            made = tower.parts.merge(rule, tower.given)
            patches = made.maps[0].num_sources
            assert all(n < patches + 2 for n in made.counts)
            # The protected rows saw fewer keys, yet sizes stand for them: they stay close.
            first = torch.stack([rows[:2] for rows in made.pictures()])
            assert torch.nn.functional.cosine_similarity(first, tower.own[:, :2], dim=2).min() > 0.8


def test_entry_points_take_the_models_of_their_libraries() -> None:
    open_clip, library = pytest.importorskip("open_clip"), pytest.importorskip("transformers")
    rule = InEncoder(ToMe(r=2))
    vision = {"image_size": 32, "patch_size": 8, "width": 64, "layers": 2, "head_width": 32}
    text = {"context_length": 8, "vocab_size": 64, "width": 32, "heads": 2, "layers": 1}
    model = open_clip.CLIP(embed_dim=16, vision_cfg=vision, text_cfg=text).eval()
    assert open_clip_parts(model.visual).merge(rule, draw(2, 3, 32, 32)).counts == (13, 13)
    config = library.CLIPVisionConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        image_size=32, patch_size=8, projection_dim=16,
    )  # fmt: skip
    clip = library.CLIPVisionModelWithProjection(config).eval()
    assert hf_parts(clip).merge(rule, draw(2, 3, 32, 32)).counts == (13, 13)


def test_towers_of_other_kinds_are_refused() -> None:
    timm, library = pytest.importorskip("timm"), pytest.importorskip("transformers")
    config = library.DINOv3ViTConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=64,
        image_size=32, patch_size=8,
    )  # fmt: skip
    dino = library.DINOv3ViTModel(config).eval()
    conv = timm.create_model("test_convnext", num_classes=0).eval()
    for apart, model in ((hf_parts, dino), (timm_parts, conv), (open_clip_parts, conv)):
        with pytest.raises(ModelError, match="cannot merge inside a"):
            apart(model)


class Plain:
    """A tower of one's own."""

    weights = "sha256:0"
    outline = Outline(dim=WIDTH, extras=("keys",), sparse=True, about={"patch": 8})

    def __init__(self) -> None:
        self.model = timm_model()

    def prepare(self, pixels: Tensor) -> Tensor:
        return pixels.permute(0, 3, 1, 2).float() / 255

    def encode(self, prepared: Tensor, columns: frozenset[str] = frozenset()) -> Encoded:
        return Encoded(data=self.model.forward_features(prepared)[:, 1:])

    def encode_kept(
        self, prepared: Tensor, live: Tensor, columns: frozenset[str] = frozenset()
    ) -> Encoded:
        return Encoded(data=self.encode(prepared).data[:, live])

    def embed_text(self, text: str) -> Any:
        return text


def test_a_wrapped_tower_gives_fewer_tokens_and_their_maps() -> None:
    plain = Plain()
    torch.manual_seed(0)
    pixels = torch.randint(0, 256, (3, 32, 32, 3), dtype=torch.uint8)
    tower = MergedTower(plain, InEncoder(ToMe(r=2), (0, 1)), timm_parts(plain.model))
    assert tower.outline.about == {"patch": 8, "inside": "ToMe"}
    assert not tower.outline.sparse and not tower.outline.extras
    assert tower.encode(tower.prepare(pixels)).data.shape == (3, 12, WIDTH)
    found, maps = tower.encode_merged(tower.prepare(pixels))
    assert [one.data.shape for one in found] == [(1, 12, WIDTH)] * 3
    assert [(len(one), one.num_sources) for one in maps] == [(12, 16)] * 3
    idle = MergedTower(plain, InEncoder(ToMe()), timm_parts(plain.model))
    assert torch.equal(
        idle.encode(tower.prepare(pixels)).data, plain.encode(tower.prepare(pixels)).data
    )
    ragged = MergedTower(plain, InEncoder(DyMU(threshold=0.99)), timm_parts(plain.model))
    counts = {one.data.shape[1] for one in ragged.encode_merged(ragged.prepare(pixels))[0]}
    assert len(counts) > 1
    with pytest.raises(RecipeError, match="different numbers"):
        ragged.encode(ragged.prepare(pixels))
    with pytest.raises(RecipeError, match="no columns"):
        tower.encode(tower.prepare(pixels), frozenset({"keys"}))
    with pytest.raises(RecipeError, match="whole pictures"):
        tower.encode_kept(tower.prepare(pixels[:1]), torch.ones(16, dtype=torch.bool))
