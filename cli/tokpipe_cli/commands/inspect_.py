"""``tokpipe inspect``: what a cache holds; its pictures, if asked for."""

from __future__ import annotations

import json
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tokpipe_cli import options as o
from tokpipe_cli.boundary import UsageProblem
from tokpipe_cli.console import Screen, table
from tokpipe_cli.jsonl import emit
from tokpipe_cli.words import clock, joined, plural, size, stamp

if TYPE_CHECKING:
    from tokpipe.cache.reader import TokenCache

#: Frames and segments a human table lists before it says how many more there are.
_LISTED = 12
#: Dtypes of features as they are stored.
_DTYPES = {"F16": "float16", "F32": "float32", "BF16": "bfloat16"}


def inspect(
    file: Annotated[Path, typer.Argument(help="A token cache.", metavar="FILE")],
    frames: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Write the rebuilt pictures there, with manifest.jsonl."),
    ] = None,
    at: Annotated[
        float | None, typer.Option(metavar="START", help="Only tokens from this second on.")
    ] = None,
    stop: Annotated[
        float | None, typer.Option(metavar="STOP", help="Only tokens before this second.")
    ] = None,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
    debug: o.Debug = False,
) -> None:
    """Show what a token cache holds: tokens, times, segments, frames, and how it was made."""
    from tokpipe.cache.reader import open_cache

    screen = Screen(json=as_json, quiet=quiet, debug=debug)
    if at is not None and stop is not None and stop <= at:
        raise UsageProblem(
            f"--stop {stop} is not after --at {at}", hint="times are seconds, half-open"
        )
    if not file.exists():
        raise UsageProblem(f"no such file `{file}`", hint="check the path")
    with open_cache(file) as cache:
        found = _describe(cache, at, stop)
        written = _write_frames(cache, frames, at, stop) if frames is not None else None
    if as_json:
        emit("inspect", **found)
    else:
        _show(file, found, screen)
    if frames is not None:
        screen.note(f"{plural(written or 0, 'picture')} and manifest.jsonl in {frames}")


def _describe(cache: TokenCache, at: float | None, stop: float | None) -> dict[str, Any]:
    """The fields of ``inspect --json``."""
    meta = cache.metadata
    streams = {}
    for name in cache.streams:
        low, high = cache.rows(name, at, stop)
        info = cache.tensor_info(f"{name}.tokens")
        times = cache.column(f"{name}.pts", low, high)
        streams[name] = {
            "tokens": high - low, "dim": int(info.shape[1]),
            "dtype": _DTYPES.get(info.dtype, info.dtype),
            "start": float(times[:, 0].min()) if len(times) else None,
            "stop": float(times[:, 1].max()) if len(times) else None,
        }  # fmt: skip
    tokens = {name: streams.get(name, {}).get("tokens", 0) for name in ("video", "audio", "text")}
    return {
        "format": meta["tokpipe.format"], "duration": cache.duration,
        "start": meta.get("tokpipe.clock", {}).get("start"),
        "tokens": {**tokens, "total": sum(tokens.values())}, "streams": streams,
        "segments": _within(cache.segments.tolist(), at, stop),
        "speech": _within(meta.get("tokpipe.speech") or [], at, stop),
        "frames": _frames(cache, at, stop), "layout": cache.layout,
        "provenance": {"source": dict(cache.info), **cache.provenance},
    }  # fmt: skip


def _within(spans: list[list[float]], at: float | None, stop: float | None) -> list[list[float]]:
    return [[a, b] for a, b in spans if (stop is None or a < stop) and (at is None or b > at)]


def _frames(cache: TokenCache, at: float | None, stop: float | None) -> list[dict[str, Any]]:
    """Distinct times of the video rows, and how many cells each has of its own."""
    import numpy as np

    if "video" not in cache.streams:
        return []
    low, high = cache.rows("video", at, stop)
    times, counts = np.unique(cache.column("video.at", low, high), return_counts=True)
    return [{"pts": float(t), "cells": int(n)} for t, n in zip(times, counts, strict=True)]


def _write_frames(cache: TokenCache, folder: Path, at: float | None, stop: float | None) -> int:
    """Write every rebuilt picture as PNG; returns how many."""
    from tokpipe.export._storyboard.pictures import MANIFEST, Look, cells_of, picture_name

    look = Look("png")
    pictures = iter(cache.frames())
    # A cache without pictures says so before anything is made.
    first = next(pictures, None)
    folder.mkdir(parents=True, exist_ok=True)
    count = 0
    with (folder / MANIFEST).open("w", encoding="utf-8") as manifest:
        for frame in chain([] if first is None else [first], pictures):
            if (at is not None and frame.pts < at) or (stop is not None and frame.pts >= stop):
                continue
            name = f"{count:06}_{picture_name(frame.pts, '.png')}"
            (folder / name).write_bytes(look.encode(frame.pixels))
            line = {"pts": frame.pts, "file": name, **cells_of(frame.mask)}
            manifest.write(json.dumps(line) + "\n")
            count += 1
    return count


def _show(file: Path, found: dict[str, Any], screen: Screen) -> None:
    if screen.quiet:
        return
    source = found["provenance"]["source"]
    screen.say(
        joined([file.name, size(file.stat().st_size), f"format {found['format']}"]), style="bold"
    )
    rows = [("  source", joined([str(source.get("name", "?")), clock(found["duration"])]))]
    for name, stream in found["streams"].items():
        span = (
            f"{stamp(stream['start'])}-{stamp(stream['stop'])}"
            if stream["start"] is not None
            else ""
        )
        rows.append(
            (
                f"  {name}",
                joined(
                    [
                        plural(stream["tokens"], "token"),
                        f"D {stream['dim']} {stream['dtype']}",
                        span,
                    ]
                ),
            )
        )
    rows.append(("  layout", found["layout"]))
    rows.append(("  segments", _list([f"{stamp(a)}-{stamp(b)}" for a, b in found["segments"]])))
    rows.append(("  sound", _list([f"{stamp(a)}-{stamp(b)}" for a, b in found["speech"]])))
    rows.append(("  frames", _list([f"{stamp(f['pts'])} ({f['cells']})" for f in found["frames"]])))
    recipe = found["provenance"].get("recipe", {})
    for name in found["streams"]:
        rows += _encoder(name, found["provenance"].get(f"encoder.{name}", {}))
    rows.append(
        ("  recipe", joined([_steps(recipe), f"budget {recipe.get('budget') or 'none'}"], "; "))
    )
    rows.append(("  written by", str(found["provenance"].get("writer", "?"))))
    table(rows)
    for text in found["provenance"].get("warnings", []):
        screen.warn(text)


def _encoder(stream: str, about: dict[str, Any]) -> list[tuple[str, str]]:
    """A line on the tower that made a stream; nothing for cells of the signal."""
    if "weights" not in about:
        return []
    params = about.get("params", {})
    parts = [str(about.get("name")), str(params.get("model", "")), str(about.get("stage", ""))]
    if about.get("context") == "kept":
        parts.append("context kept")
    if params.get("inside"):
        parts.append(f"inside {params['inside']}")
    weights = "random weights" if params.get("weights") == "random" else about["weights"][:19]
    return [(f"  {stream} by", joined([*parts, weights], ", "))]


def _list(items: list[str]) -> str:
    """The first few items, and how many more there are."""
    if not items:
        return "none"
    more = f", and {len(items) - _LISTED} more" if len(items) > _LISTED else ""
    return f"{len(items)}: " + ", ".join(items[:_LISTED]) + more


def _steps(recipe: dict[str, Any]) -> str:
    chains = []
    for stream in ("video", "audio"):
        steps = recipe.get(stream) or []
        if steps:
            chains.append(f"{stream}: " + " | ".join(str(step.get("use")) for step in steps))
    for stream, steps in (recipe.get("late") or {}).items():
        uses = " | ".join(str(step.get("use")) for step in steps)
        chains.append(f"then {stream}: {uses}, budget {recipe.get('late_budget') or 'as kept'}")
    return "; ".join(chains)
