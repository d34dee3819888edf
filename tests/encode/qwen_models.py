"""Tiny random Qwen-VL and VideoLLaMA3 models with their processors, and the models' own paths."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tokpipe.encode.hf_vision import HfVision

transformers: Any = importlib.import_module("transformers")
PATCH, MERGE = 4, 2
LOW, HIGH = 64, 40_000
_IDS = {"image_token_id": 1, "video_token_id": 2}
_TEXT = {
    "vocab_size": 64, "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 1,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
    "bos_token_id": 5, "eos_token_id": 6,
}  # fmt: skip
_ROPE = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 2, 2]}
_VISION: dict[str, dict[str, Any]] = {
    "qwen2_vl": {"depth": 3, "embed_dim": 32, "hidden_size": 48, "num_heads": 2, "mlp_ratio": 2},
    "qwen2_5_vl": {
        "depth": 4, "hidden_size": 32, "intermediate_size": 40, "out_hidden_size": 48,
        "num_heads": 2, "window_size": 16, "fullatt_block_indexes": [1, 3],
    },
    "qwen3_vl": {
        "depth": 4, "hidden_size": 32, "intermediate_size": 40, "out_hidden_size": 48,
        "num_heads": 2, "num_position_embeddings": 36, "deepstack_visual_indexes": [0, 1, 2],
    },
    "video_llama_3": {
        "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 3,
        "num_attention_heads": 2,
    },
}  # fmt: skip
NAMES = tuple(_VISION)
QWEN = NAMES[:3]


@dataclass(frozen=True)
class Tiny:
    """A random model, its processors with the tests' bounds, and the folder of all three."""

    name: str
    model: Any
    image: Any
    video: Any
    path: str

    @property
    def visual(self) -> Any:
        return self.model.visual if self.name in QWEN else self.model.vision_model

    @property
    def blocks(self) -> Any:
        return self.visual.blocks if self.name in QWEN else self.visual.encoder.layers

    def attention(self) -> list[nn.Module]:
        return [b.attn if self.name in QWEN else b.self_attn for b in self.blocks]

    def of(self, **more: Any) -> HfVision:
        return HfVision(model=self.path, **{"stage": "post_projector", **more})

    def video_pixels(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Patches and grid of frames uint8 [T, H, W, 3] by the model's video processor."""
        made = self.video(
            videos=[pixels.permute(0, 3, 1, 2)], do_sample_frames=False, return_tensors="pt"
        )
        return made["pixel_values_videos"], made["video_grid_thw"]

    def image_pixels(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """The same of pictures by its image processor."""
        made = self.image(images=list(pixels.permute(0, 3, 1, 2)), return_tensors="pt")
        return made["pixel_values"], made["image_grid_thw"]

    @torch.inference_mode()
    def features(self, patches: Tensor, grid: Tensor, *, video: bool) -> Any:
        get = self.model.get_video_features if video else self.model.get_image_features
        more = () if self.name in QWEN else (torch.full((len(grid),), MERGE),)
        return get(patches, grid, *more)


def _configured(name: str) -> Any:
    vision = {**_VISION[name], "patch_size": PATCH}
    if name == "qwen2_vl":
        return transformers.Qwen2VLConfig(
            text_config={**_TEXT, "rope_parameters": _ROPE}, vision_config=vision, **_IDS
        )
    if name == "qwen2_5_vl":
        return transformers.Qwen2_5_VLConfig(
            text_config={**_TEXT, "rope_parameters": _ROPE}, vision_config=vision, **_IDS
        )
    if name == "qwen3_vl":
        return transformers.Qwen3VLConfig(
            text_config={**_TEXT, "rope_parameters": _ROPE, "head_dim": 12},
            vision_config=vision, **_IDS,
        )  # fmt: skip
    return transformers.VideoLlama3Config(
        text_config={**_TEXT, "model_type": "qwen2"}, vision_config=vision, **_IDS
    )


def _processors(name: str) -> tuple[Any, Any]:
    from transformers.models import video_llama_3

    size = {"shortest_edge": LOW, "longest_edge": HIGH}
    # The video processors of some kinds bound all frames together; make room for ten.
    many = {"shortest_edge": LOW, "longest_edge": 10 * HIGH}
    if name == "video_llama_3":
        return (
            video_llama_3.VideoLlama3ImageProcessor(patch_size=PATCH, size=size),
            video_llama_3.VideoLlama3VideoProcessor(
                patch_size=PATCH, size=many, use_token_compression=False
            ),
        )
    image = transformers.Qwen2VLImageProcessor(patch_size=PATCH, size=size)
    if name == "qwen3_vl":
        image.image_mean = image.image_std = [0.5, 0.5, 0.5]
        kind: Any = transformers.Qwen3VLVideoProcessor
    else:
        kind = transformers.Qwen2VLVideoProcessor
    return image, kind(patch_size=PATCH, size=many, cap_pixels_per_frame=False)


_MODELS = {
    "qwen2_vl": "Qwen2VLForConditionalGeneration",
    "qwen2_5_vl": "Qwen2_5_VLForConditionalGeneration",
    "qwen3_vl": "Qwen3VLForConditionalGeneration",
    "video_llama_3": "VideoLlama3ForConditionalGeneration",
}


def make(name: str, folder: Path) -> Tiny:
    """The model of this kind, saved with its processors."""
    transformers.utils.logging.set_verbosity_error()
    torch.manual_seed(7)
    whole = getattr(transformers, _MODELS[name])(_configured(name)).eval()
    for parameter in whole.parameters():
        # Wide enough that attention is not near uniform.
        nn.init.normal_(parameter, std=0.15)
    image, video = _processors(name)
    for part in (whole, image, video):
        part.save_pretrained(folder)
    return Tiny(name, whole.model, image, video, str(folder))


def pictures(count: int, height: int = 48, width: int = 72, seed: int = 0) -> Tensor:
    """Noise uint8 [count, height, width, 3]."""
    made = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, height, width, 3), dtype=torch.uint8, generator=made)


def flat(features: Any) -> Tensor:
    """Tokens of all pictures, one after another."""
    return torch.cat(list(features.pooler_output))
