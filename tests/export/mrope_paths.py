"""Caches of tiny models' own features, and the same media by the models' own paths."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import tokpipe

models: Any = sys.modules["mrope_models"]
SUFFIX = ".tokpipe.safetensors"
QUESTION = "What?"


@dataclass(frozen=True)
class Clip:
    """Media as a processor takes them, and a cache of what a model made of them.

    Attributes:
        times: float64 [T] seconds of the pictures.
        full: The model's own arguments, by its processor.
        path: The cache with every token.
        tokens: By stream, the tokens of the cache.
    """

    times: Tensor
    full: dict[str, Any]
    path: Path
    tokens: dict[str, tokpipe.TokenBatch]


def chat(*kinds: str, text: str = QUESTION) -> list[dict[str, Any]]:
    content = [{"type": kind} for kind in kinds]
    return [{"role": "user", "content": [*content, {"type": "text", "text": text}]}]


def clip(talker: Any, folder: Path, step: float, count: int = 4, seed: int = 0) -> Clip:
    """Pictures every ``step`` seconds, each given twice as a pair of frames."""
    times = torch.arange(count).double() * step
    return of_times(talker, folder, times, seed=seed, step=step)


def of_times(
    talker: Any, folder: Path, times: Tensor, *, seed: int = 0, step: float | None = None
) -> Clip:
    pixels = models.pictures(len(times), seed).repeat_interleave(2, 0)
    frames = (times * 100).round().long().repeat_interleave(2).tolist()
    told = {
        "fps": 100.0, "frames_indices": frames, "total_num_frames": frames[-1] + 1,
        "duration": (frames[-1] + 1) / 100,
    }  # fmt: skip
    written = talker.processor.apply_chat_template(
        chat("video"), tokenize=False, add_generation_prompt=True
    )
    full = talker.processor(
        text=[written], videos=[pixels], return_tensors="pt",
        **models.sized(talker.kind, fps=None if step is None else 2 / step, video_metadata=[told]),
    )  # fmt: skip
    full = dict(full)
    if talker.kind == "qwen2_5_vl" and step is not None:
        full["second_per_grid_ts"] = [step]
    full.pop("video_metadata", None)
    rows, deep = talker.watch(full["pixel_values_videos"], full["video_grid_thw"])
    tokens = tokpipe.picture_tokens(
        rows, times, (models.ROWS, models.COLUMNS), deepstack=deep, ends=times + 0.1
    )
    name = f"{talker.kind}-{seed}-{len(times)}-{float(times[-1]):.3f}{SUFFIX}"
    path = saved(talker, folder / name, {"video": tokens})
    return Clip(times, full, path, {"video": tokens})


def saved(
    talker: Any, path: Path, tokens: dict[str, tokpipe.TokenBatch], dropped: Any = 0.0
) -> Path:
    facts = {
        stream: tokpipe.encoder_facts(talker.model, stream=stream) if models.NEW
        else {"stage": "post_projector"}
        for stream in tokens
    }  # fmt: skip
    grid = (models.ROWS, models.COLUMNS) if "video" in tokens else None
    made: Path = tokpipe.save_cache(
        path, tokens, encoder=facts, grid=grid, dropped=dropped, force=True
    )
    return made


def halves(made: Clip, seed: int = 3) -> dict[str, Tensor]:
    """About half of the tokens of each stream, and of each picture at least one."""
    drawn = torch.Generator().manual_seed(seed)
    keep = {n: torch.rand(len(rows), generator=drawn) < 0.5 for n, rows in made.tokens.items()}
    if "video" in keep:
        keep["video"][:: models.ROWS * models.COLUMNS] = True
    return keep


def fewer(talker: Any, made: Clip, folder: Path, keep: dict[str, Tensor]) -> Path:
    """A cache with some of the tokens."""
    kept = {name: rows.take(keep[name]) for name, rows in made.tokens.items()}
    lost = {name: float((~mask).sum()) for name, mask in keep.items()}
    return saved(talker, folder / f"few-{made.path.name}", kept, lost)


def shown(made: Clip, keep: dict[str, Tensor]) -> Tensor:
    """Mask int64 [1, S] of the whole prompt that hides what is not kept."""
    ids = made.full["input_ids"]
    mask = torch.ones_like(ids)
    for name, kept in keep.items():
        slots = (ids[0] == models.ID[name]).nonzero()[:, 0]
        mask[0, slots[~kept]] = 0
    return mask


def logits(model: Any, inputs: Any) -> Tensor:
    with torch.inference_mode():
        found: Tensor = model(**inputs).logits
    return found


def heard(talker: Any, folder: Path, seconds: float, seed: int = 0) -> Clip:
    """Sound alone."""
    return talked(talker, folder, seconds, torch.zeros(0), seed=seed)


def talked(
    talker: Any, folder: Path, seconds: float, times: Tensor, *, seed: int = 0,
    step: float | None = None,
) -> Clip:  # fmt: skip
    """Sound, and pictures at ``times`` (every ``step`` seconds) above it where there are some."""
    wave = models.sound(seconds, seed)
    kinds = ("video",) if len(times) else ("audio",)
    written = talker.processor.apply_chat_template(
        chat(*kinds), tokenize=False, add_generation_prompt=True
    )
    told: dict[str, Any] = {}
    if len(times):
        pixels = models.pictures(len(times), seed).repeat_interleave(2, 0)
        told = models.sized(
            talker.kind, fps=2 / (step or 1.0),
            position_id_per_seconds=models.PER_SECOND[talker.kind],
            use_audio_in_video=None if models.MIXED else True,
        )  # fmt: skip
        if models.MIXED:
            told |= {"load_audio_from_video": True, "audio_from_video_indices": [0]}
            told["position_id_per_seconds"] = told["videos_kwargs"].pop("position_id_per_seconds")
        told["videos"] = [pixels]
    full = dict(talker.processor(
        text=[written], audio=[wave.numpy()], return_tensors="pt", sampling_rate=models.RATE, **told
    ))  # fmt: skip
    tokens = {}
    if len(times):
        full["use_audio_in_video"] = True
        rows, deep = talker.watch(full["pixel_values_videos"], full["video_grid_thw"])
        tokens["video"] = tokpipe.picture_tokens(
            rows, times, (models.ROWS, models.COLUMNS), deepstack=deep, ends=times + 0.1
        )
    tokens["audio"] = tokpipe.sound_tokens(*talker.listen(full))
    name = f"{talker.kind}-{seed}-{seconds}-{len(times)}{SUFFIX}"
    return Clip(times, full, saved(talker, folder / name, tokens), tokens)
