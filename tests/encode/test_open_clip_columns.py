"""Attention, keys and what else lies beside a token, against the full matrices."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tokpipe.encode._attend import attention_rows, heads_of, keys, queries, received, watching
from tokpipe.errors import ModelError

pytest.importorskip("open_clip")
timm = pytest.importorskip("timm")


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
#: Kind, class and register tokens, heads, depth.
BLOCKS = [("vit", 1, 4, 4), ("clipa", 1, 4, 4), ("coca", 1, 4, 4), ("timm", 1, 2, 6),
          ("siglip", 1, 3, 9), ("eva", 1, 3, 12)]  # fmt: skip


def inputs_of(kind: str, model: Any, x: Tensor) -> list[tuple[Any, Tensor, Any]]:
    """Every block's attention module, what it was given, and its rotary positions."""
    visual = model.visual
    blocks = visual.transformer.resblocks if hasattr(visual, "transformer") else visual.trunk.blocks
    caught: list[tuple[Any, Tensor, Any]] = []

    def keep(module: nn.Module, args: tuple[Tensor, ...], named: dict[str, Any]) -> None:
        caught.append((module, args[0], named.get("rope")))

    handles = [b.attn.register_forward_pre_hook(keep, with_kwargs=True) for b in blocks]
    with torch.inference_mode():
        visual(x)
    for handle in handles:
        handle.remove()
    return caught


def naive(module: Any, hidden: Tensor, rope: Any, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Queries and keys [B, H, n, Dh] and the whole softmax [B, H, n, n], in the plainest way."""
    if isinstance(module, nn.MultiheadAttention):
        made = nn.functional.linear(hidden, module.in_proj_weight, module.in_proj_bias)
    elif getattr(module, "q_bias", None) is not None:
        bias = torch.cat([module.q_bias, torch.zeros_like(module.q_bias), module.v_bias])
        made = module.qkv(hidden) + bias
    elif module.qkv is None:
        made = torch.cat([module.q_proj(hidden), module.k_proj(hidden), module.v_proj(hidden)], 2)
    else:
        made = module.qkv(hidden)
    query, key, _ = (
        part.reshape(*hidden.shape[:2], heads, -1).transpose(1, 2) for part in made.chunk(3, 2)
    )
    if rope is not None:
        turn = importlib.import_module("timm.layers").apply_rot_embed_cat
        query = torch.cat([query[:, :, :1], turn(query[:, :, 1:], rope)], 2)
        key = torch.cat([key[:, :, :1], turn(key[:, :, 1:], rope)], 2)
    weights = (query @ key.transpose(2, 3) / query.shape[3] ** 0.5).softmax(3)
    return query, key, weights


@pytest.mark.parametrize(("kind", "prefix", "heads", "depth"), BLOCKS)
def test_columns_are_those_of_the_full_matrices(
    kind: str, prefix: int, heads: int, depth: int, made: Callable[[str], Any]
) -> None:
    held = made(kind)
    for layer in (-1, 1):
        tower = held.operator(attention_layer=layer).load()
        x = tower.prepare(pictures())
        seen = inputs_of(kind, held.model, x)
        found = tower.encode(x, frozenset(tower.outline.extras)).columns
        with torch.inference_mode():
            query, key, weights = naive(*seen[layer], heads)
            shallow = naive(*seen[depth // 4], heads)[2]
            middle = naive(*seen[depth * 3 // 8], heads)[2]
        expected = {
            "keys": key[:, :, prefix:].transpose(1, 2),
            "queries": query[:, :, prefix:].transpose(1, 2),
            "received": weights.mean((1, 2))[:, prefix:],
            "received_middle": middle.mean((1, 2))[:, prefix:],
        }
        if tower.outline.about["reader"] == "class-token":
            expected["attention"] = weights[:, :, 0, prefix:].transpose(1, 2)
            expected["attention_shallow"] = shallow[:, :, 0, prefix:].transpose(1, 2)
        else:
            expected["attention_shallow"] = shallow.mean((1, 2))[:, prefix:]
        for name, value in expected.items():
            scale = float(value.abs().max())
            torch.testing.assert_close(found[name], value, rtol=0, atol=1e-6 * max(1.0, scale))


def test_readers_are_what_each_tower_reads_its_vector_from(made: Callable[[str], Any]) -> None:
    readers = {kind: made(kind).operator().outline().about["reader"] for kind in models.CONFIGS}
    assert readers == {
        "vit": "class-token", "clipa": "received", "coca": "pooling-head", "timm": "class-token",
        "siglip": "pooling-head", "eva": "class-token", "resnet": "none", "convnext": "none",
    }  # fmt: skip


def test_attention_of_an_attentional_pooler_is_its_own(made: Callable[[str], Any]) -> None:
    held = made("coca")
    tower = held.operator().load()
    x = tower.prepare(pictures())
    pool, caught = held.model.visual.attn_pool, []
    handle = pool.ln_k.register_forward_hook(lambda _m, _a, out: caught.append(out))
    with torch.inference_mode():
        held.model.visual(x)
        hidden = caught[0]
        asked = pool.ln_q(pool.query).expand(len(x), -1, -1)
        weights = pool.attn(asked, hidden, hidden, average_attn_weights=False)[1]
    handle.remove()
    found = tower.encode(x, frozenset({"attention"})).columns["attention"]
    assert found.shape == (3, 16, 4)
    expected = weights[:, :, 0, 1:].transpose(1, 2)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_attention_of_a_latent_pool_is_its_own(made: Callable[[str], Any]) -> None:
    held = made("siglip")
    tower = held.operator().load()
    x = tower.prepare(pictures())
    trunk = held.model.visual.trunk
    pool = trunk.attn_pool
    with torch.inference_mode():
        hidden = trunk.forward_features(x)
        key = pool.kv(hidden).chunk(2, 2)[0].reshape(3, -1, 3, 32).transpose(1, 2)
        query = pool.q(pool.latent).reshape(1, 1, 3, 32).transpose(1, 2)
        weights = (query @ key.transpose(2, 3) * 32**-0.5).softmax(3)
    found = tower.encode(x, frozenset({"attention"})).columns["attention"]
    expected = weights[:, :, 0, 1:].transpose(1, 2)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_layer_shift_is_the_length_of_what_the_mlp_adds(made: Callable[[str], Any]) -> None:
    held = made("vit")
    tower = held.operator(attention_layer=2).load()
    x = tower.prepare(pictures())
    block, caught = held.model.visual.transformer.resblocks[2], []
    handle = block.mlp.register_forward_hook(lambda _m, _a, out: caught.append(out))
    with torch.inference_mode():
        held.model.visual(x)
    handle.remove()
    found = tower.encode(x, frozenset({"layer_shift"})).columns["layer_shift"]
    torch.testing.assert_close(found, caught[0][:, 1:].norm(dim=2))


# What _attend does apart from open_clip.


def test_rows_of_torchs_own_attention_are_its_weights() -> None:
    torch.manual_seed(0)
    module = nn.MultiheadAttention(32, 4, batch_first=True).eval()
    nn.init.normal_(module.in_proj_bias)
    hidden = torch.randn(3, 9, 32)
    with torch.inference_mode():
        with watching({"it": module}) as seen:
            module(hidden, hidden, hidden, need_weights=False)
        weights = module(hidden, hidden, hidden, average_attn_weights=False)[1]
        heads = heads_of(module)
        rows = attention_rows(seen["it"], heads, slice(None))
        got = received(queries(seen["it"], heads), keys(seen["it"], heads), heads.scale)
    assert not module._forward_pre_hooks
    torch.testing.assert_close(rows, weights, rtol=0, atol=1e-6)
    torch.testing.assert_close(got, weights.mean((1, 2)), rtol=0, atol=1e-6)


class Grouped(nn.Module):
    """Projections as HF's models name them, with fewer heads of keys and a norm of a head."""

    def __init__(self, *, across: bool) -> None:
        super().__init__()
        self.num_heads, self.scaling = 4, 0.3
        self.q_proj, self.k_proj = nn.Linear(32, 32), nn.Linear(32, 32 if across else 16)
        self.q_norm = nn.LayerNorm(32 if across else 8)
        self.k_norm = nn.LayerNorm(32 if across else 8)

    def forward(self, hidden_states: Tensor) -> Tensor:
        return hidden_states


@pytest.mark.parametrize("across", [False, True])
def test_grouped_queries_and_norms_before_or_after_the_split(*, across: bool) -> None:
    torch.manual_seed(0)
    module = Grouped(across=across)
    hidden = torch.randn(2, 5, 32)
    with torch.inference_mode(), watching({0: module}) as seen:
        module(hidden_states=hidden)
    with torch.inference_mode():
        query, key = module.q_proj(hidden), module.k_proj(hidden)
        if across:
            query, key = module.q_norm(query), module.k_norm(key)
        query = query.reshape(2, 5, 4, 8).transpose(1, 2)
        key = key.reshape(2, 5, -1, 8).transpose(1, 2)
        if not across:
            query, key = module.q_norm(query), module.k_norm(key)
            key = key.repeat_interleave(2, 1)
        weights = (query @ key.transpose(2, 3) * 0.3).softmax(3)
        rows = attention_rows(seen[0], heads_of(module), slice(1, 4))
    torch.testing.assert_close(rows, weights[:, :, 1:4], rtol=0, atol=1e-6)


def test_received_in_blocks_is_received_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    query, key = torch.randn(9, 3, 50, 4), torch.randn(9, 3, 50, 4)
    expected = (query @ key.transpose(2, 3) * 0.5).softmax(3).mean((1, 2))
    monkeypatch.setattr("tokpipe.encode._attend._BLOCK", 7 * 3 * 50)
    torch.testing.assert_close(received(query, key, 0.5), expected, rtol=0, atol=1e-6)


def test_attention_with_a_bias_of_its_own_is_refused() -> None:
    module = timm.create_model("vit_relpos_small_patch16_224", depth=1).blocks[0].attn
    with pytest.raises(ModelError, match="cannot be shown"):
        heads_of(module)
    with pytest.raises(ModelError, match="cannot be shown"):
        heads_of(nn.Linear(2, 2))
