"""Opt-in reader for plain files: video by decord in a process of its own, sound by PyAV.

decord is no longer kept up. It can hang in native code, end its process, and decodes on by itself
until memory is full; so it never runs in this process. Its own is stopped between two pictures,
killed when it stalls, limited in memory, and ends with this one. Files it would get wrong are
refused, see ``_plain``; times and ranks are the reference reader's, from the packets, and decord's
are compared with them. Pictures are decoded one after the other: its search is not exact.

A picture differs from the reference by 1 to 1.5 grey levels on average at the size of a grid: the
colours are converted before resizing, not after.
"""

from __future__ import annotations

import importlib.metadata
import os
import signal
import socket
import subprocess
import sys
import weakref
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tokpipe.decode._by_rank import WantedReader, not_strict, shrink
from tokpipe.decode._decord_child import ANSWER, ASK, BUSY, CLOSED, FAILED, OPENED, PICTURE
from tokpipe.decode._plain import Reach, Shown, look
from tokpipe.decode._timeline import Timeline
from tokpipe.decode.pyav import MediaSource, StreamReader
from tokpipe.errors import DecodeError, MissingExtra, ResourceError
from tokpipe.protocols import Picture
from tokpipe.spec import MediaInfo
from tokpipe.tensors import AudioChunk

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: What decord reads rightly; every key picture is looked at, as it resizes where the size changes.
REACH = Reach(
    "decord",
    formats=frozenset({"yuv420p", "yuvj420p", "yuv422p", "yuv444p"}),
    hidden="pictures outside its edit list would be shown",
    several="it holds more than one video stream, of which decord takes its own choice",
    leading="pictures come before its first key picture",
    apart=0,
)
#: Seconds by which decord's time of a picture, a float32, may differ from the packet's.
_CLOSE = 1e-4
#: Bytes of memory of the child: this, and so many pictures.
_MEMORY, _PICTURES = 2 << 30, 64
#: Bytes of a file: decord may hold all of its packets.
_LARGEST = 1 << 30
#: Bytes a second at which the packets of a file are read at least when it is opened.
_READING = 10 << 20
_PYAV = "use --decoder pyav"


class DecordSource(MediaSource):
    """A plain media file; the same interface as :class:`tokpipe.decode.pyav.MediaSource`.

    A picture is decoded when its pixels are asked for; asking in order is fast, going back starts
    over.

    Attributes:
        stall: Seconds without a sign of life after which the child is killed.
    """

    stall = 60.0

    def __init__(
        self, path: Path, info: MediaInfo, *, strict: bool = False, device: str = "cpu"
    ) -> None:
        """Open nothing yet.

        Args:
            path: The file.
            info: As :func:`tokpipe.decode.probe` described it.
            strict: Refused here.
            device: ``cpu`` or ``auto``; others are refused.

        Raises:
            ResourceError: Asked to be strict, or to decode elsewhere.
        """
        not_strict("decord", strict)
        if device not in ("cpu", "auto"):
            raise ResourceError(
                f"decord decodes on the CPU, not on {device}",
                hint="use --device cpu, or --decoder torchcodec or pyav",
            )
        super().__init__(path, info)
        self._shown: Shown | None = None

    def read(self) -> Iterator[Picture | AudioChunk]:
        """Pictures in presentation order and audio blocks.

        Raises:
            MissingExtra: decord is not installed.
            UnsupportedMedia: The file is not plain.
            DecodeError: Nothing could be decoded, a picture is missing, or decord broke down; also
                from a picture's ``rgb``.
        """
        if self.info.video is not None:
            versions()
            if self.info.size > _LARGEST:
                raise REACH.refusal(self.path, "decord may hold all of it in memory")
            self._shown = look(self.path, self.info, REACH)
        yield from super().read()

    def _pictures(self, box: Any, timeline: Timeline) -> StreamReader:
        assert self._shown is not None  # noqa: S101 - set by read where there is video
        times = np.array([timeline.seconds(int(t)) for t in self._shown.pts])
        return WantedReader(self, self._shown, box, timeline, Decoder(self, times))


class Decoder:
    """decord's pictures by rank, from one child after the other.

    Attributes:
        at: Rank of the picture the child decodes next.
    """

    def __init__(self, source: DecordSource, times: NDArray[np.float64]) -> None:
        """Start the child and compare its times with the packets' (seconds [T])."""
        self.source, self.times = source, times
        self.at = 0
        self.last: NDArray[np.uint8] | None = None
        self.child = self._start()

    def _start(self) -> Child:
        child, path = Child(self.source), self.source.path
        try:
            said = child.times
            if len(said) != len(self.times):
                why = f"it counts {len(said)} pictures where {len(self.times)} are shown"
                raise REACH.refusal(path, why)
            apart = np.abs(said - self.times) > _CLOSE + 2 * np.spacing(said)
            if apart.any():
                i = int(apart.argmax())
                why = f"it puts the picture at {self.times[i]:.3f} s to {said[i]:.3f} s"
                raise REACH.refusal(path, why)
        except BaseException:
            child.close()
            raise
        self.at = 0
        return child

    def rgb(self, index: int, pts: float, width: int, height: int) -> NDArray[np.uint8]:
        """uint8 [height, width, 3] of the picture of this rank, upright."""
        if self.last is not None and index == len(self.times) - 1:
            return shrink(self.last, width, height)
        return shrink(self._full(index, pts), width, height)

    def finish(self) -> None:
        """Decode to the last picture: only there does decord show that one was missing."""
        last = len(self.times) - 1
        if 0 < self.at <= last:
            self.last = self._full(last, float(self.times[last]))
        self.child.close()

    def _full(self, index: int, pts: float) -> NDArray[np.uint8]:
        if index < self.at or self.child.closed:
            self.child.close()
            self.child = self._start()
        try:
            pixels, complaints = self.child.picture(index, pts)
        except BaseException:
            self.child.close()
            raise
        self.at = index + 1
        if complaints:
            self.child.close()
            raise DecodeError(
                f"`{self.source.path.name}` is damaged before or after {pts:.3f} s, and decord "
                "does not show which pictures",
                hint="use --decoder pyav, which goes on past damage",
            )
        return pixels


class Child:
    """A process with decord that has one file open.

    Attributes:
        times: float32 [T], seconds at which decord puts the pictures.
    """

    def __init__(self, source: DecordSource) -> None:
        """Start it and wait for the file to be open."""
        video, self.path, self.stall = source.info.video, source.path, source.stall
        assert video is not None  # noqa: S101 - only made when there is one
        self.size = (video.height, video.width)
        most = _MEMORY + _PICTURES * 3 * video.height * video.width
        self.line, theirs = socket.socketpair()
        ends, lifeline = os.pipe()
        command = [sys.executable, "-P", "-m", "tokpipe.decode._decord_child", os.fspath(self.path)]
        # Not by multiprocessing: daemonic workers may have no children there, and a script of the
        # user's would be imported again.
        self.process = subprocess.Popen(  # noqa: S603 - our own module
            [*command, str(theirs.fileno()), str(ends), str(most)],
            pass_fds=(theirs.fileno(), ends), stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )  # fmt: skip
        theirs.close()
        os.close(ends)
        self.close = weakref.finalize(self, _end, self.process, self.line, lifeline)
        try:
            self.line.settimeout(self.stall + source.info.size / _READING)
            _, _, _, data = self._hear(OPENED, f"opening `{self.path.name}`")
            self.times: NDArray[np.float32] = np.frombuffer(data, dtype="<f4")
            self.line.settimeout(self.stall)
            self._freeze()
        except BaseException:
            self.close()
            raise

    @property
    def closed(self) -> bool:
        """It was ended."""
        return not self.close.alive

    def picture(self, index: int, pts: float) -> tuple[NDArray[np.uint8], int]:
        """uint8 [H, W, 3] of a rank not before the last one's, and FFmpeg's complaints so far."""
        with suppress(OSError):
            os.kill(self.process.pid, signal.SIGCONT)
            self.line.sendall(ASK.pack(index))
        high, wide, complaints, data = self._hear(
            PICTURE, f"before {pts:.3f} s of `{self.path.name}`"
        )
        self._freeze()
        if (high, wide) != self.size:
            raise REACH.refusal(self.path, f"the picture size changes at {pts:.3f} s")
        return np.frombuffer(data, dtype=np.uint8).reshape(high, wide, 3), complaints

    def _freeze(self) -> None:
        """Stop it: its thread would decode on, and keep every picture."""
        with suppress(OSError):
            os.kill(self.process.pid, signal.SIGSTOP)

    def _hear(self, wanted: bytes, where: str) -> tuple[int, int, int, bytearray]:
        """The next answer of a kind, past signs of life."""
        while True:
            try:
                kind, first, second, complaints, size = ANSWER.unpack(self._read(ANSWER.size))
                data = self._read(size)
            except TimeoutError as error:
                self.close()
                raise DecodeError(f"decord stalled {where} and was ended", hint=_PYAV) from error
            except OSError as error:
                raise self._died(where) from error
            if kind == wanted:
                return first, second, complaints, data
            if kind == CLOSED:
                raise self._unopened(data.decode(errors="replace"))
            if kind == FAILED:
                raise DecodeError(
                    f"decord cannot decode all pictures {where}",
                    hint="use --decoder pyav, which goes on past damage",
                )
            assert kind == BUSY  # noqa: S101 - there are no others

    def _read(self, size: int) -> bytearray:
        data = bytearray(size)
        view = memoryview(data)
        while view:
            got = self.line.recv_into(view)
            if not got:
                raise ConnectionResetError
            view = view[got:]
        return data

    def _unopened(self, text: str) -> Exception:
        if text.startswith(("ImportError", "ModuleNotFoundError", "OSError")):
            return MissingExtra(
                f"decord cannot be loaded: {text.partition(': ')[2].splitlines()[0]}",
                hint="pip install --force-reinstall 'tokpipe[decord]', or use --decoder pyav",
            )
        return REACH.refusal(self.path, "it cannot open it")

    def _died(self, where: str) -> DecodeError:
        """What to say of a child that ended by itself."""
        try:
            code = self.process.wait(self.stall)
        except subprocess.TimeoutExpired:
            code = 0
        self.close()
        how = f"by signal {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
        return DecodeError(f"decord ended {how} {where}", hint=_PYAV)


def _end(process: subprocess.Popen[bytes], line: socket.socket, lifeline: int) -> None:
    process.kill()
    process.wait()
    line.close()
    os.close(lifeline)


def versions() -> dict[str, str]:
    """The version of decord; it is not loaded.

    Raises:
        MissingExtra: It is not installed.
    """
    try:
        return {"decord": importlib.metadata.version("decord")}
    except importlib.metadata.PackageNotFoundError as error:
        raise MissingExtra(
            "decord is not installed",
            hint="pip install 'tokpipe[decord]' (Linux on x86-64), or use --decoder pyav",
        ) from error
