"""Vision towers and the vision front ends of multimodal models, through transformers.

Source: transformers (Hugging Face), >= 5.18. CLIP, SigLIP, SigLIP2, DINOv2, DINOv3; LLaVA,
Video-LLaVA, Qwen-VL, Qwen-Omni, InternVL, SmolVLM, VideoLLaMA3, PaliGemma and Gemma 3 without their
language models.

The kind of model is read from its ``config.json``; no code of a model repository is ever run.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import torch
from pydantic import Field

from tokpipe.device import settle
from tokpipe.encode._hf.load import config_source, find_family, read_config
from tokpipe.encode._weights import check_digest
from tokpipe.errors import ModelError

if TYPE_CHECKING:
    from tokpipe.encode._hf.family import Family
    from tokpipe.encode._merging.in_encoder import InEncoder
    from tokpipe.encode._projection import Projection
    from tokpipe.encode._tower import Outline, Places, VisionTower

_PLAIN = "tokpipe.encode._hf.plain:PlainFamily"
_QWEN = "tokpipe.encode._hf.qwen:"
_LLAVA = "tokpipe.encode._hf.llava:"
_GEMMA = "tokpipe.encode._hf.gemma:"
_OMNI = "tokpipe.encode._hf.omni:"
#: Where the family of a ``model_type`` lives, ``module:Class``.
FAMILIES = {
    "clip": _PLAIN,
    "clip_vision_model": _PLAIN,
    "siglip": _PLAIN,
    "siglip_vision_model": _PLAIN,
    "siglip2": "tokpipe.encode._hf.naflex:NaflexFamily",
    "siglip2_vision_model": "tokpipe.encode._hf.naflex:NaflexFamily",
    "dinov2": _PLAIN,
    "dinov2_with_registers": _PLAIN,
    "dinov3_vit": _PLAIN,
    "qwen2_vl": _QWEN + "Qwen2VlFamily",
    "qwen2_5_vl": _QWEN + "Qwen25VlFamily",
    "qwen3_vl": _QWEN + "Qwen3VlFamily",
    "qwen2_5_omni": _OMNI + "Qwen25OmniFamily",
    "qwen2_5_omni_thinker": _OMNI + "Qwen25OmniFamily",
    "qwen3_omni_moe": _OMNI + "Qwen3OmniFamily",
    "qwen3_omni_moe_thinker": _OMNI + "Qwen3OmniFamily",
    "video_llama_3": "tokpipe.encode._hf.video_llama:VideoLlama3Family",
    "llava": _LLAVA + "LlavaFamily",
    "llava_next": _LLAVA + "LlavaNextFamily",
    "llava_onevision": _LLAVA + "LlavaOnevisionFamily",
    "llava_next_video": "tokpipe.encode._hf.llava_video:LlavaNextVideoFamily",
    "video_llava": "tokpipe.encode._hf.llava_video:VideoLlavaFamily",
    "paligemma": _GEMMA + "PaliGemmaFamily",
    "gemma3": _GEMMA + "Gemma3Family",
    "internvl": "tokpipe.encode._hf.intern:InternVlFamily",
    "smolvlm": "tokpipe.encode._hf.smolvlm:SmolVlmFamily",
    "idefics3": "tokpipe.encode._hf.smolvlm:SmolVlmFamily",
}
#: Kinds of model that take an image otherwise than a frame: in crops, unmerged (VideoLLaMA3), or
#: through another tower (Video-LLaVA).
TILED = frozenset(
    {
        *("llava_next", "llava_next_video", "llava_onevision", "internvl", "smolvlm", "idefics3"),
        *("video_llama_3", "video_llava"),
    }
)


@dataclass(frozen=True, slots=True)
class HfVision:
    """Encoder whose tokens are hidden states of a transformers vision tower.

    Attributes:
        model: Name on the Hugging Face hub, or a local folder with ``config.json``. What is
            cached is used first; the network only for what is not.
        revision: Branch, tag or commit on the hub; empty for its main branch.
        weights: Local folder or one checkpoint file (``.safetensors``, or a torch file that holds
            tensors only) used instead of the model's own; a folder with its own ``config.json``
            replaces the model altogether. ``random`` draws weights from the configuration with a
            fixed seed, for tests and benchmarks.
        digest: ``sha256:...`` the weights must have; empty for any.
        stage: Tokens before or after the projector (CLIP: the visual projection; multimodal
            models: the merger or MLP before the language model).
        layer: Hidden state taken, counted from 0, the embeddings; -1 for the family's own.
        attention_layer: Block whose attention and keys become columns, from 0; -1 the last one
            that runs.
        fit: How a picture enters a tower of fixed size: padded, squashed, or its centre. Towers
            with variable grids ignore it.
        tiles: Pictures enter as images do, whole and in crops by the model's own rule (LLaVA-NeXT,
            LLaVA-NeXT-Video, LLaVA-OneVision, InternVL, SmolVLM, Idefics3), with a token for every
            patch (VideoLLaMA3) or through the tower of images (Video-LLaVA), not as frames of a
            video, once.
        min_pixels: Smallest area of a variable grid in pixels; 0 for the processor's own bound.
        max_pixels: Largest area of a variable grid in pixels; 0 for the processor's own bound.
        inside: A rule that merges tokens between attention and MLP of the tower's blocks, as one
            step of a recipe such as ``tome:r=8``; empty for none.
        inside_layers: Blocks it runs in, such as ``0-5,8``; empty for all.
        inside_inflection: Slope of the rule's ``r`` over its blocks, -1 .. 1; -1 falls from 2 r
            to 0.
    """

    source: ClassVar[str] = "transformers (Hugging Face)"
    modalities: ClassVar[tuple[str, ...]] = ("video",)
    version: ClassVar[int] = 1
    domain: ClassVar[str] = "feature"

    model: str = "openai/clip-vit-base-patch32"
    revision: str = ""
    weights: str = ""
    digest: str = ""
    stage: Literal["pre_projector", "post_projector"] = "pre_projector"
    layer: Annotated[int, Field(ge=-1, le=200)] = -1
    attention_layer: Annotated[int, Field(ge=-1, le=200)] = -1
    fit: Literal["pad", "squash", "crop"] = "pad"
    tiles: bool = False
    min_pixels: Annotated[int, Field(ge=0, le=1 << 30)] = 0
    max_pixels: Annotated[int, Field(ge=0, le=1 << 30)] = 0
    inside: str = ""
    inside_layers: str = ""
    inside_inflection: Annotated[float, Field(ge=-1, le=1)] = 0.0

    def outline(self) -> Outline:
        """What the tower gives; reads configuration files only.

        Raises:
            WeightsMissing: The model's configuration is neither on disk nor reachable.
            ModelError: It is of a kind tokpipe does not know, or tokens cannot merge inside it.
            RecipeError: The rule inside cannot be read, or does not fit the tower.
        """
        made = _outline(self)
        if not self.inside:
            return made
        from tokpipe.encode._merging.options import check_plain

        check_plain(self._rule(), family_of(self), self.model)
        return made.merged(self.inside)

    def places(self, height: int, width: int) -> Places:
        """Where the tokens of a picture of ``height`` x ``width`` pixels lie."""
        return _places(self, height, width)

    def load(
        self,
        device: torch.device | str = "cpu",
        dtype: str = "float32",
        *,
        compile: bool = False,  # noqa: A002
    ) -> VisionTower:
        """Read the weights and make a tower.

        Args:
            dtype: ``float32``, ``bfloat16`` or ``float16``, in which the tower runs.
            compile: Let ``torch.compile`` translate it; pays off over many batches only.

        Raises:
            WeightsMissing: A checkpoint, or a tensor in it, is not there.
            WeightsMismatch: Shapes differ from the configuration, or the digest from the record.
            ResourceError: The device is not there, or cannot run or compile it so.
        """
        place, kind = settle(device, dtype, compiled=compile)
        tower = family_of(self).load(place, kind, compile=compile)
        check_digest(tower.weights, self.digest or None, self.weights or self.model)
        if not self.inside:
            return tower
        from tokpipe.encode._merging.options import with_inside

        return with_inside(tower, self._rule(), self.inside)

    def load_projector(
        self, device: torch.device | str = "cpu", dtype: str = "float32", *, check: bool = True
    ) -> Projection:
        """Read the projector: what makes tokens of rows of stage ``pre_projector``.

        Args:
            check: Read the tower's weights too, for its digest; they go away again.

        Raises:
            ModelError: There is none, or it needs more than a cache holds.
            WeightsMissing, WeightsMismatch, ResourceError: See :meth:`load`.
        """
        place, kind = settle(device, dtype)
        return family_of(self).load_projector(place, kind, check=check)

    def _rule(self) -> InEncoder:
        from tokpipe.encode._merging.options import rule_of

        return rule_of(self.inside, self.inside_layers, inflection=self.inside_inflection)


@lru_cache(maxsize=64)
def family_of(settings: HfVision) -> Family:
    """The family of the model the settings name.

    Raises:
        ModelError: Its ``model_type`` is none of ``FAMILIES``, or it takes no crops.
    """
    kind = str(getattr(read_config(*config_source(settings)), "model_type", ""))
    if settings.tiles and kind in FAMILIES and kind not in TILED:
        raise ModelError(
            f"`{settings.model}` takes no crops of a picture",
            hint="set tiles to false; kinds whose images are not frames: "
            + ", ".join(sorted(TILED)),
        )
    made: Family = find_family(settings, FAMILIES, "hf-vision", "vision")
    return made


@lru_cache(maxsize=64)
def _outline(settings: HfVision) -> Outline:
    return family_of(settings).outline()


@lru_cache(maxsize=256)
def _places(settings: HfVision, height: int, width: int) -> Places:
    return family_of(settings).places(height, width)
