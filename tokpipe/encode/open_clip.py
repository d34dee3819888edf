"""Patch tokens of any open_clip vision tower, with attention, keys and text vectors.

Source: open_clip (Ilharco et al., doi:10.5281/zenodo.5143773); towers after Radford et al.,
"Learning Transferable Visual Models From Natural Language Supervision", 2021, arXiv:2103.00020.

Letters: n patches of a picture, D width of a token, E width of the text space.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from tokpipe.device import image_layout, settle
from tokpipe.encode._compiled import quiet_compiler
from tokpipe.encode._fit import frame_of, places_of
from tokpipe.encode._merging.options import check_open_clip, rule_of, with_inside
from tokpipe.encode._open_clip import model as models
from tokpipe.encode._open_clip.text import TextTower
from tokpipe.encode._open_clip.tower import Layers, OpenClipTower, columns_of
from tokpipe.encode._open_clip.trunk import Trunk, trunk_of
from tokpipe.encode._tower import Outline, Places, VisionTower
from tokpipe.encode._weights import check_digest, digest_of
from tokpipe.errors import RecipeError

if TYPE_CHECKING:
    import torch

    from tokpipe.encode._merging.in_encoder import InEncoder


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenClip:
    """Vision tower and text tower of one open_clip model.

    Tokens are the patches of block ``layer``; those of the last carry the norm the tower itself
    applies to patches (CoCa: that of its pooler). Class and register tokens are left out.

    The column ``attention`` is that of what the picture's vector is read from: the class token in
    block ``attention_layer``, else the pooling head, else the mean over all queries.
    ``attention_shallow`` is read a quarter up the tower, ``received_middle`` three eighths.
    ``frame_embedding`` is what ``encode_image`` gives, not normalised; ``text_space`` is what the
    tower's own pooling and projection make of a token alone.

    Attributes:
        model: Name open_clip knows, also ``hf-hub:...`` and ``local-dir:...``.
        weights: Pretrained tag, or path of a checkpoint of all the model's weights; empty takes
            the first tag; ``random`` seeded random ones, for tests and benchmarks only.
        digest: SHA-256 the weights must have, ``sha256:...``; empty takes any.
        layer: Block whose output is taken, -64 to 63; -1 the last, negative ones from the end.
        attention_layer: Block of the columns attention, received, keys, queries and layer_shift,
            -64 to 63.
        fit: How a picture comes to the tower's size: ``pad``, ``squash``, or ``crop`` as CLIP was
            trained.
        stage: ``pre_projector`` tokens of the tower, or ``post_projector`` in the text space.
        inside: A rule that merges tokens between attention and MLP of the tower's blocks, as one
            step of a recipe such as ``tome:r=8``; empty for none.
        inside_layers: Blocks it runs in, such as ``0-5,8``; empty for all.
        inside_inflection: Slope of the rule's ``r`` over its blocks, -1 .. 1; -1 falls from 2 r
            to 0.
    """

    source: ClassVar[str] = "doi:10.5281/zenodo.5143773"
    modalities: ClassVar[tuple[str, ...]] = ("video",)
    version: ClassVar[int] = 1
    domain: ClassVar[str] = "feature"

    model: str = "ViT-B-32"
    weights: str = ""
    digest: str = ""
    layer: Annotated[int, Field(ge=-64, le=63)] = -1
    attention_layer: Annotated[int, Field(ge=-64, le=63)] = -1
    fit: Literal["pad", "squash", "crop"] = "pad"
    stage: Literal["pre_projector", "post_projector"] = "pre_projector"
    inside: str = ""
    inside_layers: str = ""
    inside_inflection: Annotated[float, Field(ge=-1, le=1)] = 0.0

    def outline(self) -> Outline:
        """What the tower gives, from the model's configuration alone.

        Raises:
            ModelError: open_clip knows no such model, its tower gives no patch tokens, or none
                can merge inside it.
            RecipeError: The tower has no such block, or the rule inside does not fit it.
        """
        chosen = models.choose(self.model, self.weights)
        trunk = self._skeleton(chosen)
        made = self._outline(chosen, trunk)
        if not self.inside:
            return made
        check_open_clip(self._rule(), trunk, self._layers(trunk).tokens + 1, chosen.label)
        return made.merged(self.inside)

    def places(self, height: int, width: int) -> Places:
        """Where the n tokens of a picture of ``height`` x ``width`` pixels lie."""
        trunk = self._skeleton(models.choose(self.model, self.weights))
        frame = frame_of(height, width, trunk.canvas, trunk.patch, self.fit)
        # Patches need not reach the edge: 27 of 14 pixels leave 6 of 384 unseen.
        seen = (trunk.grid[0] * trunk.patch[0], trunk.grid[1] * trunk.patch[1])
        return places_of(frame, seen, trunk.grid)

    def load(
        self,
        device: torch.device | str = "cpu",
        dtype: str = "float32",
        *,
        compile: bool = False,  # noqa: A002 - the name torch gives it
    ) -> VisionTower:
        """The tower with its weights on ``device``; the text tower stays float32.

        Args:
            dtype: ``float32``, ``bfloat16`` or ``float16``.
            compile: Compile the blocks no column is read from.

        Raises:
            WeightsMissing: The weights are not on disk and cannot be fetched.
            WeightsMismatch: They are another model's, or not those of ``digest``.
            ResourceError: The device is not there, or cannot run or compile it so.
        """
        place, kind = settle(device, dtype, compiled=compile)
        chosen = models.choose(self.model, self.weights)
        outline = self._outline(chosen, self._skeleton(chosen))
        model = models.load(chosen)
        found = digest_of(model.visual, models.text_part(model))
        check_digest(found, self.digest or None, f"`{self.model}`")
        model.to(place)
        visual = model.visual.to(dtype=kind, memory_format=image_layout(place))
        trunk = trunk_of(visual, chosen.config["embed_dim"])
        layers = self._layers(trunk)
        if compile:
            _compile(trunk, layers)
        tower = OpenClipTower(
            trunk, TextTower(model, chosen), outline=outline, weights=found, layers=layers,
            stage=self.stage, fit=self.fit, preprocess=chosen.preprocess,
        )  # fmt: skip
        return with_inside(tower, self._rule(), self.inside) if self.inside else tower

    def _rule(self) -> InEncoder:
        return rule_of(self.inside, self.inside_layers, inflection=self.inside_inflection)

    def _skeleton(self, chosen: models.Chosen) -> Trunk:
        return trunk_of(models.skeleton(chosen), chosen.config["embed_dim"])

    def _layers(self, trunk: Trunk) -> Layers:
        depth = trunk.depth or 1
        for name in ("layer", "attention_layer"):
            value = getattr(self, name)
            if not -depth <= value < depth:
                raise RecipeError(
                    f"`open-clip`: {name}={value}, but the tower of `{self.model}` has {depth} "
                    f"block{'s' if depth > 1 else ''}",
                    hint=f"choose {-depth} to {depth - 1}",
                )
        return Layers.of(depth, self.layer, self.attention_layer)

    def _outline(self, chosen: models.Chosen, trunk: Trunk) -> Outline:
        layers, post = self._layers(trunk), self.stage == "post_projector"
        if post and not trunk.has_text_space:
            raise RecipeError(
                f"`open-clip`: the tower of `{self.model}` cannot project single patches",
                hint="use stage=pre_projector",
            )
        preprocess = chosen.preprocess
        about = {
            "model": chosen.label, "tag": chosen.tag, "stage": self.stage, "kind": trunk.kind,
            "patch": list(trunk.patch), "grid": list(trunk.grid), "merge": 1, "temporal_patch": 1,
            "image_size": list(trunk.canvas), "prefix": trunk.prefix, "layer": layers.tokens,
            "attention_layer": layers.deep, "shallow_layer": layers.shallow,
            "middle_layer": layers.middle, "reader": trunk.reader, "fit": self.fit,
            "processor": "open_clip.image_transform", "mean": list(preprocess["mean"]),
            "std": list(preprocess["std"]), "interpolation": preprocess["interpolation"],
            "resize_mode": preprocess["resize_mode"], "quick_gelu": chosen.quick_gelu,
        }  # fmt: skip
        return Outline(
            dim=trunk.text_dim if post else trunk.dim, extras=columns_of(trunk), text=True,
            sparse=trunk.sparse, about=about,
        )  # fmt: skip


def _compile(trunk: Trunk, layers: Layers) -> None:
    """Compile in place; watched blocks stay as they are, since compiled code sees no hooks."""
    quiet_compiler()
    watched = {layers.deep, layers.shallow, layers.middle}
    for index, block in enumerate(trunk.blocks() if trunk.depth else ()):
        if index not in watched:
            block.compile()
