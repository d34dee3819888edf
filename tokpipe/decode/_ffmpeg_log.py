"""Whether FFmpeg's decoder complained: the only sign of damage that torchcodec lets through.

A decoder that conceals a broken slice says so in its log and returns the picture as if nothing
were. The library that torchcodec loaded is found by its name and asked, by its public
``av_log_set_callback``, to tell us. Errors count, and what is only information: concealment.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any

#: AV_LOG_ERROR; more urgent messages have lower numbers.
_ERROR = 16
#: libavutil's major version is FFmpeg's plus this.
_AVUTIL = 52
#: What ``av_log_set_callback`` takes.
LISTENER = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
_lock = threading.Lock()
_listening: dict[int, Complaints] = {}


@dataclass(slots=True)
class Complaints:
    """How often this thread's decoders complained while it listened; 0 where it cannot."""

    count: int = 0


def complains(level: int, form: bytes | None) -> bool:
    """Whether a message is an error or, though only information, tells of concealment.

    Args:
        level: AV_LOG level; its upper bits are a colour.
        form: What the message is made from.
    """
    return level >= 0 and ((level & 0xFF) <= _ERROR or (form or b"").startswith(b"concealing"))


def _hear(_context: Any, level: int, form: bytes | None, _arguments: Any) -> None:
    """Called by FFmpeg in the thread that decodes."""
    mine = _listening.get(threading.get_ident())
    if mine is not None and complains(level, form):
        mine.count += 1


#: Kept for as long as the process: FFmpeg holds its address.
_heard = LISTENER(_hear)


@cache
def _library() -> Any:
    """The libavutil that torchcodec loaded, None where it cannot be found."""
    major = getattr(import_module("torchcodec"), "ffmpeg_major_version", None)
    if sys.platform != "linux" or not isinstance(major, int):
        return None
    try:
        return ctypes.CDLL(f"libavutil.so.{major + _AVUTIL}", mode=os.RTLD_NOLOAD)
    except OSError:
        return None


@contextmanager
def complaints() -> Iterator[Complaints]:
    """Count the errors that FFmpeg logs in this thread inside the block."""
    library = _library()
    mine = Complaints()
    if library is None:
        yield mine
        return
    me = threading.get_ident()
    with _lock:
        if not _listening:
            library.av_log_set_callback(_heard)
        _listening[me] = mine
    try:
        yield mine
    finally:
        with _lock:
            del _listening[me]
            if not _listening:
                library.av_log_set_callback(library.av_log_default_callback)
