"""Where rows wait until the file is finished: anonymous temporary files with running digests."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NoReturn

from tokpipe.errors import CacheError, ResourceError

_BLOCK_BYTES = 1 << 20
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


def raise_io(error: OSError, doing: str) -> NoReturn:
    """Turn a failed write into the error of the tree: ResourceError when space ran out.

    Args:
        error: What the system said.
        doing: The action, for the message.
    """
    reason = error.strerror or str(error)
    if error.errno in _FULL:
        raise ResourceError(
            f"cannot {doing}: {reason}", hint="free some space or choose another folder with -o",
            code="resource.disk",
        ) from error  # fmt: skip
    raise CacheError(f"cannot {doing}: {reason}", code="cache.write") from error


def sha256_hex(data: bytes) -> str:
    """``sha256:hex`` of some bytes, the form of ``tokpipe.digest``."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


class Spool:
    """Bytes of one tensor on disk, never in memory; nothing remains when the process dies.

    Args:
        folder: Where the nameless file lives.
        dtype: Safetensors dtype of the tensor.
        tail: Shape of one row.
    """

    def __init__(self, folder: Path, dtype: str, tail: tuple[int, ...] = ()) -> None:
        self.dtype = dtype
        self.tail = tail
        self.rows = 0
        self._hash = hashlib.sha256()
        try:
            self._file: IO[bytes] = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
        except OSError as error:
            raise_io(error, f"write beside the cache in `{folder}`")

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the tensor so far."""
        return (self.rows, *self.tail)

    @property
    def digest(self) -> str:
        """``sha256:hex`` of the bytes so far."""
        return f"sha256:{self._hash.hexdigest()}"

    def write(self, data: bytes | memoryview, rows: int) -> None:
        """Append the bytes of ``rows`` rows."""
        try:
            self._file.write(data)
        except OSError as error:
            raise_io(error, "spool the tokens")
        self._hash.update(data)
        self.rows += rows

    def blocks(self) -> Iterator[bytes]:
        """The bytes from the start, 1 MiB at a time."""
        try:
            self._file.seek(0)
            while block := self._file.read(_BLOCK_BYTES):
                yield block
        except OSError as error:
            raise_io(error, "read the spooled tokens back")

    def close(self) -> None:
        """Give the space back."""
        # Closing flushes; after a full disk that fails again, and the bytes are not wanted.
        with contextlib.suppress(OSError):
            self._file.close()
