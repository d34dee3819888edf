"""From a cache of rows before a projector to one of tokens after it, for a given model.

Only the projector runs. The tower is not needed; unless told otherwise its weights are read once,
to see whether they are those that made the rows.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tokpipe import __version__
from tokpipe.assemble import deepstack_columns, row_columns, set_ranks, set_segments
from tokpipe.cache.format import STREAMS
from tokpipe.cache.reader import TokenCache, open_cache
from tokpipe.cache.writer import CacheWriter, sweep_stale
from tokpipe.device import pick_device
from tokpipe.digest import chain as digest_chain
from tokpipe.digest import portable
from tokpipe.encode._projection import Projection
from tokpipe.errors import CacheError, MediaNotFound, OutputExists, error_context
from tokpipe.late_cache import kept_stream
from tokpipe.late_run import carried, copy_blobs, is_there
from tokpipe.project_check import Target, check_rows, check_tower, describe, targets_of
from tokpipe.run import SUFFIX, RunRecord
from tokpipe.tensors import TokenBatch

#: Rows read at once; a picture is never cut.
_BLOCK = 4096
_DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
_STORED = {name: stored for stored, name in _DTYPES.items()}


def projected_suffix(model: str) -> str:
    """What the name of a cache ends with after the projector of a model."""
    name = model.rstrip("/").rpartition("/")[2].removesuffix(".") or "projected"
    return f".{name}{SUFFIX}"


def projected_path(source: Path, model: str, output: str | Path | None) -> Path:
    """Where the tokens go: ``NAME.MODEL.tokpipe.safetensors`` beside the cache, or ``output``.

    A folder, or a path that ends with a slash, takes the same name.
    """
    stem = source.name.removesuffix(SUFFIX).removesuffix(".safetensors")
    name = f"{stem}{projected_suffix(model)}"
    if output is None:
        return source.with_name(name)
    folder = Path(output).is_dir() or str(output).endswith(os.sep)
    return Path(output) / name if folder else Path(output)


def project_cache(
    source: str | Path,
    output: str | Path | None = None,
    *,
    model: str,
    revision: str = "",
    weights: str = "",
    precision: str = "auto",
    device: str = "cpu",
    check: bool = True,
    drop_incomplete: bool = False,
    force: bool = False,
) -> RunRecord:
    """Run a model's projector over the rows of a cache.

    Args:
        source: A cache of features of the stage ``pre_projector``.
        output: File or folder, see :func:`projected_path`.
        model: Hub name or folder of the multimodal model whose projector it is.
        revision: Branch, tag or commit on the hub.
        weights: Folder or file used instead of the model's own weights, or ``random``.
        precision: ``float32``, ``bfloat16`` or ``float16``; ``auto``: as the rows are stored.
        check: Read the tower's weights too and compare their digest with the cache's.
        drop_incomplete: Where tokens are made of several rows: leave out those some of whose rows
            the cache lacks. They count as dropped. By default that is an error.
        force: Replace a cache that is there.

    Returns:
        What happened; ``status`` is done, warned or skipped.

    Raises:
        TokpipeError: Any of its leaves; nothing is left under the final name.
    """
    path = Path(source)
    target = projected_path(path, model, output)
    if not path.is_file():
        raise MediaNotFound(f"no such file `{path}`", hint="name a token cache")
    if target.exists() and target.samefile(path):
        raise OutputExists(
            f"the output `{target}` is the cache itself", hint="name another output with -o"
        )
    how = _How(model, revision, weights, precision, device, check, drop_incomplete, force)
    with error_context(str(path)), open_cache(path) as cache:
        return _Projecting(cache, path, target, how).run()


@dataclass(frozen=True, slots=True)
class _How:
    model: str
    revision: str
    weights: str
    precision: str
    device: str
    check: bool
    drop_incomplete: bool
    force: bool


@dataclass(slots=True)
class _Made:
    """What became of one stream so far."""

    priority: list[NDArray[np.float64]] = field(default_factory=list)
    tokens: int = 0
    mass: float = 0.0
    incomplete: int = 0
    pictures: int = 0


class _Projecting:
    def __init__(self, cache: TokenCache, path: Path, target: Path, how: _How) -> None:
        self.cache, self.target, self.how = cache, target, how
        self.record = RunRecord(input=str(path), output=str(target), layout=cache.layout)
        self.record.recipe, self.record.duration = f"project to {how.model}", cache.duration
        self.spans = cache.segments
        self.rows = np.zeros((2, len(self.spans)), dtype=np.int64)
        self.began = time.perf_counter()

    def settings(self) -> dict[str, Any]:
        """Every option that changes the tokens, and what they were made from."""
        how = self.how
        projected = {
            "model": portable(how.model), "revision": how.revision,
            "weights": portable(how.weights), "precision": how.precision,
            "drop_incomplete": how.drop_incomplete,
            "cache": digest_chain(self.cache.metadata["tokpipe.digest"]),
        }  # fmt: skip
        return {**self.cache.metadata["tokpipe.recipe"], "projected": projected}

    def run(self) -> RunRecord:
        how = self.how
        targets = targets_of(self.cache, how.model, how.revision, how.weights)
        for target in targets:
            check_rows(self.cache, target)
        if is_there(self.target, self.settings(), self.record, force=how.force):
            self.record.status = "skipped"
            return self._close()
        self.target.parent.mkdir(parents=True, exist_ok=True)
        sweep_stale(self.target.parent)
        self._write({target.stream: target for target in targets})
        return self._close()

    def _write(self, targets: dict[str, Target]) -> None:
        cache = self.cache
        priority: dict[str, NDArray[np.float64]] = {}
        counts: dict[str, Any] = {}
        entries: dict[str, Any] = {}
        dtypes = {s: self._dtype(s, s in targets) for s in cache.streams}
        layout = cache.layout
        with CacheWriter(self.target, force=self.how.force, dtype=dtypes) as writer:
            for stream in cache.streams:
                told = cache.metadata["tokpipe.counts"][stream]
                if stream not in targets:
                    columns, _ = kept_stream(cache, stream)
                    priority[stream] = np.asarray(cache.column(f"{stream}.rank")).astype(float)
                    counts[stream] = {k: v for k, v in told.items() if k != "kept"}
                    copy_blobs(cache, writer, stream)
                    self._append(writer, stream, columns)
                    continue
                began = time.perf_counter()
                projection, entry = self._load(targets[stream], _DTYPES[dtypes[stream]])
                made = self._project(writer, stream, projection)
                entries[f"tokpipe.encoder.{stream}"] = entry
                priority[stream] = np.concatenate(made.priority)
                source = max(made.mass, float(round(told["source"] / projection.joins)))
                if projection.needs is None:
                    source = told["source"]
                counts[stream] = {"source": source, "dropped": max(0.0, source - made.mass)}
                if made.incomplete:
                    layout = self.record.layout = "ragged"
                self.record.seconds["encode"] = time.perf_counter() - began
            set_ranks(writer, priority)
            if len(self.spans):
                set_segments(writer, self.spans, self.rows)
            settings = self.settings()
            writer.finish({
                **carried(cache, targets), **entries, "tokpipe.domain": "feature",
                "tokpipe.layout": layout, "tokpipe.writer": f"tokpipe {__version__}",
                "tokpipe.counts": counts, "tokpipe.recipe": settings,
                "tokpipe.recipe_sha256": digest_chain(settings),
                "tokpipe.warnings": [
                    *(cache.metadata.get("tokpipe.warnings") or []), *self.record.warnings
                ],
            })  # fmt: skip
        tokens = {s: len(priority.get(s, ())) for s in STREAMS}
        self.record.tokens = {**tokens, "text": 0, "total": sum(tokens.values())}
        self.record.candidates = sum(cache.num_tokens(s) for s in cache.streams)
        self.record.encoder = {s: targets[s].about.get("name", "own") for s in targets}
        self.record.bytes = self.target.stat().st_size

    def _load(self, target: Target, dtype: str) -> tuple[Projection, dict[str, Any]]:
        """The projector, and what the cache will say of it."""
        how = self.how
        projection: Projection = target.operator.load_projector(
            pick_device(how.device), dtype, check=how.check
        )
        checked, warnings = check_tower(target, projection)
        self._warn(*warnings)
        grid = target.about.get("grid")
        if projection.side and grid is not None and list(grid) != [projection.side] * 2:
            raise CacheError(
                f"the projector of `{how.model}` takes pictures of {projection.side} x "
                f"{projection.side} rows, the cache has {grid[0]} x {grid[1]}",
                hint="encode with this model's own tower", code="project.grid",
            )  # fmt: skip
        return projection, describe(target, projection, checked, dtype)

    def _project(self, writer: CacheWriter, stream: str, projection: Projection) -> _Made:
        made, device = _Made(), pick_device(self.how.device)
        merged = 0
        for unit in self._units(stream, projection):
            merged += int((unit.mass != 1).sum())
            tokens, incomplete = projection.unit(unit, device)
            made.incomplete += incomplete
            made.pictures += int(incomplete > 0)
            if not len(tokens):
                continue
            made.priority.append(tokens.extras["rank"].numpy().astype(np.float64))
            made.tokens += len(tokens)
            made.mass += float(tokens.mass.double().sum())
            columns = row_columns(tokens, self.spans[:, 0])
            self._append(writer, stream, {**columns, **deepstack_columns(tokens)})
        self._judge(stream, projection, made)
        if merged:
            self._warn(
                f"merged-rows: {merged} {stream} rows are means of several: what a projector makes "
                "of a mean is near the mean of what it makes of them, not equal"
            )
        return made

    def _judge(self, stream: str, projection: Projection, made: _Made) -> None:
        if made.incomplete:
            size = 0 if projection.needs is None else int(projection.needs.sum(1).max())
            text = (
                f"{made.incomplete} {stream} tokens in {made.pictures} places lack some of the up "
                f"to {size} rows they are made of"
            )
            if not self.how.drop_incomplete:
                raise CacheError(
                    text, code="project.incomplete",
                    hint="encode with --stage post_projector, or keep whole pictures (--layout "
                    "frames, --fit squash); --drop-incomplete leaves such tokens out",
                )  # fmt: skip
            self._warn(f"incomplete: {text}; they were left out")
        if not made.tokens:
            raise CacheError(
                f"no {stream} token can be made of the rows", code="project.incomplete",
                hint="encode with --stage post_projector",
            )  # fmt: skip

    def _units(self, stream: str, projection: Projection) -> Iterator[TokenBatch]:
        """Rows of one picture, or of some sound, at a time."""
        at = np.asarray(self.cache.column(f"{stream}.at"))
        if stream == "audio" and projection.needs is None:
            unit = torch.arange(len(at)) // _BLOCK
        else:
            cell = torch.from_numpy(np.array(self.cache.column(f"{stream}.cell")))
            unit = projection.units(torch.from_numpy(at.copy()), cell)
        edges = [0, *(np.flatnonzero(np.diff(unit.numpy())) + 1).tolist(), len(at)]
        first = 0
        for i in range(1, len(edges)):
            if edges[i] - edges[first] < _BLOCK and i + 1 < len(edges):
                continue
            low, high = edges[first], edges[i]
            stop = float(at[high]) if high < len(at) else None
            rows = self.cache.tokens(float(at[low]), stop, stream=stream)[stream].to_tokens()
            for j in range(first, i):
                yield rows.take(slice(edges[j] - low, edges[j + 1] - low))
            first = i

    def _append(self, writer: CacheWriter, stream: str, columns: dict[str, Any]) -> None:
        writer.append(stream, columns)
        if len(self.spans):
            found = np.bincount(columns["segment"], minlength=len(self.spans))
            self.rows[STREAMS.index(stream)] += found

    def _dtype(self, stream: str, projected: bool) -> str:
        stored = self.cache.tokens(0.0, 0.0, stream=stream)[stream].dtype
        return _STORED.get(self.how.precision, stored) if projected else stored

    def _warn(self, *warnings: str) -> None:
        self.record.warnings += warnings
        if warnings:
            self.record.status = "warned"

    def _close(self) -> RunRecord:
        return self.record.closed(time.perf_counter() - self.began)
