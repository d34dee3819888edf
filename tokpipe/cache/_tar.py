"""Members of a shard: tar headers that depend on name and size alone, and reading them back."""

from __future__ import annotations

import tarfile

from tokpipe.errors import CacheCorrupt

BLOCK = 512
#: A tar ends with two blocks of zeros.
END = bytes(2 * BLOCK)
#: Longest member name in bytes that fits one header.
MAX_NAME = 100


def member_header(name: str, size: int) -> bytes:
    """The header block of a regular file: mode 0644, owner 0, time 0."""
    info = tarfile.TarInfo(name)
    info.size = size
    return info.tobuf(tarfile.GNU_FORMAT, "utf-8")


def padding(size: int) -> bytes:
    """Zeros after ``size`` bytes of content, up to a whole block."""
    return bytes(-size % BLOCK)


def padded(size: int) -> int:
    """Size of content with its zeros."""
    return size + -size % BLOCK


def read_header(block: bytes) -> tuple[str, int]:
    """Name and size of a member from its header block.

    Raises:
        CacheCorrupt: Not a header of a regular file, or its checksum differs.
    """
    try:
        info = tarfile.TarInfo.frombuf(block, "utf-8", "strict")
    except (tarfile.HeaderError, UnicodeError) as error:
        raise CacheCorrupt(f"a tar header is damaged: {error}", code="dataset.shard") from error
    if not info.isreg():
        raise CacheCorrupt(f"`{info.name}` is no regular member", code="dataset.shard")
    return info.name, info.size
