"""Tiny models of every kind whose positions count ids, each with a way its processor is fed."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from tokpipe.cache.format import KIND_LAYOUT
from tokpipe.spec import KIND_KEPT, KIND_NEWLINE

base: Any = import_module("tiny_case")
Case: Any = base.Case
tf, ID, NEW, TIMES, VOCAB = base.tf, base.ID, base.NEW, base.TIMES, base.VOCAB
chat, tokenizer, widened = base.chat, base.tokenizer, base.widened
VISION = {
    "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64,
}  # fmt: skip
TEXT = {
    "vocab_size": VOCAB, "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 4096,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
PINS = [[32, 64], [64, 32], [64, 64], [96, 32], [32, 96]]
WIDE_PINS = [[38 * high, 38 * wide] for high in (1, 2, 3) for wide in (1, 2, 3)]


def _clip() -> Any:
    return tf.CLIPVisionConfig(**VISION, image_size=32, patch_size=8, projection_dim=16)


def _pooled(case: Any, made: Any, kind: str = "image", **more: Any) -> Any:
    """``pooler_output`` of the model's own features; 4.57 returns it bare."""
    base = case.model.model
    if not NEW and kind == "video":
        asked = inspect.signature(base.get_video_features).parameters
        for key in ("vision_feature_layer", "vision_feature_select_strategy"):
            if key in asked:
                more[key] = getattr(case.model.config, key)
    name = "pixel_values" if "pixel_values" in made else "pixel_values_videos"
    out = getattr(base, f"get_{kind}_features")(made[name], **more)
    return getattr(out, "pooler_output", out)


def _llava(text: Any = None) -> Any:
    config = tf.LlavaConfig(
        vision_config=_clip(), text_config=text or tf.LlamaConfig(**TEXT),
        image_token_index=ID["<image>"],
    )  # fmt: skip
    crop = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    processor = tf.LlavaProcessor(
        tf.CLIPImageProcessor(**crop), tokenizer(), patch_size=8, chat_template=chat("<image>\n"),
        vision_feature_select_strategy="default", num_additional_image_tokens=1,
    )  # fmt: skip
    model = widened(tf.LlavaForConditionalGeneration(config))
    return Case("llava", model, processor, "image", lambda c, m: list(_pooled(c, m)), (4, 4))


def _llava_next() -> Any:
    config = tf.LlavaNextConfig(
        vision_config=_clip(), text_config=tf.LlamaConfig(**TEXT), image_token_index=ID["<image>"],
        image_grid_pinpoints=PINS,
    )  # fmt: skip
    size = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    processor = tf.LlavaNextProcessor(
        tf.LlavaNextImageProcessor(**size, image_grid_pinpoints=PINS), tokenizer(), patch_size=8,
        vision_feature_select_strategy="default", num_additional_image_tokens=1,
        chat_template=chat("<image>\n"),
    )  # fmt: skip
    model = widened(tf.LlavaNextForConditionalGeneration(config))
    return Case(
        "llava_next", model, processor, "image", _packed, (4, 4), tiles=True, order=_mosaic(4)
    )


def _packed(case: Any, made: Any) -> list[Tensor]:
    return list(_pooled(case, made, image_sizes=made["image_sizes"]))


def _mosaic(g: int) -> Callable[[int], tuple[Tensor, Tensor, Tensor]]:
    """Places of the whole picture, then of lines of crops that end in a newline."""

    def order(n: int) -> tuple[Tensor, Tensor, Tensor]:
        base = torch.cartesian_prod(torch.arange(g), torch.arange(g))
        # Pictures are 72 x 40: two tiles side by side, whose padding lines are cut away.
        rows, cols = _LINES[g, n]
        lines = torch.cartesian_prod(torch.arange(rows), torch.arange(cols + 1))
        place = torch.cat([base, lines])
        tile = torch.cat([torch.zeros(len(base)), torch.ones(len(lines))])
        kind = torch.full((len(place),), KIND_KEPT)
        kind[len(base) :][lines[:, 1] == cols] = KIND_NEWLINE
        assert KIND_NEWLINE == KIND_LAYOUT
        return place, tile, kind

    return order


#: Rows and columns of crops of the tests' pictures, by side of a tile and tokens of a picture.
_LINES = {(4, 52): (4, 8), (5, 91): (6, 10)}


def _llava_onevision(kind: str) -> Any:
    vision = tf.SiglipVisionConfig(**VISION, image_size=38, patch_size=7, vision_use_head=False)
    config = tf.LlavaOnevisionConfig(
        vision_config=vision, text_config=tf.Qwen2Config(**TEXT), image_token_index=ID["<image>"],
        video_token_index=ID["<video>"], image_grid_pinpoints=WIDE_PINS,
        vision_aspect_ratio="anyres_max_4",
    )  # fmt: skip
    how = {"size": {"height": 38, "width": 38}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    processor = tf.LlavaOnevisionProcessor(
        tf.LlavaOnevisionImageProcessor(**how, image_grid_pinpoints=WIDE_PINS), tokenizer(),
        tf.LlavaOnevisionVideoProcessor(**how), num_image_tokens=25,
        vision_feature_select_strategy="full", chat_template=chat("<image>\n", "<video>\n"),
        vision_aspect_ratio="anyres_max_4",
    )  # fmt: skip
    model = widened(tf.LlavaOnevisionForConditionalGeneration(config))
    if kind == "image":
        return Case(
            "llava_onevision", model, processor, "image", _packed, (5, 5), tiles=True,
            order=_mosaic(5),
        )  # fmt: skip
    return Case("llava_onevision", model, processor, "video", _frames_of, (3, 3))


def _frames_of(case: Any, made: Any) -> list[Tensor]:
    """Rows of each frame of one video, without a newline."""
    found = _pooled(case, made, "video")
    if isinstance(found, list | tuple):
        found = torch.cat(list(found))
    n = case.grid[0] * case.grid[1]
    frames = int(made["pixel_values_videos"].shape[1])
    return list(found.reshape(-1, found.shape[-1])[: frames * n].reshape(frames, n, -1))


def _llava_next_video() -> Any:
    config = tf.LlavaNextVideoConfig(
        vision_config=_clip(), text_config=tf.LlamaConfig(**TEXT), image_token_index=ID["<image>"],
        video_token_index=ID["<video>"], image_grid_pinpoints=PINS, spatial_pool_stride=2,
        image_seq_length=16, video_seq_length=4,
    )  # fmt: skip
    size = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    processor = tf.LlavaNextVideoProcessor(
        tf.LlavaNextVideoVideoProcessor(**size),
        tf.LlavaNextImageProcessor(**size, image_grid_pinpoints=PINS), tokenizer(old="Llama"),
        patch_size=8,
        vision_feature_select_strategy="default", num_additional_image_tokens=1,
        chat_template=chat("<image>\n", "<video>\n"),
    )  # fmt: skip
    model = widened(tf.LlavaNextVideoForConditionalGeneration(config))
    return Case("llava_next_video", model, processor, "video", _frames_of, (2, 2))


def _video_llava() -> Any:
    config = tf.VideoLlavaConfig(
        vision_config=_clip(), text_config=tf.LlamaConfig(**TEXT), image_token_index=ID["<image>"],
        video_token_index=ID["<video>"],
    )  # fmt: skip
    size = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    processor = tf.VideoLlavaProcessor(
        tf.VideoLlavaImageProcessor(**size), tf.VideoLlavaVideoProcessor(**size),
        tokenizer(old="Llama"),
        patch_size=8, vision_feature_select_strategy="default",
        chat_template=chat("<image>\n", "<video>\n"),
    )  # fmt: skip
    model = widened(tf.VideoLlavaForConditionalGeneration(config))
    return Case("video_llava", model, processor, "video", _classed, (4, 4), order=_class_first)


def _classed(case: Any, made: Any) -> list[Tensor]:
    found = _pooled(case, made, "video")
    found = found[0] if isinstance(found, tuple) else found
    return list(found.reshape(-1, 17, found.shape[-1]))


def _class_first(n: int) -> tuple[Tensor, Tensor, Tensor]:
    """The class token, which is no cell, then the grid."""
    grid = torch.cartesian_prod(torch.arange(4), torch.arange(4))
    place = torch.cat([torch.full((1, 2), -1), grid])
    return place, torch.zeros(n), torch.full((n,), KIND_KEPT)


def _internvl(kind: str) -> Any:
    vision = tf.InternVLVisionConfig(**VISION, image_size=[32, 32], patch_size=[4, 4])
    config = tf.InternVLConfig(
        vision_config=vision, text_config=tf.Qwen2Config(**TEXT), image_seq_length=16,
        image_token_id=ID["<IMG_CONTEXT>"],
    )  # fmt: skip
    how = {
        "size": {"height": 32, "width": 32}, "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
    }  # fmt: skip
    words = tokenizer(
        start_image_token="<img>", end_image_token="</img>", context_image_token="<IMG_CONTEXT>",  # noqa: S106
    )  # fmt: skip
    processor = tf.InternVLProcessor(
        tf.GotOcr2ImageProcessor(**how, max_patches=6), words, tf.InternVLVideoProcessor(**how),
        image_seq_length=16, chat_template=chat("<IMG_CONTEXT>\n", "<video>\n"),
    )  # fmt: skip
    model = widened(tf.InternVLForConditionalGeneration(config))
    if kind == "image":
        return Case(
            "internvl", model, processor, "image", _tiles(16), (4, 4), tiles=True,
            order=_crops(4),
        )  # fmt: skip
    return Case("internvl", model, processor, "video", lambda c, m: list(_pooled(c, m)), (4, 4))


def _tiles(n: int) -> Callable[[Any, Any], list[Tensor]]:
    """Rows of all tiles of each picture, three pictures with equally many."""

    def rows(case: Any, made: Any) -> list[Tensor]:
        found = _pooled(case, made)
        found = torch.cat(list(found)) if isinstance(found, list | tuple) else found.flatten(0, 1)
        return list(found.reshape(len(TIMES), -1, found.shape[-1]))

    return rows


def _crops(g: int) -> Callable[[int], tuple[Tensor, Tensor, Tensor]]:
    """Crop by crop from number 1, the whole picture last."""

    def order(n: int) -> tuple[Tensor, Tensor, Tensor]:
        count = n // g**2
        grid = torch.cartesian_prod(torch.arange(g), torch.arange(g)).repeat(count, 1)
        tile = ((torch.arange(count) + 1) % count).repeat_interleave(g**2)
        return grid, tile, torch.full((n,), KIND_KEPT)

    return order


def _small(kind: str, way: str) -> Any:
    vision = {**VISION, "image_size": 32, "patch_size": 4}
    config = getattr(tf, f"{kind}Config")(
        vision_config=vision, text_config={**TEXT, "model_type": "llama"}, scale_factor=2,
        image_token_id=ID["<image>"], pad_token_id=0,
    )  # fmt: skip
    how = {"size": {"longest_edge": 96}, "max_image_size": {"longest_edge": 32}}
    image = getattr(tf, f"{kind}ImageProcessor")(**how)
    named = {
        "fake_image_token": "<fake_token_around_image>", "global_image_token": "<global-img>",
        "end_of_utterance_token": "<end_of_utterance>",
    }  # fmt: skip
    more: dict[str, Any] = {"image_seq_len": 16, "chat_template": chat()}
    if kind == "SmolVLM":
        video = tf.SmolVLMVideoProcessor(
            size={"longest_edge": 48}, max_image_size={"longest_edge": 32},
            video_sampling={"max_frames": 8, "fps": 1, "video_size": {"longest_edge": 48}},
        )  # fmt: skip
        processor = tf.SmolVLMProcessor(image, tokenizer(**named), video, **more)
    else:
        processor = tf.Idefics3Processor(image, tokenizer(**named), **more)
    model = widened(getattr(tf, f"{kind}ForConditionalGeneration")(config))
    name = kind.lower()
    if way == "tiles":
        return Case(
            name, model, processor, "image", _small_rows, (4, 4), tiles=True, order=_crops(4)
        )
    if way == "image":
        image.do_image_splitting = False
        return Case(name, model, processor, "image", _small_rows, (4, 4))
    return Case(name, model, processor, "video", _small_rows, (4, 4))


def _small_rows(case: Any, made: Any) -> list[Tensor]:
    out = case.model.model.get_image_features(made["pixel_values"], made["pixel_attention_mask"])
    found = getattr(out, "pooler_output", out)
    found = torch.cat(list(found)) if isinstance(found, list | tuple) else found.flatten(0, 1)
    return list(found.reshape(len(TIMES), -1, found.shape[-1]))


def _paligemma() -> Any:
    vision = tf.SiglipVisionConfig(
        **VISION, image_size=32, patch_size=8, vision_use_head=False, projection_dim=48
    )
    text = tf.GemmaConfig(**TEXT, head_dim=12)
    config = tf.PaliGemmaConfig(
        vision_config=vision, text_config=text, image_token_index=ID["<image>"], projection_dim=48,
        hidden_size=48, vocab_size=VOCAB,
    )  # fmt: skip
    image = tf.SiglipImageProcessor(size={"height": 32, "width": 32})
    image.image_seq_length = 16
    processor = tf.PaliGemmaProcessor(image, tokenizer(old="Gemma"), chat_template=chat())
    model = widened(tf.PaliGemmaForConditionalGeneration(config))
    return Case("paligemma", model, processor, "image", lambda c, m: list(_pooled(c, m)), (4, 4))


def _gemma3() -> Any:
    vision = tf.SiglipVisionConfig(**VISION, image_size=32, patch_size=4, vision_use_head=False)
    text = tf.Gemma3TextConfig(
        **TEXT, head_dim=12, sliding_window=4096, query_pre_attn_scalar=12,
        layer_types=["sliding_attention", "full_attention"],
    )  # fmt: skip
    config = tf.Gemma3Config(
        vision_config=vision, text_config=text, mm_tokens_per_image=16,
        image_token_index=ID["<image_soft_token>"], boi_token_index=ID["<start_of_image>"],
        eoi_token_index=ID["<end_of_image>"],
    )  # fmt: skip
    words = tokenizer(
        image="<image_soft_token>",
        boi_token="<start_of_image>",  # noqa: S106
        eoi_token="<end_of_image>",  # noqa: S106
    )
    processor = tf.Gemma3Processor(
        tf.Gemma3ImageProcessor(size={"height": 32, "width": 32}), words, image_seq_length=16,
        chat_template=chat("<start_of_image>"),
    )  # fmt: skip
    model = widened(tf.Gemma3ForConditionalGeneration(config))
    return Case("gemma3", model, processor, "image", lambda c, m: list(_pooled(c, m)), (4, 4))


def _video_llama_3(kind: str) -> Any:
    models: Any = importlib.import_module("transformers.models.video_llama_3")
    vision = {
        "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 3,
        "num_attention_heads": 2, "patch_size": 4,
    }  # fmt: skip
    config = tf.VideoLlama3Config(
        text_config={**TEXT, "model_type": "qwen2"}, vision_config=vision,
        image_token_id=ID["<|image_pad|>"], video_token_id=ID["<|video_pad|>"],
    )  # fmt: skip
    size = {"shortest_edge": 64, "longest_edge": 1024}
    many = {"shortest_edge": 64, "longest_edge": 40_000}
    video = models.VideoLlama3VideoProcessor(patch_size=4, size=many, use_token_compression=False)
    processor = models.VideoLlama3Processor(
        models.VideoLlama3ImageProcessor(patch_size=4, size=size),
        tokenizer("<|image_pad|>", "<|video_pad|>"), video,
        chat_template=chat("<|image_pad|>\n", "<|video_pad|>\n"),
    )  # fmt: skip
    model = widened(tf.VideoLlama3ForConditionalGeneration(config))
    return Case(
        "video_llama_3", model, processor, kind, _video_llama_rows, (0, 0),
        facts={"enters_as": kind},
    )  # fmt: skip


def _video_llama_rows(case: Any, made: Any) -> list[Tensor]:
    base = case.model.model
    if case.kind == "image":
        out = base.get_image_features(
            made["pixel_values"], made["image_grid_thw"], made["image_merge_sizes"]
        )
        grid, merge = made["image_grid_thw"][0].tolist(), int(made["image_merge_sizes"][0])
    else:
        out = base.get_video_features(
            made["pixel_values_videos"], made["video_grid_thw"], made["video_merge_sizes"]
        )
        grid, merge = made["video_grid_thw"][0].tolist(), int(made["video_merge_sizes"][0])
    case.grid = (grid[1] // merge, grid[2] // merge)
    found = torch.cat(list(getattr(out, "pooler_output", out)))
    return list(found.reshape(len(TIMES), -1, found.shape[-1]))


def sliding(window: int) -> Any:
    """LLaVA on Mistral, every layer of which sees the last ``window`` tokens alone."""
    return _llava(tf.MistralConfig(**TEXT, sliding_window=window))


MAKERS: dict[str, Callable[[], Any]] = {
    "llava": _llava,
    "llava_next": _llava_next,
    "llava_next_video": _llava_next_video,
    "llava_onevision_video": lambda: _llava_onevision("video"),
    "llava_onevision_image": lambda: _llava_onevision("image"),
    "video_llava": _video_llava,
    "internvl_video": lambda: _internvl("video"),
    "internvl_image": lambda: _internvl("image"),
    "smolvlm_video": lambda: _small("SmolVLM", "video"),
    "smolvlm_tiles": lambda: _small("SmolVLM", "tiles"),
    "idefics3": lambda: _small("Idefics3", "image"),
    "idefics3_tiles": lambda: _small("Idefics3", "tiles"),
    "paligemma": _paligemma,
    "gemma3": _gemma3,
    "video_llama_3_video": lambda: _video_llama_3("video"),
    "video_llama_3_image": lambda: _video_llama_3("image"),
}
if not NEW:  # transformers 4 has no VideoLLaMA3
    MAKERS = {name: make for name, make in MAKERS.items() if "video_llama_3" not in name}
