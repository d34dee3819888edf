"""Many caches as one set: an id for each, and what all of them have in common."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tokpipe.cache.format import NUMPY_DTYPES, STREAMS, SUFFIX, is_feature, lookup
from tokpipe.cache.reader import open_cache
from tokpipe.errors import CacheError
from tokpipe.export._inputs import names_of
from tokpipe.export._storage.columns import (
    DType,
    Plain,
    dtype_note,
    form_of,
    metadata_text,
    plain_columns,
)

if TYPE_CHECKING:
    from tokpipe.cache.reader import TokenCache


@dataclass(slots=True)
class Found:
    """A tensor as the caches have it.

    Attributes:
        stored: Safetensors dtypes.
        tails: Sizes of a row, each with the first cache that has it.
        caches: How many have it.
    """

    stored: set[str] = field(default_factory=set)
    tails: dict[tuple[int, ...], str] = field(default_factory=dict)
    caches: int = 0


@dataclass(slots=True)
class Gathered:
    """What a first look at all caches found; no features are read for it.

    Attributes:
        paths: The caches, in the order given; those of a dataset are copied out one by one, so
            that a path is good until the next one is taken.
        ids: One id each: no dot, no slash, no two the same.
        tensors: Every tensor that one of them has, by name.
        tokens: Tokens by stream over all caches.
        same: Metadata that are the same text in all of them.
    """

    paths: Sequence[Path]
    ids: tuple[str, ...]
    tensors: dict[str, Found] = field(default_factory=dict)
    tokens: dict[str, int] = field(default_factory=dict)
    same: dict[str, str] = field(default_factory=dict)

    @property
    def streams(self) -> tuple[str, ...]:
        """Streams that one of the caches has."""
        return tuple(stream for stream in STREAMS if self.tokens.get(stream))

    def form(self, stream: str, choice: DType) -> str:
        """The dtype of all features of a stream."""
        stored = set[str]().union(
            *(found.stored for name, found in self.tensors.items()
              if name.startswith(f"{stream}.") and is_feature(name))
        )  # fmt: skip
        return form_of(stored, choice)

    def width(self, name: str) -> int:
        """D of a feature tensor.

        Raises:
            CacheError: Two caches have tokens of another width.
        """
        tails = self.tensors[name].tails
        if len(tails) > 1:
            (a, first), (b, second) = list(tails.items())[:2]
            raise CacheError(
                f"`{name}` is {a[0]} wide in `{first}` and {b[0]} in `{second}`",
                hint="export caches of one encoder together, others apart", code="export.mixed",
            )  # fmt: skip
        return next(iter(tails))[0]

    def notes(self, choice: DType) -> list[str]:
        """What was changed or filled in, one sentence each."""
        out = []
        for stream in self.streams:
            stored = self.tensors[f"{stream}.tokens"].stored
            out.append(dtype_note(stored, self.form(stream, choice)))
            lacking = len(self.paths) - self.tensors[f"{stream}.at"].caches
            if lacking:
                out.append(f"{lacking} of {len(self.paths)} caches have no {stream}: 0 rows")
        return list(dict.fromkeys(note for note in out if note))

    def open(self, choice: DType) -> Iterator[tuple[str, TokenCache, dict[str, Plain]]]:
        """Every cache in turn with its id and columns, those it lacks with no row."""
        for identity, path in zip(self.ids, self.paths, strict=True):
            with open_cache(path) as cache:
                yield identity, cache, self._columns(cache, choice)

    def _columns(self, cache: TokenCache, choice: DType) -> dict[str, Plain]:
        there = plain_columns(cache, choice)
        out = {}
        for name, found in self.tensors.items():
            feature = is_feature(name)
            form = self.form(name.partition(".")[0], choice) if feature else ""
            if name in there:
                old = there[name]
                out[name] = Plain(name, form, old.shape, cache) if feature else old
                continue
            owner, column = lookup(name) or (None, None)
            # Offsets of nothing are one zero, or one zero for each row and one more.
            lead = 0
            if column is not None and "+1" in str(column.shape[0]):
                lead = 1 + (cache.num_tokens(owner) if column.shape[0] == "N+1" and owner else 0)
            tail = next(iter(found.tails))
            form = form or NUMPY_DTYPES[next(iter(found.stored))].name
            out[name] = Plain(name, form, (lead, *tail), None)
        return out


def gather(paths: Sequence[Path]) -> Gathered:
    """Look at the headers of all caches; memory grows with their names alone.

    Raises:
        CacheError: There is none, or one of them is no cache.
    """
    if not paths:
        raise CacheError("no cache to export", code="export.none", hint="name caches or folders")
    found = Gathered(paths, item_ids(paths))
    for index, path in enumerate(paths):
        with open_cache(path) as cache:
            _look(found, cache, path.name)
            text = metadata_text(cache)
        if index:
            found.same = {k: v for k, v in found.same.items() if text.get(k) == v}
        else:
            found.same = text
    found.tensors = dict(sorted(found.tensors.items(), key=lambda entry: _place(entry[0])))
    return found


def _look(found: Gathered, cache: TokenCache, name: str) -> None:
    for tensor in cache.names:
        info = cache.tensor_info(tensor)
        if info.dtype not in NUMPY_DTYPES or lookup(tensor) is None:
            continue
        entry = found.tensors.setdefault(tensor, Found())
        entry.stored.add(info.dtype)
        entry.tails.setdefault(info.shape[1:], name)
        entry.caches += 1
    for stream in cache.streams:
        found.tokens[stream] = found.tokens.get(stream, 0) + cache.num_tokens(stream)


def _place(name: str) -> tuple[bool, str]:
    """Features come last, as in the file."""
    return is_feature(name), name


_ODD = re.compile(r"[^\w-]+")


def item_ids(paths: Sequence[Path]) -> tuple[str, ...]:
    """An id for each cache: its name, with its folders where two would be the same.

    Dots become ``_``: WebDataset reads what follows the first one as the kind of a member.
    """
    paths = names_of(paths)
    plain = [_identity(path.name) for path in paths]
    if len(set(plain)) < len(plain):
        full = [path.absolute() for path in paths]
        root = Path(os.path.commonpath([path.parent for path in full]))
        plain = [
            "--".join(_identity(part) for part in path.relative_to(root).parts) for path in full
        ]
    taken: dict[str, int] = {}
    out = []
    for name in plain:
        taken[name] = taken.get(name, 0) + 1
        out.append(name if taken[name] == 1 else f"{name}~{taken[name]}")
    return tuple(out)


def _identity(name: str) -> str:
    short = name.removesuffix(SUFFIX).removesuffix(".safetensors")
    return _ODD.sub("_", short).strip("_") or "item"
