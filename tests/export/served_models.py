"""Configurations and tokenizers of models that are served, and caches of random rows for them."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import tokpipe

transformers: Any = importlib.import_module("transformers")
WIDTH = 48
#: Rows and columns of a picture's tokens.
GRID = (2, 3)
CELLS = GRID[0] * GRID[1]
TIMES = (1.0, 2.5, 4.0, 5.5)
LEVELS = {"qwen3_vl": 3}
_TEXT = {"hidden_size": WIDTH, "intermediate_size": 64, "num_hidden_layers": 1,
         "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 64}  # fmt: skip
_PLAIN = {
    "llava": "LlavaConfig", "llava_next": "LlavaNextConfig", "gemma3": "Gemma3Config",
    "llava_onevision": "LlavaOnevisionConfig", "internvl": "InternVLConfig",
    "smolvlm": "SmolVLMConfig", "idefics3": "Idefics3Config", "paligemma": "PaliGemmaConfig",
    "llava_next_video": "LlavaNextVideoConfig", "video_llama_3": "VideoLlama3Config",
    "qwen2_audio": "Qwen2AudioConfig", "voxtral": "VoxtralConfig", "mistral3": "Mistral3Config",
}  # fmt: skip
_WORDS = {"gemma3": "gemma3_text", "paligemma": "gemma", "smolvlm": "llama", "idefics3": "llama",
          "voxtral": "llama", "mistral3": "mistral"}  # fmt: skip


def save(kind: str, folder: Path, mrope: Any) -> str:
    """The configuration of a kind, and of the Qwen-VL kinds the tokenizer; the folder's path.

    Args:
        mrope: The module ``mrope_models``.
    """
    if kind in mrope.VISION:
        talker = mrope.make(kind)
        talker.model.config.save_pretrained(folder)
        words = talker.processor.tokenizer
        words.chat_template = mrope.CHAT
        words.save_pretrained(folder)
        return str(folder)
    text = {**_TEXT, "model_type": _WORDS.get(kind, "qwen2")}
    getattr(transformers, _PLAIN[kind])(text_config=text).save_pretrained(folder)
    return str(folder)


def rows(
    count: int, width: int = WIDTH, seed: int = 0, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Noise [count, width]."""
    made = torch.Generator().manual_seed(seed)
    return torch.randn(count, width, generator=made).to(dtype)


def cache_of(
    path: Path, target: str, *, times: Sequence[float] = TIMES, keep: Tensor | None = None,
    levels: int = 0, width: int = WIDTH, dtype: torch.dtype = torch.float32, audio: int = 0,
    video: bool = True, duration: float | None = 10.0, media: str = "film.mp4", **facts: Any,
) -> Path:  # fmt: skip
    """A cache of whole pictures, or of those of their cells that ``keep`` bool [N] names."""
    streams = {}
    facts = {"stage": "post_projector", "target": target, **facts}
    if video:
        count = len(times) * CELLS
        made = tokpipe.picture_tokens(
            rows(count, width, 0, dtype), list(times), GRID,
            deepstack=[rows(count, width, k + 1, dtype) for k in range(levels)],
        )  # fmt: skip
        streams["video"] = made if keep is None else made.take(keep.nonzero()[:, 0])
    if audio:
        at = torch.arange(audio, dtype=torch.float64) / 25
        spans = torch.stack([at, at + 0.04], 1)
        streams["audio"] = tokpipe.sound_tokens(rows(audio, width, 9, dtype), spans)
    lost = 0.0 if keep is None else float((~keep).sum())
    written: Path = tokpipe.save_cache(
        path, streams, encoder=dict.fromkeys(streams, facts), grid=GRID, dropped={"video": lost},
        force=True,
        source={
            "name": media, "duration": duration, "size": None, "fingerprint": None,
            "method": None, "container": None, "streams": [{"kind": name} for name in streams],
        },
    )  # fmt: skip
    return written
