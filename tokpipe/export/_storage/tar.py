"""Tar shards of a given size, and where each sample and member lies in them."""

from __future__ import annotations

import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

_BLOCK = tarfile.BLOCKSIZE


@dataclass(slots=True)
class Member:
    """One file of a sample.

    Attributes:
        part: What follows the key and a dot, such as ``video.at.npy``.
        size: Bytes.
        data: Its bytes in pieces.
    """

    part: str
    size: int
    data: Iterable[bytes]


@dataclass(frozen=True, slots=True)
class Placed:
    """Where a sample lies.

    Attributes:
        shard: Number of the shard.
        index: Number of the sample in it.
        key: The sample's id.
        start, stop: Bytes of the shard from its first header to the next sample's.
        parts: (part, first byte of its content, size) of every member.
    """

    shard: int
    index: int
    key: str
    start: int
    stop: int
    parts: tuple[tuple[str, int, int], ...]


@dataclass(slots=True)
class Shards:
    """Writes samples into ``shard-000000.tar`` and so on.

    A shard ends before the sample that would make it larger than ``limit``; it always holds one.

    Attributes:
        folder: Where they are written.
        limit: Bytes of a shard.
        counts: Samples of each shard, by file name.
    """

    folder: Path
    limit: int
    counts: dict[str, int] = field(default_factory=dict)
    _file: BinaryIO | None = None
    _at: int = 0

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        """End the last shard."""
        self._end()

    def add(self, key: str, members: list[Member]) -> Placed:
        """Append one sample."""
        size = sum(_padded(m.size) + len(_head(f"{key}.{m.part}", m.size)) for m in members)
        if self._file is not None and self._at + size + 2 * _BLOCK > self.limit:
            self._end()
        if self._file is None:
            name = f"shard-{len(self.counts):06d}.tar"
            self._file, self._at = (self.folder / name).open("xb"), 0
            self.counts[name] = 0
        start, parts = self._at, []
        for member in members:
            head = _head(f"{key}.{member.part}", member.size)
            self._file.write(head)
            parts.append((member.part, self._at + len(head), member.size))
            for piece in _whole(member):
                self._file.write(piece)
            self._at += len(head) + _padded(member.size)
        name = next(reversed(self.counts))
        self.counts[name] += 1
        return Placed(
            len(self.counts) - 1, self.counts[name] - 1, key, start, self._at, tuple(parts)
        )

    def _end(self) -> None:
        if self._file is not None:
            self._file.write(bytes(2 * _BLOCK))
            self._file.close()
            self._file = None


def _head(name: str, size: int) -> bytes:
    """The header of a member: no owner, no time, so that the same input gives the same bytes."""
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o644
    return info.tobuf(tarfile.GNU_FORMAT, "utf-8", "strict")


def _padded(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK


def _whole(member: Member) -> Iterator[bytes]:
    written = 0
    for piece in member.data:
        written += len(piece)
        yield piece
    if written != member.size:
        raise RuntimeError(f"{member.part}: {written} bytes, {member.size} were announced")
    yield bytes(_padded(written) - written)
