"""Export caches: find an output for each, write it under another name, rename it at the end."""

from __future__ import annotations

import filecmp
import json
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from tokpipe import __version__
from tokpipe.cache._publish import exists_error, temp_path
from tokpipe.cache.reader import open_cache
from tokpipe.digest import canonical_json, portable, sha256_text
from tokpipe.errors import OutputExists, TokpipeError, error_context
from tokpipe.export._contract import Exporter, Written, check_takes

#: In every folder an export makes: what made it. ``--force`` replaces no other folders.
MARK = ".tokpipe-export.json"
#: Parameters that may name files, which count by their content.
_FILES = ("from_source", "model", "pairs", "transcript")


@dataclass(slots=True)
class ExportRecord:
    """What became of one output.

    Attributes:
        inputs: Caches in it.
        status: ``done``, ``warned`` (something was left out), ``skipped`` (already there) or
            ``failed``.
        tokens: Media tokens in it; ``added`` what only the consumer needs, -1 unknown.
        seconds: Wall time.
        example: How the consumer takes it.
    """

    inputs: list[str]
    output: str
    to: str
    status: Literal["done", "warned", "skipped", "failed"] = "failed"
    tokens: int = 0
    added: int = 0
    items: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    bytes: int = 0
    seconds: float = 0.0
    example: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def export_cache(
    path: str | os.PathLike[str],
    target: str | os.PathLike[str],
    name: str,
    exporter: Exporter,
    *,
    force: bool = False,
) -> ExportRecord:
    """Write one cache in a consumer's form.

    Args:
        path: The cache.
        target: File or folder to make; its parent folders are made.
        name: The exporter's name, for messages.
        force: Replace what is there: any file, but only folders that an export made.

    Raises:
        OutputExists: The target is there and differs.
        CacheError: The cache cannot be read, or the consumer does not take it.
    """
    source, goal = Path(path), Path(target)
    record = ExportRecord([str(source)], str(goal), name)
    with error_context(str(source)), open_cache(source) as cache:
        check_takes(exporter, cache, name)
        mark = _mark(name, exporter, [cache.metadata["tokpipe.digest"]])
        with _output(goal, mark, record, force=force) as temporary:
            if temporary is not None:
                _fill(record, exporter.write(cache, temporary))
    return record


def export_all(
    paths: Sequence[Path], target: Path, name: str, exporter: Exporter, *, force: bool = False
) -> ExportRecord:
    """Write many caches to one output; every one of them must be readable.

    Raises:
        OutputExists: The target is there and differs.
    """
    record = ExportRecord([str(p) for p in getattr(paths, "names", paths)], str(target), name)
    digests = []
    for path in paths:
        with error_context(str(path)), open_cache(path) as cache:
            digests.append(cache.metadata["tokpipe.digest"])
    mark = _mark(name, exporter, digests)
    with _output(target, mark, record, force=force) as temporary:
        if temporary is not None:
            _fill(record, exporter.write_all(paths, temporary))
    return record


def check_cache(path: Path, name: str, exporter: Exporter) -> None:
    """Refuse a cache that cannot be read, or that the consumer does not take.

    Raises:
        CacheError: Naming what would do instead.
    """
    with error_context(str(path)), open_cache(path) as cache:
        check_takes(exporter, cache, name)


def _fill(record: ExportRecord, made: Written) -> None:
    record.tokens, record.added, record.items = made.tokens, made.added, dict(made.items)
    record.notes, record.example = list(made.notes), made.example
    record.status = "warned" if made.notes else "done"


def _mark(name: str, exporter: Exporter, digests: Sequence[Any]) -> dict[str, Any]:
    """What an output is made of; files that parameters name count by their content."""
    params = {key: getattr(exporter, key) for key in exporter.__dataclass_fields__}  # type: ignore[attr-defined]
    params |= {key: portable(params[key]) for key in _FILES if key in params}
    return {
        "tokpipe": __version__, "to": name, "params": params,
        "caches": sha256_text(canonical_json(list(digests))),
    }  # fmt: skip


@contextmanager
def _output(
    goal: Path, mark: dict[str, Any], record: ExportRecord, *, force: bool
) -> Iterator[Path | None]:
    """A path to write to, renamed to the goal at the end; None where it is there already."""
    begun = time.perf_counter()
    goal.parent.mkdir(parents=True, exist_ok=True)
    if goal.is_dir() and not force and _marked(goal) == json.loads(json.dumps(mark)):
        record.status = "skipped"
        yield None
        return
    if goal.is_dir() and not (force and _replaceable(goal)):
        raise _folder_error(goal, force=force)
    temporary = temp_path(goal)
    try:
        yield temporary
        if temporary.is_dir():
            (temporary / MARK).write_text(json.dumps(mark, indent=1) + "\n", encoding="utf-8")
        _publish(temporary, goal, record, force=force)
        record.bytes = size_of(goal)
        # Exporters know the temporary name alone.
        record.example = record.example.replace(temporary.name, str(goal))
    finally:
        _remove(temporary)
        record.seconds = round(time.perf_counter() - begun, 4)


def _publish(temporary: Path, goal: Path, record: ExportRecord, *, force: bool) -> None:
    if temporary.is_dir():
        if goal.exists() and not goal.is_dir() and not force:
            raise exists_error(goal)
        # A folder cannot be replaced in one step: the old one steps aside first.
        aside = temp_path(goal)
        if goal.exists():
            goal.rename(aside)
        temporary.rename(goal)
        _remove(aside)
        return
    if goal.exists() and not force:
        if not filecmp.cmp(temporary, goal, shallow=False):
            raise exists_error(goal)
        record.status = "skipped"
        return
    os.replace(temporary, goal)


def _marked(folder: Path) -> Any:
    try:
        return json.loads((folder / MARK).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _replaceable(folder: Path) -> bool:
    """An export made it, or it is empty."""
    return _marked(folder) is not None or not any(folder.iterdir())


def _folder_error(goal: Path, *, force: bool) -> TokpipeError:
    if not force:
        return exists_error(goal)
    return OutputExists(
        "the output is a folder that no export made",
        hint="name another with -o; --force replaces files, and folders made by an export",
        where=str(goal),
    )


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files below a folder."""
    if path.is_dir():
        return sum(p.stat().st_size for p in path.rglob("*") if p.is_file())
    return path.stat().st_size
