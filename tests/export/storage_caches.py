"""Small caches of every kind that a storage form must carry, and what they hold."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from tokpipe.cache import CacheWriter, open_cache
from tokpipe.cache.format import is_feature

Array = npt.NDArray[Any]
SUFFIX = ".tokpipe.safetensors"
TEXT = ["hello wörld", "", "zweite Zeile"]


def _rows(rng: np.random.Generator, at: Array, width: int, dtype: str, *, video: bool) -> Any:
    """Rows of one stream at irregular times, with features that no dtype holds by chance."""
    n = len(at)
    wide = (rng.standard_normal((n, width)) * 3).astype(np.float32)
    step = np.unique(at, return_inverse=True)[1]
    cell = np.stack([step, np.zeros(n, int), np.arange(n) - np.searchsorted(at, at)], 1)
    return {
        "tokens": stored(wide, dtype), "at": at, "pts": np.stack([at, at + 0.4], 1),
        "frame": np.stack([np.arange(n), np.arange(n)], 1) if video else np.full((n, 2), -1),
        "cell": cell if video else np.full((n, 3), -1),
        "extent": np.ones((n, 3), dtype=np.int32), "tile": np.zeros(n, dtype=np.int32),
        "mass": np.full(n, 2, dtype=np.float32), "kind": (np.arange(n) % 2).astype(np.uint8),
        "segment": np.zeros(n, dtype=np.int32),
        "score": np.where(np.arange(n) % 2, np.nan, rng.random(n)).astype(np.float32),
        "rank": rng.permutation(n),
    }  # fmt: skip


def stored(wide: Array, dtype: str) -> Array:
    """Float32 as the writer takes it for a safetensors dtype: bit patterns for BF16."""
    if dtype == "BF16":
        return (np.ascontiguousarray(wide, np.float32).view(np.uint32) >> 16).astype(np.uint16)
    return wide.astype(np.float16 if dtype == "F16" else np.float32)


def _about(domain: str, counts: dict[str, int], name: str) -> dict[str, object]:
    values: dict[str, object] = {
        "tokpipe.writer": "0.1.0", "tokpipe.domain": domain, "tokpipe.layout": "ragged",
        "tokpipe.source": {"name": name, "size": 12, "duration": 99.5},
        "tokpipe.recipe": {"steps": ["hand"]}, "tokpipe.recipe_sha256": "0" * 64,
        "tokpipe.counts": {s: {"source": 2 * n + 1, "dropped": 1} for s, n in counts.items()},
    }  # fmt: skip
    for stream in counts:
        values[f"tokpipe.encoder.{stream}"] = {"name": "hand", "weights": "sha256:ab"}
    return values


def write_feature(
    path: Path, dtype: str = "F16", *, seed: int = 0, video: int = 10, audio: int = 6,
    width: int = 8, deepstack: bool = True, extra: bool = True, tokens: Array | None = None,
    at: Array | None = None,
) -> Path:  # fmt: skip
    """A feature cache: deepstack, members, segments and transcript unless ``extra`` is off.

    ``tokens`` and ``at`` are the video's, features in the dtype the writer takes.
    """
    rng = np.random.default_rng(seed)
    counts = {"video": video} | ({"audio": audio} if audio else {})
    with CacheWriter(path, dtype=dtype, durability="fast") as writer:
        shift = 0
        for stream, n in counts.items():
            # Times that neither float32 nor decimal text of few digits would keep.
            times = np.sort(86_400 + rng.random(n) * 10)
            if at is not None and stream == "video":
                times = at
            rows = _rows(
                rng, times, width if stream == "video" else 3, dtype, video=stream == "video"
            )
            rows["rank"], shift = rows["rank"] + shift, shift + n
            if deepstack and stream == "video":
                wide = rng.standard_normal((n, width)).astype(np.float32)
                rows["deepstack_1"] = stored(wide, dtype)
            if tokens is not None and stream == "video":
                rows["tokens"] = tokens
            if extra:
                rows["members"] = np.arange(2 * n) + 5
                rows["members_offsets"] = np.arange(0, 2 * n + 1, 2)
            writer.append(stream, rows)
        writer.set("segment.pts", np.array([[0.0, 90_000.0]]))
        writer.set("segment.rows", np.array([[0, video, 0, audio]]))
        if extra:
            data = "".join(TEXT).encode()
            writer.set("text.utf8", np.frombuffer(data, dtype=np.uint8))
            ends = np.cumsum([0, *(len(line.encode()) for line in TEXT)])
            writer.set("text.offsets", ends)
            writer.set("text.pts", np.array([[i + 0.1, i + 0.7] for i in range(len(TEXT))]))
        return writer.finish(_about("feature", counts, "lecture.v2.mp4"))


def _page(colour: int) -> bytes:
    out = io.BytesIO()
    pixels = np.full((64, 64, 3), colour, dtype=np.uint8)
    Image.fromarray(pixels).save(out, format="WEBP", quality=90)
    return out.getvalue()


def write_signal(path: Path, *, seed: int = 0) -> Path:
    """A signal cache without sound: descriptors and two pages of an atlas."""
    rng = np.random.default_rng(seed)
    n = 6
    rows = _rows(rng, np.sort(rng.random(n) * 10), 24, "F16", video=True)
    rows["atlas_box"] = np.array([[i // 4, 32 * (i % 2) + 2, 2, 28] for i in range(n)])
    about = _about("signal", {"video": n}, "film.mp4")
    about["tokpipe.grid"] = {"rows": 1, "cols": 2, "cell": 28, "width": 56, "height": 28,
                             "aspect_error": 0.0}  # fmt: skip
    about["tokpipe.atlas"] = {"codec": "webp", "page_cells": 4, "slots": [2, 2], "slot": 32,
                              "margin": 2, "cell": 28, "quality": [90, 95]}  # fmt: skip
    with CacheWriter(path, durability="fast") as writer:
        writer.append("video", rows)
        writer.append_bytes("video.atlas", _page(40))
        writer.append_bytes("video.atlas", _page(200))
        writer.set("segment.pts", np.array([[0.0, 100.0]]))
        writer.set("segment.rows", np.array([[0, n, 0, 0]]))
        return writer.finish(about)


def held(path: Path) -> dict[str, Array]:
    """Every tensor of a cache; BF16 widened to float32."""
    with open_cache(path) as cache:
        return {name: np.array(cache.column(name)) for name in cache.names}


def same(found: Any, wanted: Array, name: str, form: str = "auto") -> None:
    """Same shape and, bit for bit, the same values; features in the dtype asked for."""
    array = np.asarray(found)
    assert array.shape == wanted.shape, name
    if is_feature(name) and form != "auto":
        wanted = wanted.astype(form)
    assert array.dtype == wanted.dtype, name
    assert array.tobytes() == wanted.tobytes(), name


def number(name: str, choice: str) -> str:
    """Dtype in numpy that a tensor must come back in; ``auto`` for no change."""
    return "auto" if choice in ("auto", "keep") or not is_feature(name) else choice
