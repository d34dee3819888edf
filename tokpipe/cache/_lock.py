"""A lock that a killed process gives back."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from tokpipe.cache._spool import raise_io
from tokpipe.errors import CacheError

_HELD = frozenset({errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES})


class Lock:
    """Held from construction to :meth:`release`. File systems without locks grant it to all.

    Raises:
        CacheError: Another process holds it, or the file cannot be made.
    """

    def __init__(self, path: Path) -> None:
        self._fd: int | None = None
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o666)
        except OSError as error:
            raise_io(error, f"lock `{path}`")
        try:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except ImportError:
            pass
        except OSError as error:
            if error.errno in _HELD:
                os.close(descriptor)
                raise CacheError(
                    "another process writes to this dataset", where=str(path.parent.parent),
                    hint="wait for it, or give this one a prefix of its own", code="dataset.busy",
                ) from error  # fmt: skip
        self._fd = descriptor

    def release(self) -> None:
        """Give it back; the file stays, since another may wait for it by name."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
