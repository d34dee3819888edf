"""Kinds of model by what the two servers do with tokens that are given to them.

Source: vllm 0.33.0 (``model_executor/models``, ``multimodal/parse.py``), sglang 0.5.23
(``srt/models``, ``srt/multimodal/processors``), read kind by kind: a server may size the prompt
from embeddings and then have a model that never looks at them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tokpipe.errors import CacheError

Modality = Literal["image", "video", "audio"]


@dataclass(frozen=True, slots=True)
class Kind:
    """One ``model_type``.

    Attributes:
        rope: ``mrope`` has positions (t, h, w) from a grid, ``1-D`` has the index in the prompt.
        takes: Modalities vLLM takes embeddings of, the one used for video first.
        mark: What stands for one item in a prompt of text, by modality.
        why: Why vLLM takes none, a sentence; empty where it does.
        stamped: The server writes ``<1.0 seconds>`` before each picture and wants the seconds.
        paced: The server wants seconds per grid step, one number a video.
    """

    rope: Literal["mrope", "1-D"]
    takes: tuple[Modality, ...] = ()
    mark: tuple[tuple[Modality, str], ...] = ()
    why: str = ""
    stamped: bool = False
    paced: bool = False


_QWEN_MARKS: tuple[tuple[Modality, str], ...] = (
    ("image", "<|vision_start|><|image_pad|><|vision_end|>"),
    ("video", "<|vision_start|><|video_pad|><|vision_end|>"),
)
_IMAGE: tuple[tuple[Modality, str], ...] = (("image", "<image>"),)
_AUDIO: tuple[tuple[Modality, str], ...] = (("audio", "<|audio_bos|><|AUDIO|><|audio_eos|>"),)
_PIXELS = "vLLM sizes its prompt from pixels alone"
_MEL = "its audio input in vLLM is mel frames, not embeddings"

KINDS: dict[str, Kind] = {
    "qwen2_vl": Kind("mrope", ("video", "image"), _QWEN_MARKS),
    "qwen2_5_vl": Kind("mrope", ("video", "image"), _QWEN_MARKS, paced=True),
    "qwen3_vl": Kind("mrope", ("video", "image"), _QWEN_MARKS, stamped=True),
    "llava": Kind("1-D", ("image",), _IMAGE),
    "llava_next": Kind("1-D", ("image",), _IMAGE),
    "llava_onevision": Kind("1-D", ("image",), _IMAGE),
    "internvl": Kind("1-D", ("image",), _IMAGE),
    "paligemma": Kind("1-D", ("image",), (("image", ""),)),
    "qwen2_audio": Kind("1-D", ("audio",), _AUDIO),
    "audioflamingo3": Kind("1-D", ("audio",), (("audio", "<sound>"),)),
    "ultravox": Kind("1-D", ("audio",), (("audio", "<|audio|>"),)),
    "gemma3": Kind("1-D", why="its model in vLLM asserts that no image embeddings are given"),
    "llava_next_video": Kind("1-D", why="its model in vLLM reads pixels only"),
    "smolvlm": Kind("1-D", why=_PIXELS),
    "idefics3": Kind("1-D", why=_PIXELS),
    "voxtral": Kind("1-D", why="its model in vLLM has no input for audio embeddings"),
    "qwen2_5_omni": Kind("mrope", why=_MEL),
    "qwen2_5_omni_thinker": Kind("mrope", why=_MEL),
    "qwen3_omni_moe": Kind("mrope", why=_MEL),
    "qwen3_omni_moe_thinker": Kind("mrope", why=_MEL),
    "video_llama_3": Kind("1-D", why="vLLM does not serve it"),
    "video_llava": Kind("1-D", why="vLLM does not serve it"),
}  # fmt: skip


def kind_of(name: str, model_type: str) -> Kind:
    """The kind of a model.

    Args:
        name: The model, for the message.

    Raises:
        CacheError: Nothing is known of it.
    """
    if model_type not in KINDS:
        raise CacheError(
            f"nothing is known of how a server takes tokens for `{name}`, whose kind is "
            f"`{model_type}`",
            hint="kinds that are known: " + ", ".join(sorted(KINDS)), code="export.kind",
        )  # fmt: skip
    return KINDS[model_type]
