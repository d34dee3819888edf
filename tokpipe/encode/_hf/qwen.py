"""Families whose grid varies with the picture: Qwen2-VL, Qwen2.5-VL, Qwen3-VL.

A picture at time t enters as one temporal patch (t, t): what the models do with an image, and bit
for bit what they do with a video of that frame twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from tokpipe.encode._compiled import quiet_compiler
from tokpipe.encode._hf.live import part_with
from tokpipe.encode._hf.load import config_source, front_end, placed, read_processor
from tokpipe.encode._hf.patch_tower import PatchTower, QwenTower
from tokpipe.encode._hf.patches import Layout
from tokpipe.encode._hf.segments import NAME, register
from tokpipe.encode._projection import Project, Projection
from tokpipe.encode._tower import Outline, Places
from tokpipe.encode._weights import digest_of, part_digest
from tokpipe.errors import ModelError

if TYPE_CHECKING:
    from tokpipe.encode.hf_vision import HfVision


class PatchFamily:
    """What these and VideoLLaMA3 have in common; see ``_hf.family.Family`` for the methods."""

    kind: Literal["image", "video"] = "image"
    #: Parts left out where only the projector is needed.
    beside: tuple[str, ...] = ("visual.patch_embed", "visual.blocks")
    #: Parts of the model that make its tokens.
    parts: tuple[str, ...] = ("visual",)
    #: Learned positions beside the rotary ones, and the language model's own scheme.
    rope: str

    def __init__(self, config: Any, settings: HfVision) -> None:
        self.config = config
        self.settings = settings
        self.vision = config.vision_config
        self.patch = int(self.vision.patch_size)
        self.temporal = int(getattr(self.vision, "temporal_patch_size", 1))
        self.post = settings.stage == "post_projector"
        self.depth = self._depth()
        self.layout = self._layout()

    # What differs.

    def _layout(self) -> Layout:
        return Layout(int(self.vision.spatial_merge_size))

    def _every(self) -> int:
        """Blocks of the tower."""
        return int(self.vision.depth)

    def _width(self) -> int:
        """Width of a patch inside the tower."""
        return int(self.vision.hidden_size)

    def _dim(self) -> int:
        """Width of the language model."""
        return int(self.vision.out_hidden_size)

    def _dims(self) -> tuple[int, int]:
        """Width of a row before and after the projector."""
        return self.layout.unit * self._width(), self._dim()

    def _whole(self) -> tuple[int, ...]:
        """Blocks that see whole pictures, among those that run."""
        return tuple(range(self.depth))

    def _levels(self) -> tuple[int, ...]:
        """Blocks whose hidden states are rows beside each token."""
        return ()

    def _facts(self) -> Mapping[str, Any]:
        """More for the outline."""
        return {}

    def _tower(self, model: Any) -> tuple[Any, nn.Module, type[PatchTower]]:
        """Vision tower, projector and class of the loaded front end."""
        return model.visual, model.visual.merger, QwenTower

    def _model(self) -> type[nn.Module]:
        raise NotImplementedError

    # What is common.

    def _depth(self) -> int:
        """Blocks that run: all, or as many as the layer asked for needs."""
        every, layer = self._every(), self.settings.layer
        if layer > every:
            raise ModelError(
                f"`{self.settings.model}` has hidden states 0 to {every}, not {layer}",
                hint=f"choose a layer of at most {every}, or -1 for the last",
            )
        if 0 <= layer < every and self.post:
            raise ModelError(
                f"the projector of `{self.settings.model}` takes the last hidden state, not "
                f"{layer}",
                hint="leave layer at -1, or choose stage pre_projector",
            )
        return every if layer < 0 else layer

    def _watched(self) -> dict[str, int]:
        """Blocks the columns come from; those that see windows alone show no attention."""
        seeing, asked = self._whole(), self.settings.attention_layer
        if asked >= 0 and asked not in seeing:
            raise ModelError(
                f"block {asked} of `{self.settings.model}` does not see whole pictures, or does "
                "not run",
                hint=f"choose an attention_layer out of {list(seeing)}, or -1 for the last",
            )
        if not seeing:
            return {}
        deep = seeing[-1] if asked < 0 else asked
        middle = min(seeing, key=lambda i: (abs(2 * i - self.depth), i))
        return {"received": deep, "received_middle": middle, "keys": deep, "queries": deep}

    def outline(self) -> Outline:
        """See ``Family``."""
        processor = self._processor()
        low, high = self._bounds()
        watched = self._watched()
        about = {
            "stage": self.settings.stage, "patch": self.patch, "merge": self.layout.merge,
            "temporal_patch": self.temporal, "layer": self.depth, "rope": self.rope,
            "window": int(getattr(self.vision, "window_size", 0)),
            "processor": type(processor).__name__, "min_pixels": low, "max_pixels": high,
            "mean": list(processor.image_mean), "std": list(processor.image_std),
            "interpolation": _interpolation(processor.resample), "attention_layers": watched,
            "target": self.settings.model, **self._facts(),
        }  # fmt: skip
        return Outline(
            dim=self._dims()[self.post], deepstack=len(self._levels()),
            extras=tuple(watched), sparse=True, about=about,
        )  # fmt: skip

    def places(self, height: int, width: int) -> Places:
        """See ``Family``; the picture is resized as a whole, so boxes are a regular grid."""
        from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

        low, high = self._bounds()
        factor = self.patch * self.layout.merge
        try:
            sides = smart_resize(height, width, factor, low, high)
        except ValueError as error:
            raise _refused(height, width, error) from error
        y, x = (torch.linspace(0, 1, side // factor + 1, dtype=torch.float64) for side in sides)
        return Places.regular(y, x)

    def load(
        self,
        device: torch.device,
        dtype: torch.dtype,
        *,
        compile: bool,  # noqa: A002
    ) -> PatchTower:
        """See ``Family``."""
        outline = self.outline()
        made = self.front()
        weights = digest_of(*(getattr(made, name) for name in self.parts))
        part = None if self.post else self._part(made)
        visual, project, tower = self._tower(placed(made, device, dtype))
        register()
        visual.set_attn_implementation(NAME)
        blocks = self._cut(visual)
        seeing = frozenset(self._whole())
        if compile:
            quiet_compiler()
            visual.compile()
        return tower(
            outline=outline, weights=weights, part=part, layout=self.layout, visual=visual,
            project=project, blocks=blocks,
            windowed=frozenset(b for i, b in enumerate(blocks) if i not in seeing),
            watched=self._watched(), pixels=partial(_patches_of, self), post=self.post,
            dtype=dtype,
        )  # fmt: skip

    def front(self, beside: tuple[str, ...] = ()) -> Any:
        """The module that holds the tower, with its weights, without the parts ``beside``."""
        # The whole model's class: the library renames tensors of older layouts, and takes those
        # of its own, only for it.
        drop = ("model.language_model", "lm_head", *(f"model.{name}" for name in beside))
        return front_end(self._model(), self.config, self.settings, drop=drop).model

    def _part(self, model: Any) -> dict[str, str]:
        """Digest of what makes the rows before the projector."""
        return part_digest(getattr(model, self.parts[0]), self.depth, normed=True)

    def _rowwise(self, model: Any) -> tuple[Project, ...]:
        """Projectors of rows [k, Dp], and of each deepstack level."""
        width = self._width()
        mergers = (model.visual.merger, *getattr(model.visual, "deepstack_merger_list", ()))
        return tuple(partial(_merged, merger, width) for merger in mergers)

    def load_projector(
        self, device: torch.device, dtype: torch.dtype, *, check: bool
    ) -> Projection:
        """See ``Family``."""
        made = self.front(() if check else self.beside)
        weights = digest_of(*(getattr(made, name) for name in self.parts)) if check else None
        part = self._part(made) if check else None
        project, *levels = self._rowwise(placed(made, device, dtype))
        return Projection(project=project, levels=tuple(levels), weights=weights, part=part)

    @classmethod
    def digest(cls, model: Any) -> str | None:
        """Digest of the front end of a model in memory; None where parts of it are not there."""
        part = part_with(model, *cls.parts)
        return None if part is None else digest_of(*(getattr(part, name) for name in cls.parts))

    def _cut(self, visual: Any) -> tuple[nn.Module, ...]:
        """Leave out blocks after the layer asked for; returns the attention of the others."""
        visual.blocks = visual.blocks[: self.depth]
        return tuple(block.attn for block in visual.blocks)

    def _processor(self) -> Any:
        found = read_processor(*config_source(self.settings), self.kind)
        mine = (self.patch, self.layout.merge, self.temporal)
        its = (found.patch_size, found.merge_size, found.temporal_patch_size)
        if mine != its:
            raise ModelError(
                f"the {self.kind} processor of `{self.settings.model}` cuts patches {its}, the "
                f"tower takes {mine} (side, merge, frames)",
                hint="use the preprocessor configuration that belongs to the model",
            )
        return found

    def _bounds(self) -> tuple[int, int]:
        """Smallest and largest area of a picture in pixels."""
        size = self._processor().size
        low = self.settings.min_pixels or int(size["shortest_edge"])
        high = self.settings.max_pixels or int(size["longest_edge"])
        if low > high:
            raise ModelError(
                f"no picture has at least {low} and at most {high} pixels",
                hint="set both min_pixels and max_pixels",
            )
        return low, high

    def process(self, pictures: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Patches [S, F] and grids [T, 3] of uint8 [3, H, W], by the model's processor."""
        low, high = self._bounds()
        made = self._processor()(
            images=pictures, size={"shortest_edge": low, "longest_edge": high},
            input_data_format="channels_first", return_tensors="pt",
        )  # fmt: skip
        return made["pixel_values"], made["image_grid_thw"]


class Qwen2VlFamily(PatchFamily):
    """Qwen2-VL."""

    rope = "mrope: (t, h, w), t the grid's index"

    def _model(self) -> type[nn.Module]:
        from transformers import Qwen2VLForConditionalGeneration

        return Qwen2VLForConditionalGeneration

    def _width(self) -> int:
        return int(self.vision.embed_dim)

    def _dim(self) -> int:
        return int(self.vision.hidden_size)


class Qwen25VlFamily(PatchFamily):
    """Qwen2.5-VL: most blocks see windows only."""

    rope = "mrope: (t, h, w), t in seconds by tokens_per_second"

    def _model(self) -> type[nn.Module]:
        from transformers import Qwen2_5_VLForConditionalGeneration

        return Qwen2_5_VLForConditionalGeneration

    def _layout(self) -> Layout:
        merge = int(self.vision.spatial_merge_size)
        return Layout(merge, window=self.vision.window_size // merge // self.patch)

    def _whole(self) -> tuple[int, ...]:
        return tuple(sorted(i for i in self.vision.fullatt_block_indexes if 0 <= i < self.depth))

    def _facts(self) -> Mapping[str, Any]:
        return {"tokens_per_second": self.vision.tokens_per_second}


class Qwen3VlFamily(PatchFamily):
    """Qwen3-VL: interpolated learned positions beside the rotary ones, rows beside each token."""

    rope = "interleaved mrope: each temporal patch a block of its own, after a timestamp"

    def _model(self) -> type[nn.Module]:
        from transformers import Qwen3VLForConditionalGeneration

        return Qwen3VLForConditionalGeneration

    def _layout(self) -> Layout:
        side = int(self.vision.num_position_embeddings**0.5)
        return Layout(int(self.vision.spatial_merge_size), table=side)

    def _levels(self) -> tuple[int, ...]:
        return tuple(i for i in self.vision.deepstack_visual_indexes if i < self.depth)

    def _facts(self) -> Mapping[str, Any]:
        return {"deepstack_layers": list(self._levels())}


def _merged(merger: nn.Module, width: int, rows: Tensor) -> Tensor:
    """Tokens [k, D] of rows [k, s^2 x width] of merge groups."""
    made: Tensor = merger(rows.reshape(-1, width))
    return made


def _patches_of(family: PatchFamily, pictures: Tensor) -> Tensor:
    """Patches float32 [T, gh, gw, s^2, F] of uint8 [T, 3, H, W]."""
    try:
        made, grids = family.process(list(pictures))
    except ValueError as error:
        raise _refused(pictures.shape[2], pictures.shape[3], error) from error
    high, wide = (side // family.layout.merge for side in grids[0, 1:].tolist())
    return made.view(len(pictures), high, wide, family.layout.unit, -1)


def _refused(height: int, width: int, error: ValueError) -> ModelError:
    return ModelError(
        f"a picture of {height} x {width} does not fit the tower: {error}",
        hint="crop the media, or use an encoder of fixed size",
    )


def _interpolation(resample: Any) -> str:
    from PIL.Image import Resampling

    return Resampling(int(resample)).name.lower()
