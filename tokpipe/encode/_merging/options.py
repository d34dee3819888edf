"""A rule inside a tower that an encoder loaded: its own layer, stage and projector hold.

Letters: T pictures, p prefix rows, n patches, M rows of all, D width.
"""

from __future__ import annotations

import re

from torch import Tensor

from tokpipe import registry
from tokpipe.encode._hf.plain import PlainTower
from tokpipe.encode._merging.blocks import block_of
from tokpipe.encode._merging.in_encoder import InEncoder
from tokpipe.encode._merging.towers import MergedTower, Parts, timm_parts
from tokpipe.encode._open_clip.tower import OpenClipTower
from tokpipe.encode._open_clip.trunk import Native, Timm
from tokpipe.errors import ModelError, RecipeError
from tokpipe.recipe import build, from_line


def rule_of(step: str, layers: str = "", *, inflection: float = 0.0) -> InEncoder:
    """Read a rule from its recipe text.

    Args:
        step: One step, such as ``tome:r=8,class_token=true``.
        layers: Blocks and ranges of blocks, such as ``0-5,8,-1``; empty every block.
        inflection: Slope of the rule's ``r`` over its layers, -1 .. 1; -1 falls from 2 r to 0.

    Raises:
        RecipeError: The text is no single step, or the layers cannot be read.
    """
    if "|" in step or ";" in step or not step.strip():
        raise RecipeError(f"inside=`{step}` is not one step", hint="name one rule, as in tome:r=8")
    last = next(iter(from_line(step).chains.values()))[-1]
    if registry.lookup(last.use).kind != "reducer" or not hasattr(rule := build(last), "decide"):
        raise RecipeError(
            f"`{last.use}` decides nothing inside an encoder", hint="name a rule, as in tome:r=8"
        )
    return InEncoder(rule, _layers(layers), inflection=inflection)


def _layers(text: str) -> tuple[int, ...]:
    out: list[int] = []
    for piece in filter(None, (part.strip() for part in text.split(","))):
        found = re.fullmatch(r"(-?\d{1,3})(?:-(\d{1,3}))?", piece)
        if found is None:
            raise RecipeError(f"cannot read layers `{text}`", hint="write for example 0-5,8,-1")
        first, last = int(found[1]), int(found[2] or found[1])
        if found[2] and last < first:
            raise RecipeError(f"the layers `{piece}` run backwards", hint=f"write {last}-{first}")
        out += range(first, last + 1) if found[2] else [first]
    return tuple(out)


def with_inside(tower: object, rule: InEncoder, text: str = "") -> MergedTower:
    """Put a rule inside a loaded tower; tokens are of the layer and stage it was loaded for.

    Args:
        tower: Of ``open-clip``, or a plain one of ``hf-vision``.
        rule: What merges, and where; layers count the blocks that run.
        text: The rule as the cache records it.

    Raises:
        ModelError: Tokens cannot merge inside this tower.
        RecipeError: The rule's layers are not among the blocks that run.
    """
    if isinstance(tower, OpenClipTower):
        parts = _of_open_clip(tower)
    elif isinstance(tower, PlainTower):
        parts = _of_plain(tower)
    else:
        raise _refused(type(tower).__name__)
    for block in parts.blocks:
        block_of(block)
    rule.plan(len(parts.blocks))
    grid = tower.outline.about.get("grid")
    return MergedTower(tower, rule, parts, grid=tuple(grid) if grid else None, text=text)


def _refused(what: str) -> ModelError:
    return ModelError(
        f"tokens cannot merge inside a `{what}`",
        hint="use a ViT of open-clip or a plain tower of hf-vision, or merge on the output",
    )


def _of_open_clip(tower: OpenClipTower) -> Parts:
    trunk, count = tower._trunk, tower._layers.tokens + 1
    if isinstance(trunk, Native):
        embed = trunk.visual._embeds
    elif isinstance(trunk, Timm):
        embed = timm_parts(trunk.trunk).embed
    else:
        raise _refused(trunk.kind)

    def norm(rows: Tensor) -> Tensor:
        if tower._stage == "post_projector":
            return trunk.alone(trunk.normed(rows[None]))[0]
        return trunk.normed(rows) if count == trunk.depth else rows

    return Parts(embed=embed, blocks=trunk.blocks()[:count], norm=norm, prefix=trunk.prefix)


def _of_plain(tower: PlainTower) -> Parts:
    family, depth = tower._family, tower.vit.depth
    if family.kind.rope:
        raise _refused(f"{family.kind.model} with rotary positions")

    def norm(rows: Tensor) -> Tensor:
        if family.settings.stage == "post_projector":
            return tower._projected(rows)
        if family.kind.own and family.settings.layer < 0:
            made: Tensor = tower._norm(rows)
            return made
        return rows

    return Parts(
        embed=lambda prepared: tower._entered(prepared)[0],
        blocks=tower.vit.blocks[: depth.layer], norm=norm, prefix=family.prefix,
    )  # fmt: skip
