"""Turn long video and audio into small token caches that any multimodal LLM can read.

media file ─▶ decode ─▶ sample ─▶ encode ─▶ compress ─▶ cache ─▶ export
              frames     chosen    tokens    fewer       one      any
              + audio    frames    + times   tokens      file     consumer

Public names load on first use, so that importing the package stays cheap.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "AudioChunk": "tensors",
    "Budget": "budget",
    "FrameBatch": "tensors",
    "GridMap": "maps",
    "InEncoder": "encode._merging.in_encoder",
    "MediaInfo": "spec",
    "ModelInputs": "export.transformers",
    "Options": "job",
    "Query": "tensors",
    "Recipe": "recipe",
    "RunRecord": "run",
    "TokenBatch": "tensors",
    "TokenCache": "cache.reader",
    "TokenMap": "maps",
    "TokenSpec": "spec",
    "TokpipeError": "errors",
    "batch_inputs": "export.transformers",
    "compress_file": "run",
    "encode_cache": "late_run",
    "encoder_facts": "own",
    "encoder_step": "encoder_choice",
    "find_duplicates": "batch.dedup",
    "load": "cache.load",
    "load_recipe": "recipe",
    "map_tokens": "reduce",
    "open_cache": "cache.reader",
    "open_media": "decode",
    "picture_tokens": "own",
    "plan_file": "plan",
    "probe": "decode",
    "project_cache": "project",
    "reduce_tokens": "reduce",
    "save_cache": "save",
    "sound_tokens": "own",
    "speech_spans": "encode._sound.vad",
    "to_model_inputs": "export.transformers",
    "verify": "cache.verify",
    "with_encoders": "encoder_choice",
}
__all__ = sorted(["__version__", *_HOME])


def __getattr__(name: str) -> Any:
    """Import a public name where it lives."""
    if name not in _HOME:
        raise AttributeError(f"module 'tokpipe' has no attribute {name!r}")
    return getattr(import_module(f"tokpipe.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    """List the public names."""
    return __all__
