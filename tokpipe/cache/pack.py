"""Pack a folder of caches into a dataset; run again, it goes on where it was."""

from __future__ import annotations

import csv
import json
import os
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from tokpipe.cache._shard_files import INDEX, SHARDS, committed, names_in
from tokpipe.cache.dataset_info import Alike, DatasetInfo, KeyRule, is_dataset, read_info
from tokpipe.cache.format import SUFFIX
from tokpipe.cache.index_table import (
    IndexRow,
    ItemFacts,
    digest_key,
    index_rows,
    need_pyarrow,
    read_facts,
    write_atomic,
)
from tokpipe.cache.shards import SHARD_SIZE, ShardWriter, check_key
from tokpipe.cache.verify import verify
from tokpipe.errors import CacheCorrupt, CacheError, OutputExists, TokpipeError

__all__ = ["Packed", "PackedItem", "find_below", "name_key", "pack"]

Status = Literal["done", "skipped", "failed"]
_ERRORS = "errors"
#: Folders of a dataset.
_PARTS = (SHARDS, INDEX, _ERRORS)


@dataclass(frozen=True, slots=True)
class PackedItem:
    """What became of one input.

    Attributes:
        path: The cache, relative to the folder that was packed.
        status: ``done``, ``skipped`` (the dataset has it) or ``failed``.
        key: Its name in the dataset, empty when it has none.
        error: Why it failed.
    """

    path: Path
    status: Status
    key: str = ""
    error: TokpipeError | None = None


@dataclass(slots=True)
class Packed:
    """What became of a folder.

    Attributes:
        root: The dataset.
        items: One entry an input, in the order of packing.
        shards: Shards of the dataset, all runs together.
        bytes: Bytes of the caches that were added.
        warnings: What the file system could not do.
    """

    root: Path
    items: list[PackedItem] = field(default_factory=list)
    shards: int = 0
    bytes: int = 0
    warnings: list[str] = field(default_factory=list)

    def count(self, status: Status) -> int:
        """Inputs of one status."""
        return sum(item.status == status for item in self.items)


@dataclass(slots=True)
class _Input:
    path: Path
    relative: Path
    key: str
    facts: ItemFacts


def find_below(folder: Path) -> list[Path]:
    """Caches at any depth below a folder, by name; hidden entries and datasets are left out."""
    found = []
    for root, folders, names in os.walk(folder):
        if root != str(folder) and is_dataset(root):
            folders.clear()
            continue
        folders[:] = sorted(n for n in folders if not n.startswith("."))
        found += [Path(root) / n for n in names if n.endswith(SUFFIX) and not n.startswith(".")]
    return sorted(found, key=lambda path: path.relative_to(folder).parts)


def name_key(relative: Path) -> str:
    """A place below a folder as a key: ``a/talk 1.tokpipe.safetensors`` is ``a__talk_1``."""
    text = unicodedata.normalize("NFC", relative.as_posix().removesuffix(SUFFIX))
    return re.sub(r"[^\w-]", "_", text.replace("/", "__"))


def pack(
    folder: str | os.PathLike[str],
    root: str | os.PathLike[str],
    *,
    key: KeyRule = "digest",
    keys: Mapping[str, str] | None = None,
    shard_size: int = SHARD_SIZE,
    mixed: bool = False,
    force: bool = False,
    prefix: str = "W000",
    seen: Callable[[PackedItem, int, int], None] | None = None,
) -> Packed:
    """Pack every cache below a folder. What the dataset has already is skipped.

    Each cache is checked whole (digests included) before it enters. One that cannot be read fails
    alone and is listed in ``errors/PREFIX.jsonl``; it is tried again by the next run.

    Args:
        folder: Where the caches are; searched to any depth.
        root: The dataset's folder; made when it is not there.
        key: How items are named.
        keys: With ``column``: path below ``folder``, or file name, -> key.
        shard_size: Bytes after which a shard is sealed.
        mixed: Allow items of different encoders and recipes.
        force: An item that differs from the dataset's of the same key replaces it.
        prefix: Prefix of the shards.
        seen: Called with each input's outcome, how many are through, and of how many.

    Raises:
        RecipeError: Different encoders or recipes, both named; nothing was written.
        OutputExists: The dataset's folder is there and holds what is no dataset's.
        CacheError: No folder, another process's dataset, or one of another key rule.
        MissingExtra: pyarrow is not installed.
    """
    need_pyarrow()
    source, target = Path(folder), Path(root)
    if not source.is_dir():
        raise CacheError(f"`{source}` is no folder", code="dataset.folder",
                         hint="name the folder that holds the caches")  # fmt: skip
    _refuse_foreign(target)
    paths = [p for p in find_below(source) if target.resolve() not in p.resolve().parents]
    run = _Run(Packed(target), _Errors(target, prefix), len(paths), seen)
    if not paths:
        return run.packed
    info = _info(target, key, shard_size, mixed)
    inputs = list(_inputs(run, source, paths, key, keys or {}))
    alike = Alike(info)
    for item in sorted(inputs, key=lambda item: item.relative.parts):
        alike.add(item.facts, str(item.relative))
    target.mkdir(parents=True, exist_ok=True)
    with ShardWriter(target, prefix=prefix, shard_size=info.shard_size) as writer:
        info.write(target)
        there = {row.key: row for _, _, part in committed(target) for row in index_rows(part)}
        try:
            for item in inputs:
                run.one(writer, item, there, force)
        finally:
            run.errors.close()
    run.packed.shards, run.packed.warnings = len(committed(target)), writer.warnings
    return run.packed


def _refuse_foreign(target: Path) -> None:
    """A folder with files of others is not filled; one that a killed run began is."""
    if is_dataset(target):
        return
    odd = [n for n in names_in(target) if n not in _PARTS and not n.startswith(".")]
    if odd or (target.exists() and not target.is_dir()):
        held = f"holds other files, such as `{odd[0]}`" if odd else "is a file"
        raise OutputExists(f"`{target}` {held}", code="dataset.folder",
                           hint="name a new folder, or a dataset to add to")  # fmt: skip


def _info(target: Path, key: KeyRule, shard_size: int, mixed: bool) -> DatasetInfo:
    from tokpipe import __version__

    if not is_dataset(target):
        return DatasetInfo(key=key, shard_size=shard_size, mixed=mixed,
                           writer=f"tokpipe {__version__}")  # fmt: skip
    info = read_info(target)
    if info.key != key:
        raise CacheError(
            f"the items of the dataset are named by {info.key}, not by {key}", where=str(target),
            code="dataset.key", hint=f"say --key {info.key}",
        )  # fmt: skip
    info.mixed, info.shard_size = info.mixed or mixed, shard_size
    return info


def _inputs(
    run: _Run, source: Path, paths: list[Path], rule: KeyRule, keys: Mapping[str, str]
) -> Iterator[_Input]:
    """Caches whose headers can be read, sorted by key, no two of one key."""
    found: dict[str, list[_Input]] = {}
    recipes: dict[str, Any] = {}
    for path in paths:
        relative = path.relative_to(source)
        try:
            facts = read_facts(path)
            # One object a recipe: of a hundred thousand items each would hold its own.
            recipe = recipes.setdefault(facts.row.recipe_sha256, facts.recipe)
            facts = replace(facts, recipe=recipe)
            name = _key(rule, relative, facts.row, keys)
            found.setdefault(name, []).append(_Input(path, relative, name, facts))
        except TokpipeError as error:
            run.failed(relative, "", error)
    for name in sorted(found):
        first, *others = found[name]
        yield first
        for other in others:
            if other.facts.header == first.facts.header:
                run.ended(PackedItem(other.relative, "skipped", name))
            else:
                text = f"`{other.relative}` has the key of `{first.relative}`: `{name}`"
                run.failed(other.relative, name, CacheError(
                    text, code="dataset.key", hint="use another --key, or pack them apart"
                ))  # fmt: skip


def _key(rule: KeyRule, relative: Path, row: IndexRow, keys: Mapping[str, str]) -> str:
    if rule == "digest":
        return digest_key(row)
    if rule == "name":
        name = name_key(relative)
    else:
        told = keys.get(relative.as_posix(), keys.get(relative.name))
        told = told or keys.get(relative.name.removesuffix(SUFFIX))
        if told is None:
            raise CacheError("the table has no key for this cache", where=str(relative),
                             code="dataset.key", hint="add a row for it")  # fmt: skip
        name = told
    check_key(name)
    return name


class _Run:
    """One run of :func:`pack`: outcomes as they come."""

    def __init__(
        self, packed: Packed, errors: _Errors, total: int,
        seen: Callable[[PackedItem, int, int], None] | None,
    ) -> None:  # fmt: skip
        self.packed, self.errors, self.total, self.seen = packed, errors, total, seen

    def one(
        self, writer: ShardWriter, item: _Input, there: Mapping[str, IndexRow], force: bool
    ) -> None:
        """Add one cache, or tell why not."""
        try:
            status = _held(writer, item, there, force)
            if status == "failed":
                raise OutputExists(
                    f"the dataset has another cache under the key `{item.key}`",
                    hint="use --force to replace it", where=str(item.relative),
                )  # fmt: skip
            if status == "done":
                _check(item.path)
                writer.append(item.key, item.path, item.facts)
                self.packed.bytes += item.facts.row.size
        except TokpipeError as error:
            if error.code.startswith("resource"):
                raise
            self.failed(item.relative, item.key, error)
        else:
            self.errors.clear(item.relative)
            self.ended(PackedItem(item.relative, status, item.key))

    def failed(self, relative: Path, key: str, error: TokpipeError) -> None:
        self.errors.add(relative, key, error)
        self.ended(PackedItem(relative, "failed", key, error))

    def ended(self, item: PackedItem) -> None:
        self.packed.items.append(item)
        if self.seen is not None:
            self.seen(item, len(self.packed.items), self.total)


def _held(writer: ShardWriter, item: _Input, there: Mapping[str, IndexRow], force: bool) -> Status:
    """``skipped`` where the dataset has the same cache, ``failed`` where it has another."""
    # From before a kill: in the open shard, and committed with it.
    pending = item.key in writer.pending
    row = writer.pending.get(item.key) or there.get(item.key)
    if row is None:
        return "done"
    if row.size == item.facts.row.size:
        name = f"{row.shard}.partial" if pending else row.shard
        stored = read_facts(writer.root / SHARDS / name, (row.offset, row.size))
        if stored.header == item.facts.header:
            return "skipped"
    return "done" if force and not pending else "failed"


def _check(path: Path) -> None:
    """Refuse a cache with any problem, digests included; pictures and sound are not decoded."""
    report = verify(path, deep=True, decode=False)
    for problem in report.problems:
        raise CacheCorrupt(problem.message, where=str(path), code=f"cache.{problem.code}")


class _Errors:
    """``errors/PREFIX.jsonl``: inputs that failed and still do, one line each."""

    def __init__(self, root: Path, prefix: str) -> None:
        self.path = root / _ERRORS / f"{prefix}.jsonl"
        self.known = dict(_lines(self.path))
        self._before = dict(self.known)

    def add(self, relative: Path, key: str, error: TokpipeError) -> None:
        name = relative.as_posix()
        attempts = int(self._before.get(name, {}).get("attempts", 0)) + 1
        self.known[name] = {"input": name, "key": key, "class": type(error).__name__,
                            "code": error.code, "message": error.message,
                            "attempts": attempts}  # fmt: skip

    def clear(self, relative: Path) -> None:
        self.known.pop(relative.as_posix(), None)

    def close(self) -> None:
        if not self.known:
            self.path.unlink(missing_ok=True)
        elif self.known != self._before:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            lines = [
                json.dumps(self.known[name], ensure_ascii=False) for name in sorted(self.known)
            ]
            write_atomic(self.path, ("\n".join(lines) + "\n").encode())


def _lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError:
        return
    for line in text.splitlines():
        try:
            found = json.loads(line)
            yield str(found["input"]), found
        except (ValueError, KeyError, TypeError):
            continue


def read_keys(path: Path) -> dict[str, str]:
    """A table of keys: CSV with a head line, or JSON lines; columns ``path`` and ``key``.

    Raises:
        CacheError: It cannot be read, or has no such columns.
    """
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix.lower() in (".jsonl", ".ndjson"):
            rows: Iterable[Mapping[str, Any]] = map(
                json.loads, filter(str.strip, text.splitlines())
            )
        else:
            rows = csv.DictReader(text.splitlines())
        return {str(row["path"]): str(row["key"]) for row in rows}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CacheError(
            f"cannot read the table of keys: {error}", where=str(path), code="dataset.keys",
            hint="give it the columns path and key",
        ) from error  # fmt: skip


def read_errors(root: Path) -> Iterable[dict[str, Any]]:
    """Failed inputs of every writer of a dataset."""
    for path in sorted((root / _ERRORS).glob("*.jsonl")):
        yield from (found for _, found in _lines(path))
