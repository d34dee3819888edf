"""Encode one cache of the signal into one of features: open, encode, write, say what happened."""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tokpipe import __version__, registry
from tokpipe.assemble import deepstack_columns, row_columns, set_ranks, set_segments
from tokpipe.budget import Budget
from tokpipe.cache.format import STREAMS
from tokpipe.cache.reader import TokenCache, open_cache
from tokpipe.cache.verify import verify
from tokpipe.cache.writer import CacheWriter, sweep_stale
from tokpipe.chain import build_chain, with_whole_frames
from tokpipe.digest import chain as digest_chain
from tokpipe.errors import (
    BudgetError,
    CacheCorrupt,
    CacheError,
    MediaNotFound,
    OutputExists,
    error_context,
)
from tokpipe.job import Options, check_query, with_budget
from tokpipe.late_bank import cache_dtype, describe_tower, kept_context
from tokpipe.late_cache import LateCache, LateStream, kept_stream
from tokpipe.recipe import Recipe
from tokpipe.run import SUFFIX, RunRecord, refuse_foreign
from tokpipe.spec import StepSpec

#: Metadata that is written anew, or belongs to a stream of the signal.
_OWN = frozenset(
    (
        *("format", "digest", "counts", "quant", "recipe", "recipe_sha256", "domain", "layout"),
        *("writer", "encoder.video", "encoder.audio", "grid", "atlas", "clip", "warnings"),
    )
)
_OF_STREAM = {"video": ("grid", "atlas"), "audio": ("clip",)}


def encoded_path(source: Path, steps: Sequence[StepSpec], output: str | Path | None) -> Path:
    """Where the features go: ``NAME.ENCODER.tokpipe.safetensors`` beside the cache, or ``output``.

    A folder, or a path that ends with a slash, takes the same name.
    """
    stem = source.name.removesuffix(SUFFIX).removesuffix(".safetensors")
    name = f"{stem}{encoded_suffix(steps)}"
    if output is None:
        return source.with_name(name)
    folder = Path(output).is_dir() or str(output).endswith(os.sep)
    return Path(output) / name if folder else Path(output)


def encoded_suffix(steps: Sequence[StepSpec]) -> str:
    """What the name of a cache ends with after these encoders."""
    return f".{'+'.join(step.use for step in steps)}{SUFFIX}"


def encode_cache(
    source: str | Path,
    output: str | Path | None = None,
    *,
    encoders: Sequence[StepSpec],
    rules: Recipe | None = None,
    budget: str | int | Budget | None = None,
    options: Options | None = None,
) -> RunRecord:
    """Encode what a signal cache kept: its rebuilt pictures, its spans of sound.

    Args:
        source: A cache of the signal domain.
        output: File or folder, see :func:`encoded_path`.
        encoders: A step for each stream to encode, see ``encoder_choice.encoder_step``.
        rules: A recipe whose reducers of features meet the budget; None: those of the default.
        budget: Most tokens of the encoded streams; None: as many as the cache holds of each.

    Returns:
        What happened; ``status`` is done or skipped.

    Raises:
        TokpipeError: Any of its leaves; nothing is left under the final name.
    """
    options = with_budget(options, budget)
    path = Path(source)
    target = encoded_path(path, encoders, output)
    if not path.is_file():
        raise MediaNotFound(f"no such file `{path}`", hint="name a token cache")
    if target.exists() and target.samefile(path):
        raise OutputExists(
            f"the output `{target}` is the cache itself", hint="name another output with -o"
        )
    with error_context(str(path)):
        report = verify(path, deep=True)
        for code, text in report.problems:
            raise CacheCorrupt(text, code=f"cache.{code}", hint="compress the media again")
    with error_context(str(path)), open_cache(path) as cache:
        return _Encoding(cache, path, target, encoders, rules, options).run()


def is_there(target: Path, settings: dict[str, Any], record: RunRecord, *, force: bool) -> bool:
    """The output was made by these settings already; its counts go to ``record``.

    Raises:
        OutputExists: It was made by others, or is no cache, and ``force`` may not replace it.
    """
    if not target.exists():
        return False
    if force:
        refuse_foreign(target)
        return False
    with suppress(CacheError), open_cache(target) as there:
        if there.metadata.get("tokpipe.recipe_sha256") == digest_chain(settings):
            counts = {name: there.num_tokens(name) for name in there.streams}
            record.tokens |= {**counts, "total": sum(counts.values())}
            record.bytes = target.stat().st_size
            return True
    raise OutputExists(
        f"`{target}` is there already and was made differently",
        hint="add --force to replace it, or name another output with -o",
    )


def copy_blobs(cache: TokenCache, writer: CacheWriter, stream: str) -> None:
    """Pictures or sound of a stream that stays one of the signal."""
    if stream == "audio" and "audio.clip" in cache.names:
        writer.append_bytes("audio.clip", np.asarray(cache.column("audio.clip")).tobytes())
    if stream == "video" and "video.atlas" in cache.names:
        edges = np.asarray(cache.column("video.atlas_offsets"))
        for start, stop in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
            page = np.asarray(cache.column("video.atlas", start, stop))
            writer.append_bytes("video.atlas", page.tobytes())


def carried(cache: TokenCache, made: Collection[str]) -> dict[str, Any]:
    """Metadata that stays where the streams ``made`` are made anew."""
    found = cache.metadata
    out = {k: v for k, v in found.items() if k.removeprefix("tokpipe.") not in _OWN}
    for stream in cache.streams:
        if stream not in made:
            for key in (f"encoder.{stream}", *_OF_STREAM[stream]):
                if f"tokpipe.{key}" in found:
                    out[f"tokpipe.{key}"] = found[f"tokpipe.{key}"]
    return out


class _Encoding:
    def __init__(
        self, cache: TokenCache, path: Path, target: Path, encoders: Sequence[StepSpec],
        rules: Recipe | None, options: Options,
    ) -> None:  # fmt: skip
        self.cache, self.target, self.options = cache, target, options
        if options.query is not None:
            check_query(options.query)
        self.chains = {}
        for step in encoders:
            stream = registry.load(step.use).modalities[0]
            tail = () if rules is None else rules.chains.get(stream, ())
            steps = with_whole_frames((step, *tail), options.layout)
            self.chains[stream] = build_chain(stream, steps, query=options.query is not None)
        self.record = RunRecord(input=str(path), output=str(target), layout=options.layout)
        self.record.recipe = " + ".join(step.use for step in encoders)
        self.record.budget = str(options.budget) if options.budget else None
        self.record.duration = cache.duration
        self.began = time.perf_counter()

    def settings(self) -> dict[str, Any]:
        """Every option that changes the tokens, and what they were made from."""
        o = self.options
        towers = {stream: made.canonical for stream, made in self.chains.items()}
        return {
            **self.cache.metadata["tokpipe.recipe"], "late": towers,
            "late_budget": self.record.budget, "query": o.query, "layout": o.layout,
            "precision": o.running().dtype, "context": o.context, "pool": o.pool,
            "cache": digest_chain(self.cache.metadata["tokpipe.digest"]),
        }  # fmt: skip

    def run(self) -> RunRecord:
        if is_there(self.target, self.settings(), self.record, force=self.options.force):
            self.record.status = "skipped"
            return self._close()
        with LateCache(self.cache, self.chains, self.options) as late:
            made = late.encode(self.options.budget)
            self.record.seconds["encode"] = sum(s.features.seconds for s in made.values())
            if not sum(len(stream.tokens) for stream in made.values()):
                asked = self.options.budget
                if asked is not None and any(stream.source for stream in made.values()):
                    raise BudgetError(
                        f"the budget `{asked}` leaves nothing to the streams that are encoded",
                        hint=f"give {' and '.join(made)} a part",
                    )
                raise BudgetError(
                    "no token of the encoder lies half in kept cells",
                    hint="make the signal cache with --layout frames, or with a larger budget",
                )
            sweep_stale(self.target.parent)
            self._write(made)
        return self._close()

    def _write(self, made: dict[str, LateStream]) -> None:
        began = time.perf_counter()
        self.target.parent.mkdir(parents=True, exist_ok=True)
        dtypes = {s: self._dtype(s) for s in self.cache.streams}
        priority: dict[str, NDArray[np.float64]] = {}
        counts: dict[str, Any] = {}
        spans = self.cache.segments
        rows = np.zeros((2, len(spans)), dtype=np.int64)
        with CacheWriter(self.target, force=self.options.force, dtype=dtypes) as writer:
            for stream in self.cache.streams:
                if stream in made:
                    tokens, source = made[stream].tokens, made[stream].source
                    columns = {**row_columns(tokens, spans[:, 0]), **deepstack_columns(tokens)}
                    priority[stream] = made[stream].priority.numpy()
                    mass = float(tokens.mass.double().sum())
                    counts[stream] = {"source": source, "dropped": max(0.0, source - mass)}
                else:
                    columns, priority[stream] = kept_stream(self.cache, stream)
                    counts[stream] = {
                        k: v for k, v in self.cache.metadata["tokpipe.counts"][stream].items()
                        if k != "kept"
                    }  # fmt: skip
                    copy_blobs(self.cache, writer, stream)
                if len(columns["at"]):
                    writer.append(stream, columns)
                    if len(spans):
                        rows[STREAMS.index(stream)] = np.bincount(
                            columns["segment"], minlength=len(spans)
                        )
            set_ranks(writer, priority)
            if len(spans):
                set_segments(writer, spans, rows)
            writer.finish(self._metadata(made, counts))
        self._count(made, priority)
        self.record.seconds["write"] = time.perf_counter() - began

    def _dtype(self, stream: str) -> str:
        if stream in self.chains:
            return cache_dtype(self.chains[stream], self.options)
        return self.cache.tokens(0.0, 0.0, stream=stream)[stream].dtype

    def _metadata(self, made: dict[str, LateStream], counts: dict[str, Any]) -> dict[str, Any]:
        found = self.cache.metadata
        out = carried(self.cache, made)
        for stream, result in made.items():
            late = self.chains[stream].late
            assert late is not None  # noqa: S101 - every chain here has a tower
            if len(result.tokens):
                entry = describe_tower(stream, late, result.features)
                out[f"tokpipe.encoder.{stream}"] = entry
        settings = self.settings()
        return {
            **out, "tokpipe.domain": "feature", "tokpipe.layout": self.options.layout,
            "tokpipe.writer": f"tokpipe {__version__}", "tokpipe.counts": counts,
            "tokpipe.recipe": settings, "tokpipe.recipe_sha256": digest_chain(settings),
            "tokpipe.warnings": found.get("tokpipe.warnings") or [],
        }  # fmt: skip

    def _count(self, made: dict[str, LateStream], priority: dict[str, NDArray[np.float64]]) -> None:
        record = self.record
        tokens = {s: len(priority[s]) if s in priority else 0 for s in ("video", "audio")}
        record.tokens = {**tokens, "text": 0, "total": sum(tokens.values())}
        record.candidates = sum(
            made[s].source if s in made else tokens[s] for s in self.cache.streams
        )
        pictures = made.get("video")
        encoded = pictures.features.encoded if pictures is not None else 0
        kept = len(torch.unique(pictures.tokens.at)) if pictures is not None else 0
        record.frames = {"decoded": 0, "sampled": 0, "encoded": encoded, "kept": kept}
        record.warnings += [
            f"{code}: {text}"
            for code, text in kept_context({s: made[s].features for s in made if s == "video"})
        ]
        record.encoder = {s: (self.chains[s].late or self.chains[s]).encoder_name for s in made}
        record.bytes = self.target.stat().st_size

    def _close(self) -> RunRecord:
        return self.record.closed(time.perf_counter() - self.began)
