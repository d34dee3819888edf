"""Blocks of transformers taken apart: attention, then the MLP, so that tokens may merge between.

One small adapter for each kind of block. All work on rows [..., D] with any leading axes, so that
pictures of different length can share one pass. Letters: T pictures, N rows of each, M rows of
all, H heads, d channels of a head, D width.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, scaled_dot_product_attention

from tokpipe.errors import ModelError

#: Norm before attention, attention and norm before the MLP of transformers' layers, by class.
_HF = {
    "CLIPEncoderLayer": ("layer_norm1", "self_attn", "layer_norm2"),
    "SiglipEncoderLayer": ("layer_norm1", "self_attn", "layer_norm2"),
    "Siglip2EncoderLayer": ("layer_norm1", "self_attn", "layer_norm2"),
    "Dinov2Layer": ("norm1", "attention", "norm2"),
    "Dinov2WithRegistersLayer": ("norm1", "attention", "norm2"),
    "ViTLayer": ("layernorm_before", "attention", "layernorm_after"),
    "DeiTLayer": ("layernorm_before", "attention", "layernorm_after"),
    "ASTLayer": ("layernorm_before", "attention", "layernorm_after"),
    "WhisperEncoderLayer": ("self_attn_layer_norm", "self_attn", "final_layer_norm"),
}


class Block(Protocol):
    """A block ``x + close(attention(project(norm(x))))``, then ``x + feed(x)``.

    Attributes:
        scale: What products of queries and keys are multiplied by.
    """

    scale: float

    def plain(self, hidden: Tensor) -> Tensor:
        """The whole block as its library runs it, [T, N, D]."""
        ...

    def norm(self, hidden: Tensor) -> Tensor:
        """Rows as attention takes them."""
        ...

    def project(self, normed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values [..., H, d]."""
        ...

    def close(self, mixed: Tensor, normed: Tensor) -> Tensor:
        """What attention adds to the rows, from the mixed values [..., H x d]."""
        ...

    def feed(self, hidden: Tensor) -> Tensor:
        """What the MLP adds to the rows, its norm included."""
        ...


class _OpenClip:
    """open_clip's ``ResidualAttentionBlock`` around ``nn.MultiheadAttention``."""

    def __init__(self, module: Any) -> None:
        self.module, self.attention = module, module.attn
        self.scale = float(module.attn.head_dim) ** -0.5

    def plain(self, hidden: Tensor) -> Tensor:
        out: Tensor = self.module(hidden)
        return out

    def norm(self, hidden: Tensor) -> Tensor:
        out: Tensor = self.module.ln_1(hidden)
        return out

    def project(self, normed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        joint = linear(normed, self.attention.in_proj_weight, self.attention.in_proj_bias)
        query, key, value = joint.reshape(
            *joint.shape[:-1], 3, self.attention.num_heads, -1
        ).unbind(-3)
        return query, key, value

    def close(self, mixed: Tensor, normed: Tensor) -> Tensor:
        out: Tensor = self.module.ls_1(self.attention.out_proj(mixed))
        return out

    def feed(self, hidden: Tensor) -> Tensor:
        out: Tensor = self.module.ls_2(self.module.mlp(self.module.ln_2(hidden)))
        return out


class _Timm:
    """timm's ``vision_transformer.Block`` around its ``Attention``."""

    def __init__(self, module: Any) -> None:
        self.module, self.attention = module, module.attn
        self.scale = float(module.attn.scale)

    def plain(self, hidden: Tensor) -> Tensor:
        out: Tensor = self.module(hidden)
        return out

    def norm(self, hidden: Tensor) -> Tensor:
        out: Tensor = self.module.norm1(hidden)
        return out

    def project(self, normed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        at = self.attention
        query, key, value = at.qkv(normed).unflatten(-1, (3, at.num_heads, -1)).unbind(-3)
        return at.q_norm(query), at.k_norm(key), value

    def close(self, mixed: Tensor, normed: Tensor) -> Tensor:
        mixed = _maybe(self.attention, "norm", mixed)
        gate = getattr(self.attention, "gate", None)
        if gate is not None:
            mixed = mixed * gate(normed).sigmoid()
        out: Tensor = self.module.ls1(self.attention.proj(mixed))
        return out

    def feed(self, hidden: Tensor) -> Tensor:
        out: Tensor = self.module.ls2(self.module.mlp(self.module.norm2(hidden)))
        return out


class _Hf:
    """Layers of transformers with separate projections and no rotary positions."""

    def __init__(self, module: Any) -> None:
        first, attention, second = _HF[type(module).__name__]
        self.module, self.attention = module, getattr(module, attention)
        self._first, self._second = getattr(module, first), getattr(module, second)
        self.scale = float(self.attention.head_dim) ** -0.5

    def plain(self, hidden: Tensor) -> Tensor:
        out: Tensor = self.module(hidden, attention_mask=None)
        return out

    def norm(self, hidden: Tensor) -> Tensor:
        out: Tensor = self._first(hidden)
        return out

    def project(self, normed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        at = self.attention
        made = (at.q_proj(normed), at.k_proj(normed), at.v_proj(normed))
        query, key, value = (part.unflatten(-1, (-1, at.head_dim)) for part in made)
        return query, key, value

    def close(self, mixed: Tensor, normed: Tensor) -> Tensor:
        at = self.attention
        out: Tensor = at.out_proj(mixed) if hasattr(at, "out_proj") else at.o_proj(mixed)
        scaled: Tensor = _maybe(self.module, "layer_scale1", out)
        return scaled

    def feed(self, hidden: Tensor) -> Tensor:
        layer, normed = self.module, self._second(hidden)
        if hasattr(layer, "mlp"):
            return _maybe(layer, "layer_scale2", layer.mlp(normed))
        out: Tensor = layer.fc2(layer.activation_fn(layer.fc1(normed)))
        return out


def _maybe(module: Any, name: str, value: Tensor) -> Tensor:
    part = getattr(module, name, None)
    out: Tensor = value if part is None else part(value)
    return out


def block_of(module: nn.Module) -> Block:
    """The adapter of a block in eval mode.

    Raises:
        ModelError: Tokens cannot merge inside this kind of block, or it is in training mode.
    """
    name, attention = type(module).__name__, getattr(module, "attn", None)
    if module.training:
        raise ModelError("tokens merge inside towers in eval mode only", hint="call `.eval()`")
    joint = isinstance(attention, nn.MultiheadAttention) and attention.in_proj_weight is not None
    if joint and all(hasattr(module, part) for part in ("ln_1", "ls_1", "mlp", "ln_2", "ls_2")) \
            and not hasattr(module, "ln_1_kv"):  # fmt: skip
        return _OpenClip(module)
    if name == "Block" and type(attention).__name__ == "Attention" and hasattr(attention, "qkv"):
        return _Timm(module)
    if name in _HF:
        return _Hf(module)
    known = "open_clip, timm's ViT and DeiT, " + ", ".join(sorted(_HF))
    raise ModelError(
        f"tokens cannot merge inside a `{name}`",
        hint=f"known blocks: {known}; merge on the tower's output instead",
    )


def attended(
    query: Tensor, key: Tensor, value: Tensor, scale: float, bias: Tensor | None = None
) -> Tensor:
    """Values [T, N, H x d] mixed by attention of queries, keys and values [T, N, H, d].

    Args:
        query: Of each row.
        key: Of each row.
        value: Of each row.
        scale: Multiplies the products.
        bias: float [T, N] added to the logits of every key: log of its size, -inf where padded.
    """
    mask = None if bias is None else bias.to(query.dtype)[:, None, None, :]
    mixed = scaled_dot_product_attention(
        query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), attn_mask=mask,
        scale=scale,
    )  # fmt: skip
    return mixed.transpose(1, 2).flatten(2)


def rows_of_attention(
    query: Tensor, key: Tensor, scale: float, bias: Tensor | None = None
) -> Tensor:
    """Attention float32 [T, H, R, N] of queries [T, R, H, d] over keys [T, N, H, d]."""
    logits = torch.einsum("trhd,tnhd->thrn", query.float(), key.float()) * scale
    if bias is not None:
        logits = logits + bias.float()[:, None, None, :]
    return logits.softmax(-1)
