"""Join the fields of interlaced frames (bwdif), pass progressive ones through."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import av
from av.filter import Graph


class Deinterlacer:
    """Starts at the first frame flagged interlaced; from then on every frame goes through bwdif.

    Attributes:
        active: A frame has been interlaced.
    """

    def __init__(self) -> None:
        """Nothing is set up until it is needed."""
        self.active = False
        self._graph: Any = None
        self._form: tuple[Any, ...] | None = None
        self._corrupt: list[bool] = []

    def push(self, frame: Any, corrupt: bool) -> Iterator[tuple[Any, bool]]:
        """Frames ready after this one, each with its damage flag."""
        self.active = self.active or bool(frame.interlaced_frame)
        if not self.active:
            yield frame, corrupt
            return
        form = (frame.width, frame.height, frame.format.name, frame.time_base)
        if form != self._form:
            yield from self.finish()
            self._open(frame)
            self._form = form
        if self._graph is None:
            yield frame, corrupt
            return
        self._corrupt.append(corrupt)
        self._graph.push(frame)
        yield from self._pull()

    def finish(self) -> Iterator[tuple[Any, bool]]:
        """Frames the filter still holds."""
        if self._graph is not None:
            self._graph.push(None)
            yield from self._pull()
            self._graph = None

    def _open(self, frame: Any) -> None:
        graph = Graph()
        graph.threads = 1
        source = graph.add_buffer(
            width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base
        )
        joined = graph.add("bwdif", "mode=send_frame:parity=auto:deint=interlaced")
        sink = graph.add("buffersink")
        source.link_to(joined)
        joined.link_to(sink)
        try:
            graph.configure()
        except (av.FFmpegError, ValueError):
            return  # too small for the filter: such pictures stay woven
        self._graph = graph

    def _pull(self) -> Iterator[tuple[Any, bool]]:
        while True:
            try:
                frame = self._graph.pull()
            except (av.BlockingIOError, av.EOFError):
                return
            yield frame, self._corrupt.pop(0) if self._corrupt else False
