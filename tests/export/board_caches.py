"""Small caches with pictures of known colours at known times, and caches of a media file."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from tokpipe.cache import CacheWriter
from tokpipe.decode import probe
from tokpipe.digest import fingerprint

ROWS, COLS, CELL = 2, 3, 28
SUFFIX = ".tokpipe.safetensors"
Said = Sequence[tuple[float, float, str]]


def colour_of(number: int) -> tuple[int, int, int]:
    """The colour all cells of a picture have."""
    return (37 * number + 20) % 256, (91 * number + 60) % 256, (151 * number + 5) % 256


def write_board(
    path: Path, at: Sequence[float], *, numbers: Sequence[int] | None = None,
    ranks: Sequence[int] | None = None, said: Said = (), duration: float = 0.0,
    noise: bool = False,
) -> Path:  # fmt: skip
    """A signal cache of one whole picture a time.

    Args:
        numbers: Which colour each picture has; 0, 1, 2 .. by default.
        ranks: Order of the pictures in which a budget takes them.
        noise: Cells of noise, which no codec makes small.
    """
    cells = ROWS * COLS
    numbers = range(len(at)) if numbers is None else numbers
    order = np.arange(len(at)) if ranks is None else np.asarray(ranks)
    rows = _columns(np.repeat(np.asarray(at, dtype=np.float64), cells), 4)
    grid = np.indices((ROWS, COLS)).reshape(2, -1).T
    rows["cell"] = np.concatenate([np.repeat(np.arange(len(at)), cells)[:, None],
                                   np.tile(grid, (len(at), 1))], 1)  # fmt: skip
    rows["rank"] = (order[:, None] * cells + np.arange(cells)).ravel()
    rows["score"] = np.repeat(1.0 / (1 + order), cells)
    rows["atlas_box"] = np.array(
        [[i, 32 * j + 2, 2, CELL] for i in range(len(at)) for j in range(cells)]
    )
    end = duration or float(at[-1]) + 1.0
    about = _about("signal", len(rows["at"]), {"name": "board.mp4", "size": 12, "duration": end})
    about["tokpipe.grid"] = {"rows": ROWS, "cols": COLS, "cell": CELL}
    about["tokpipe.atlas"] = {
        "codec": "png", "page_cells": cells, "slots": [cells, 1], "slot": 32, "margin": 2,
        "cell": CELL, "quality": [90, 95],
    }  # fmt: skip
    with CacheWriter(path) as writer:
        writer.append("video", rows)
        for number in numbers:
            writer.append_bytes("video.atlas", _page(number, cells, noise=noise))
        if said:
            texts = [text.encode() for _, _, text in said]
            writer.set("text.utf8", np.frombuffer(b"".join(texts), dtype=np.uint8))
            writer.set("text.offsets", np.cumsum([0, *map(len, texts)]))
            writer.set("text.pts", np.array([[a, b] for a, b, _ in said]))
        return writer.finish(about)


def write_for(
    path: Path, media: Path, at: Sequence[float], domain: str = "feature", **more: Any
) -> Path:  # fmt: skip
    """A feature cache made from a file: two tokens at each time."""
    info = probe(media)
    assert info.video is not None
    digest, method, size = fingerprint(media)
    source = {
        "name": media.name, "size": size, "fingerprint": digest, "method": method,
        "duration": info.duration, "streams": [{"kind": "video", "index": info.video.index}],
    }  # fmt: skip
    rows = _columns(np.repeat(np.asarray(at, dtype=np.float64), 2), 4)
    rows["rank"] = np.arange(len(rows["at"]))
    with CacheWriter(path) as writer:
        writer.append("video", rows)
        return writer.finish(_about(domain, len(rows["at"]), source | more))


def _columns(at: npt.NDArray[np.float64], width: int) -> dict[str, npt.NDArray[Any]]:
    n = len(at)
    return {
        "tokens": np.ones((n, width), dtype=np.float16), "at": at, "pts": np.stack([at, at], 1),
        "frame": np.zeros((n, 2), dtype=np.int64), "cell": np.full((n, 3), -1),
        "extent": np.ones((n, 3), dtype=np.int32), "tile": np.zeros(n, dtype=np.int32),
        "mass": np.ones(n, dtype=np.float32), "kind": np.zeros(n, dtype=np.uint8),
        "segment": np.full(n, -1), "score": np.full(n, np.nan, dtype=np.float32),
    }  # fmt: skip


def _about(domain: str, tokens: int, source: dict[str, Any]) -> dict[str, object]:
    return {
        "tokpipe.writer": "0.1.0", "tokpipe.domain": domain, "tokpipe.layout": "frames",
        "tokpipe.source": source, "tokpipe.recipe": {"steps": ["hand"]},
        "tokpipe.recipe_sha256": "0" * 64,
        "tokpipe.counts": {"video": {"source": tokens, "dropped": 0}},
        "tokpipe.encoder.video": {"name": "hand"},
    }  # fmt: skip


def _page(number: int, cells: int, *, noise: bool) -> bytes:
    pixels = np.empty((32, 32 * cells, 3), dtype=np.uint8)
    pixels[:] = colour_of(number)
    if noise:
        pixels = np.random.default_rng(number).integers(0, 256, pixels.shape, dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG", compress_level=1)
    return out.getvalue()
