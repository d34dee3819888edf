"""Shards of a dataset: append, seal, commit; a kill at any moment loses at most the last items.

A writer owns a prefix (``W000``). Its open shard is ``shards/W000-000007.tar.partial`` with a
journal beside it; sealed it is ``W000-000007.tar`` with ``.tar.idx``; committed it has
``index/W000-000007.parquet``. What is not committed and has no journal is garbage.
"""

from __future__ import annotations

import hashlib
import os
import re
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import numpy as np

from tokpipe.cache._journal import SYNC_EVERY, Entry, read_journal, sound, truncate
from tokpipe.cache._lock import Lock
from tokpipe.cache._publish import sweep_stale, sync_file, sync_folder
from tokpipe.cache._shard_files import (
    CACHE_END,
    INDEX,
    JSON_END,
    SHARD_NAME,
    SHARDS,
    committed,
    names_in,
)
from tokpipe.cache._spool import raise_io
from tokpipe.cache._tar import BLOCK, END, MAX_NAME, member_header, padded, padding
from tokpipe.cache.index_table import (
    IndexRow,
    ItemFacts,
    need_pyarrow,
    read_facts,
    write_atomic,
    write_index,
)
from tokpipe.errors import CacheError

__all__ = ["SHARD_SIZE", "SealedShard", "ShardWriter", "check_key"]

#: Bytes after which a shard is sealed.
SHARD_SIZE = 512_000_000
_KEY = re.compile(r"[^\W_.][\w-]*|_[\w-]*")
_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class SealedShard:
    """A shard that is whole but not yet part of the dataset."""

    name: str
    rows: tuple[IndexRow, ...]


class ShardWriter:
    """Writes the shards of one worker. Leaving the ``with`` block well commits what is there.

    An error, and a kill, leave the open shard and its journal: the next writer of the prefix goes
    on with it, cut back to the last item that is whole.

    Args:
        root: The dataset's folder.
        prefix: ``W`` and digits; one running writer has it.
        shard_size: A shard is sealed before it would grow beyond this many bytes; a larger cache
            has a shard of its own.
        durability: ``full`` flushes to the disk every 16 items and before each rename.

    Attributes:
        pending: Index rows of items that are in the open shard, by key.
        warnings: What the file system could not do.

    Raises:
        CacheError: Another process writes under this prefix, or the folder cannot be written.
        MissingExtra: pyarrow is not installed.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        prefix: str = "W000",
        shard_size: int = SHARD_SIZE,
        durability: Literal["full", "fast"] = "full",
    ) -> None:
        need_pyarrow()
        self.root, self.prefix, self.shard_size = Path(root), prefix, shard_size
        self.warnings: list[str] = []
        self.pending: dict[str, IndexRow] = {}
        self._sync = durability == "full"
        self._shards, self._index = self.root / SHARDS, self.root / INDEX
        try:
            for folder in (self._shards, self._index):
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise_io(error, f"make a folder in `{root}`")
        self._lock = Lock(self._shards / f".{prefix}.lock")
        self._name = ""
        self._entries: list[Entry] = []
        self._tar: int | None = None
        self._journal: int | None = None
        try:
            self._recover()
        except BaseException:
            self._release()
            raise

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:  # fmt: skip
        """Commit, or after an error leave the open shard for the next writer."""
        if kind is None:
            self.close()
        else:
            self.leave()

    @property
    def size(self) -> int:
        """Bytes in the open shard."""
        return self._entries[-1].stop if self._entries else 0

    def append(
        self, key: str, source: str | os.PathLike[str] | bytes, facts: ItemFacts | None = None
    ) -> IndexRow:
        """Append one cache; seals and commits the open shard first where it is full.

        Args:
            key: Letters, digits, ``_`` and ``-``.
            source: A cache file, or its bytes.
            facts: What :func:`read_facts` says of the file; read here when absent.

        Raises:
            CacheError: The key cannot be one, is in the open shard already, or the file changed
                while it was read.
            ResourceError: The disk is full.
        """
        check_key(key)
        if key in self.pending:
            raise CacheError(f"the key `{key}` is there already", code="dataset.key")
        told = facts or read_facts_of(source)
        if self._entries and self.size + _pair_size(told.row.size) > self.shard_size:
            self.commit(self.seal())
        if self._tar is None:
            self._open(self._next())
        entry = self._write(key, source, told)
        self._entries.append(entry)
        self.pending[key] = entry.row
        if len(self._entries) % SYNC_EVERY == 0:
            self._flush()
        return entry.row

    def seal(self) -> SealedShard:
        """End the open shard: tar and ``.idx`` are whole and named, not yet in the dataset.

        Raises:
            CacheError: There is no open shard.
        """
        if self._tar is None or not self._entries:
            raise CacheError("there is no open shard", code="dataset.shard")
        entries, rows = self._entries, tuple(e.row for e in self._entries)
        try:
            self._put(self._tar, END)
            self._flush()
            edges = [*(e.start for e in entries), entries[-1].stop + len(END)]
            data = np.array(edges, dtype="<u8").tobytes()
            write_atomic(self._path(".idx"), data, sync=self._sync, warnings=self.warnings)
            os.replace(self._path(".partial"), self._path(""))
            if self._sync:
                sync_folder(self._shards, self.warnings)
        except OSError as error:
            raise_io(error, f"seal `{self._path('')}`")
        self._shut()
        self._entries, self.pending = [], {}
        return SealedShard(rows[0].shard, rows)

    def commit(self, shard: SealedShard) -> Path:
        """Write the shard's index part; from its rename on the items are in the dataset."""
        target = self._index / f"{Path(shard.name).stem}.parquet"
        write_index(target, shard.rows, sync=self._sync, warnings=self.warnings)
        (self._shards / f"{shard.name}.journal").unlink(missing_ok=True)
        return target

    def close(self) -> None:
        """Seal and commit what is there, and give the prefix back."""
        if self._entries:
            self.commit(self.seal())
        else:
            self._drop_empty()
        self._release()

    def leave(self) -> None:
        """Keep the open shard for the next writer, and give the prefix back."""
        if self._tar is not None:
            self._flush()
        self._release()

    def _write(self, key: str, source: str | os.PathLike[str] | bytes, facts: ItemFacts) -> Entry:
        assert self._tar is not None and self._journal is not None  # noqa: S101 - opened above
        start, size, told = self.size, facts.row.size, os.fstat(self._journal).st_size
        digest, seen = hashlib.sha256(), 0
        try:
            crc = self._put(self._tar, member_header(key + CACHE_END, size))
            for block in _blocks(source):
                digest.update(block)
                seen += len(block)
                crc = self._put(self._tar, block, crc)
            if seen != size:
                where = None if isinstance(source, bytes) else str(source)
                raise CacheError(
                    "the cache changed while it was read", code="cache.size", where=where
                )
            row = facts.row.at(key, self._name, start + BLOCK, digest.hexdigest())
            beside = facts.member(row)
            for part in (padding(size), member_header(key + JSON_END, len(beside)), beside,
                         padding(len(beside))):  # fmt: skip
                crc = self._put(self._tar, part, crc)
            entry = Entry(start, start + _pair_size(size, len(beside)), crc, row)
            self._put(self._journal, entry.line())
        except BaseException as error:
            # Whatever was written of it goes: the shard is as before.
            os.ftruncate(self._tar, start)
            os.ftruncate(self._journal, told)
            os.lseek(self._tar, start, os.SEEK_SET)
            if isinstance(error, OSError) and not isinstance(error, CacheError):
                raise_io(error, f"write `{self._path('.partial')}`")
            raise
        return entry

    @staticmethod
    def _put(descriptor: int, data: bytes, crc: int = 0) -> int:
        view = memoryview(data)
        while view:
            view = view[os.write(descriptor, view) :]
        return zlib.crc32(data, crc)

    def _flush(self) -> None:
        for descriptor in (self._tar, self._journal):
            if self._sync and descriptor is not None:
                sync_file(descriptor, self.warnings)

    def _path(self, end: str) -> Path:
        return self._shards / f"{self._name}{end}"

    def _open(self, name: str, entries: Iterable[Entry] = ()) -> None:
        """Open a new shard, or one that was cut back to its entries, for more."""
        self._name, self._entries = name, list(entries)
        self.pending = {e.row.key: e.row for e in self._entries}
        truncate(self._path(".partial"), self.size)
        write_atomic(
            self._path(".journal"), b"".join(e.line() for e in self._entries), sync=self._sync,
            warnings=self.warnings,
        )  # fmt: skip
        flags = os.O_WRONLY | getattr(os, "O_CLOEXEC", 0)
        self._tar = os.open(self._path(".partial"), flags)
        self._journal = os.open(self._path(".journal"), flags | os.O_APPEND)
        os.lseek(self._tar, 0, os.SEEK_END)

    def _shut(self) -> None:
        for descriptor in (self._tar, self._journal):
            if descriptor is not None:
                os.close(descriptor)
        self._tar = self._journal = None

    def _release(self) -> None:
        self._shut()
        self._lock.release()

    def _drop_empty(self) -> None:
        if self._tar is not None:
            self._shut()
            for end in (".partial", ".journal"):
                self._path(end).unlink(missing_ok=True)

    def _next(self) -> str:
        """A name after every other in the dataset: its items win over older ones of one key."""
        numbers = [int(m[2]) for m in map(SHARD_NAME.fullmatch, names_in(self._shards)) if m]
        numbers += [number for _, number, _ in committed(self.root)]
        return f"{self.prefix}-{max(numbers, default=-1) + 1:06d}.tar"

    def _recover(self) -> None:
        """Take up what a killed writer of this prefix left; sweep what is garbage."""
        for folder in (self._shards, self._index, self.root):
            sweep_stale(folder)
        done = {stem for stem, _, _ in committed(self.root)}
        ours = [
            m
            for m in map(SHARD_NAME.fullmatch, names_in(self._shards))
            if m and m[1] == self.prefix
        ]
        stems = sorted({f"{m[1]}-{m[2]}" for m in ours}, key=lambda stem: int(stem.split("-")[1]))
        for stem in stems:
            name = f"{stem}.tar"
            if stem in done:
                (self._shards / f"{name}.journal").unlink(missing_ok=True)
            elif entries := self._left(name):
                if self._entries:
                    self.commit(self.seal())
                self._open(name, entries)

    def _left(self, name: str) -> list[Entry]:
        """Sound entries of an uncommitted shard; without any its files are removed."""
        tar, partial = self._shards / name, self._shards / f"{name}.partial"
        journal = self._shards / f"{name}.journal"
        if tar.exists() and journal.exists():
            # Sealed but not committed: as good as open.
            os.replace(tar, partial)
        entries: list[Entry] = []
        if partial.exists():
            entries = sound(partial, read_journal(journal, partial.stat().st_size))
        for end in (".idx",) if entries else ("", ".idx", ".partial", ".journal"):
            (self._shards / f"{name}{end}").unlink(missing_ok=True)
        return entries


def check_key(key: str) -> None:
    """Refuse what cannot name an item in a tar.

    Raises:
        CacheError: The key is empty, too long, or has other signs than letters, digits, _ and -.
    """
    if not _KEY.fullmatch(key) or len((key + CACHE_END).encode()) > MAX_NAME:
        most = MAX_NAME - len(CACHE_END)
        raise CacheError(f"`{key}` cannot be a key", code="dataset.key",
                         hint=f"letters, digits, _ and -, at most {most} bytes")  # fmt: skip


def read_facts_of(source: str | os.PathLike[str] | bytes) -> ItemFacts:
    """Facts of a file, or of bytes through a file that has no name afterwards."""
    if not isinstance(source, bytes):
        return read_facts(source)
    import tempfile

    with tempfile.NamedTemporaryFile(suffix=CACHE_END) as file:
        file.write(source)
        file.flush()
        return read_facts(file.name)


def _blocks(source: str | os.PathLike[str] | bytes) -> Iterator[bytes]:
    if isinstance(source, bytes):
        yield source
        return
    with Path(source).open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            yield block


def _pair_size(size: int, beside: int = 1024) -> int:
    return 2 * BLOCK + padded(size) + padded(beside)
