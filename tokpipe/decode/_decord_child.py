"""The process that decord lives in: ``python -P -m tokpipe.decode._decord_child``.

It loads neither torch nor PyAV: decord brings an old FFmpeg of its own. Requests and
answers go through a socket, see ``decord``, which owns this process. Pictures are read strictly
forward: decord's search may land on another picture, and what it would not say.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import resource
import signal
import socket
import struct
import sys
from bisect import bisect_right
from contextlib import suppress
from importlib import import_module
from typing import Any

from tokpipe.decode._ffmpeg_log import LISTENER, complains

#: A request: the rank of a picture.
ASK = struct.Struct("<q")
#: An answer: its kind, two numbers, how often FFmpeg complained so far, bytes that follow.
ANSWER = struct.Struct("<cqqqq")
#: Kinds of answers: opened (pictures, 0; their times, float32), at work, a picture (height, width;
#: uint8 RGB), an error while opening and while decoding (text).
OPENED, BUSY, PICTURE, CLOSED, FAILED = b"O", b"B", b"P", b"C", b"F"
#: Pictures skipped between two signs of life.
_STRIDE = 16


class _Child:
    """One open file and the line to the parent."""

    def __init__(self, line: socket.socket) -> None:
        self.line = line
        self.at = self.complaints = 0
        self.heard = LISTENER(self._hear)

    def _hear(self, _context: Any, level: int, form: bytes | None, _arguments: Any) -> None:
        """Called by FFmpeg in decord's thread."""
        self.complaints += complains(level, form)

    def answer(self, kind: bytes, first: int = 0, second: int = 0, data: Any = b"") -> None:
        data = memoryview(data).cast("B")
        self.line.sendall(ANSWER.pack(kind, first, second, self.complaints, len(data)))
        self.line.sendall(data)

    def open(self, path: str) -> None:
        decord = import_module("decord")
        # The first picture that decord would replace by its neighbour is an error.
        self.reader = decord.VideoReader(path, num_threads=1, fault_tol=1e-9)
        self.keys = self.reader.get_key_indices()
        count = len(self.reader)
        times = self.reader.get_frame_timestamp(list(range(count)))[:, 0]
        self._listen()
        self.answer(OPENED, count, 0, times.astype("<f4").copy())

    def _listen(self) -> None:
        with open("/proc/self/maps", encoding="utf-8", errors="replace") as maps:  # noqa: PTH123
            found = {x.split(maxsplit=5)[-1].strip() for x in maps if "/libavutil-" in x}
        for name in found:
            with suppress(OSError):
                ctypes.CDLL(name).av_log_set_callback(self.heard)

    def picture(self, index: int) -> None:
        while self.at < index:
            # decord searches where a skip passes a key picture: that one is decoded instead.
            key = bisect_right(self.keys, self.at)
            clear = self.keys[key] - 1 - self.at if key < len(self.keys) else index - self.at
            step = min(index - self.at, clear, _STRIDE)
            if step > 0:
                self.reader.skip_frames(step)
            else:
                step = 1
                self.reader.next()
            self.at += step
            self.answer(BUSY)
        pixels = self.reader.next().asnumpy()
        self.at += 1
        high, wide = pixels.shape[:2]
        self.answer(PICTURE, high, wide, pixels)


def die_with(lifeline: int) -> None:
    """Let the kernel kill this process when the pipe's other end is closed, whatever it does."""
    fcntl.fcntl(lifeline, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(lifeline, fcntl.F_SETSIG, signal.SIGKILL)
    flags = fcntl.fcntl(lifeline, fcntl.F_GETFL)
    fcntl.fcntl(lifeline, fcntl.F_SETFL, flags | os.O_ASYNC)
    # The other end may be closed already.
    os.set_blocking(lifeline, False)
    with suppress(BlockingIOError):
        os.read(lifeline, 1)
        os._exit(1)


def main(path: str, line: int, lifeline: int, most: int) -> None:
    """Serve pictures until the line closes.

    Args:
        path: The file.
        line: File descriptor of the socket.
        lifeline: Of a pipe that ends with the parent.
        most: Bytes of memory this process may take.
    """
    die_with(lifeline)
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    child = _Child(socket.socket(fileno=line))
    kind = CLOSED
    try:
        child.open(path)
        kind = FAILED
        while len(asked := child.line.recv(ASK.size, socket.MSG_WAITALL)) == ASK.size:
            child.picture(ASK.unpack(asked)[0])
    except OSError:
        pass
    except BaseException as error:  # noqa: BLE001 - decord raises what it likes; the parent tells
        with suppress(OSError):
            child.answer(kind, data=f"{type(error).__name__}: {error}".encode())
    # Not through decord's destructors, which may wait for its thread.
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:5]))
