"""What the numbers in the columns must satisfy. Everything is walked in blocks: memory is flat."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from typing import Any

import numpy as np

from tokpipe.cache._file import Array, CacheFile
from tokpipe.cache._structure import Problem
from tokpipe.cache.format import KIND_LAYOUT, KIND_MAX, STREAMS, is_feature, is_finite

#: Relative tolerance of the mass sum: float32 masses, summed in float64.
MASS_TOLERANCE = 1e-3
_ROWS = 1 << 14

Rule = tuple[str, str, Callable[[dict[str, Array]], Any]]


def cheap_problems(
    file: CacheFile, metadata: Mapping[str, Any], streams: tuple[str, ...]
) -> Iterator[Problem]:
    """What is checked whenever a cache is opened: ``at`` is monotone, mass is conserved."""
    for stream in streams:
        yield from _monotone(file, f"{stream}.at", "order", finite=True)
    yield from _mass(file, metadata, streams)


def _mass(
    file: CacheFile, metadata: Mapping[str, Any], streams: tuple[str, ...]
) -> Iterator[Problem]:
    for stream in STREAMS:
        entry = metadata["tokpipe.counts"].get(stream)
        if entry is None:
            continue
        total, rows = 0.0, 0
        if stream in streams:
            rows = file.num_rows(f"{stream}.mass")
            for _, block in file.blocks(f"{stream}.mass"):
                total += float(block.sum(dtype=np.float64))
        source, dropped = float(entry["source"]), float(entry["dropped"])
        if rows != entry["kept"]:
            yield Problem("counts", f"{stream}: {rows} rows, the counts say {entry['kept']}")
        # Written so that NaN fails.
        if not abs(total + dropped - source) <= MASS_TOLERANCE * max(source, 1.0):
            yield Problem("mass", f"{stream}: mass {total:g} + dropped {dropped:g} is not the "
                                  f"{source:g} source tokens")  # fmt: skip


def _monotone(
    file: CacheFile, name: str, code: str, *, first: int | None = None, last: int | None = None,
    finite: bool = False,
) -> Iterator[Problem]:  # fmt: skip
    previous: Any = None
    for start, block in file.blocks(name):
        joined = block if previous is None else np.concatenate([previous, block])
        fine = joined[1:] >= joined[:-1]
        if not fine.all() or (finite and not np.isfinite(block).all()):
            base = start - (0 if previous is None else 1)
            row = base + 1 + int(np.argmin(fine)) if not fine.all() else start
            yield Problem(code, f"`{name}` is not monotone and finite near row {row}")
            return
        if start == 0 and first is not None and len(block) and block[0] != first:
            yield Problem(code, f"`{name}` starts at {block[0]}, expected {first}")
        previous = block[-1:]
    if last is not None and previous is not None and len(previous) and previous[0] != last:
        yield Problem(code, f"`{name}` ends at {previous[0]}, expected {last}")


def value_problems(
    file: CacheFile, metadata: Mapping[str, Any], streams: tuple[str, ...]
) -> Iterator[Problem]:
    """Every invariant of the page but the contents of tensors and pictures."""
    yield from cheap_problems(file, metadata, streams)
    if metadata.get("tokpipe.layout") not in ("ragged", "frames", "grid"):
        yield Problem("metadata", f"unknown layout {metadata.get('tokpipe.layout')!r}")
    segments = file.num_rows("segment.pts") if "segment.pts" in file else 0
    for stream in streams:
        yield from _rows(file, stream, _rules(file, stream, metadata, segments))
        yield from _blobs(file, stream)
    if "video" in streams and metadata.get("tokpipe.layout") == "frames":
        yield from _whole_pictures(file, metadata)
    yield from _rank(file, streams)
    if segments:
        yield from _segments(file, streams)
    for group, blob, pts in (("text", "utf8", True), ("thumb", "data", False)):
        if f"{group}.offsets" in file:
            size = file.num_rows(f"{group}.{blob}")
            yield from _monotone(file, f"{group}.offsets", group, first=0, last=size)
            spans = file.read(f"{group}.pts")
            if not np.isfinite(spans).all() or (pts and (spans[:, 0] > spans[:, 1]).any()):
                yield Problem(group, f"`{group}.pts` is not finite spans")


def _rules(file: CacheFile, stream: str, metadata: Mapping[str, Any], segments: int) -> list[Rule]:
    rules: list[Rule] = [
        ("span", "pts does not hold at", lambda c: ~((c["pts"][:, 0] <= c["at"])
                                                     & (c["at"] <= c["pts"][:, 1]))),
        ("span", "pts is not finite", lambda c: ~np.isfinite(c["pts"]).all(1)),
        ("frame", "the first frame is after the last or below -1",
         lambda c: (c["frame"][:, 0] > c["frame"][:, 1]) | (c["frame"] < -1).any(1)),
        ("cell", "a cell is below -1", lambda c: (c["cell"] < -1).any(1)),
        ("cell", "an extent is below 0, or 0 where the cell is known",
         lambda c: ((c["extent"] < 0) | ((c["extent"] == 0) & (c["cell"] >= 0))).any(1)),
        ("cell", "the tile is negative", lambda c: c["tile"] < 0),
        ("kind", f"the kind is above {KIND_MAX}", lambda c: c["kind"] > KIND_MAX),
        ("mass", "the mass is not positive",
         lambda c: ~(np.isfinite(c["mass"])
                     & ((c["mass"] > 0) | ((c["kind"] >= KIND_LAYOUT) & (c["mass"] == 0))))),
        ("segment", f"the segment is not in -1..{segments - 1}",
         lambda c: (c["segment"] < -1) | (c["segment"] >= segments)),
    ]  # fmt: skip
    grid, atlas = metadata.get("tokpipe.grid"), metadata.get("tokpipe.atlas")
    if f"{stream}.atlas_box" in file and grid and atlas:
        rules += _atlas_rules(file, stream, grid, atlas)
    clip = metadata.get("tokpipe.clip")
    if f"{stream}.clip_offset" in file and clip:
        samples = int(clip["samples"])
        message = f"the clip offset is not in 0..{samples - 1}"
        rules.append(
            ("clip", message, lambda c: (c["clip_offset"] < 0) | (c["clip_offset"] >= samples))
        )
    return rules


def _atlas_rules(
    file: CacheFile, stream: str, grid: Mapping[str, Any], atlas: Mapping[str, Any]
) -> list[Rule]:
    pages = file.num_rows(f"{stream}.atlas_offsets") - 1
    width, height = (int(n) * int(atlas["slot"]) for n in atlas["slots"])

    def outside(c: dict[str, Array]) -> Any:
        page, x, y, size = c["atlas_box"].astype(np.int64).T
        bad = (page >= pages) | (x < 0) | (y < 0) | (size < 1)
        bad |= (x + size > width) | (y + size > height)
        return (page < -1) | ((page >= 0) & bad)

    def off_grid(c: dict[str, Array]) -> Any:
        y, x = c["cell"][:, 1], c["cell"][:, 2]
        shown = (c["atlas_box"][:, 0] >= 0) & (c["tile"] == 0)
        return shown & ((y < 0) | (x < 0) | (y >= grid["rows"]) | (x >= grid["cols"]))

    rules: list[Rule] = [
        ("atlas", f"the atlas box is not inside one of {pages} pages", outside),
        ("cell", "a cell with a picture is outside the grid", off_grid),
    ]
    return rules


def _rows(file: CacheFile, stream: str, rules: list[Rule]) -> Iterator[Problem]:
    names = ["at", "pts", "frame", "cell", "extent", "tile", "mass", "kind", "segment"]
    names += [n for n in ("atlas_box", "clip_offset") if f"{stream}.{n}" in file]
    bad: dict[int, list[int]] = {}
    unsorted: int | None = None
    total = file.num_rows(f"{stream}.at")
    for start in range(0, total, _ROWS):
        # One row of overlap, so that order is checked across blocks.
        low = max(0, start - 1)
        columns = {n: file.read(f"{stream}.{n}", low, start + _ROWS) for n in names}
        order = sorted_rows(columns["at"], columns["tile"], columns["cell"])
        if unsorted is None and not order.all():
            unsorted = low + 1 + int(np.argmin(order))
        for index, (_, _, rule) in enumerate(rules):
            hits = np.flatnonzero(rule(columns))
            if len(hits):
                seen = bad.setdefault(index, [low + int(hits[0]), 0])
                seen[1] += len(hits)
    if unsorted is not None:
        yield Problem("order", f"{stream} row {unsorted} is not sorted by (at, tile, y, x)")
    for index, (row, count) in sorted(bad.items()):
        code, message, _ = rules[index]
        more = f" and {count - 1} more" if count > 1 else ""
        yield Problem(code, f"{stream} row {row}{more}: {message}")


def sorted_rows(at: Array, tile: Array, cell: Array) -> Array:
    """Whether each row but the first is not before the one above it, by (at, tile, y, x)."""
    fine = np.ones(max(len(at) - 1, 0), dtype=bool)
    for key in (cell[:, 2], cell[:, 1], tile, at):
        fine = (key[1:] > key[:-1]) | ((key[1:] == key[:-1]) & fine)
    return fine


def _whole_pictures(file: CacheFile, metadata: Mapping[str, Any]) -> Iterator[Problem]:
    """A cache of whole frames holds no part of a picture.

    A picture is a part where its cells fill no rectangle and stand for fewer source tokens than
    those of another picture. Towers that merge patches leave no rectangle, and are not judged.
    """
    made = metadata.get("tokpipe.encoder.video", {})
    if (made.get("params") or {}).get("inside"):
        return
    times, masses, filled = [], [], []
    for rows in _pictures(file):
        times.append(float(rows["at"][0]))
        real = rows["kind"] < KIND_LAYOUT
        masses.append(float(rows["mass"][real].sum(dtype=np.float64)))
        placed = real & (rows["cell"][:, 1:] >= 0).all(1)
        filled.append(_fill_rectangles(rows["tile"][placed], rows["cell"][placed, 1:]))
    most = max(masses, default=0.0) * (1 - MASS_TOLERANCE)
    parts = [
        t for t, mass, full in zip(times, masses, filled, strict=True) if mass < most and not full
    ]
    if parts:
        more = f" and {len(parts) - 1} more" if len(parts) > 1 else ""
        yield Problem("layout", f"layout `frames`, but the picture at {parts[0]:.3f} s{more} "
                                "is not whole")  # fmt: skip


def _pictures(file: CacheFile) -> Iterator[dict[str, Array]]:
    """Rows of one picture after the other."""
    names = ("at", "tile", "cell", "kind", "mass")
    held: dict[str, Array] = {}
    for start in range(0, file.num_rows("video.at"), _ROWS):
        block = {n: file.read(f"video.{n}", start, start + _ROWS) for n in names}
        held = {n: np.concatenate([held[n], a]) for n, a in block.items()} if held else block
        edges = [0, *(np.flatnonzero(np.diff(held["at"])) + 1).tolist()]
        for low, high in pairwise(edges):
            yield {n: a[low:high] for n, a in held.items()}
        held = {n: a[edges[-1] :] for n, a in held.items()}
    if held:
        yield held


def _fill_rectangles(tile: Array, cell: Array) -> bool:
    """Cells [n, 2] of each tile are all those of some rows and columns, each once."""
    for number in np.unique(tile):
        own = cell[tile == number]
        y, x = (len(np.unique(own[:, axis])) for axis in (0, 1))
        if not len(np.unique(own, axis=0)) == len(own) == y * x:
            return False
    return len(cell) > 0


def _blobs(file: CacheFile, stream: str) -> Iterator[Problem]:
    if f"{stream}.atlas_offsets" in file:
        size = file.num_rows(f"{stream}.atlas")
        yield from _monotone(file, f"{stream}.atlas_offsets", "atlas", first=0, last=size)
    if f"{stream}.clip_offset" in file:
        yield from _monotone(file, f"{stream}.clip_offset", "clip")
    if f"{stream}.members_offsets" in file:
        size = file.num_rows(f"{stream}.members")
        yield from _monotone(file, f"{stream}.members_offsets", "members", first=0, last=size)
        for _, block in file.blocks(f"{stream}.members"):
            if (block < 0).any():
                yield Problem("members", f"`{stream}.members` has a negative source token")
                break


def _rank(file: CacheFile, streams: tuple[str, ...]) -> Iterator[Problem]:
    total = sum(file.num_rows(f"{stream}.rank") for stream in streams)
    seen = np.zeros(total, dtype=bool)
    for stream in streams:
        for _, block in file.blocks(f"{stream}.rank"):
            seen[block[(block >= 0) & (block < total)]] = True
    if not seen.all():
        yield Problem("rank", f"the ranks of all streams are no permutation of 0..{total - 1}")


def _segments(file: CacheFile, streams: tuple[str, ...]) -> Iterator[Problem]:
    pts, rows = file.read("segment.pts"), file.read("segment.rows")
    if not (np.isfinite(pts).all() and (pts[:, 0] <= pts[:, 1]).all()):
        yield Problem("segment", "`segment.pts` is not finite spans")
    if (np.diff(pts[:, 0]) < 0).any():
        yield Problem("segment", "`segment.pts` is not sorted by start")
    for stream, (a, b) in zip(STREAMS, ((0, 1), (2, 3)), strict=True):
        total = file.num_rows(f"{stream}.at") if stream in streams else 0
        low, high = rows[:, a], rows[:, b]
        filled = low < high
        overlap = (low[filled][1:] < high[filled][:-1]).any()
        if overlap or ((low < 0) | (low > high) | (high > total)).any():
            yield Problem("segment", f"`segment.rows` of {stream} are not ordered ranges of rows")
            continue
        if total:
            marks = np.full(total, -1, dtype=np.int32)
            for index, (x, y) in enumerate(zip(low.tolist(), high.tolist(), strict=True)):
                marks[x:y] = index
            if not np.array_equal(marks, file.read(f"{stream}.segment")):
                yield Problem("segment", f"`{stream}.segment` and `segment.rows` disagree")


def feature_problems(file: CacheFile) -> Iterator[Problem]:
    """Tokens and deepstack rows must be finite."""
    for name in filter(is_feature, file.header.tensors):
        for start, block in file.blocks(name):
            if not is_finite(block, file.info(name).dtype):
                yield Problem("finite", f"`{name}` is not finite near row {start}")
                break
