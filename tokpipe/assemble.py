"""From kept rows to a cache file: cut cells and sound from the bank, add what is known of them."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from tokpipe import __version__
from tokpipe.cache.bank import Bank
from tokpipe.cache.writer import CacheWriter
from tokpipe.chain import Chain
from tokpipe.decide import Kept, fine_picture
from tokpipe.encode._clip import CONTEXT, RATE, ClipBuilder, ClipCodec
from tokpipe.encode.pixels import (
    MARGIN,
    PAGE_CELLS,
    PAGE_SIDE,
    QUALITY,
    SLOT,
    AtlasPages,
    describe,
)
from tokpipe.grid import CELL, Grid
from tokpipe.spec import KIND_POOLED, MediaInfo
from tokpipe.tensors import TokenBatch

_COLUMNS = ("at", "pts", "frame", "cell", "extent", "tile", "mass", "kind", "score")
#: A cut: the mean luma of cells moves by this many grey levels, and by this many times more than
#: it lately did.
_CUT_LEVEL, _CUT_RATIO, _CUT_MEMORY = 8.0, 3.0, 8


@dataclass(slots=True)
class Assembled:
    """What was written.

    Attributes:
        tokens, source, mass: Per stream.
        frames: Distinct times of video rows.
    """

    tokens: dict[str, int] = field(default_factory=lambda: {"video": 0, "audio": 0})
    source: dict[str, int] = field(default_factory=lambda: {"video": 0, "audio": 0})
    mass: dict[str, float] = field(default_factory=lambda: {"video": 0.0, "audio": 0.0})
    frames: int = 0


class Assembler:
    """Writes kept rows through a :class:`CacheWriter` as they come."""

    def __init__(
        self, bank: Bank, writer: CacheWriter, codec: ClipCodec = "opus", *,
        features: Collection[str] = (),
    ) -> None:  # fmt: skip
        """Open the atlas and the clip; streams in ``features`` hold rows of a tower instead."""
        self.features = features
        self.bank, self.writer, self.codec = bank, writer, codec
        self.done = Assembled()
        meta = bank.meta
        self.grid = Grid(*meta["grid"]) if meta["grid"] else None
        self.starts = segment_starts(bank)
        self.counts = np.zeros((2, len(self.starts)), dtype=np.int64)
        self.pages = AtlasPages()
        self.clip: ClipBuilder | None = None
        self.priority: dict[str, list[NDArray[np.float64]]] = {"video": [], "audio": []}
        self.last_at: float | None = None
        self.scale = 1

    def add(self, kept: Kept) -> None:
        """Write the rows of one stream in one window."""
        done, n = self.done, len(kept.tokens)
        done.tokens[kept.stream] += n
        done.source[kept.stream] += kept.source
        done.mass[kept.stream] += float(kept.tokens.mass.double().sum())
        self.priority[kept.stream].append(np.asarray(kept.priority, dtype=np.float64))
        for a in range(0, n, PAGE_CELLS):
            rows = kept.tokens.take(torch.arange(a, min(a + PAGE_CELLS, n)))
            columns = self._columns(rows, kept.stream)
            if kept.stream == "video":
                self._count_frames(columns["at"])
            if kept.stream in self.features:
                extra = deepstack_columns(rows)
            elif kept.stream == "video":
                extra = self._pictures(rows, columns, kept.scale)
            else:
                extra = self._sound(rows)
            self.writer.append(kept.stream, {**columns, **extra})

    def finish(self, metadata: dict[str, Any]) -> Path:
        """Write the rest of atlas and clip, ranks, segments and metadata; name the file."""
        for page in self.pages.finish():
            self.writer.append_bytes("video.atlas", page)
        if self.clip is not None:
            for piece in self.clip.finish():
                self.writer.append_bytes("audio.clip", piece)
        none = [np.zeros(0)]
        set_ranks(
            self.writer, {name: np.concatenate(p or none) for name, p in self.priority.items()}
        )
        end = max(self.bank.meta["video_end"], self.bank.meta["audio_end"], float(self.starts[-1]))
        spans = np.stack([self.starts, np.append(self.starts[1:], end)], 1)
        set_segments(self.writer, spans, self.counts)
        return self.writer.finish({**self._own(), **metadata})

    def _columns(self, rows: TokenBatch, stream: str) -> dict[str, Any]:
        columns = row_columns(rows, self.starts)
        index = 0 if stream == "video" else 1
        self.counts[index] += np.bincount(columns["segment"], minlength=len(self.starts))
        return columns

    def _pictures(self, rows: TokenBatch, columns: dict[str, Any], scale: int) -> dict[str, Any]:
        """Cut each row's cell from the bank's picture; pooled cells are described anew."""
        self.scale = scale
        step = rows.cell[:, 0].numpy()
        boxes = np.empty((len(rows), 4), dtype=np.int32)
        for t, picture in self.bank.pictures(np.unique(step).tolist()):
            own = np.flatnonzero(step == t)
            # Rows of a finer grid cover less than a cell of the video's.
            times = scale // max(1, min(scale, int(rows.extent[own, 1].min())))
            source = picture if times == 1 else fine_picture(self.bank, t, times)
            unit = scale // times
            cells = _cuts(source, rows, own, unit)
            large = rows.extent[own, 1:].amax(1) > unit
            anew = np.flatnonzero((large & (rows.kind[own] == KIND_POOLED)).numpy())
            if len(anew):
                line = np.concatenate(list(cells[anew]), 1)
                columns["tokens"][own[anew]] = describe(torch.from_numpy(line[None]))[0, 0].numpy()
            for i, cell in zip(own, cells, strict=True):
                boxes[i], full = self.pages.add(cell)
                for page in full:
                    self.writer.append_bytes("video.atlas", page)
        return {"atlas_box": boxes}

    def _count_frames(self, at: NDArray[np.float64]) -> None:
        times = np.unique(at)
        self.done.frames += len(times) - int(len(times) > 0 and times[0] == self.last_at)
        self.last_at = float(times[-1]) if len(times) else self.last_at

    def _sound(self, rows: TokenBatch) -> dict[str, Any]:
        if self.clip is None:
            self.clip = ClipBuilder(
                lambda a, b: self.bank.rows("audio", a, b, np.dtype("<i2")), self.codec
            )
        offsets = [self.clip.add(int(cell)) for cell in rows.cell[:, 0]]
        return {"clip_offset": np.array(offsets, dtype=np.int64)}

    def _own(self) -> dict[str, Any]:
        done = self.done
        counts = {
            name: {
                "source": done.source[name],
                "dropped": max(0.0, round(done.source[name] - done.mass[name], 3)),
            }
            for name in ("video", "audio")
            if done.source[name]
        }
        own: dict[str, Any] = {"tokpipe.writer": f"tokpipe {__version__}", "tokpipe.counts": counts}
        if done.tokens["video"] and self.grid is not None and "video" not in self.features:
            own["tokpipe.grid"] = {
                "rows": self.grid.rows * self.scale,
                "cols": self.grid.cols * self.scale,
                "cell": CELL,
                "width": self.grid.width * self.scale,
                "height": self.grid.height * self.scale,
                "aspect_error": self.grid.aspect_error,
            }
            own["tokpipe.atlas"] = {
                "codec": "webp",
                "page_cells": PAGE_CELLS,
                "slots": [PAGE_SIDE, PAGE_SIDE],
                "slot": SLOT,
                "margin": MARGIN,
                "cell": CELL,
                "quality": list(QUALITY),
            }
        if self.clip is not None:
            own["tokpipe.clip"] = {
                "codec": self.codec,
                "container": "ogg" if self.codec == "opus" else "flac",
                "rate": RATE,
                "context": CONTEXT / RATE,
                "samples": self.clip.samples,
            }
        return own


def row_columns(rows: TokenBatch, starts: NDArray[np.float64]) -> dict[str, Any]:
    """Columns of rows as the writer takes them, each with the segment it begins in.

    Args:
        starts: float64 [G], seconds each segment starts at; without any the segment is -1.
    """
    columns = {name: getattr(rows, name).numpy() for name in _COLUMNS}
    segment = np.searchsorted(starts, columns["at"], side="right") - 1
    columns["segment"] = np.maximum(segment, 0 if len(starts) else -1).astype(np.int32)
    return {**columns, "tokens": feature_array(rows.data)}


def set_ranks(writer: CacheWriter, priority: Mapping[str, NDArray[np.float64]]) -> None:
    """Joint ranks: whatever the budget, each stream and window gives up its share.

    Args:
        priority: Of the rows of each stream, in (0, 1): low ones are given up last.
    """
    joint = np.concatenate([*priority.values()])
    rank = np.empty(len(joint), dtype=np.int32)
    rank[np.argsort(joint, kind="stable")] = np.arange(len(joint), dtype=np.int32)
    edges = np.cumsum([len(part) for part in priority.values()])[:-1]
    for name, part in zip(priority, np.split(rank, edges), strict=True):
        if len(part):
            writer.set(f"{name}.rank", part)


def set_segments(
    writer: CacheWriter, spans: NDArray[np.float64], counts: NDArray[np.int64]
) -> None:
    """The table of segments.

    Args:
        spans: float64 [G, 2], start and stop in seconds.
        counts: int64 [2, G], rows of video and of audio in each.
    """
    stops = np.cumsum(counts, 1)
    writer.set("segment.pts", spans)
    starts = stops - counts
    writer.set("segment.rows", np.stack([starts[0], stops[0], starts[1], stops[1]], 1))


def feature_array(data: torch.Tensor) -> NDArray[Any]:
    """Rows as the writer takes them: bfloat16 as its bit patterns."""
    if data.dtype == torch.bfloat16:
        return np.asarray(data.contiguous().view(torch.int16).numpy().view(np.uint16))
    return np.asarray(data.numpy())


def deepstack_columns(rows: TokenBatch) -> dict[str, Any]:
    """``deepstack_1`` ... of rows that a tower gave them."""
    names = sorted(name for name in rows.extras if name.startswith("deepstack_"))
    return {name: feature_array(rows.extras[name]) for name in names}


def _cuts(
    picture: NDArray[np.uint8], rows: TokenBatch, own: NDArray[np.int64], unit: int
) -> NDArray[np.uint8]:
    """uint8 [n, 28, 28, 3]: anchors' cells, or the whole rectangles of pooled ones, scaled down.

    Args:
        own: int64 [n], rows that are cut from this picture.
        unit: Cells of the rows' grid along one side of a cell of the picture.
    """
    cell = rows.cell[own, 1:].numpy() // unit * CELL
    pooled = (rows.kind[own] == KIND_POOLED).numpy()[:, None]
    size = np.where(pooled, rows.extent[own, 1:].numpy() // unit, 1)
    # What hangs over the edge is cut off there.
    size = np.minimum(size, np.array(picture.shape[:2]) // CELL - cell // CELL)
    out = np.empty((len(own), CELL, CELL, 3), np.uint8)
    for high, wide in np.unique(size, axis=0).tolist():
        alike = np.flatnonzero((size == (high, wide)).all(1))
        corners = cell[alike].tolist()
        parts = [picture[y : y + high * CELL, x : x + wide * CELL] for y, x in corners]
        if high == wide == 1:
            out[alike] = parts
        else:
            # Whole factors: side by side, each is scaled as it would be alone. One below the
            # other it is not: Pillow begins tall pictures with their columns.
            line = Image.fromarray(np.concatenate(parts, 1))
            scaled = line.resize((CELL * len(parts), CELL), Image.Resampling.BOX)
            out[alike] = np.asarray(scaled).reshape(CELL, -1, CELL, 3).swapaxes(0, 1)
    return out


def segment_starts(bank: Bank) -> NDArray[np.float64]:
    """Start times float64 [G] of the stretches between cuts; the first is 0."""
    records = bank.frames()
    cut = records["cut"][1:].astype(np.float64)
    if not len(cut):
        return np.zeros(1)
    # What came before the first counts as still; of fewer than eight the middle one is usual too.
    lately = np.append(0.0, cut[:-1])
    usual = [sorted(lately[: i + 1])[(i + 1) // 2] for i in range(min(len(cut), _CUT_MEMORY - 1))]
    if len(cut) >= _CUT_MEMORY:
        runs = np.lib.stride_tricks.sliding_window_view(lately, _CUT_MEMORY)
        usual.extend(np.sort(runs, 1)[:, _CUT_MEMORY // 2])
    found = np.flatnonzero(cut > np.maximum(_CUT_LEVEL, _CUT_RATIO * np.array(usual)))
    starts = [0.0]
    for pts in records["pts"][1:][found].tolist():
        if pts > starts[-1]:
            starts.append(pts)
    return np.array(starts)


def describe_media(info: MediaInfo, method: str) -> dict[str, Any]:
    """``tokpipe.source``: basename, never a folder."""
    streams = []
    for kind, found in (("video", info.video), ("audio", info.audio)):
        if found is not None:
            streams.append(
                {
                    "kind": kind,
                    "index": found.index,
                    "codec": found.codec,
                    "time_base": str(found.time_base),
                }
            )
    # A name that is no UTF-8 cannot be stored as it is.
    name = os.fsencode(info.name).decode("utf-8", "replace")
    source: dict[str, Any] = {
        "name": name, "size": info.size, "fingerprint": info.fingerprint, "method": method,
        "duration": info.duration, "container": info.container, "streams": streams,
    }  # fmt: skip
    if info.video is not None:
        source |= {
            "width": info.video.width,
            "height": info.video.height,
            "rotation": info.video.rotation,
        }
        source["fps"] = str(info.video.frame_rate) if info.video.frame_rate else None
    return source


def describe_run(
    info: MediaInfo, bank: Bank, chains: dict[str, Chain], warnings: Iterable[str]
) -> dict[str, Any]:
    """Clock, decoding, encoders and warnings."""
    meta = bank.meta
    out: dict[str, Any] = {}
    video, audio = info.video, info.audio
    out["tokpipe.clock"] = {
        "zero": info.zero, "start": info.start, "video": video.start if video else None,
        "audio": audio.start if audio else None, "end": max(meta["video_end"], meta["audio_end"]),
    }  # fmt: skip
    out["tokpipe.decode"] = {
        **meta["reader"],
        "damaged": meta["damaged"], "frames": meta["decoded"],
        "sampled": meta["steps"], "normalised": [code for code, _ in _notes(info, bank)],
        **({"whole": meta["whole"]} if meta.get("whole") else {}),
    }  # fmt: skip
    out["tokpipe.warnings"] = list(warnings)
    for name, made in chains.items():
        if made.late is not None:
            continue
        entry: dict[str, Any] = {
            "name": made.encoder_name,
            "params": _fields(made.encoder),
            "version": made.encoder.version,
        }
        if name == "audio":
            entry |= {
                "floor": made.encoder.floor,
                "maxima": meta["maxima"],
                "cell_seconds": CELL_SECONDS,
            }
        out[f"tokpipe.encoder.{name}"] = entry
    return out


CELL_SECONDS = 0.04


def _fields(operator: Any) -> dict[str, Any]:
    return {f.name: getattr(operator, f.name) for f in fields(operator)}


def _notes(info: MediaInfo, bank: Bank) -> Iterator[tuple[str, str]]:
    seen = set()
    for code, text in [*info.warnings, *(tuple(n) for n in bank.meta["notes"])]:
        if code not in seen:
            seen.add(code)
            yield code, text


def notes_of(info: MediaInfo, bank: Bank) -> list[tuple[str, str]]:
    """Everything that was normalised or is odd, each code once."""
    return list(_notes(info, bank))
