"""A rule inside a tower that an encoder loaded: its own layer, stage and projector hold.

Letters: T pictures, p prefix rows, n patches, M rows of all, D width.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from torch import Tensor, nn

from tokpipe import registry
from tokpipe.encode._hf.plain import PlainFamily, PlainTower
from tokpipe.encode._merging.blocks import block_of
from tokpipe.encode._merging.in_encoder import InEncoder
from tokpipe.encode._merging.towers import MergedTower, Parts, timm_parts
from tokpipe.encode._open_clip.tower import OpenClipTower
from tokpipe.encode._open_clip.trunk import Native, Timm, Trunk
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
    if not text:
        return ()
    for piece in (part.strip() for part in text.split(",")):
        found = re.fullmatch(r"(-?\d{1,3})(?:-(\d{1,3}))?", piece)
        if found is None:
            raise RecipeError(f"cannot read layers `{text}`", hint="write for example 0-5,8,-1")
        first, last = int(found[1]), int(found[2] or found[1])
        if found[2] and last < first:
            raise RecipeError(f"the layers `{piece}` run backwards", hint=f"write {last}-{first}")
        out += range(first, last + 1) if found[2] else [first]
    return tuple(out)


def check_open_clip(rule: InEncoder, trunk: Trunk, count: int, model: str) -> None:
    """Check that a rule can run in the first ``count`` blocks; a trunk on ``meta`` will do.

    Raises:
        ModelError: Tokens cannot merge inside this tower.
        RecipeError: The rule does not fit it.
    """
    _open_clip_embed(trunk, count, model)
    rule.fits(count, trunk.prefix)


def check_plain(rule: InEncoder, family: object, model: str) -> None:
    """The same for a model of ``hf-vision``, from its configuration."""
    if not isinstance(family, PlainFamily):
        raise _refused(model)
    if family.kind.rope:
        raise _refused(model, ", whose positions are rotary")
    rule.fits(family.depth.layer, family.prefix)


def with_inside(tower: object, rule: InEncoder, text: str = "") -> MergedTower:
    """Put a rule inside a loaded tower; tokens are of the layer and stage it was loaded for.

    Args:
        tower: Of ``open-clip``, or a plain one of ``hf-vision``.
        rule: What merges, and where; layers count the blocks that run.
        text: The rule as the cache records it.

    Raises:
        ModelError: Tokens cannot merge inside this tower.
        RecipeError: The rule does not fit it.
    """
    if isinstance(tower, OpenClipTower):
        parts = _of_open_clip(tower)
    elif isinstance(tower, PlainTower):
        parts = _of_plain(tower)
    else:
        outline = getattr(tower, "outline", None)
        raise _refused(str(outline.about.get("model", "this tower")) if outline else "this tower")
    rule.fits(len(parts.blocks), parts.prefix)
    grid = tower.outline.about.get("grid")
    return MergedTower(tower, rule, parts, grid=tuple(grid) if grid else None, text=text)


def _refused(model: str, why: str = "") -> ModelError:
    return ModelError(
        f"tokens cannot merge inside `{model}`{why}",
        hint="use a plain ViT (open-clip; CLIP, SigLIP or DINOv2 of hf-vision), or merge on the "
        "output",
    )


def _open_clip_embed(trunk: Trunk, count: int, model: str) -> Callable[[Tensor], Tensor]:
    """What comes before the blocks, once each of the first ``count`` is of a known kind."""
    if not isinstance(trunk, Native | Timm):
        raise _refused(model, ", whose tokens are cells of a feature map")
    try:
        embed: Callable[[Tensor], Tensor] = (
            trunk.visual._embeds if isinstance(trunk, Native) else timm_parts(trunk.trunk).embed
        )
        for block in _first(trunk, count):
            block_of(block)
    except ModelError as error:
        raise _refused(model, ", whose blocks are of another kind") from error
    return embed


def _first(trunk: Trunk, count: int) -> Sequence[nn.Module]:
    return trunk.blocks()[:count]


def _of_open_clip(tower: OpenClipTower) -> Parts:
    trunk, count = tower._trunk, tower._layers.tokens + 1
    embed = _open_clip_embed(trunk, count, str(tower.outline.about["model"]))

    def norm(rows: Tensor) -> Tensor:
        if tower._stage == "post_projector":
            return trunk.alone(trunk.normed(rows[None]))[0]
        return trunk.normed(rows) if count == trunk.depth else rows

    return Parts(embed=embed, blocks=_first(trunk, count), norm=norm, prefix=trunk.prefix)


def _of_plain(tower: PlainTower) -> Parts:
    family, depth = tower._family, tower.vit.depth
    if family.kind.rope:
        raise _refused(family.settings.model, ", whose positions are rotary")
    blocks = tower.vit.blocks[: depth.layer]
    for block in blocks:
        block_of(block)

    def norm(rows: Tensor) -> Tensor:
        if family.settings.stage == "post_projector":
            return tower._projected(rows)
        if family.kind.own and family.settings.layer < 0:
            made: Tensor = tower._norm(rows)
            return made
        return rows

    return Parts(
        embed=lambda prepared: tower._entered(prepared)[0],
        blocks=blocks, norm=norm, prefix=family.prefix,
    )  # fmt: skip
