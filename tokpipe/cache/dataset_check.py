"""Check a dataset, packed or loose: every shard, every index part, every item."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokpipe.cache._shard_files import SHARD_NAME, SHARDS, committed, members, names_in, pairs
from tokpipe.cache._structure import Problem
from tokpipe.cache.dataset_info import Alike, is_dataset, read_info
from tokpipe.cache.index_table import IndexRow, index_rows, read_facts, row_from_json
from tokpipe.cache.pack import find_below
from tokpipe.cache.verify import verify
from tokpipe.errors import CacheError, MissingExtra, RecipeError, TokpipeError

__all__ = ["Checked", "verify_dataset"]

_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Checked:
    """What was found wrong with one item, one shard or the folder.

    Attributes:
        kind: ``item``, ``shard`` or ``dataset``.
        name: Key, shard, or path of a loose file.
        problems: (code, message) each; empty when it is sound.
        counts: Of an item, as ``verify`` counts.
    """

    kind: str
    name: str
    problems: tuple[Problem, ...] = ()
    counts: Mapping[str, int] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Nothing is wrong."""
        return not self.problems

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"kind": self.kind, "name": self.name, "ok": self.ok, "counts": dict(self.counts),
                "problems": [p._asdict() for p in self.problems]}  # fmt: skip


def verify_dataset(path: str | os.PathLike[str], deep: bool = False) -> Iterator[Checked]:
    """Check a packed dataset or a folder of loose caches, one finding after another.

    Args:
        path: The folder.
        deep: Also compare digests, of tensors and of whole items, and decode pictures and sound.

    Raises:
        CacheError: There is no such folder, or nothing in it.
    """
    root = Path(path)
    if not is_dataset(root):
        yield from _loose(root, deep)
        return
    try:
        info = read_info(root)
    except CacheError as error:
        yield Checked("dataset", str(root), (_problem(error),))
        return
    alike = Alike(info)
    done = committed(root)
    names = {f"{stem}.tar" for stem, _, _ in done}
    for name in names_in(root / SHARDS):
        found = SHARD_NAME.fullmatch(name)
        if found and not found[3] and name not in names:
            text = "it has no index part; `tokpipe dataset pack` takes it up or sweeps it"
            yield Checked("shard", name, (Problem("uncommitted", text),))
    for stem, _, part in done:
        yield from _shard(root, f"{stem}.tar", part, alike, deep)


def _loose(root: Path, deep: bool) -> Iterator[Checked]:
    files = find_below(root) if root.is_dir() else [root]
    if not files or not root.exists():
        raise CacheError(f"no token caches in `{root}`", code="dataset.empty",
                         hint="name a dataset, or a folder of token caches")  # fmt: skip
    for path in files:
        try:
            report = verify(path, deep)
        except TokpipeError as error:
            yield Checked("item", str(path), (_problem(error),))
        else:
            yield Checked("item", str(path), report.problems, report.counts)


def _problem(error: TokpipeError) -> Problem:
    return Problem(error.code.partition(".")[2] or error.code, error.message)


def _shard(root: Path, name: str, part: Path, alike: Alike, deep: bool) -> Iterator[Checked]:
    path = root / SHARDS / name
    try:
        found = list(pairs(path))
        told = {pair.key: row_from_json(json, name, pair.offset)
                for pair, json in members(path, found)}  # fmt: skip
    except (TokpipeError, OSError) as error:
        known = error if isinstance(error, TokpipeError) else CacheError(str(error))
        yield Checked("shard", name, (_problem(known),))
        return
    yield Checked("shard", name, tuple(_index(part, told)))
    for pair in found:
        yield _item(path, told[pair.key], (pair.offset, pair.size), alike, deep)


def _index(part: Path, told: Mapping[str, IndexRow]) -> Iterator[Problem]:
    """The index part says what the shard says."""
    try:
        rows = {row.key: row for row in index_rows(part)}
    except MissingExtra:
        return
    except CacheError as error:
        yield _problem(error)
        return
    for key in sorted(rows.keys() ^ told.keys()):
        where = "is not in the shard" if key in rows else "is not in the index part"
        yield Problem("index", f"item `{key}` {where}")
    for key in sorted(rows.keys() & told.keys()):
        if rows[key] != told[key]:
            pairs_ = zip(rows[key].to_dict().items(), told[key].to_dict().values(), strict=True)
            odd = [name for (name, mine), other in pairs_ if mine != other]
            yield Problem("index", f"item `{key}`: {', '.join(odd)} differ from its JSON")


def _item(
    path: Path, row: IndexRow, window: tuple[int, int], alike: Alike, deep: bool
) -> Checked:  # fmt: skip
    problems: list[Problem] = []
    counts: Mapping[str, int] = {}
    try:
        report = verify(path, deep, window)
        problems, counts = list(report.problems), report.counts
        if row.size != window[1]:
            problems.append(Problem("size", f"{window[1]} bytes, its JSON says {row.size}"))
        if not problems:
            alike.add(read_facts(path, window), row.key)
    except (CacheError, RecipeError) as error:
        problems.append(_problem(error))
    if deep and _digest(path, window) != row.sha256:
        problems.append(Problem("digest", "the bytes of the item differ from their digest"))
    return Checked("item", row.key, tuple(problems), counts)


def _digest(path: Path, window: tuple[int, int]) -> str:
    running, left = hashlib.sha256(), window[1]
    with path.open("rb") as file:
        file.seek(window[0])
        while left and (block := file.read(min(left, _BLOCK_BYTES))):
            running.update(block)
            left -= len(block)
    return running.hexdigest()
