"""Decode once, encode once: fill a bank entry with what no budget, recipe tail or query changes.

decode ─▶ sample ─▶ resize ─┐ bounded queue ┌─▶ encode ─▶ bank
(one thread)      └───────────────┘  (caller)
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tokpipe import __version__
from tokpipe.cache.bank import Bank, BankWriter, bank_root, scratch_root
from tokpipe.chain import Chain
from tokpipe.compress._cell_distance import follow
from tokpipe.compress._picture_space import place_pictures
from tokpipe.decode import open_source
from tokpipe.decode._backends import backend_key
from tokpipe.decode._groups import Unsafe
from tokpipe.decode._wanted import Effort
from tokpipe.decode.pyav import MediaSource
from tokpipe.digest import chain
from tokpipe.encode.pixels import DIM, describe
from tokpipe.fine import FineKeeper, FineLooker, Look, finer_times
from tokpipe.flow import prefetch
from tokpipe.grid import CELL, Grid
from tokpipe.protocols import Picture
from tokpipe.spec import MediaInfo
from tokpipe.tensors import AudioChunk, FrameBatch, TokenBatch

#: Raised when an entry holds something else than before.
_LAYOUT = 7
Progress = Callable[[str, float, float | None], None]


@dataclass(slots=True)
class Ingested:
    """A bank entry and how it came about.

    Attributes:
        reused: It was there already.
        key: Digest it is found by, None where it lives only as long as the run.
        seconds: Wall time of choosing pictures, of decoding (with sampling and resizing) and of
            encoding.
    """

    bank: Bank
    reused: bool
    key: str | None
    seconds: dict[str, float]


def ingest(
    path: Path, info: MediaInfo, chains: dict[str, Chain], *, keep: bool = True,
    strict: bool = False, decoder: str = "pyav", device: str = "cpu", batch_size: int = 16,
    depth: int = 2, progress: Progress | None = None, effort: Effort = "balanced",
    threads: int | None = 1,
) -> Ingested:  # fmt: skip
    """Find the bank entry of a file, or make it.

    Args:
        decoder: Reader of the pictures, ``pyav``, ``torchcodec`` (on ``device``) or ``decord``.
        keep: Leave the entry in the bank; otherwise it vanishes with the returned object's run.
        batch_size: Frames handed over together; results do not depend on it.
        depth: Batches the decoder may run ahead.
        progress: Called with stage, media seconds done and in all.
        effort: How much of the pictures is decoded, as ``Options`` says.
        threads: Groups of pictures decoded at once, None: a core each, at most 8; results do not
            depend on it.
    """
    root = bank_root() if keep else scratch_root()
    key = bank_key(info, chains, strict, decoder, device, effort)
    if keep and (bank := Bank.find(key, root)) is not None:
        return Ingested(bank, True, key, {"scout": 0.0, "decode": 0.0, "encode": 0.0})
    opened = partial(
        open_source, path, strict=strict, decoder=decoder, device=device, effort=effort,
        fps=sampler_rate(chains), threads=threads,
    )  # fmt: skip
    reader = _reader(decoder, device, effort)
    progress = None if progress is None else _Forward(progress)
    lost: _Run | None = None
    while True:
        with BankWriter(key if keep else None, root) as writer:
            run = _Run(opened, reader, info, chains, writer, batch_size, progress)
            try:
                meta = run.fill(depth)
            except Unsafe as why:
                # What came of reading in part goes with its writer.
                opened, lost = partial(opened, whole=str(why)), run
                continue
            if lost is not None:
                text = f"all pictures were decoded, because of: {run.source.whole}"
                meta["notes"].append(["scout-sequential", text])
            bank = writer.commit(meta)
        if lost is not None:
            run.seconds = {name: run.seconds[name] + lost.seconds[name] for name in run.seconds}
        return Ingested(bank, False, key if keep else None, run.seconds)


def sampler_rate(chains: dict[str, Chain]) -> float | None:
    """Ticks a second of the sampler on a time grid, None where any picture may be chosen."""
    sampler = chains["video"].sampler if "video" in chains else None
    return getattr(sampler, "fps", None)


class _Forward:
    """Progress that never steps back, also where a file is begun again."""

    def __init__(self, told: Progress) -> None:
        self.told, self.at = told, -1.0

    def __call__(self, stage: str, at: float, total: float | None) -> None:
        if at >= self.at:
            self.at = at
            self.told(stage, at, total)


def bank_key(
    info: MediaInfo, chains: dict[str, Chain], strict: bool, decoder: str = "pyav",
    device: str = "cpu", effort: Effort = "balanced",
) -> str:  # fmt: skip
    """Digest chain of everything the entry depends on."""
    import PIL

    policy = {
        **_reader(decoder, device, effort), "pillow": PIL.__version__,
        "torch": torch.__version__,
        "video": info.video.index if info.video else None,
        "audio": info.audio.index if info.audio else None, "strict": strict,
    }  # fmt: skip
    heads = {name: made.head for name, made in chains.items()}
    return chain("bank", _LAYOUT, __version__, info.fingerprint, policy, heads)


def _reader(decoder: str, device: str, effort: Effort) -> dict[str, str]:
    """What pictures depend on; other readers than PyAV look at all of them."""
    return backend_key(decoder, device) | ({"effort": effort} if decoder == "pyav" else {})


class _Run:
    def __init__(
        self, source: Callable[[MediaInfo], MediaSource], reader: dict[str, str], info: MediaInfo,
        chains: dict[str, Chain], writer: BankWriter, batch_size: int, progress: Progress | None,
    ) -> None:  # fmt: skip
        # What no chain wants is not decoded either.
        left_out = [n for n in ("video", "audio") if getattr(info, n) and n not in chains]
        info = replace(
            info,
            video=info.video if "video" in chains else None,
            audio=info.audio if "audio" in chains else None,
            other_streams=(*info.other_streams, *left_out),
        )
        self.source, self.reader = source(info), reader
        self.info, self.writer, self.batch_size, self.progress = info, writer, batch_size, progress
        self.video = chains.get("video") if info.video is not None else None
        self.audio = chains.get("audio") if info.audio is not None else None
        self.grid: Grid | None = self.video.encoder.grid(info) if self.video else None
        self.looker: FineLooker | None = None
        self.fine: FineKeeper | None = None
        if self.grid is not None and info.video is not None:
            times = finer_times(self.grid, info.video)
            self.looker, self.fine = FineLooker(self.grid, times), FineKeeper(writer, times)
        self.mel = self.audio.encoder.stream() if self.audio else None
        self.last: Any = None
        self.kept: NDArray[np.float32] | None = None
        self.samples = 0
        self.cells = 0
        self.steps = 0
        self.seconds = {"scout": 0.0, "decode": 0.0, "encode": 0.0}

    def fill(self, depth: int) -> dict[str, Any]:
        with closing(prefetch(self._decoded(), depth)) as items:
            for item in items:
                began = time.perf_counter()
                if isinstance(item, AudioChunk):
                    self._sound(item)
                else:
                    self._frames(*item)
                self.seconds["encode"] += time.perf_counter() - began
        if self.mel is not None:
            self._mel_tokens(self.mel.finish())
        if self.fine is not None:
            self.fine.finish(self.source.report.video_end)
        self.seconds["scout"] = getattr(self.source, "seconds", 0.0)
        self.seconds["decode"] = max(0.0, self.seconds["decode"] - self.seconds["scout"])
        return self._meta()

    def _decoded(self) -> Iterator[tuple[FrameBatch, list[Look]] | AudioChunk]:
        """Runs in the decoder's thread: batches at the grid's size, audio in between."""
        began = time.perf_counter()
        held: list[_Sampled] = []
        events: Any = self.source.read()
        if self.video is not None:
            sampler = self.video.sampler
            events = sampler.sample(events) if sampler is not None else _whole(events)
        for event in events:
            if isinstance(event, AudioChunk):
                if self.audio is not None:
                    yield from self._timed(event, began)
                began = time.perf_counter()
            else:
                held.append(self._sampled(event))
                if len(held) == self.batch_size:
                    yield from self._timed(_batch(held), began)
                    held, began = [], time.perf_counter()
        if held:
            yield from self._timed(_batch(held), began)

    def _sampled(self, picture: Picture) -> _Sampled:
        assert self.looker is not None  # noqa: S101 - pictures come only with a video chain
        grid = self.looker.grid
        rgb = picture.rgb(grid.width, grid.height)
        look = self.looker.look(picture, rgb)
        return _Sampled(rgb, picture.pts, picture.duration, picture.index, look)

    def _timed(self, item: Any, began: float) -> Iterator[Any]:
        self.seconds["decode"] += time.perf_counter() - began
        yield item

    def _frames(self, batch: FrameBatch, looks: list[Look]) -> None:
        """Store a batch, and what was noticed of its pictures."""
        assert self.video and self.fine and self.looker  # noqa: S101 - as above
        data = describe(batch.pixels).numpy().reshape(len(batch), -1, DIM)
        stored = data.astype("<f2")
        self.writer.append("descriptors", stored)
        scores, self.kept = follow(stored.astype(np.float32), self.kept)
        self.writer.append("changes", scores.astype("<f4"))
        grid = stored.reshape(len(batch), self.looker.grid.rows, self.looker.grid.cols, DIM)
        self.writer.append("places", place_pictures(grid).astype("<f2"))
        for i in range(len(batch)):
            means = data[i, :, 0].astype(np.float32) / CELL
            cut = 255.0 if self.last is None else float(np.abs(means - self.last).mean())
            self.last = means
            pts = float(batch.pts[i])
            self.fine.add(looks[i].fine, self.steps + i, pts, data[i])
            self.writer.picture(
                batch.pixels[i].numpy(), pts, float(batch.duration[i]), int(batch.index[i]), cut,
                looks[i].text,
            )  # fmt: skip
        self.steps += len(batch)
        self._report(float(batch.pts[-1]))

    def _sound(self, chunk: AudioChunk) -> None:
        assert self.mel is not None  # noqa: S101 - audio comes only with an audio chain
        wave = chunk.samples[0].numpy()
        self.writer.append("audio", np.rint(wave * 32768).clip(-32768, 32767).astype("<i2"))
        self.samples += len(wave)
        self._mel_tokens(self.mel.push(wave))
        if self.video is None:
            self._report(chunk.pts)

    def _mel_tokens(self, batches: list[TokenBatch]) -> None:
        for tokens in batches:
            self.writer.append("mel", tokens.data.numpy().astype("<f2"))
            columns = [tokens.extras[name].numpy() for name in sorted(tokens.extras)]
            self.writer.append("mel_columns", np.stack(columns, 1).astype("<f4"))
            self.cells += len(tokens)

    def _report(self, at: float) -> None:
        if self.progress is not None:
            self.progress("decode", at, self.info.duration)

    def _meta(self) -> dict[str, Any]:
        report = self.source.report
        grid = self.grid
        mel = self.mel
        return {
            "grid": None if grid is None else [grid.rows, grid.cols, grid.aspect_error],
            "steps": self.steps, "samples": self.samples, "cells": self.cells,
            "columns": sorted(type(self.audio.encoder).extras) if self.audio else [],
            "maxima": [float(m) for m in mel.window_maxima] if mel is not None else [],
            "reader": self.reader,
            "whole": self.source.whole, "decoded": report.frames, "damaged": report.damaged,
            "video_end": report.video_end, "audio_end": report.audio_end,
            "notes": [list(note) for note in report.notes],
        }  # fmt: skip


def _whole(events: Iterator[Any]) -> Iterator[Any]:
    """Every picture that is not corrupt: a chain without a sampler."""
    return (event for event in events if not getattr(event, "corrupt", False))


@dataclass(frozen=True, slots=True)
class _Sampled:
    """A sampled picture at the grid's size, and what was noticed of it."""

    pixels: NDArray[np.uint8]
    pts: float
    duration: float
    index: int
    look: Look


def _batch(held: list[_Sampled]) -> tuple[FrameBatch, list[Look]]:
    batch = FrameBatch(
        pixels=torch.from_numpy(np.stack([one.pixels for one in held])),
        pts=torch.tensor([one.pts for one in held], dtype=torch.float64),
        duration=torch.tensor([one.duration for one in held], dtype=torch.float64),
        index=torch.tensor([one.index for one in held], dtype=torch.int64),
    )
    return batch, [one.look for one in held]
