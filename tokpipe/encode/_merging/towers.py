"""Whole towers with a rule inside: embed, blocks with merging, final norm.

Letters: T pictures, p prefix rows, n patches, K tokens left of a picture, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu

from tokpipe.encode._merging.in_encoder import InEncoder, Merged
from tokpipe.encode._tower import Encoded, Outline
from tokpipe.errors import ModelError, RecipeError
from tokpipe.maps import TokenMap

if TYPE_CHECKING:
    from tokpipe.encode._tower import VisionTower
    from tokpipe.tensors import Query


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """A tower taken apart.

    Attributes:
        embed: Prepared pictures to [T, p + n, D], all that comes before the first block.
        blocks: In order.
        norm: What comes after the last block, on rows [M, D].
        prefix: p.
    """

    embed: Callable[[Tensor], Tensor]
    blocks: Sequence[nn.Module]
    norm: Callable[[Tensor], Tensor]
    prefix: int

    def merge(
        self, rule: InEncoder, prepared: Tensor, *, grid: tuple[int, int] | None = None
    ) -> Merged:
        """Encode prepared pictures with a rule inside.

        Args:
            rule: What merges, and where; its layers count from the tower's first block.
            prepared: [T, ...] as the tower takes them, in any float type.
            grid: Rows and columns of the patches, for rules that look at places.

        Raises:
            RecipeError: The rule's layers or the grid do not fit the tower.
            ModelError: A block of an unknown kind, or in training mode.
        """
        with torch.inference_mode():
            hidden = self.embed(prepared)
            made = rule.run(self.blocks, hidden, prefix=self.prefix, grid=grid)
            return replace(made, rows=self.norm(made.rows))


def open_clip_parts(visual: Any) -> Parts:
    """Parts of open_clip's ``model.visual``: its own ViT, or one of timm's.

    Raises:
        ModelError: A convolutional tower, or one whose tokens are made by a pooler of its own.
    """
    if hasattr(visual, "trunk"):
        return timm_parts(visual.trunk)
    if not hasattr(visual, "transformer") or getattr(visual, "attn_pool", None) is not None:
        raise _unknown(visual)
    # Of a tower that norms after pooling, patch tokens leave without the norm. `_embeds` is what
    # its forward begins with; the library has no other name for it.
    norm = nn.Identity() if visual.final_ln_after_pool else visual.ln_post
    return Parts(
        embed=visual._embeds,
        blocks=visual.transformer.resblocks, norm=norm, prefix=1,
    )  # fmt: skip


def timm_parts(trunk: Any) -> Parts:
    """Parts of a ``VisionTransformer`` of timm: ViT, DeiT, SigLIP, AST-like.

    Raises:
        ModelError: Another architecture, or one with rotary positions.
    """
    if type(trunk).__name__ not in ("VisionTransformer", "VisionTransformerDistilled"):
        raise _unknown(trunk)

    def embed(prepared: Tensor) -> Tensor:
        # As `forward_features` begins; the library has no other name for it.
        placed = trunk._pos_embed(trunk.patch_embed(prepared))
        out: Tensor = trunk.norm_pre(trunk.patch_drop(placed))
        return out

    return Parts(
        embed=embed, blocks=trunk.blocks, norm=trunk.norm, prefix=int(trunk.num_prefix_tokens)
    )


def hf_parts(model: Any) -> Parts:
    """Parts of a plain tower of transformers: CLIP, SigLIP, DINOv2, ViT, DeiT, AST, Whisper.

    ``norm`` is what the tower's own ``last_hidden_state`` has behind it: none in CLIP.

    Raises:
        ModelError: Another architecture, such as one with rotary positions.
    """
    model = getattr(model, "vision_model", model)
    if type(model).__name__ == "WhisperEncoder":
        return Parts(
            embed=lambda mel: _whisper_rows(model, mel), blocks=model.layers,
            norm=model.layer_norm, prefix=0,
        )  # fmt: skip
    inner = getattr(model, "encoder", model)
    blocks = getattr(inner, "layers", getattr(inner, "layer", None))
    own = getattr(model, "embeddings", None)
    plain = hasattr(own, "patch_embeddings") or hasattr(own, "patch_embedding")
    # Patches of any grid (NaFlex) come with their shapes, which embedding alone does not see.
    if blocks is None or not plain or type(model).__name__.startswith("Siglip2"):
        raise _unknown(model)
    names = ("post_layernorm", "layernorm", "norm")
    norm = next((getattr(model, n) for n in names if hasattr(model, n)), nn.Identity())
    if hasattr(model, "pre_layrnorm"):
        embed = nn.Sequential(model.embeddings, model.pre_layrnorm)
        return Parts(embed=embed, blocks=blocks, norm=nn.Identity(), prefix=_prefix(model))
    return Parts(embed=model.embeddings, blocks=blocks, norm=norm, prefix=_prefix(model))


def _prefix(model: Any) -> int:
    """Class, distillation and register tokens before the patches."""
    own = model.embeddings
    names = ("class_embedding", "cls_token", "distillation_token")
    single = sum(getattr(own, name, None) is not None for name in names)
    return single + int(getattr(model.config, "num_register_tokens", 0))


def _whisper_rows(model: Any, mel: Tensor) -> Tensor:
    """Whisper's two convolutions and positions: [T, bins, 2 L] to [T, L, D]."""
    rows = gelu(model.conv2(gelu(model.conv1(mel)))).transpose(1, 2)
    out: Tensor = rows + model.embed_positions.weight[: rows.shape[1]]
    return out


def _unknown(module: nn.Module) -> ModelError:
    return ModelError(
        f"tokens cannot merge inside a `{type(module).__name__}`",
        hint="use a plain ViT of open_clip, timm or transformers, or merge on the tower's output",
    )


class MergedTower:
    """A tower with a rule inside: fewer tokens a picture, and maps that say whose they are.

    Attributes:
        outline: The tower's, without columns and sparse encoding; ``about`` names the rule.
        weights: The tower's.
    """

    def __init__(
        self, tower: VisionTower, rule: InEncoder, parts: Parts, *,
        grid: tuple[int, int] | None = None, text: str = "",
    ) -> None:  # fmt: skip
        """Wrap a loaded tower.

        Args:
            tower: Whose ``prepare`` and ``embed_text`` are used.
            rule: What merges, and where.
            parts: The same tower taken apart, projector included in ``norm`` if it has one.
            grid: Rows and columns of the patches.
            text: The rule as the cache records it, its recipe text.
        """
        self._tower, self._rule, self._parts = tower, rule, parts
        self._grid = grid
        self.outline: Outline = tower.outline.merged(text or type(rule.reducer).__name__)
        self.weights = tower.weights

    def prepare(self, pixels: Tensor) -> Tensor:
        """Fit and normalise uint8 [T, H, W, 3], as the tower does."""
        return self._tower.prepare(pixels)

    def encode_merged(self, prepared: Tensor) -> tuple[list[Encoded], list[TokenMap]]:
        """Tokens [1, K, D] of each picture, and the map from its n patches to them."""
        made = self._parts.merge(self._rule, prepared, grid=self._grid)
        return [Encoded(data=rows[None]) for rows in made.tokens()], list(made.maps)

    def encode(self, prepared: Tensor, columns: frozenset[str] = frozenset()) -> Encoded:
        """Tokens [T, K, D] where every picture keeps the same number.

        Raises:
            RecipeError: The rule left different numbers, or columns are asked for.
        """
        if columns:
            raise RecipeError(
                f"merged tokens have no columns {sorted(columns)}",
                hint="use a reducer that needs none, or merge on the tower's output",
                code="recipe.needs",
            )
        found, _ = self.encode_merged(prepared)
        if len({one.data.shape[1] for one in found}) > 1:
            raise RecipeError(
                "pictures keep different numbers of tokens",
                hint="use `encode_merged`, or a rule with a fixed count",
            )
        return Encoded(data=torch.cat([one.data for one in found]))

    def encode_kept(
        self, prepared: Tensor, live: Tensor, columns: frozenset[str] = frozenset()
    ) -> Encoded:
        """Not offered: what is merged has no place of its own in the grid."""
        raise RecipeError(
            "a tower with a rule inside encodes whole pictures only",
            hint="give late encoding no `inside`, or whole frames",
        )

    def embed_text(self, text: str) -> Query:
        """The tower's own."""
        return self._tower.embed_text(text)
