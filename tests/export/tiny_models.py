"""Tiny random models with their processors, on a tokenizer of bytes, and caches of their own rows.

Every model gets pictures by its own processor; a cache holds what it makes of them. The weights are
wide, so that every token matters. Runs with transformers 4.57 too.
"""

from __future__ import annotations

import importlib
import inspect
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import tokpipe
from tokpipe.cache.format import KIND_LAYOUT
from tokpipe.spec import KIND_KEPT, KIND_NEWLINE
from tokpipe.tensors import TokenBatch

tf: Any = importlib.import_module("transformers")
NEW = tuple(int(part) for part in tf.__version__.split(".")[:2]) >= (5, 18)
TIMES = (0.5, 1.5, 61.0)
QUESTION = "What is it?"
#: Ids of the tokenizer, from 0 on; bytes follow.
TOKENS = (
    "<pad>", "<s>", "</s>", "<image>", "<video>", "<img>", "</img>", "<IMG_CONTEXT>",
    "<fake_token_around_image>", "<global-img>", "<end_of_utterance>", "<start_of_image>",
    "<end_of_image>", "<image_soft_token>", "<|image_pad|>", "<|video_pad|>",
    *(f"<row_{row}_col_{col}>" for row in range(1, 5) for col in range(1, 5)),
)  # fmt: skip
ID = {token: number for number, token in enumerate(TOKENS)}
_VOCAB = len(TOKENS) + 256
VISION = {
    "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64,
}  # fmt: skip
TEXT = {
    "vocab_size": _VOCAB, "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 4096,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
PINS = [[32, 64], [64, 32], [64, 64], [96, 32], [32, 96]]
WIDE_PINS = [[38 * high, 38 * wide] for high in (1, 2, 3) for wide in (1, 2, 3)]
_CHAT = (
    "{% for m in messages %}{{ m['role'] }}: {% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}IMAGE{% elif c['type'] == 'video' %}VIDEO"
    "{% elif c['type'] == 'text' %}{{ c['text'] }}{% endif %}{% endfor %}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
#: Seed of the noise the pictures are made of; their size is odd on purpose.
HEIGHT, WIDTH = 40, 72


def tokenizer(
    image: str = "<image>", video: str = "<video>", old: str = "PreTrained", **named: str
) -> Any:
    """A tokenizer of bytes whose special tokens have the names processors ask for.

    Args:
        old: Kind of tokenizer that a processor of transformers 4 insists on.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    signs = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {**ID, **{sign: len(TOKENS) + number for number, sign in enumerate(signs)}}
    made = Tokenizer(models.BPE(vocab, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(list(TOKENS))
    bound = not NEW and old != "PreTrained"
    fast = getattr(tf, f"{old}TokenizerFast" if bound else "PreTrainedTokenizerFast")
    return fast(
        tokenizer_object=made, pad_token="<pad>", bos_token="<s>", eos_token="</s>",  # noqa: S106
        extra_special_tokens={"image_token": image, "video_token": video, **named},
        model_input_names=["input_ids", "attention_mask"],
        **({"add_bos_token": False} if bound else {}),
    )  # fmt: skip


def chat(image: str = "<image>", video: str = "<video>") -> str:
    """A chat template that writes these marks."""
    return _CHAT.replace("IMAGE", image).replace("VIDEO", video)


def pictures(count: int = len(TIMES), seed: int = 0) -> Tensor:
    """Noise uint8 [count, H, W, 3]."""
    made = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, HEIGHT, WIDTH, 3), dtype=torch.uint8, generator=made)


@dataclass
class Case:
    """A model, and one way its processor takes pictures.

    Attributes:
        kind: ``image`` or ``video``, as messages mark it.
        rows: Own rows of each picture from the processor's output, in the order of the prompt,
            without what the model adds once a video.
        tiles: Tokens are those of crops; ``places`` then says where.
    """

    name: str
    model: Any
    processor: Any
    kind: str
    rows: Callable[[Any, Any], list[Tensor]]
    grid: tuple[int, int]
    tiles: bool = False
    order: Callable[[int], tuple[Tensor, Tensor, Tensor]] | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    call: dict[str, Any] = field(default_factory=dict)

    def messages(self, count: int) -> list[dict[str, Any]]:
        """What a user of the model itself would write for ``count`` pictures."""
        marks = [{"type": self.kind}] * (1 if self.kind == "video" else count)
        return [{"role": "user", "content": [*marks, {"type": "text", "text": QUESTION}]}]

    def asked(self) -> list[dict[str, Any]]:
        """The same for a cache: one mark."""
        return self.messages(1)

    def own(self, seen: Tensor, times: tuple[float, ...] = TIMES) -> Any:
        """Arguments of the model by its own processor."""
        text = self.processor.apply_chat_template(
            self.messages(len(seen)), add_generation_prompt=True, tokenize=False
        )
        frames = list(seen.permute(0, 3, 1, 2))
        told = {
            "fps": 2.0, "duration": 62.0, "total_num_frames": 124, "height": HEIGHT, "width": WIDTH,
            "frames_indices": [int(2 * time) for time in times], "video_backend": "pyav",
        }  # fmt: skip
        if self.kind == "image":
            images = [f.permute(1, 2, 0).numpy() for f in frames]
            with warnings.catch_warnings():
                # PaliGemma's makes numpy arrays of tensors in a way that numpy warns of.
                warnings.filterwarnings("ignore", "__array__", DeprecationWarning)
                return self.processor(text=[text], images=images, return_tensors="pt", **self.call)
        how: dict[str, Any] = {"video_metadata": [told], "do_sample_frames": False}
        if not NEW and self.name == "video_llava":
            how = {}
        videos = [torch.stack(frames)]
        if not NEW and self.name == "smolvlm":
            return self.processor(
                text=[text], videos=[videos], video_metadata=[[told]], do_sample_frames=False,
                return_tensors="pt", **self.call,
            )  # fmt: skip
        return self.processor(text=[text], videos=videos, return_tensors="pt", **how, **self.call)

    @torch.no_grad()
    def cache(
        self, folder: Path, seen: Tensor, times: tuple[float, ...] = TIMES,
        keep: Tensor | None = None, dtype: torch.dtype = torch.float32, **facts: Any,
    ) -> Path:  # fmt: skip
        """A cache of the model's own rows of pictures, or of those ``keep`` bool [N] alone."""
        rows = self.rows(self, self.own(seen, times))
        assert len(rows) == len(times)
        tokens = self.tokens(rows, times, dtype)
        dropped = 0.0
        if keep is not None:
            dropped = float(tokens.mass[~keep].sum())
            tokens = tokens.take(keep.nonzero()[:, 0])
        told = {**self.about(len(rows[0])), **facts}
        folder.mkdir(parents=True, exist_ok=True)
        made: Path = tokpipe.save_cache(
            folder / "own.tokpipe.safetensors", tokens, encoder=told, dropped=dropped,
            grid=self.grid, force=True, source={
                "name": "film", "duration": 62.0, "size": None, "fingerprint": None,
                "method": None, "container": None, "streams": [{"kind": "video"}],
            },
        )  # fmt: skip
        return made

    def about(self, many: int) -> dict[str, Any]:
        """Facts on the encoder."""
        found: dict[str, Any] = {"stage": "post_projector"}
        if NEW:
            with suppress(tokpipe.TokpipeError):
                found = tokpipe.encoder_facts(self.model)
        found |= {"tiles": self.tiles, "tokens_per_picture": many, "picture": [HEIGHT, WIDTH]}
        return {**found, **self.facts}

    def tokens(
        self, rows: list[Tensor], times: tuple[float, ...], dtype: torch.dtype
    ) -> TokenBatch:
        """Rows with their places, in the order of the file."""
        made = []
        for step, (picture, at) in enumerate(zip(rows, times, strict=True)):
            n = len(picture)
            if self.order is None:
                y, x = torch.arange(n) // self.grid[1], torch.arange(n) % self.grid[1]
                tile, kind = torch.zeros(n, dtype=torch.int32), torch.full((n,), KIND_KEPT)
            else:
                place, tile, kind = self.order(n)
                y, x = place.unbind(1)
            cell = torch.stack([torch.full((n,), step), y, x], 1).int()
            made.append(
                TokenBatch.build(
                    picture.to(dtype), torch.full((n,), at, dtype=torch.float64), cell=cell,
                    tile=tile.int(), kind=kind.to(torch.uint8),
                )
            )  # fmt: skip
        return TokenBatch.cat(made).sorted()


def widened(model: Any) -> Any:
    """The model with wide random weights, in eval mode."""
    drawn = torch.Generator().manual_seed(1)
    kind = model.config.model_type
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=drawn)
            scale = "norm" in name and name.endswith("weight") and "gemma" not in kind
            parameter.copy_(1 + 0.1 * noise if scale else noise * 0.25)
    return model.eval()


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


def _llava() -> Case:
    config = tf.LlavaConfig(
        vision_config=_clip(), text_config=tf.LlamaConfig(**TEXT), image_token_index=ID["<image>"]
    )
    crop = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    processor = tf.LlavaProcessor(
        tf.CLIPImageProcessor(**crop), tokenizer(), patch_size=8, chat_template=chat("<image>\n"),
        vision_feature_select_strategy="default", num_additional_image_tokens=1,
    )  # fmt: skip
    model = widened(tf.LlavaForConditionalGeneration(config))
    return Case("llava", model, processor, "image", lambda c, m: list(_pooled(c, m)), (4, 4))


def _llava_next() -> Case:
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


def _packed(case: Case, made: Any) -> list[Tensor]:
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


def _llava_onevision(kind: str) -> Case:
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


def _frames_of(case: Case, made: Any) -> list[Tensor]:
    """Rows of each frame of one video, without a newline."""
    found = _pooled(case, made, "video")
    if isinstance(found, list | tuple):
        found = torch.cat(list(found))
    n = case.grid[0] * case.grid[1]
    frames = int(made["pixel_values_videos"].shape[1])
    return list(found.reshape(-1, found.shape[-1])[: frames * n].reshape(frames, n, -1))


def _llava_next_video() -> Case:
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


def _video_llava() -> Case:
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


def _classed(case: Case, made: Any) -> list[Tensor]:
    found = _pooled(case, made, "video")
    found = found[0] if isinstance(found, tuple) else found
    return list(found.reshape(-1, 17, found.shape[-1]))


def _class_first(n: int) -> tuple[Tensor, Tensor, Tensor]:
    """The class token, which is no cell, then the grid."""
    grid = torch.cartesian_prod(torch.arange(4), torch.arange(4))
    place = torch.cat([torch.full((1, 2), -1), grid])
    return place, torch.zeros(n), torch.full((n,), KIND_KEPT)


def _internvl(kind: str) -> Case:
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


def _small(kind: str, way: str) -> Case:
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


def _small_rows(case: Case, made: Any) -> list[Tensor]:
    out = case.model.model.get_image_features(made["pixel_values"], made["pixel_attention_mask"])
    found = getattr(out, "pooler_output", out)
    found = torch.cat(list(found)) if isinstance(found, list | tuple) else found.flatten(0, 1)
    return list(found.reshape(len(TIMES), -1, found.shape[-1]))


def _paligemma() -> Case:
    vision = tf.SiglipVisionConfig(
        **VISION, image_size=32, patch_size=8, vision_use_head=False, projection_dim=48
    )
    text = tf.GemmaConfig(**TEXT, head_dim=12)
    config = tf.PaliGemmaConfig(
        vision_config=vision, text_config=text, image_token_index=ID["<image>"], projection_dim=48,
        hidden_size=48, vocab_size=_VOCAB,
    )  # fmt: skip
    image = tf.SiglipImageProcessor(size={"height": 32, "width": 32})
    image.image_seq_length = 16
    processor = tf.PaliGemmaProcessor(image, tokenizer(old="Gemma"), chat_template=chat())
    model = widened(tf.PaliGemmaForConditionalGeneration(config))
    return Case("paligemma", model, processor, "image", lambda c, m: list(_pooled(c, m)), (4, 4))


def _gemma3() -> Case:
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


def _video_llama_3(kind: str) -> Case:
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


def _video_llama_rows(case: Case, made: Any) -> list[Tensor]:
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


MAKERS: dict[str, Callable[[], Case]] = {
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


def rows_of(cache: Path) -> Any:
    """The tokens of a cache."""
    with tokpipe.open_cache(cache) as opened:
        return opened.tokens(stream="video")["video"].to_tokens()


def template_of(case: Case) -> str:
    """The chat template that counts for a case."""
    if case.name == "smolvlm" and case.kind == "video":
        module = importlib.import_module("transformers.models.smolvlm.processing_smolvlm")
        return str(module.DEFAULT_CHAT_TEMPLATE)
    return str(case.processor.chat_template)


def alone(own: Any) -> dict[str, Any]:
    """The processor's output as arguments, without what only training takes."""
    return {key: value for key, value in own.items() if key != "labels"}


def shown(case: Case, ids: Tensor, keep: Tensor) -> Tensor:
    """Bool [S]: ids of the whole prompt that are there when ``keep`` bool [N] of the rows are.

    ``keep`` counts in the order of the file; pictures of which nothing is kept are not expected.
    """
    number = {
        "image": getattr(case.model.config, "image_token_id", None)
        or case.model.config.image_token_index
    }
    if case.kind == "video" and case.name not in ("internvl", "smolvlm"):
        config = case.model.config
        number["video"] = getattr(config, "video_token_id", None) or config.video_token_index
    slots = (ids[0] == number.get("video", number["image"])).nonzero()[:, 0]
    n = len(keep) // len(TIMES)
    if case.order is None:
        order = torch.arange(n)
    else:
        place, tile, _ = case.order(n)
        # Rows of a file lie by tile, y, x; those of the prompt as the model has them.
        order = torch.tensor(sorted(range(n), key=lambda i: (int(tile[i]), *place[i].tolist())))
    flags = torch.empty(len(keep), dtype=torch.bool)
    for step in range(len(TIMES)):
        flags[step * n + order] = keep[step * n : (step + 1) * n]
    made = torch.ones(ids.shape[1], dtype=torch.bool)
    made[slots[: len(flags)]] = flags
    return made


def places(case: Case, length: int) -> Tensor:
    """Positions of the whole prompt for a forward pass."""
    return torch.arange(length)[None] + (1 if case.name == "paligemma" else 0)
