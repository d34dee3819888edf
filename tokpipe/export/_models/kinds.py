"""Which family a model belongs to, by its ``model_type``; nothing is imported before."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from tokpipe.errors import ModelError

if TYPE_CHECKING:
    from tokpipe.export._models.family import Family
    from tokpipe.export._models.words import Words

#: ``module:Class`` in this package by ``model_type``.
KINDS = {
    "gemma3": "gemma:Gemma3",
    "idefics3": "smolvlm:Idefics3",
    "internvl": "intern:InternVl",
    "llava": "llava:Llava",
    "llava_next": "llava:LlavaNext",
    "llava_next_video": "llava:LlavaNextVideo",
    "llava_onevision": "llava:LlavaOnevision",
    "paligemma": "gemma:PaliGemma",
    "qwen2_5_omni": "omni:Qwen25Omni",
    "qwen2_5_omni_thinker": "omni:Qwen25Omni",
    "qwen2_5_vl": "qwen:Qwen25Vl",
    "qwen2_audio": "sound:Qwen2Audio",
    "qwen2_vl": "qwen:Qwen2Vl",
    "qwen3_omni_moe": "omni:Qwen3Omni",
    "qwen3_omni_moe_thinker": "omni:Qwen3Omni",
    "qwen3_vl": "qwen:Qwen3Vl",
    "smolvlm": "smolvlm:SmolVlm",
    "video_llama_3": "videollama:VideoLlama3",
    "video_llava": "llava:VideoLlava",
    "voxtral": "sound:Voxtral",
}


def family_of(model: Any, words: Words) -> Family:
    """The family of a model.

    Raises:
        ModelError: Its kind is none of ``KINDS``.
    """
    kind = str(getattr(getattr(model, "config", None), "model_type", ""))
    if kind not in KINDS:
        raise ModelError(
            f"tokens of a cache cannot be given to a model of kind `{kind}`",
            hint="kinds that take them: " + ", ".join(sorted(KINDS)),
        )
    module, _, name = KINDS[kind].partition(":")
    made: Family = getattr(import_module(f"{__package__}.{module}"), name)(model, words)
    return made
