"""Tokens of tiny open_clip models, and what is made of them, against the models' own code."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tokpipe.errors import ModelError, WeightsMismatch

pytest.importorskip("open_clip")
pytest.importorskip("timm")


def _beside(name: str) -> Any:
    """A module of this folder, which is no package."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


models = _beside("clip_models")
made, pictures = models.made, models.pictures
BLOCKS = ["vit", "clipa", "coca", "timm", "siglip", "eva"]
SPARSE = ["vit", "clipa", "coca", "timm", "siglip"]


def own_tokens(kind: str, model: Any, x: Tensor) -> Tensor:
    """Patch tokens by the model's own code."""
    visual = model.visual
    if kind in ("vit", "clipa"):
        visual.output_tokens = True
        try:
            tokens: Tensor = visual(x)[1]
        finally:
            visual.output_tokens = False
        return tokens
    if kind == "coca":
        caught: list[Tensor] = []
        handle = visual.attn_pool.ln_k.register_forward_hook(lambda _m, _a, out: caught.append(out))
        visual(x)
        handle.remove()
        return caught[0][:, 1:]
    if kind == "resnet":
        maps: Tensor = visual.layer4(visual.layer3(visual.layer2(visual.layer1(visual.stem(x)))))
        return maps.flatten(2).transpose(1, 2)
    found: Tensor = visual.trunk.forward_features(x)
    if kind == "convnext":
        return found.flatten(2).transpose(1, 2)
    return found[:, visual.trunk.num_prefix_tokens :]


@pytest.mark.parametrize("kind", models.CONFIGS)
def test_tokens_and_picture_vector_are_the_models_own(
    kind: str, made: Callable[[str], Any]
) -> None:
    held = made(kind)
    tower = held.operator().load()
    x = tower.prepare(pictures())
    found = tower.encode(x, frozenset({"frame_embedding"}))
    with torch.inference_mode():
        # Convolutions of one picture round otherwise than of several; towers take one by one.
        expected = torch.cat([own_tokens(kind, held.model, one[None]) for one in x])
        together = own_tokens(kind, held.model, x)
        vector = held.model.visual(x)
    vector = vector[0] if isinstance(vector, tuple) else vector
    assert torch.equal(found.data, expected)
    torch.testing.assert_close(found.data, together, rtol=0, atol=1e-6)
    embedding = found.columns["frame_embedding"]
    assert embedding.shape == (*expected.shape[:2], 24)
    assert torch.equal(embedding[:, 0], embedding[:, -1])
    torch.testing.assert_close(embedding[:, 0], vector, rtol=0, atol=1e-6)
    assert found.data.shape[1:] == (len(held.operator().places(90, 160)), tower.outline.dim)
    assert held.operator().outline() == tower.outline


@pytest.mark.parametrize("kind", BLOCKS)
def test_columns_change_no_token_and_have_their_shapes(
    kind: str, made: Callable[[str], Any]
) -> None:
    tower = made(kind).operator().load()
    x = tower.prepare(pictures())
    plain, full = tower.encode(x), tower.encode(x, frozenset(tower.outline.extras))
    assert torch.equal(plain.data, full.data)
    assert set(full.columns) == set(tower.outline.extras)
    for name, value in full.columns.items():
        assert value.shape[:2] == full.data.shape[:2], name
        assert value.dtype == torch.float32
        assert value.isfinite().all()


@pytest.mark.parametrize("kind", ["resnet", "convnext"])
def test_feature_maps_are_the_same_bits_in_any_batch(kind: str, made: Callable[[str], Any]) -> None:
    tower = made(kind).operator().load()
    x, columns = tower.prepare(pictures(5)), frozenset(tower.outline.extras)
    whole = tower.encode(x, columns)
    for size in (1, 2, 3):
        part = tower.encode(x[1 : 1 + size], columns)
        assert torch.equal(part.data, whole.data[1 : 1 + size])
        for name, value in whole.columns.items():
            assert torch.equal(part.columns[name], value[1 : 1 + size]), name


@pytest.mark.parametrize("kind", models.CONFIGS)
def test_one_by_one_is_the_batch(kind: str, made: Callable[[str], Any]) -> None:
    tower = made(kind).operator().load()
    x = tower.prepare(pictures(5))
    columns = frozenset(tower.outline.extras)
    batch = tower.encode(x, columns)
    singles = [tower.encode(x[i : i + 1], columns) for i in range(len(x))]
    tokens = torch.cat([one.data for one in singles])
    # Equal bits where MKL takes the same product code for any number of rows, as it does for
    # towers of real size; at these sizes it may not.
    torch.testing.assert_close(tokens, batch.data, rtol=1e-5, atol=1e-5)
    for name, value in batch.columns.items():
        column = torch.cat([one.columns[name] for one in singles])
        torch.testing.assert_close(column, value, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", SPARSE)
def test_all_live_is_the_whole_picture(kind: str, made: Callable[[str], Any]) -> None:
    tower = made(kind).operator().load()
    assert tower.outline.sparse
    x = tower.prepare(pictures(1))
    columns = frozenset(tower.outline.extras)
    whole = tower.encode(x, columns)
    n = whole.data.shape[1]
    kept = tower.encode_kept(x, torch.ones(n, dtype=torch.bool), columns)
    assert torch.equal(kept.data, whole.data)
    for name, value in whole.columns.items():
        assert torch.equal(kept.columns[name], value), name
    # The hook is gone: the next call sees every patch again.
    assert tower.encode(x).data.shape[1] == n


def test_kept_patches_keep_their_positions(made: Callable[[str], Any]) -> None:
    held = made("vit")
    tower, visual = held.operator().load(), held.model.visual
    x = tower.prepare(pictures(1))
    live = torch.zeros(16, dtype=torch.bool)
    live[torch.tensor([2, 3, 11])] = True
    with torch.inference_mode():
        patches = visual.conv1(x).flatten(2).transpose(1, 2)
        patches = patches + visual.positional_embedding[1:]
        first = (visual.class_embedding + visual.positional_embedding[0]).view(1, 1, -1)
        expected = torch.cat([first, patches[:, live]], 1)
        expected = visual.ln_post(visual.transformer(visual.ln_pre(expected)))[:, 1:]
    found = tower.encode_kept(x, live).data
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="no token is live"):
        tower.encode_kept(x, torch.zeros(16, dtype=torch.bool))


def test_towers_with_rotary_positions_refuse_kept_patches(made: Callable[[str], Any]) -> None:
    tower = made("eva").operator().load()
    assert not tower.outline.sparse
    with pytest.raises(ModelError, match="without the others"):
        tower.encode_kept(tower.prepare(pictures(1)), torch.ones(256, dtype=torch.bool))


def test_other_blocks_are_taken_as_they_are(made: Callable[[str], Any]) -> None:
    held = made("vit")
    x = held.operator().load().prepare(pictures())
    with torch.inference_mode():
        found = held.model.visual.forward_intermediates(x, indices=[1, 2, 3], output_fmt="NLC")
    for layer in (-3, 2):
        tower = held.operator(layer=layer).load()
        expected = found["image_intermediates"][layer if layer < 0 else layer - 1]
        assert torch.equal(tower.encode(x).data, expected)
        # Columns of deeper blocks do not move the tokens.
        assert torch.equal(tower.encode(x, frozenset({"attention"})).data, expected)


@pytest.mark.parametrize("kind", ["vit", "clipa", "coca", "timm", "siglip", "resnet", "convnext"])
def test_text_space_is_the_towers_own_head_on_one_token(
    kind: str, made: Callable[[str], Any]
) -> None:
    held = made(kind)
    tower = held.operator().load()
    x = tower.prepare(pictures(2))
    visual = held.model.visual
    with torch.inference_mode():
        tokens = own_tokens(kind, held.model, x)
        if kind in ("vit", "clipa"):
            post = tokens if kind == "vit" else visual.ln_post(tokens)
            expected = post @ visual.proj
        elif kind == "coca":
            pool, single = visual.attn_pool, tokens.reshape(-1, 1, tokens.shape[2])
            query = pool.ln_q(pool.query[:1]).expand(len(single), 1, -1)
            expected = visual.ln_post(pool.attn(query, single, single)[0])[:, 0] @ visual.proj
        elif kind == "timm":
            expected = visual.trunk.head(visual.trunk.fc_norm(tokens))
        elif kind == "siglip":
            expected = visual.head(visual.trunk.forward_head(tokens.reshape(-1, 1, 96)))
        elif kind == "resnet":
            pool = visual.attnpool
            expected = pool.c_proj(pool.v_proj(tokens + pool.positional_embedding[1:]))
        else:
            single = tokens.reshape(-1, tokens.shape[2], 1, 1)
            expected = visual.head(visual.trunk.forward_head(single))
    expected = expected.reshape(*tokens.shape[:2], 24)
    found = tower.encode(x, frozenset({"text_space"})).columns["text_space"]
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)
    post = held.operator(stage="post_projector").load()
    assert post.outline.dim == 24
    assert torch.equal(post.encode(x).data, found)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("kind", ["vit", "coca", "siglip", "eva", "resnet"])
def test_half_precision_runs_and_is_near(kind: str, dtype: str, made: Callable[[str], Any]) -> None:
    full, half = made(kind).operator().load(), made(kind).operator().load(dtype=dtype)
    assert half.weights == full.weights
    columns = frozenset(full.outline.extras)
    exact = full.encode(full.prepare(pictures()), columns)
    found = half.encode(half.prepare(pictures()), columns)
    assert found.data.dtype == getattr(torch, dtype)
    cosine = torch.cosine_similarity(found.data.float(), exact.data, dim=2)
    assert cosine.min() > 0.99
    assert set(found.columns) == columns
    if "attention" in columns:
        assert found.columns["attention"].dtype == torch.float32
        torch.testing.assert_close(
            found.columns["attention"], exact.columns["attention"], rtol=0.2, atol=0.02
        )


def test_a_column_nobody_gives_is_refused(made: Callable[[str], Any]) -> None:
    tower = made("resnet").operator().load()
    with pytest.raises(ModelError, match="gives no keys") as caught:
        tower.encode(tower.prepare(pictures(1)), frozenset({"keys"}))
    assert "frame_embedding" in (caught.value.hint or "")


def test_the_digest_is_of_the_weights(made: Callable[[str], Any]) -> None:
    held = made("vit")
    tower = held.operator().load()
    assert held.operator(digest=tower.weights).load().weights == tower.weights
    with pytest.raises(WeightsMismatch, match="not those on record"):
        held.operator(digest="sha256:" + "0" * 64).load()
