"""Small feature caches of any size, without media or encoder: the same call, the same bytes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tokpipe.cache.writer import CacheWriter

Array = npt.NDArray[Any]


def rows(count: int, width: int, steps: int, drawn: np.random.Generator) -> dict[str, Array]:
    """Columns of ``count`` tokens: ``steps`` pictures half a second apart, ``count / steps`` each.

    The features are drawn from a normal distribution; ``rank`` is left to the caller.
    """
    each = count // steps
    number = np.arange(count)
    step, place = number // each, number % each
    at = step * 0.5
    return {
        "tokens": drawn.standard_normal((count, width), dtype=np.float32),
        "at": at, "pts": np.stack([at, at + 0.5], 1), "frame": np.stack([step, step], 1),
        "cell": np.stack([step, place // 4, place % 4], 1).astype(np.int32),
        "extent": np.ones((count, 3), dtype=np.int32), "tile": np.zeros(count, dtype=np.int32),
        "mass": np.ones(count, dtype=np.float32), "kind": np.zeros(count, dtype=np.uint8),
        "segment": np.full(count, -1, dtype=np.int32),
        "score": np.full(count, np.nan, dtype=np.float32),
    }  # fmt: skip


def write_features(
    path: Path,
    *,
    seed: int = 0,
    video: int = 48,
    audio: int = 0,
    width: int = 8,
    steps: int = 6,
    dtype: str | Mapping[str, str] = "F16",
    recipe: str = "a",
    encoder: str = "hand",
    shift: float = 0.0,
    **metadata: Any,
) -> Path:
    """Write a feature cache of two random streams.

    Args:
        path: Ending in ``.tokpipe.safetensors``; an older file is replaced.
        seed: Of features and ranks, and of the fingerprint of the media it claims to be made of.
        video, audio: Tokens of each stream, multiples of ``steps``; 0 leaves a stream out.
        width: D of the video; audio has half of it.
        steps: Pictures, half a second apart.
        dtype: Of the features, of all or by stream.
        recipe: One letter; caches of another letter have another recipe.
        encoder: Name of the encoder on record.
        shift: Added to the features.
        metadata: More keys of the format page, without ``tokpipe.``.
    """
    drawn = np.random.default_rng(seed)
    rank = drawn.permutation(video + audio).astype(np.int32)
    with CacheWriter(path, dtype=dtype, durability="fast", force=True) as writer:
        values: dict[str, Any] = {}
        counts: dict[str, Mapping[str, int]] = {}
        for stream, count, dim, ranks in (
            ("video", video, width, rank[:video]), ("audio", audio, width // 2, rank[video:]),
        ):  # fmt: skip
            if count:
                made = rows(count, dim, steps, drawn)
                made["tokens"] += shift
                if dtype == "BF16":
                    bits = made["tokens"].astype(np.float32).view(np.uint32) >> 16
                    made["tokens"] = bits.astype(np.uint16)
                writer.append(stream, {**made, "rank": ranks})
                counts[stream] = {"source": count, "dropped": 0}
                about = {"name": encoder, "weights": "sha256:ab", "stage": "pre_projector"}
                values[f"tokpipe.encoder.{stream}"] = about
        print_ = f"sha256:{seed + 1:064x}"
        values |= {
            "tokpipe.writer": "tokpipe 0.1.0", "tokpipe.domain": "feature",
            "tokpipe.layout": "ragged", "tokpipe.recipe": {"budget": recipe},
            "tokpipe.recipe_sha256": recipe * 64, "tokpipe.counts": counts,
            "tokpipe.source": {"name": f"{seed}.mp4", "size": 12, "duration": steps * 0.5,
                               "fingerprint": print_},
        }  # fmt: skip
        values |= {f"tokpipe.{name}": value for name, value in metadata.items()}
        return writer.finish(values)
