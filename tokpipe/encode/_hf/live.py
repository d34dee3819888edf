"""What a loaded model of transformers says of its front end, as ``hf_vision``, ``hf_audio`` do.

For features that a model's own code made: the same facts and the same digest of the weights as if
tokpipe had loaded the checkpoint, so that whoever reads the cache later can check them. Weights in
another dtype than the checkpoint's have another digest.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from torch import nn

from tokpipe.encode._hf.load import library
from tokpipe.encode._weights import digest_of
from tokpipe.errors import ModelError

#: Where the parts of a model may lie, seen from what its user holds.
_INSIDE = ("", "model", "thinker.model", "thinker", "base_model", "audio_spectrogram_transformer")
#: Tower and projector of models for sound, by ``model_type``.
_SOUND = {
    "whisper": ("encoder",),
    "qwen2_audio": ("audio_tower", "multi_modal_projector"),
    "voxtral": ("audio_tower", "multi_modal_projector"),
    "qwen2_5_omni": ("audio_tower",),
    "qwen2_5_omni_thinker": ("audio_tower",),
    "qwen3_omni_moe": ("audio_tower",),
    "qwen3_omni_moe_thinker": ("audio_tower",),
}
#: Kinds with a tower of their own for images.
_TWO_TOWERS = ("video_llava",)


def facts_of(model: Any, stage: str, stream: str) -> dict[str, Any]:
    """Entry for ``tokpipe.encoder.S`` of features this model made; see ``own.encoder_facts``."""
    config = model.config
    kind = str(getattr(config, "model_type", ""))
    found: dict[str, Any] = {
        "name": "hf-audio" if stream == "audio" else "hf-vision", "params": {}, "version": 1,
        "made_by": "the model's own code", "stage": stage, "model_type": kind,
        "class": type(model).__name__, "library": f"transformers {library().__version__}",
        "target": _name(config),
    }  # fmt: skip
    weights = weights_of(model, stream)
    if weights is not None:
        found["weights"] = weights
    if stream == "video":
        found |= _seen(config, kind)
    return found


def weights_of(model: Any, stream: str, *, tiles: bool = False) -> str | None:
    """Digest of the front end's weights, None where parts of it are not there (any more).

    Args:
        tiles: Pictures entered as images, which have a tower of their own in Video-LLaVA.

    Raises:
        ModelError: Models of this kind have no such front end here.
    """
    kind = str(getattr(model.config, "model_type", ""))
    if stream == "audio":
        if kind not in _SOUND:
            raise _unknown(kind, "sound", _SOUND)
        part = part_with(model, *_SOUND[kind])
        if part is None:
            return None
        return digest_of(*(getattr(part, name) for name in _SOUND[kind]))
    told = {"tiles": True} if tiles and kind in _TWO_TOWERS else {}
    made: str | None = _family(kind).digest(model, **told)
    return made


def part_with(model: Any, *names: str) -> Any:
    """The module, of the model and what it wraps, that has the submodules ``names``, or None."""
    for path in _INSIDE:
        part = model
        for name in path.split(".") if path else ():
            part = getattr(part, name, None)
        if all(isinstance(getattr(part, name, None), nn.Module) for name in names):
            return part
    return None


def _family(kind: str) -> Any:
    from tokpipe.encode.hf_vision import FAMILIES

    if kind not in FAMILIES:
        raise _unknown(kind, "vision", FAMILIES)
    module, _, name = FAMILIES[kind].partition(":")
    return getattr(import_module(module), name)


def _unknown(kind: str, what: str, known: Any) -> ModelError:
    return ModelError(
        f"a model of kind `{kind}` has no {what} front end here",
        hint="describe the encoder yourself; kinds that are known: " + ", ".join(sorted(known)),
    )


def _name(config: Any) -> str:
    """Hub name, or the base name of a folder."""
    found = str(getattr(config, "_name_or_path", "") or "")
    return found if found.count("/") < 2 and not found.startswith(("/", ".")) else _base(found)


def _base(path: str) -> str:
    return path.rstrip("/").rpartition("/")[2]


def _seen(config: Any, kind: str) -> dict[str, Any]:
    """Facts on patches and positions that consumers ask for."""
    config = getattr(config, "thinker_config", config)
    vision = getattr(config, "vision_config", config)
    found: dict[str, Any] = {
        "rope": getattr(_family(kind), "rope", "1-D"),
        "temporal_patch": int(getattr(vision, "temporal_patch_size", 1) or 1),
    }
    patch = getattr(vision, "patch_size", None)
    if patch is not None:
        found["patch"] = list(patch) if isinstance(patch, list | tuple) else int(patch)
    if kind != "video_llama_3":  # whose processors say it, of images another than of videos
        shuffle = getattr(config, "downsample_ratio", None)
        merge = getattr(vision, "spatial_merge_size", None) or getattr(config, "scale_factor", None)
        found["merge"] = int(merge or (1 / shuffle if shuffle else 1))
    seconds = getattr(vision, "tokens_per_second", None)
    if seconds is not None:
        found["tokens_per_second"] = seconds
    levels = getattr(vision, "deepstack_visual_indexes", None)
    if levels is not None:
        found["deepstack_layers"] = list(levels)
    return found
