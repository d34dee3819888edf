"""The journal of an open shard: one line an item, and what is left of it after a kill."""

from __future__ import annotations

import json
import os
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokpipe.cache._spool import raise_io
from tokpipe.cache.index_table import COLUMNS, IndexRow
from tokpipe.digest import canonical_json

#: Items between two flushes of tar and journal to the disk.
SYNC_EVERY = 16
_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Entry:
    """One item of an open shard.

    Attributes:
        start, stop: Its bytes in the tar, both headers and all padding included.
        crc: CRC-32 of these bytes.
        row: Its index row.
    """

    start: int
    stop: int
    crc: int
    row: IndexRow

    def line(self) -> bytes:
        """The journal's line."""
        values = {"start": self.start, "stop": self.stop, "crc": self.crc}
        return canonical_json({**values, "row": self.row.to_dict()}).encode() + b"\n"


def read_journal(path: Path, size: int) -> list[Entry]:
    """Entries of whole lines, as far as they follow one another within ``size`` bytes."""
    found: list[Entry] = []
    try:
        lines = path.read_bytes().split(b"\n")[:-1]  # what follows the last break is torn
    except OSError:
        return found
    for line in lines:
        entry = _entry(line)
        if entry is None or entry.start != (found[-1].stop if found else 0) or entry.stop > size:
            break
        found.append(entry)
    return found


def _entry(line: bytes) -> Entry | None:
    try:
        made: dict[str, Any] = json.loads(line)
        row = IndexRow(**{name: made["row"][name] for name in COLUMNS})
        return Entry(int(made["start"]), int(made["stop"]), int(made["crc"]), row)
    except (ValueError, KeyError, TypeError):
        return None


def sound(tar: Path, entries: list[Entry]) -> list[Entry]:
    """Entries up to the first whose bytes are not those that were written.

    What was flushed to the disk is sound; so the last ones are looked at, and more only where
    one of them is damaged.
    """
    keep = len(entries)
    with tar.open("rb") as file:
        for number in range(len(entries) - 1, -1, -1):
            whole = _crc(file.fileno(), entries[number]) == entries[number].crc
            if not whole:
                keep = number
            elif len(entries) - number >= 2 * SYNC_EVERY:
                break
    return entries[:keep]


def _crc(descriptor: int, entry: Entry) -> int:
    crc, at = 0, entry.start
    while at < entry.stop:
        block = os.pread(descriptor, min(_BLOCK_BYTES, entry.stop - at), at)
        if not block:
            return -1
        crc, at = zlib.crc32(block, crc), at + len(block)
    return crc


def truncate(path: Path, size: int) -> None:
    """Cut a file; a missing one is made empty.

    Raises:
        CacheError: It cannot be written.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o666)
        try:
            os.ftruncate(descriptor, size)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise_io(error, f"write `{path}`")
