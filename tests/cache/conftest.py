"""Small caches made by hand: known rows, an atlas of flat colours, a clip of a known tone."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from tokpipe.cache import CacheWriter

Array = npt.NDArray[Any]
Rows = dict[str, Array]

RATE = 16000


def _rows(stream: str, at: list[float], width: int = 4, cells: Array | None = None) -> Rows:
    """Source tokens at the given times, with features that tell rows apart."""
    n = len(at)
    times = np.array(at, dtype=np.float64)
    base = np.arange(n * width, dtype=np.float32).reshape(n, width) / 8
    video = stream == "video"
    grid = np.full((n, 3), -1, dtype=np.int32) if cells is None else cells.astype(np.int32)
    return {
        "tokens": base.astype(np.float16) + (0 if video else 100),
        "at": times,
        "pts": np.stack([times, times + 0.5], 1),
        "frame": np.stack([np.arange(n), np.arange(n)], 1) if video else np.full((n, 2), -1),
        "cell": grid,
        "extent": np.ones((n, 3), dtype=np.int32),
        "tile": np.zeros(n, dtype=np.int32),
        "mass": np.full(n, 2, dtype=np.float32),
        "kind": np.zeros(n, dtype=np.uint8),
        "segment": np.full(n, -1, dtype=np.int32),
        "score": np.full(n, np.nan, dtype=np.float32),
    }


def _metadata(domain: str, **counts: int) -> dict[str, object]:
    """Metadata of a cache of these numbers of rows, each of mass 2, one source token dropped."""
    values: dict[str, object] = {
        "tokpipe.writer": "0.1.0",
        "tokpipe.domain": domain,
        "tokpipe.layout": "ragged",
        "tokpipe.source": {"name": "vörträg.mp4", "size": 12, "duration": 9.5},
        "tokpipe.recipe": {"steps": ["pixels"]},
        "tokpipe.recipe_sha256": "0" * 64,
        "tokpipe.counts": {s: {"source": 2 * n + 1, "dropped": 1} for s, n in counts.items()},
    }
    for stream in counts:
        values[f"tokpipe.encoder.{stream}"] = {"name": "hand", "weights": "sha256:ab"}
    return values


def _page(colours: list[tuple[int, int, int]], codec: str = "webp", slots: int = 4) -> bytes:
    """One atlas page of flat slots of 32 pixels, in row order."""
    pixels = np.zeros((slots * 32, slots * 32, 3), dtype=np.uint8)
    for index, colour in enumerate(colours):
        y, x = divmod(index, slots)
        pixels[y * 32 : y * 32 + 32, x * 32 : x * 32 + 32] = colour
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, format=codec.upper(), lossless=True)
    return out.getvalue()


def _box(index: int, page: int = 0, slots: int = 4) -> list[int]:
    y, x = divmod(index, slots)
    return [page, x * 32 + 2, y * 32 + 2, 28]


def _tone(samples: int) -> npt.NDArray[np.float32]:
    """A 440 Hz tone at 16 kHz."""
    wave = 0.5 * np.sin(2 * np.pi * 440 * np.arange(samples) / RATE)
    return wave.astype(np.float32)


def _clip(samples: npt.NDArray[np.float32], codec: str) -> bytes:
    """Encode mono 16 kHz sound: ``opus`` in Ogg or ``flac``."""
    import av

    out = io.BytesIO()
    with av.open(out, "w", format="ogg" if codec == "opus" else "flac") as container:
        if codec == "opus":
            stream = container.add_stream("libopus", rate=RATE, layout="mono")
        else:
            stream = container.add_stream("flac", rate=RATE, layout="mono")
        stream.codec_context.flags |= 1 << 23  # bit-exact: no random serial number
        resampler = av.AudioResampler(
            format=stream.codec_context.format, layout="mono", rate=RATE, frame_size=320
        )
        pcm = (samples * 32767).astype(np.int16)[None]
        frame = av.AudioFrame.from_ndarray(pcm, format="s16", layout="mono")
        frame.sample_rate, frame.pts = RATE, 0
        for part in (*resampler.resample(frame), *resampler.resample(None)):
            container.mux(stream.encode(part))
        container.mux(stream.encode(None))
    return out.getvalue()


def _atlas_spec(slots: int = 4, codec: str = "webp") -> dict[str, object]:
    return {"codec": codec, "page_cells": slots * slots, "slots": [slots, slots], "slot": 32,
            "margin": 2, "cell": 28, "quality": [90, 95]}  # fmt: skip


COLOURS = [(250, 0, 0), (0, 250, 0), (0, 0, 250), (250, 250, 0), (0, 250, 250), (10, 20, 30)]


def _write_feature(path: Path, *, step: int = 100, **options: Any) -> Path:
    """A feature cache: 10 video and 6 audio rows, deepstack, members, segments, text."""
    video = _rows("video", [0.5 * (i // 2) for i in range(10)])
    video["cell"] = np.array([[i // 2, 0, i % 2] for i in range(10)], dtype=np.int32)
    audio = _rows("audio", [0.4 * i for i in range(6)], width=3)
    video["deepstack_1"] = video["tokens"] * 2
    video["segment"] = np.repeat(np.array([0, 1], dtype=np.int32), [4, 6])
    audio["segment"] = np.repeat(np.array([0, 1], dtype=np.int32), [3, 3])
    with CacheWriter(path, **options) as writer:
        for stream, rows in (("video", video), ("audio", audio)):
            total = len(rows["at"])
            for start in range(0, total, step):
                part = {name: value[start : start + step] for name, value in rows.items()}
                count = len(part["at"])
                part["members"] = np.arange(2 * start, 2 * start + 2 * count)
                part["members_offsets"] = np.arange(0, 2 * count + 1, 2)
                writer.append(stream, part)
        writer.set("video.rank", np.arange(0, 20, 2)[::-1] // 2 + 6)
        writer.set("audio.rank", np.arange(6))
        writer.set("segment.pts", np.array([[0.0, 1.0], [1.0, 9.5]]))
        writer.set("segment.rows", np.array([[0, 4, 0, 3], [4, 10, 3, 6]]))
        text = "hello wörld".encode()
        writer.set("text.utf8", np.frombuffer(text, dtype=np.uint8))
        writer.set("text.offsets", np.array([0, 6, len(text)]))
        writer.set("text.pts", np.array([[0.0, 1.0], [1.0, 2.0]]))
        return writer.finish(_metadata("feature", video=10, audio=6))


def _write_signal(path: Path, *, codec: str = "flac") -> Path:
    """A signal cache: a 1 x 3 grid, rows (t=1: cell 0), (t=2: cells 0, 1); 0.2 s of a tone."""
    cells = np.array([[0, 0, 0], [1, 0, 0], [1, 0, 1]])
    video = _rows("video", [1.0, 2.0, 2.0], cells=cells)
    video["atlas_box"] = np.array([_box(0), _box(1), _box(2)])
    audio = _rows("audio", [0.0, 0.04, 0.08], width=3)
    audio["clip_offset"] = np.array([0, 640, 1280])
    metadata = _metadata("signal", video=3, audio=3)
    metadata["tokpipe.grid"] = {"rows": 1, "cols": 3, "cell": 28, "width": 84, "height": 28,
                                "aspect_error": 0.0}  # fmt: skip
    metadata["tokpipe.atlas"] = _atlas_spec()
    metadata["tokpipe.clip"] = {"codec": codec, "container": "ogg", "rate": RATE,
                                "context": 0.08, "samples": 3200}  # fmt: skip
    with CacheWriter(path) as writer:
        writer.append("video", video)
        writer.append("audio", audio)
        writer.append_bytes("video.atlas", _page(COLOURS))
        writer.append_bytes("audio.clip", _clip(_tone(3200), codec))
        writer.set("video.rank", np.array([0, 1, 2]))
        writer.set("audio.rank", np.array([3, 4, 5]))
        return writer.finish(metadata)


@pytest.fixture(scope="session")
def make_rows() -> Callable[..., Rows]:
    """``make_rows(stream, at, width=4, cells=None)``."""
    return _rows


@pytest.fixture(scope="session")
def make_metadata() -> Callable[..., dict[str, object]]:
    """``make_metadata(domain, video=n, audio=m)``."""
    return _metadata


@pytest.fixture(scope="session")
def make_page() -> Callable[..., bytes]:
    """``make_page(colours, codec="webp", slots=4)``."""
    return _page


@pytest.fixture(scope="session")
def make_clip() -> Callable[[npt.NDArray[np.float32], str], bytes]:
    """``make_clip(samples, codec)``."""
    return _clip


@pytest.fixture(scope="session")
def tone() -> Callable[[int], npt.NDArray[np.float32]]:
    """``tone(samples)``."""
    return _tone


@pytest.fixture(scope="session")
def write_feature() -> Callable[..., Path]:
    """``write_feature(path, step=100, **writer_options)``."""
    return _write_feature


@pytest.fixture(scope="session")
def write_signal() -> Callable[..., Path]:
    """``write_signal(path, codec="flac")``."""
    return _write_signal


@pytest.fixture(scope="session")
def write_pictures() -> Callable[..., Path]:
    """``write_pictures(path, rows, cols, at, cells, colours, pages, **columns)``: video only."""

    def write(
        path: Path, rows: int, cols: int, at: list[float], cells: list[list[int]],
        boxes: list[tuple[int, int]], pages: list[bytes],
        columns: Mapping[str, Array] | None = None,
    ) -> Path:  # fmt: skip
        video = _rows("video", at, cells=np.array([[0, y, x] for y, x in cells]))
        video["atlas_box"] = np.array([_box(i, p) if p >= 0 else [-1, 0, 0, 0] for p, i in boxes])
        video |= dict(columns or {})
        metadata = _metadata("signal", video=len(at))
        metadata["tokpipe.grid"] = {"rows": rows, "cols": cols, "cell": 28}
        metadata["tokpipe.atlas"] = _atlas_spec()
        with CacheWriter(path) as writer:
            writer.append("video", {**video, "rank": np.arange(len(at))})
            for page in pages:
                writer.append_bytes("video.atlas", page)
            return writer.finish(metadata)

    return write


@pytest.fixture(scope="session")
def golden() -> Path:
    """Folder of the golden files of format 1.0."""
    return Path(__file__).parents[1] / "golden" / "cache"
