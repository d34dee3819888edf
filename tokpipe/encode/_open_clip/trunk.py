"""What differs between open_clip's vision towers: its own ViT, timm's, and feature maps.

A trunk wraps the tower's module and is asked the same things whichever it is. It is made from a
loaded tower, or from one on the device ``meta``, which has shapes but no values.

Letters: T pictures, n patches, D width, E width of the text space.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tokpipe.encode._attend import Heads, Seen, Turn, heads_of, latent_seen, turned_by
from tokpipe.errors import ModelError

#: What a picture's vector is read from: the column ``attention`` is that reader's attention.
Reader = Literal["class-token", "pooling-head", "received", "none"]
KINDS = "open_clip's ViT and CoCa, timm's ViT, SigLIP and EVA, ResNet, ConvNeXt and other maps"


@dataclass(frozen=True, slots=True)
class Hidden:
    """Output of one block: ``prefix`` [T, p, D] (class and register tokens), patches [T, n, D]."""

    prefix: Tensor | None
    patches: Tensor

    def whole(self) -> Tensor:
        """Both, [T, p + n, D]."""
        return self.patches if self.prefix is None else torch.cat([self.prefix, self.patches], 1)


class Trunk:
    """A tower of blocks; ``depth`` 0 means one that gives a feature map only.

    Attributes:
        dim, text_dim: D and E.
        grid: Rows and columns of patches.
        patch: Height and width in pixels of one.
        canvas: Height and width of its input.
        prefix: Class and register tokens before the patches.
        reader: What the picture's vector is read from.
        sparse: It may be run on some of the patches.
        has_text_space: Single patches can be projected into the space of the text.
    """

    kind = "maps"
    depth = 0
    prefix = 0
    reader: Reader = "none"
    sparse = False
    has_text_space = True

    def __init__(self, visual: Any, text_dim: int) -> None:
        self.visual = visual
        size = visual.image_size
        self.canvas: tuple[int, int] = (size, size) if isinstance(size, int) else tuple(size)
        self.text_dim = text_dim
        self.dim = 0
        self.grid = (1, 1)
        self.patch = (1, 1)

    def hidden(self, prepared: Tensor, wanted: Sequence[int]) -> list[Hidden]:
        """Outputs of the blocks ``wanted``, in ascending order."""
        found = self.visual.forward_intermediates(
            prepared, indices=list(wanted), stop_early=True, intermediates_only=True,
            output_fmt="NLC", output_extra_tokens=True,
        )  # fmt: skip
        patches = found["image_intermediates"]
        prefix = found.get("image_intermediates_prefix", [None] * len(patches))
        return [Hidden(p, x) for p, x in zip(prefix, patches, strict=True)]

    def normed(self, patches: Tensor) -> Tensor:
        """Patches after the norm the tower itself applies to them last."""
        raise NotImplementedError

    def pooled(self, last: Hidden) -> Tensor:
        """The picture's vector [T, E], as ``encode_image`` gives it, from the last block."""
        raise NotImplementedError

    def alone(self, normed: Tensor) -> Tensor:
        """Normed patches [T, n, D] in the space of the text, [T, n, E].

        Each is what the tower's own pooling and projection make of that token alone.
        """
        raise NotImplementedError

    def blocks(self) -> Sequence[Any]:
        """Its blocks; each has the attention module ``attn``."""
        raise NotImplementedError

    def shift(self, block: int) -> nn.Module | None:
        """Module whose output is what the block's MLP adds, where there is one."""
        return getattr(self.blocks()[block], "ls_2", getattr(self.blocks()[block], "ls2", None))

    def heads(self, block: int) -> Heads:
        """Projections of one block's attention. Raises ModelError where it cannot be shown."""
        return heads_of(self.blocks()[block].attn)

    def turn(self, block: int, seen: Seen) -> Turn | None:
        """Rotation of queries and keys in one block, None where there is none."""
        return None

    def reading(self, last: Hidden) -> tuple[Seen, Heads]:
        """What the pooling head compares, from the last block."""
        raise NotImplementedError

    @contextmanager
    def only(self, index: Tensor) -> Iterator[None]:
        """Let only the patches ``index`` int64 [k] go into the blocks; positions are theirs."""
        rows = torch.cat([torch.arange(self.prefix, device=index.device), index + self.prefix])

        def choose(_module: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
            return (args[0].index_select(1, rows),)

        handle = self._entry().register_forward_pre_hook(choose)
        try:
            yield
        finally:
            handle.remove()

    def _entry(self) -> nn.Module:
        """The module tokens go through after positions are added and before the first block."""
        raise NotImplementedError


class Native(Trunk):
    """open_clip's own VisionTransformer, with the class token or an attentional pooler."""

    kind = "vit"
    prefix = 1
    sparse = True

    def __init__(self, visual: Any, text_dim: int) -> None:
        super().__init__(visual, text_dim)
        if getattr(visual, "attn_pool_contrastive", None) is not None:
            raise _unsupported("two pooling heads")
        if visual.pool_type not in ("tok", "avg"):
            raise _unsupported(f"pooling `{visual.pool_type}`")
        self.depth = len(visual.transformer.resblocks)
        self.dim = visual.conv1.out_channels
        self.grid, self.patch = tuple(visual.grid_size), tuple(visual.patch_size)
        self.reader = (
            "pooling-head" if visual.attn_pool is not None
            else "class-token" if visual.pool_type == "tok" else "received"
        )  # fmt: skip

    def normed(self, patches: Tensor) -> Tensor:
        made: Tensor = self._norm(patches)
        return made

    def _norm(self, x: Tensor) -> Any:
        if self.visual.attn_pool is not None:
            return self.visual.attn_pool.ln_k(x)
        return x if self.visual.final_ln_after_pool else self.visual.ln_post(x)

    def pooled(self, last: Hidden) -> Tensor:
        visual, x = self.visual, last.whole()
        if visual.attn_pool is not None:
            x = self._pool(visual.ln_post(visual.attn_pool(x)))
        elif visual.final_ln_after_pool:
            x = visual.ln_post(self._pool(x))
        else:
            x = self._pool(visual.ln_post(x))
        made: Tensor = x @ visual.proj
        return made

    def _pool(self, x: Tensor) -> Tensor:
        return x[:, 0] if self.visual.pool_type == "tok" else x[:, 1:].mean(1)

    def alone(self, normed: Tensor) -> Tensor:
        visual = self.visual
        if visual.attn_pool is not None:
            # Softmax over one token is 1, so the pooler's output is that token's value.
            normed = visual.ln_post(_value(visual.attn_pool.attn, normed))
        elif visual.final_ln_after_pool:
            normed = visual.ln_post(normed)
        made: Tensor = normed @ visual.proj
        return made

    def blocks(self) -> Sequence[Any]:
        return list(self.visual.transformer.resblocks)

    def reading(self, last: Hidden) -> tuple[Seen, Heads]:
        pool = self.visual.attn_pool
        hidden = pool.ln_k(last.whole())
        asked = pool.ln_q(pool.query).unsqueeze(0).expand(len(hidden), -1, -1)
        return Seen(hidden, asked), heads_of(pool.attn)

    def _entry(self) -> nn.Module:
        entry: nn.Module = self.visual.ln_pre
        return entry


def _value(attention: nn.MultiheadAttention, x: Tensor) -> Tensor:
    """What attention that sees one token only makes of it, for each token."""
    if attention.in_proj_weight is not None:
        weight = attention.in_proj_weight.chunk(3)[2]
    else:
        weight = attention.v_proj_weight
    bias = None if attention.in_proj_bias is None else attention.in_proj_bias.chunk(3)[2]
    made: Tensor = attention.out_proj(nn.functional.linear(x, weight, bias))
    return made


class Timm(Trunk):
    """A trunk of timm with blocks: ViT, SigLIP, EVA."""

    kind = "timm-vit"

    def __init__(self, visual: Any, text_dim: int) -> None:
        super().__init__(visual, text_dim)
        trunk = self.trunk = visual.trunk
        self.depth, self.dim = len(trunk.blocks), int(trunk.num_features)
        self.prefix = int(getattr(trunk, "num_prefix_tokens", 0))
        self.grid = tuple(trunk.patch_embed.grid_size)
        native = getattr(trunk.patch_embed, "patch_size", None)
        whole = (self.canvas[0] // self.grid[0], self.canvas[1] // self.grid[1])
        # A hybrid stem states the patch of its last layer, not the pixels of a token.
        self.patch = whole if native is None or native[0] < whole[0] - 1 else (native[0], native[1])
        pool = getattr(trunk, "attn_pool", None)
        self.reader = (
            "pooling-head" if pool is not None
            else "class-token" if trunk.global_pool == "token" and self.prefix else "received"
        )  # fmt: skip
        self.has_text_space = getattr(pool, "pos_embed", None) is None and not _pools(visual.head)
        try:
            self.heads(0)
        except ModelError:
            self.reader = "none"
        # Rotary towers turn every token by its place among all, which a subset would lose.
        rotates = getattr(trunk, "rope", None) is not None
        self.sparse = not rotates and self.reader != "none" and hasattr(trunk, "norm_pre")

    def normed(self, patches: Tensor) -> Tensor:
        made: Tensor = self.trunk.norm(patches)
        return made

    def pooled(self, last: Hidden) -> Tensor:
        made: Tensor = self.visual.head(self.trunk.forward_head(self.trunk.norm(last.whole())))
        return made

    def alone(self, normed: Tensor) -> Tensor:
        trunk = self.trunk
        if getattr(trunk, "attn_pool", None) is not None:
            made = trunk.attn_pool(normed.reshape(-1, 1, normed.shape[2]))
            normed = made.reshape(*normed.shape[:2], -1)
        out: Tensor = self.visual.head(trunk.head(trunk.fc_norm(normed)))
        return out

    def blocks(self) -> Sequence[Any]:
        return list(self.trunk.blocks)

    def turn(self, block: int, seen: Seen) -> Turn | None:
        rope = seen.named.get("rope")
        if rope is None:
            return None
        sin, cos = rope.chunk(2, -1)
        half = bool(getattr(self.blocks()[block].attn, "rotate_half", False))
        return turned_by(cos, sin, self.prefix, half=half)

    def reading(self, last: Hidden) -> tuple[Seen, Heads]:
        pool = self.trunk.attn_pool
        hidden = self.trunk.norm(
            last.whole() if getattr(self.trunk, "pool_include_prefix", True) else last.patches
        )
        return latent_seen(pool, hidden), heads_of(pool)

    def _entry(self) -> nn.Module:
        entry: nn.Module = self.trunk.norm_pre
        return entry


def _pools(head: nn.Module) -> bool:
    return any(name == "pool" for name, _ in head.named_children())


class Maps(Trunk):
    """A tower whose last feature map is its tokens: ResNet, ConvNeXt, Swin, FastViT."""

    def __init__(self, visual: Any, text_dim: int) -> None:
        super().__init__(visual, text_dim)
        self.trunk = getattr(visual, "trunk", None)
        self.last = getattr(self.trunk, "output_fmt", "NCHW") == "NHWC"
        self.has_text_space = self.trunk is None or not _pools(visual.head)
        with torch.no_grad():
            where = next(visual.parameters())
            tokens, (high, wide) = self._map(where.new_empty(1, 3, *self.canvas))[1:]
        self.dim = tokens.shape[2]
        self.grid, self.patch = (high, wide), (self.canvas[0] // high, self.canvas[1] // wide)

    def _map(self, prepared: Tensor) -> tuple[Tensor, Tensor, tuple[int, int]]:
        """The last map as the tower lays it out, its cells [T, n, D], its rows and columns."""
        if self.trunk is None:
            found = self.visual.forward_intermediates(
                prepared, indices=1, intermediates_only=True, output_fmt="NCHW"
            )["image_intermediates"][-1]
        else:
            found = self.trunk.forward_features(prepared)
        cells = found if self.last else found.permute(0, 2, 3, 1)
        return found, cells.flatten(1, 2), (cells.shape[1], cells.shape[2])

    def tokens(self, prepared: Tensor, *, pooled: bool) -> tuple[Tensor, Tensor | None]:
        """Tokens [T, n, D] in raster order, and the picture's vector [T, E] if asked for."""
        found, tokens, _ = self._map(prepared)
        return tokens, self._read(found) if pooled else None

    def _read(self, found: Tensor) -> Tensor:
        if self.trunk is None:
            made: Tensor = self.visual.attnpool(found)
        else:
            made = self.visual.head(self.trunk.forward_head(found))
        return made

    def alone(self, normed: Tensor) -> Tensor:
        if self.trunk is None:
            pool = self.visual.attnpool
            made = pool.c_proj(pool.v_proj(normed + pool.positional_embedding[1:].to(normed.dtype)))
        else:
            rows = normed.reshape(-1, normed.shape[2])
            single = rows[:, None, None, :] if self.last else rows[:, :, None, None]
            made = self._read(single)
        out: Tensor = made.reshape(*normed.shape[:2], -1)
        return out


def trunk_of(visual: Any, text_dim: int) -> Trunk:
    """Wrap a tower.

    Raises:
        ModelError: A tower of no known kind.
    """
    if hasattr(visual, "transformer"):
        return Native(visual, text_dim)
    trunk = getattr(visual, "trunk", None)
    if trunk is not None and hasattr(trunk, "blocks") and hasattr(trunk, "patch_embed"):
        return Timm(visual, text_dim)
    if hasattr(visual, "forward_intermediates"):
        try:
            return Maps(visual, text_dim)
        except (AttributeError, TypeError, ValueError, AssertionError, RuntimeError) as error:
            raise _unsupported(f"{type(trunk or visual).__name__} ({error})") from error
    raise _unsupported(type(trunk or visual).__name__)


def _unsupported(what: str) -> ModelError:
    return ModelError(
        f"this open_clip tower gives no patch tokens: {what}", hint=f"towers that do: {KINDS}"
    )
