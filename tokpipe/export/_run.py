"""Export caches: find an output for each, write it under another name, rename it at the end."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

from tokpipe import __version__
from tokpipe.cache.reader import open_cache
from tokpipe.digest import canonical_json, portable, sha256_text
from tokpipe.errors import error_context
from tokpipe.export._contract import Exporter, Written, check_takes
from tokpipe.export._inputs import names_of
from tokpipe.export._output import Output, output, size_of

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
        made_of = _made_of(name, exporter, [cache.metadata["tokpipe.digest"]])
        _write(record, Output(goal, made_of, [source], force=force), partial(exporter.write, cache))
    return record


def export_all(
    paths: Sequence[Path], target: Path, name: str, exporter: Exporter, *, force: bool = False
) -> ExportRecord:
    """Write many caches to one output; every one of them must be readable.

    Raises:
        OutputExists: The target is there and differs.
    """
    record = ExportRecord([str(p) for p in names_of(paths)], str(target), name)
    digests = []
    for path in paths:
        with error_context(str(path)), open_cache(path) as cache:
            digests.append(cache.metadata["tokpipe.digest"])
    made_of = _made_of(name, exporter, digests)
    sources = names_of(paths)
    _write(
        record, Output(target, made_of, sources, force=force), partial(exporter.write_all, paths)
    )
    return record


def check_cache(path: Path, name: str, exporter: Exporter) -> None:
    """Refuse a cache that cannot be read, or that the consumer does not take.

    Raises:
        CacheError: Naming what would do instead.
    """
    with error_context(str(path)), open_cache(path) as cache:
        check_takes(exporter, cache, name)


def _write(record: ExportRecord, target: Output, write: Callable[[Path], Written]) -> None:
    begun = time.perf_counter()
    if target.there:
        record.status = "skipped"
        return
    with output(target) as temporary:
        _fill(record, write(temporary))
        if target.put(temporary) == "there":
            record.status = "skipped"
        # Exporters know the temporary name alone.
        record.example = record.example.replace(temporary.name, str(target.goal))
    record.bytes = size_of(target.goal)
    record.seconds = round(time.perf_counter() - begun, 4)


def _fill(record: ExportRecord, made: Written) -> None:
    record.tokens, record.added, record.items = made.tokens, made.added, dict(made.items)
    record.notes, record.example = list(made.notes), made.example
    record.status = "warned" if made.notes else "done"


def _made_of(name: str, exporter: Exporter, digests: Sequence[Any]) -> dict[str, Any]:
    """What an output is made of; files that parameters name count by their content."""
    params = {key: getattr(exporter, key) for key in exporter.__dataclass_fields__}  # type: ignore[attr-defined]
    params |= {key: portable(params[key]) for key in _FILES if key in params}
    return {
        "tokpipe": __version__, "to": name, "params": params,
        "caches": sha256_text(canonical_json(list(digests))),
    }  # fmt: skip
