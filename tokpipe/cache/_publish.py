"""Put a finished file under its name in one step, and sweep what killed writers left behind."""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import socket
import time
from pathlib import Path

from tokpipe.cache._spool import raise_io
from tokpipe.errors import CacheError, OutputExists

#: Errors of file systems that lack the call; the write goes on with one warning.
_MISSING = frozenset({errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL})
#: Errors of file systems without hard links.
_NO_LINKS = _MISSING | {errno.EPERM, errno.EMLINK, errno.EXDEV}
_TEMP_NAME = re.compile(r"\..+\.([A-Za-z0-9_-]+)\.([0-9]{1,10})\.[0-9a-f]{8}\.tmp", re.DOTALL)
#: A writer of another machine is taken for dead after this many seconds without a write.
STALE_AFTER = 3600.0
_MAX_NAME_BYTES = 255


def _host() -> str:
    # One name component: dots would make the parts of the temporary name ambiguous.
    return re.sub(r"[^A-Za-z0-9_-]", "-", socket.gethostname())[:64] or "localhost"


def temp_path(target: Path) -> Path:
    """A name nobody else uses, in the same folder: ``.{name}.{host}.{pid}.{8 hex}.tmp``."""
    tail = f".{_host()}.{os.getpid()}.{secrets.token_hex(4)}.tmp"
    room = _MAX_NAME_BYTES - len(tail.encode()) - 1
    name = os.fsencode(target.name)[:room].decode(errors="ignore")
    return target.with_name(f".{name}{tail}")


def create(path: Path) -> int:
    """Create the file for this writer alone; mode 0666 less the umask.

    Raises:
        CacheError: The folder is missing or not writable.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0)
    try:
        return os.open(path, flags, 0o666)
    except OSError as error:
        raise_io(error, f"create a file in `{path.parent}`")


def sync_file(descriptor: int, warnings: list[str]) -> None:
    """Flush a file to the disk; a file system that cannot is recorded once."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _MISSING:
            raise
        _warn(warnings, f"fsync is not supported here ({error.strerror})")


def sync_folder(folder: Path, warnings: list[str]) -> None:
    """Flush a folder, so that the new name survives a power cut."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))
    except OSError as error:
        _warn(warnings, f"the folder cannot be flushed ({error.strerror})")
        return
    try:
        sync_file(descriptor, warnings)
    finally:
        os.close(descriptor)


def _warn(warnings: list[str], message: str) -> None:
    text = f"durability is reduced: {message}"
    if text not in warnings:
        warnings.append(text)


def publish(temp: Path, target: Path, *, force: bool, warnings: list[str]) -> None:
    """Give the finished file its name; readers see the old file or the whole new one.

    Args:
        temp: The finished file, in the target's folder. It is gone afterwards.
        target: The final name.
        force: Replace a file that is there. Without it a file that appeared meanwhile wins,
            even in a race of two writers.
        warnings: Receives what the file system could not do.

    Raises:
        OutputExists: The target is there and ``force`` is off.
        OSError: The name cannot be given.
    """
    if not force:
        try:
            os.link(temp, target)
            temp.unlink()
            return
        except FileExistsError as error:
            raise exists_error(target) from error
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
        if target.exists():
            raise exists_error(target)
    try:
        os.replace(temp, target)
    except OSError as error:
        if error.errno not in _MISSING:
            raise
        _warn(warnings, f"rename is not supported here ({error.strerror}); the file was copied")
        _copy(temp, target)


def _copy(temp: Path, target: Path) -> None:
    shutil.copyfile(temp, target)
    if target.stat().st_size != temp.stat().st_size:
        target.unlink()
        raise CacheError(f"the copy to `{target}` is incomplete", code="cache.write")
    temp.unlink()


def exists_error(target: Path) -> OutputExists:
    """The error of a target that is there already."""
    return OutputExists(
        "the output exists already",
        hint="use --force to replace it or -o to write elsewhere",
        where=str(target),
    )


def sweep_stale(folder: str | os.PathLike[str]) -> list[Path]:
    """Remove temporary files that killed writers left in a folder.

    A file goes when its process on this machine is dead, or when another machine wrote it and it
    has not changed for an hour. Names of any other form are left alone.

    Args:
        folder: Where caches are written. A missing one holds nothing to sweep.

    Returns:
        What was removed, sorted.
    """
    removed = []
    try:
        entries = sorted(Path(folder).iterdir())
    except OSError:
        return []
    for path in entries:
        try:
            if stale(path):
                path.unlink()
                removed.append(path)
        except OSError:
            # Another sweeper was faster, or the file is not ours to remove.
            continue
    return removed


def stale(path: Path) -> bool:
    """The name is one of :func:`temp_path`, and its writer is gone."""
    match = _TEMP_NAME.fullmatch(path.name)
    if match is None:
        return False
    if match[1] == _host():
        return not _alive(int(match[2]))
    return time.time() - path.lstat().st_mtime > STALE_AFTER


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True
