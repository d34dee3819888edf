"""Kept sound as one encoded stream: runs of cells with true context on both sides."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from typing import IO, Any, Literal

import av
import numpy as np
from numpy.typing import NDArray

RATE = 16000
#: Samples of a cell (40 ms) and of context on each side of a run (80 ms).
CELL, CONTEXT = 640, 1280
BIT_RATE = 24_000
ClipCodec = Literal["opus", "flac"]
_PIECE = 1 << 20
_READ = RATE * 10


class ClipBuilder:
    """Collects cells in order of time and encodes their runs.

    Args:
        source: Returns samples int16 [stop - start] of the 16 kHz track; it may return fewer.
        codec: ``opus`` (24 kb/s) or ``flac`` (exact).

    Attributes:
        samples: Samples in the clip so far.
    """

    def __init__(
        self, source: Callable[[int, int], NDArray[np.int16]], codec: ClipCodec = "opus"
    ) -> None:
        """Open the encoder into a nameless file."""
        self.source, self.codec = source, codec
        self.samples = 0
        self._span: tuple[int, int] | None = None
        self._file: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed by finish or by its end
        container = "ogg" if codec == "opus" else "flac"
        self._box: Any = av.open(self._file, "w", format=container, options={"fflags": "+bitexact"})
        name = "libopus" if codec == "opus" else "flac"
        # Half of opus's search effort costs half the time and nothing one can hear at 24 kb/s.
        effort = {"compression_level": "5"} if codec == "opus" else {}
        self._stream: Any = self._box.add_stream(name, rate=RATE, layout="mono", options=effort)
        context: Any = self._stream.codec_context
        context.format = "s16"
        context.flags |= 0x800000  # AV_CODEC_FLAG_BITEXACT: no version strings
        if codec == "opus":
            context.bit_rate = BIT_RATE
        self._sent = 0

    def add(self, cell: int) -> int:
        """Add cell ``cell`` (rising); returns the sample of the clip where it begins."""
        start, stop = cell * CELL, (cell + 1) * CELL
        if self._span is None or start - CONTEXT > self._span[1]:
            self._flush()
            self._span = (max(0, start - CONTEXT), stop + CONTEXT)
        else:
            self._span = (self._span[0], stop + CONTEXT)
        return self.samples + start - self._span[0]

    def finish(self) -> Iterator[bytes]:
        """End the stream; yields the encoded bytes piece by piece."""
        self._flush()
        for packet in self._stream.encode(None):
            self._box.mux(packet)
        self._box.close()
        self._file.seek(0)
        with self._file:
            while piece := self._file.read(_PIECE):
                yield piece

    def _flush(self) -> None:
        if self._span is None:
            return
        a, b = self._span
        for start in range(a, b, _READ):
            stop = min(start + _READ, b)
            wave = np.zeros(stop - start, dtype=np.int16)
            found = self.source(start, stop)
            wave[: len(found)] = found
            self._encode(wave)
        self.samples += b - a
        self._span = None

    def _encode(self, wave: NDArray[np.int16]) -> None:
        frame = av.AudioFrame.from_ndarray(wave[None], format="s16", layout="mono")
        frame.sample_rate = RATE
        frame.pts = self._sent
        self._sent += len(wave)
        for packet in self._stream.encode(frame):
            self._box.mux(packet)
