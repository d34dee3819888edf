"""Queries, keys and attention weights of chosen blocks, beside a tower's own fused forward.

Fused attention never shows its weights. What a block's attention module was given is caught by a
hook, and only the rows wanted are computed again from it: one row of the class token costs O(n D)
a picture where the full matrix would cost O(n^2 D). The tokens themselves come from the tower's
own forward, untouched.

Letters: B pictures, n tokens of one (prefix tokens included), m query rows, H heads, Dh their
width, D the block's width. Logits and softmax are float32 whatever the tower's dtype; projections
run in the tower's dtype, as the tower's own do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from tokpipe.errors import ModelError

Name = TypeVar("Name", int, str)
#: Rotates [B, H, m, Dh], the rows ``slice`` of the whole sequence.
Turn = Callable[[Tensor, slice], Tensor]

_HIDDEN = ("hidden_states", "x", "query", "input")
_ALL = slice(None)
#: Numbers of one block of logits of one picture; fixed, so that batch size never changes bits.
_BLOCK = 1 << 22
_PICTURES = 8


@dataclass(frozen=True, slots=True)
class Seen:
    """What an attention module was given in one forward pass.

    Attributes:
        hidden: [B, n, D], what keys are made of.
        asked: [B, m, D], what queries are made of; the same tensor in self-attention.
        named: Its keyword arguments, such as ``rope`` or ``position_embeddings``.
    """

    hidden: Tensor
    asked: Tensor
    named: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Heads:
    """How an attention module makes queries and keys.

    Attributes:
        query, key: [B, m, D] to [B, H, m, Dh], norms of the heads included, no rotation.
        scale: Factor of the logits.
        key_weight: [H, Dh, D] where a key is linear in its token, else None. The bias adds the
            same to all logits of a row, so softmax does not see it.
    """

    query: Callable[[Tensor], Tensor]
    key: Callable[[Tensor], Tensor]
    scale: float
    key_weight: Tensor | None = None


@contextmanager
def watching(modules: Mapping[Name, nn.Module]) -> Iterator[dict[Name, Seen]]:
    """Catch what attention modules are given while the block runs; hooks are gone afterwards.

    Yields:
        A dict that is empty first and holds one Seen a module after the forward pass.
    """
    seen: dict[Name, Seen] = {}

    def keep(name: Name, _module: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        asked = args[0] if args else next(named[k] for k in _HIDDEN if k in named)
        hidden = args[1] if len(args) > 1 and isinstance(args[1], Tensor) else named.get("key")
        hidden = asked if hidden is None or hidden.ndim != asked.ndim else hidden
        seen[name] = Seen(_batched(hidden), _batched(asked), named)

    handles = [
        module.register_forward_pre_hook(partial(keep, name), with_kwargs=True)
        for name, module in modules.items()
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _batched(hidden: Tensor) -> Tensor:
    return hidden if hidden.ndim == 3 else hidden.unsqueeze(0)


# How modules of the libraries keep their projections.


def heads_of(attention: nn.Module) -> Heads:
    """Projections of an attention module: torch's own, open_clip's, timm's, or HF's.

    Raises:
        ModelError: Its logits are not plain scaled products of queries and keys, or its parts
            have other names.
    """
    if any(getattr(attention, name, None) is not None for name in _BIASED):
        raise _unknown(attention)
    if isinstance(attention, nn.MultiheadAttention):
        return _of_torch(attention)
    for names, make in _KINDS:
        if all(isinstance(getattr(attention, n, None), Tensor | nn.Module) for n in names):
            return make(attention)
    raise _unknown(attention)


#: Parts that add something to the logits, or scale them otherwise.
_BIASED = ("rel_pos", "relative_position_bias", "relative_position_bias_table", "logit_scale")


def _unknown(attention: nn.Module) -> ModelError:
    return ModelError(
        f"attention of {type(attention).__name__} cannot be shown: its rows are not a plain "
        "softmax of queries and keys",
        hint="use a reducer that needs neither attention nor keys, or another tower",
    )


def _of_torch(module: nn.MultiheadAttention) -> Heads:
    if module.in_proj_weight is not None:
        query, key, _ = module.in_proj_weight.chunk(3)
    else:
        query, key = module.q_proj_weight, module.k_proj_weight
    bias = module.in_proj_bias
    own, other = (None, None) if bias is None else bias.chunk(3)[:2]
    return _linear(module, (query, own), (key, other))


def _of_in_proj(module: Any) -> Heads:
    weight, bias = module.in_proj_weight, getattr(module, "in_proj_bias", None)
    return _fused(module, weight, bias, (module.ln_q, module.ln_k))


def _of_qkv(module: Any) -> Heads:
    bias = module.qkv.bias
    if bias is None and getattr(module, "q_bias", None) is not None:
        # EVA and BEiT learn no bias of the keys.
        zero = torch.zeros_like(module.q_bias)
        bias = torch.cat([module.q_bias, zero, module.v_bias])
    return _fused(module, module.qkv.weight, bias, _norms(module))


def _fused(
    module: nn.Module, weight: Tensor, bias: Tensor | None, norms: tuple[nn.Module | None, ...]
) -> Heads:
    query, key, _ = weight.chunk(3)
    own, other = (None, None) if bias is None else bias.chunk(3)[:2]
    return _linear(module, (query, own), (key, other), norms)


def _of_separate(module: Any) -> Heads:
    query, key = module.q_proj, module.k_proj
    return _linear(module, (query.weight, query.bias), (key.weight, key.bias), _norms(module))


def _of_letters(module: Any) -> Heads:
    """Qwen2.5-Omni's vision tower."""
    query, key = module.q, module.k
    return _linear(module, (query.weight, query.bias), (key.weight, key.bias), _norms(module))


def _of_latent(module: Any) -> Heads:
    """The pooling by a learnt query of timm; ``Seen.asked`` is the latent, see ``latent_seen``."""
    key = module.kv.weight.chunk(2)[0]
    bias = None if module.kv.bias is None else module.kv.bias.chunk(2)[0]
    query = (module.q.weight, module.q.bias) if isinstance(module.q, nn.Linear) else (None, None)
    return _linear(module, query, (key, bias), _norms(module))


def latent_seen(module: Any, hidden: Tensor) -> Seen:
    """What timm's ``AttentionPoolLatent`` compares, from its input [B, n, D]."""
    if module.pos_embed is not None:
        hidden = hidden + module.pos_embed.unsqueeze(0).to(hidden.dtype)
    return Seen(hidden, module.latent.expand(len(hidden), -1, -1))


_KINDS: tuple[tuple[tuple[str, ...], Callable[[Any], Heads]], ...] = (
    (("in_proj_weight", "ln_q", "ln_k"), _of_in_proj),
    (("latent", "kv"), _of_latent),
    (("qkv",), _of_qkv),
    (("q_proj", "k_proj"), _of_separate),
    (("q", "k", "v"), _of_letters),
)

_Pair = tuple[Tensor | None, Tensor | None]


def _norms(module: nn.Module) -> tuple[nn.Module | None, nn.Module | None]:
    return getattr(module, "q_norm", None), getattr(module, "k_norm", None)


def _linear(
    module: Any,
    query: _Pair,
    key: tuple[Tensor, Tensor | None],
    norms: tuple[nn.Module | None, ...] = (None, None),
) -> Heads:
    heads = int(module.num_heads if hasattr(module, "num_heads") else module.num_attention_heads)
    width = key[0].shape[0]
    # Grouped queries: fewer heads of keys, each for several heads of queries.
    wide = width if query[0] is None else query[0].shape[0]
    head = wide // heads
    few = width // head
    stated = [getattr(module, name, None) for name in ("scale", "scaling")]
    scale = next((value for value in stated if isinstance(value, float)), head**-0.5)
    plain = norms[1] is None or isinstance(norms[1], nn.Identity)
    weight = key[0].reshape(few, head, -1).repeat_interleave(heads // few, 0) if plain else None
    return Heads(
        query=partial(_project, query, norms[0], heads, 1),
        key=partial(_project, key, norms[1], few, heads // few),
        scale=scale,
        key_weight=weight,
    )


def _project(
    parts: _Pair, norm: nn.Module | None, heads: int, repeat: int, hidden: Tensor
) -> Tensor:
    weight, bias = parts
    made = hidden if weight is None else nn.functional.linear(hidden, weight, bias)
    split = made.reshape(*made.shape[:2], heads, -1)
    if norm is not None:
        size = getattr(norm, "weight", None)
        # A norm over all heads together comes before the split, one of a head's width after it.
        across = size is not None and size.numel() != split.shape[3]
        split = norm(made).reshape(split.shape) if across else norm(split)
    turned = split.transpose(1, 2)
    return turned.repeat_interleave(repeat, 1) if repeat > 1 else turned


def turned_by(cos: Tensor, sin: Tensor, prefix: int, *, half: bool) -> Turn:
    """Rotary positions for rows of the whole sequence; the first ``prefix`` are not rotated.

    Args:
        cos, sin: [..., n - prefix, Dh], broadcast over pictures and heads.
        half: Pairs are (i, i + Dh / 2), as in HF's models; else neighbours (2 i, 2 i + 1), as in
            timm's default.
    """
    shape = (*cos.shape[:-2], prefix, cos.shape[-1])
    cos = torch.cat([cos.new_ones(shape), cos], -2)
    sin = torch.cat([sin.new_zeros(shape), sin], -2)

    def turn(x: Tensor, rows: slice) -> Tensor:
        if half:
            low, high = x.chunk(2, -1)
            other = torch.cat([-high, low], -1)
        else:
            other = torch.stack([-x[..., 1::2], x[..., ::2]], -1).flatten(-2)
        return (x * cos[..., rows, :] + other * sin[..., rows, :]).to(x.dtype)

    return turn


# What the columns are made of.


def queries(seen: Seen, heads: Heads, rows: slice = _ALL, turn: Turn | None = None) -> Tensor:
    """Queries [B, H, m, Dh] of the rows asked for."""
    made = heads.query(seen.asked[:, rows])
    return made if turn is None else turn(made, rows)


def keys(seen: Seen, heads: Heads, turn: Turn | None = None) -> Tensor:
    """Keys [B, H, n, Dh] of all tokens."""
    made = heads.key(seen.hidden)
    return made if turn is None else turn(made, _ALL)


def attention_rows(
    seen: Seen,
    heads: Heads,
    rows: slice = slice(0, 1),
    turn: Turn | None = None,
) -> Tensor:
    """Attention of some query rows to all tokens, float32 [B, H, m, n], each row summing to 1.

    Args:
        rows: The query rows; the class token by default.
        turn: Rotation of queries and keys.
    """
    # Picture by picture, since the bits of a product depend on how many rows it has.
    made = [heads.query(one) for one in seen.asked[:, rows].split(1)]  # type: ignore[no-untyped-call]
    asked = torch.cat(made) if turn is None else turn(torch.cat(made), rows)
    asked = asked.float()
    if heads.key_weight is None or turn is not None:
        logits = asked @ keys(seen, heads, turn).float().transpose(2, 3)
    else:
        # (q W) x instead of q (W x): one product a head in place of a key for every token.
        weight = heads.key_weight.float()
        folded = torch.stack([torch.bmm(picture, weight) for picture in asked])
        logits = folded.flatten(1, 2) @ seen.hidden.float().transpose(1, 2)
        logits = logits.reshape(*asked.shape[:3], -1)
    return (logits * heads.scale).softmax(-1)


def received(query: Tensor, key: Tensor, scale: float) -> Tensor:
    """Attention each token receives, mean over heads and queries: float32 [B, n], sum 1.

    Args:
        query, key: [B, H, n, Dh].
    """
    parts = []
    for start in range(0, len(query), _PICTURES):
        some = slice(start, start + _PICTURES)
        parts.append(_received(query[some], key[some], scale))
    return torch.cat(parts)


def _received(query: Tensor, key: Tensor, scale: float) -> Tensor:
    pictures, heads, n, _ = key.shape
    key = key.float().transpose(2, 3)
    step = max(1, _BLOCK // (heads * n))
    total = torch.zeros(pictures, n, device=key.device)
    for start in range(0, query.shape[2], step):
        logits = query[:, :, start : start + step].float() @ key * scale
        total += logits.softmax(-1).sum((1, 2))
    return total / (heads * query.shape[2])
