"""Tiny random multimodal models with towers of fixed size, saved as their users find them."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tokpipe.encode.hf_vision import HfVision

WIDTH, TEXT = 32, 48
_VISION = {
    "hidden_size": WIDTH, "num_hidden_layers": 3, "num_attention_heads": 4,
    "intermediate_size": 64,
}  # fmt: skip
_TEXT = {
    "vocab_size": 64, "hidden_size": TEXT, "intermediate_size": 64, "num_hidden_layers": 1,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
    "pad_token_id": 0, "bos_token_id": 5, "eos_token_id": 6,
}  # fmt: skip
PINS = [[32, 64], [64, 32], [64, 64], [96, 32], [32, 96]]
#: The input is no whole number of patches, as in SigLIP so400m-patch14-384.
WIDE_PINS = [[38 * high, 38 * wide] for high in (1, 2, 3) for wide in (1, 2, 3)]


@dataclass
class TinyFront:
    """A model in a folder.

    Attributes:
        native: How its own processor fits a picture.
    """

    name: str
    folder: Path
    native: str

    def of(self, **more: Any) -> HfVision:
        """The operator on it, after the projector, fitted as its processor does."""
        how = {"model": str(self.folder), "stage": "post_projector", "fit": self.native, **more}
        return HfVision(**how)

    @cached_property
    def model(self) -> Any:
        """The whole model without its head, as its users load it."""
        from transformers import AutoModel

        return AutoModel.from_pretrained(self.folder).eval()

    @cached_property
    def image(self) -> Any:
        """Its image processor on Pillow."""
        auto: Any = importlib.import_module("transformers").AutoImageProcessor
        return auto.from_pretrained(self.folder, backend="pil")

    @cached_property
    def video(self) -> Any:
        """Its video processor."""
        auto: Any = importlib.import_module("transformers").AutoVideoProcessor
        return auto.from_pretrained(self.folder)

    @torch.inference_mode()
    def features(self, pixels: Tensor, **more: Any) -> Any:
        """What its language model gets of prepared pictures."""
        return self.model.get_image_features(pixels, **more).pooler_output


def _clip(tf: Any) -> Any:
    return tf.CLIPVisionConfig(**_VISION, image_size=32, patch_size=8, projection_dim=16)


def _llava(tf: Any) -> tuple[Any, list[Any]]:
    config = tf.LlavaConfig(
        vision_config=_clip(tf), text_config=tf.LlamaConfig(**_TEXT), image_token_index=1
    )
    crop = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    return tf.LlavaForConditionalGeneration(config), [tf.CLIPImageProcessor(**crop)]


def _llava_next(tf: Any) -> tuple[Any, list[Any]]:
    config = tf.LlavaNextConfig(
        vision_config=_clip(tf), text_config=tf.LlamaConfig(**_TEXT), image_token_index=1,
        image_grid_pinpoints=PINS,
    )  # fmt: skip
    size = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    processor = tf.LlavaNextImageProcessor(**size, image_grid_pinpoints=PINS)
    return tf.LlavaNextForConditionalGeneration(config), [processor]


def _llava_onevision(tf: Any) -> tuple[Any, list[Any]]:
    vision = tf.SiglipVisionConfig(**_VISION, image_size=38, patch_size=7, vision_use_head=False)
    config = tf.LlavaOnevisionConfig(
        vision_config=vision, text_config=tf.Qwen2Config(**_TEXT), image_token_index=1,
        video_token_index=2, image_grid_pinpoints=WIDE_PINS, vision_aspect_ratio="anyres_max_4",
    )  # fmt: skip
    how = {"size": {"height": 38, "width": 38}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    processors = [
        tf.LlavaOnevisionImageProcessor(**how, image_grid_pinpoints=WIDE_PINS),
        tf.LlavaOnevisionVideoProcessor(**how),
    ]
    return tf.LlavaOnevisionForConditionalGeneration(config), processors


def _llava_next_video(tf: Any) -> tuple[Any, list[Any]]:
    config = tf.LlavaNextVideoConfig(
        vision_config=_clip(tf), text_config=tf.LlamaConfig(**_TEXT), image_token_index=1,
        video_token_index=2, image_grid_pinpoints=PINS,
    )  # fmt: skip
    size = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    processors = [
        tf.LlavaNextImageProcessor(**size, image_grid_pinpoints=PINS),
        tf.LlavaNextVideoVideoProcessor(**size),
    ]
    return tf.LlavaNextVideoForConditionalGeneration(config), processors


def _video_llava(tf: Any) -> tuple[Any, list[Any]]:
    config = tf.VideoLlavaConfig(
        vision_config=_clip(tf), text_config=tf.LlamaConfig(**_TEXT), image_token_index=1,
        video_token_index=2,
    )  # fmt: skip
    size = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    processors = [tf.VideoLlavaImageProcessor(**size), tf.VideoLlavaVideoProcessor(**size)]
    return tf.VideoLlavaForConditionalGeneration(config), processors


def _siglip(tf: Any) -> Any:
    return tf.SiglipVisionConfig(**_VISION, image_size=32, patch_size=4, vision_use_head=False)


def _paligemma(tf: Any) -> tuple[Any, list[Any]]:
    text = {**_TEXT, "head_dim": 12}
    config = tf.PaliGemmaConfig(
        vision_config=_siglip(tf), text_config=tf.GemmaConfig(**text), image_token_index=1,
        projection_dim=TEXT, hidden_size=TEXT, vocab_size=64,
    )  # fmt: skip
    how = {"size": {"height": 32, "width": 32}}
    return tf.PaliGemmaForConditionalGeneration(config), [tf.SiglipImageProcessor(**how)]


def _gemma3(tf: Any) -> tuple[Any, list[Any]]:
    text = {**_TEXT, "head_dim": 12, "num_hidden_layers": 2, "sliding_window": 8}
    config = tf.Gemma3Config(
        vision_config=_siglip(tf), text_config=tf.Gemma3TextConfig(**text), image_token_index=1,
        boi_token_index=3, eoi_token_index=4, mm_tokens_per_image=16,
    )  # fmt: skip
    how = {"size": {"height": 32, "width": 32}}
    return tf.Gemma3ForConditionalGeneration(config), [tf.Gemma3ImageProcessor(**how)]


def _internvl(tf: Any) -> tuple[Any, list[Any]]:
    vision = tf.InternVLVisionConfig(**_VISION, image_size=32, patch_size=4)
    config = tf.InternVLConfig(
        vision_config=vision, text_config=tf.Qwen2Config(**_TEXT), image_token_id=1,
        image_seq_length=16,
    )  # fmt: skip
    how = {
        "size": {"height": 32, "width": 32}, "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
    }  # fmt: skip
    processors = [
        tf.GotOcr2ImageProcessor(**how, max_patches=6), tf.InternVLVideoProcessor(**how)
    ]  # fmt: skip
    return tf.InternVLForConditionalGeneration(config), processors


def _small(tf: Any, kind: str) -> tuple[Any, Any]:
    vision = {**_VISION, "image_size": 32, "patch_size": 4}
    config = getattr(tf, f"{kind}Config")(
        vision_config=vision, text_config={**_TEXT, "model_type": "llama"}, image_token_id=1,
        scale_factor=2, pad_token_id=0,
    )  # fmt: skip
    how = {"size": {"longest_edge": 96}, "max_image_size": {"longest_edge": 32}}
    model = getattr(tf, f"{kind}ForConditionalGeneration")(config)
    return model, getattr(tf, f"{kind}ImageProcessor")(**how)


def _smolvlm(tf: Any) -> tuple[Any, list[Any]]:
    model, image = _small(tf, "SmolVLM")
    video = tf.SmolVLMVideoProcessor(
        size={"longest_edge": 48}, max_image_size={"longest_edge": 32},
        video_sampling={"max_frames": 8, "fps": 1, "video_size": {"longest_edge": 48}},
    )  # fmt: skip
    return model, [image, video]


def _idefics3(tf: Any) -> tuple[Any, list[Any]]:
    model, image = _small(tf, "Idefics3")
    return model, [image]


MAKERS: dict[str, tuple[Callable[[Any], tuple[Any, list[Any]]], str]] = {
    "llava": (_llava, "crop"),
    "llava_next": (_llava_next, "squash"),
    "llava_onevision": (_llava_onevision, "squash"),
    "llava_next_video": (_llava_next_video, "crop"),
    "video_llava": (_video_llava, "crop"),
    "paligemma": (_paligemma, "squash"),
    "gemma3": (_gemma3, "squash"),
    "internvl": (_internvl, "squash"),
    "smolvlm": (_smolvlm, "squash"),
    "idefics3": (_idefics3, "squash"),
}


@pytest.fixture(scope="session")
def front_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], TinyFront]:
    """Makes a tiny model by its ``model_type``, each once."""
    tf = pytest.importorskip("transformers", minversion="5.18")
    pytest.importorskip("torchvision")
    tf.logging.set_verbosity_error()
    tf.logging.disable_progress_bar()
    made: dict[str, TinyFront] = {}

    def make(name: str) -> TinyFront:
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            torch.manual_seed(1)
            write_front(folder, *MAKERS[name][0](tf))
            made[name] = TinyFront(name, folder, MAKERS[name][1])
        return made[name]

    return make


def write_front(folder: Path, model: Any, processors: list[Any]) -> None:
    """Fill a model at random and save it with its processors."""
    drawn = torch.Generator().manual_seed(1)
    with torch.no_grad():
        # As after training: parts that start as nothing would hide mistakes.
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=drawn) * 0.1)
    for part in (model, *processors):
        part.save_pretrained(folder)
