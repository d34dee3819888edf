"""Tiny random Qwen and Omni models, each with its real processor over an alphabet of letters.

Works with transformers 4.57 and 5.x.
"""

from __future__ import annotations

import importlib
import string
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

transformers: Any = importlib.import_module("transformers")
NEW = tuple(int(part) for part in transformers.__version__.split(".")[:2]) >= (5, 18)
#: Omni processors find the sound of a video themselves.
MIXED = hasattr(importlib.import_module("transformers.processing_utils"), "OmniModalProcessorMixin")
PATCH, MERGE = 4, 2
#: Pixels of a picture, and its tokens' rows and columns.
HEIGHT, WIDTH, ROWS, COLUMNS = 16, 24, 2, 3
RATE = 16_000
PER_SECOND = {"qwen2_5_omni": 25, "qwen3_omni": 13}
VISION = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
OMNI = ("qwen2_5_omni", "qwen3_omni")
SOUND = ("qwen2_audio",)

_MARKS = {
    "image": "<|image_pad|>", "video": "<|video_pad|>", "audio": "<|audio_pad|>",
    "vision_bos": "<|vision_start|>", "vision_eos": "<|vision_end|>",
    "audio_bos": "<|audio_bos|>", "audio_eos": "<|audio_eos|>",
}  # fmt: skip
_WORDS = ["<unk>", "<pad>", "<|im_start|>", "<|im_end|>", *_MARKS.values()]
VOCABULARY = {word: number for number, word in enumerate([*_WORDS, *string.printable])}
ID = {name: VOCABULARY[word] for name, word in _MARKS.items()}

CHAT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.content is string %}{{ m.content }}{% else %}{% for c in m.content %}"
    "{% if c.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif c.type == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif c.type == 'audio' %}<|audio_bos|><|audio_pad|><|audio_eos|>"
    "{% else %}{{ c.text }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

_SECTIONS = [2, 2, 2]
_TEXT: dict[str, Any] = {
    "vocab_size": len(VOCABULARY) + 5, "hidden_size": 48, "intermediate_size": 64,
    "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 8192, "bos_token_id": None, "eos_token_id": None,
    "pad_token_id": VOCABULARY["<pad>"], "tie_word_embeddings": False,
}  # fmt: skip
_SEEN: dict[str, Any] = {"patch_size": PATCH, "spatial_merge_size": MERGE, "depth": 3}
_PLAIN: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 40,
    "out_hidden_size": 48,
    "num_heads": 2,
}
_WINDOWS: dict[str, Any] = {"window_size": 16, "fullatt_block_indexes": [1]}
_DEEP: dict[str, Any] = {"num_position_embeddings": 36, "deepstack_visual_indexes": [0, 1, 2]}
_HEARD: dict[str, Any] = {
    "d_model": 32, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 64,
    "num_mel_bins": 80,
}  # fmt: skip


def _rope(**more: Any) -> dict[str, Any]:
    old = {"rope_scaling": {"rope_type": "default", "mrope_section": _SECTIONS, **more}}
    found = {"rope_type": "default", "mrope_section": _SECTIONS, "rope_theta": 1e4, **more}
    return {"rope_parameters": found} if NEW else {**old, "rope_theta": 1e4}


@dataclass(frozen=True)
class Talker:
    """A random model, its processor, and what the two make of media by themselves."""

    kind: str
    model: Any
    processor: Any

    @property
    def owner(self) -> Any:
        """What holds the towers."""
        model = self.model
        return model if hasattr(model, "visual") or hasattr(model, "audio_tower") else model.model

    def watch(self, pixels: Tensor, grid: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Tokens [N, D] of patches, and the rows beside them, by the model's own tower."""
        with torch.inference_mode():
            found = self.owner.get_video_features(pixels, grid)
        rows = getattr(found, "pooler_output", found)
        if isinstance(rows, tuple) and self.kind.startswith("qwen3") and not NEW:
            rows, deep = rows
        else:
            deep = getattr(found, "deepstack_features", None) or []
        levels = [torch.cat(list(d)) if isinstance(d, list | tuple) else d for d in deep]
        whole = rows if isinstance(rows, Tensor) else torch.cat(list(rows))
        return whole.clone(), [level.clone() for level in levels]

    def listen(self, fed: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Tokens [n, D] of sound by the model's own tower, and the seconds [n, 2] of each."""
        features, mask = fed["input_features"], fed["feature_attention_mask"]
        with torch.inference_mode():
            if self.kind == "qwen2_audio":
                rows = self._projected(features, mask)
            else:
                found = self.owner.get_audio_features(features, feature_attention_mask=mask)
                rows = getattr(found, "last_hidden_state", found)
        count = len(rows)
        number = torch.arange(count + 1).double()
        edges = number * 0.04
        if self.kind == "qwen3_omni":
            edges = torch.div(number, 13, rounding_mode="floor") + number % 13 * 0.08
        return rows.clone(), torch.stack([edges[:-1], edges[1:]], 1)

    def _projected(self, features: Tensor, mask: Tensor) -> Tensor:
        """What the language model of Qwen2-Audio is given: no method gives only that."""
        caught: list[Tensor] = []
        handle = self.owner.multi_modal_projector.register_forward_hook(
            lambda _module, _args, out: caught.append(out)
        )
        _, count = self.owner.audio_tower._get_feat_extract_output_lengths(mask.sum(-1))
        try:
            self.model(
                input_ids=torch.full((1, int(count)), ID["audio"]), input_features=features,
                feature_attention_mask=mask, attention_mask=torch.ones(1, int(count)),
            )  # fmt: skip
        finally:
            handle.remove()
        return caught[0][0, : int(count)]


def tokenizer() -> Any:
    """One id a character, and the marks."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    names = {"unk_token": "<unk>", "pad_token": "<pad>"}
    made = Tokenizer(models.WordLevel(VOCABULARY, names["unk_token"]))
    made.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    made.decoder = decoders.Fuse()
    marks = {f"{name}_token": word for name, word in _MARKS.items()}
    plain = {"im_start": "<|im_start|>", "im_end": "<|im_end|>"}
    # Older processors insist on the class.
    kind = transformers.PreTrainedTokenizerFast if NEW else transformers.Qwen2TokenizerFast
    return kind(
        tokenizer_object=made, eos_token=None, extra_special_tokens={**marks, **plain},
        padding_side="left", **names,
    )  # fmt: skip


def _vision_config(kind: str) -> Any:
    ids: dict[str, Any] = {
        "image_token_id": ID["image"], "video_token_id": ID["video"],
        "vision_start_token_id": ID["vision_bos"], "vision_end_token_id": ID["vision_eos"],
        "tie_word_embeddings": False,
    }  # fmt: skip
    if kind == "qwen2_vl":
        vision = {**_SEEN, "embed_dim": 32, "hidden_size": 48, "num_heads": 2, "mlp_ratio": 2}
        return transformers.Qwen2VLConfig(
            text_config={**_TEXT, **_rope()}, vision_config=vision, **ids
        )
    if kind == "qwen2_5_vl":
        vision = {**_SEEN, **_PLAIN, **_WINDOWS, "tokens_per_second": 2}
        return transformers.Qwen2_5_VLConfig(
            text_config={**_TEXT, **_rope()}, vision_config=vision, **ids
        )
    return transformers.Qwen3VLConfig(
        text_config={**_TEXT, **_rope(mrope_interleaved=True), "head_dim": 12},
        vision_config={**_SEEN, **_PLAIN, **_DEEP}, **ids,
    )  # fmt: skip


def _omni_config(kind: str) -> Any:
    ids = {
        "vision_start_token_id": ID["vision_bos"], "audio_start_token_id": ID["audio_bos"],
        "position_id_per_seconds": PER_SECOND[kind],
    }  # fmt: skip
    if kind == "qwen2_5_omni":
        return transformers.Qwen2_5OmniThinkerConfig(
            audio_config={**_HEARD, "output_dim": 48, "n_window": 100},
            vision_config={**_SEEN, **_PLAIN, **_WINDOWS}, text_config={**_TEXT, **_rope()},
            audio_token_index=ID["audio"], image_token_index=ID["image"],
            video_token_index=ID["video"], audio_end_token_id=ID["audio_eos"],
            seconds_per_chunk=2, **ids,
        )  # fmt: skip
    kinds = importlib.import_module(
        "transformers.models.qwen3_omni_moe.configuration_qwen3_omni_moe"
    )
    return kinds.Qwen3OmniMoeThinkerConfig(
        audio_config={**_HEARD, "output_dim": 48, "n_window": 50, "n_window_infer": 800,
                      "downsample_hidden_size": 16},
        vision_config={**_SEEN, **_PLAIN, **_DEEP},
        text_config={**_TEXT, "num_experts": 2, "num_experts_per_tok": 2, "head_dim": 12,
                     "moe_intermediate_size": 32, **_rope(mrope_interleaved=True)},
        audio_token_id=ID["audio"], image_token_id=ID["image"], video_token_id=ID["video"], **ids,
    )  # fmt: skip


def _sound_config() -> Any:
    return transformers.Qwen2AudioConfig(
        audio_config={**_HEARD, "model_type": "qwen2_audio_encoder", "max_source_positions": 100},
        text_config={**_TEXT, "model_type": "qwen2"}, audio_token_id=ID["audio"],
    )  # fmt: skip


_CLASSES = {
    "qwen2_vl": ("Qwen2VLForConditionalGeneration", "Qwen2VLProcessor"),
    "qwen2_5_vl": ("Qwen2_5_VLForConditionalGeneration", "Qwen2_5_VLProcessor"),
    "qwen3_vl": ("Qwen3VLForConditionalGeneration", "Qwen3VLProcessor"),
    "qwen2_audio": ("Qwen2AudioForConditionalGeneration", "Qwen2AudioProcessor"),
    "qwen2_5_omni": ("Qwen2_5OmniThinkerForConditionalGeneration", "Qwen2_5OmniProcessor"),
    "qwen3_omni": ("Qwen3OmniMoeThinkerForConditionalGeneration", "Qwen3OmniMoeProcessor"),
}


def make(kind: str) -> Talker:
    """The model of this kind and its processor."""
    transformers.utils.logging.set_verbosity_error()
    torch.manual_seed(7)
    config = (
        _sound_config() if kind in SOUND
        else _omni_config(kind) if kind in OMNI else _vision_config(kind)
    )  # fmt: skip
    name, processor = _CLASSES[kind]
    model = getattr(transformers, name)(config).eval()
    for parameter in model.parameters():
        # Wide enough that tokens, and where they stand, matter.
        nn.init.normal_(parameter, std=0.15)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = VOCABULARY["<pad>"]
    return Talker(kind, model, _processor(kind, getattr(transformers, processor)))


def _processor(kind: str, made: Any) -> Any:
    words = tokenizer()
    if kind in SOUND:
        extractor = transformers.WhisperFeatureExtractor(feature_size=80, chunk_length=2)
        return made(
            extractor, words, chat_template=CHAT, audio_token=_MARKS["audio"],
            audio_bos_token=_MARKS["audio_bos"], audio_eos_token=_MARKS["audio_eos"],
        )  # fmt: skip
    size = {"shortest_edge": 64, "longest_edge": 40_000}
    many = {"shortest_edge": 64, "longest_edge": 400_000}
    image = transformers.Qwen2VLImageProcessor(patch_size=PATCH, size=size)
    newer = kind == "qwen3_vl"
    if newer:
        image.image_mean = image.image_std = [0.5, 0.5, 0.5]
    video = (transformers.Qwen3VLVideoProcessor if newer else transformers.Qwen2VLVideoProcessor)(
        patch_size=PATCH, size=many, **({"cap_pixels_per_frame": False} if NEW else {})
    )
    if kind in OMNI:
        extractor = transformers.WhisperFeatureExtractor(feature_size=80, chunk_length=30)
        return made(image, video, extractor, words, chat_template=CHAT)
    return made(image, words, video, chat_template=CHAT)


def sized(kind: str, **more: Any) -> dict[str, Any]:
    """Arguments by which a processor leaves small pictures as they are."""
    told = {"do_sample_frames": False, **{k: v for k, v in more.items() if v is not None}}
    if kind not in OMNI:
        told.pop("fps", None)
        return told
    # Omni processors bring bounds of their own.
    told.pop("video_metadata", None)
    told["size"] = {"shortest_edge": 64, "longest_edge": 400_000}
    if NEW:
        told["cap_pixels_per_frame"] = False
    return {"videos_kwargs": told}


def pictures(count: int, seed: int = 0) -> Tensor:
    """Noise uint8 [count, 3, HEIGHT, WIDTH]."""
    made = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, HEIGHT, WIDTH), dtype=torch.uint8, generator=made)


def sound(seconds: float, seed: int = 0) -> Tensor:
    """Float32 noise and a tone, at 16 kHz."""
    made = torch.Generator().manual_seed(seed)
    count = int(seconds * RATE)
    at = torch.arange(count) / RATE
    return torch.randn(count, generator=made) * 0.2 + 0.3 * torch.sin(at * 3000)
