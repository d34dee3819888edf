"""Interlaced frames: two moments woven into one picture and flagged as such."""

from __future__ import annotations

from fractions import Fraction

import av
import numpy as np
from av.filter import Graph
from numpy.typing import NDArray

__all__ = ["FieldMarker", "woven_frame"]


def woven_frame(upper: NDArray[np.uint8], lower: NDArray[np.uint8]) -> av.VideoFrame:
    """Weave the even rows of one picture and the odd rows of another into a 4:2:0 frame.

    Each field keeps its own chroma rows, as a camera writes them.

    Args:
        upper: Picture [H, W, 3] of the earlier moment; H divisible by 4, W even.
        lower: Picture [H, W, 3] of the later moment.

    Returns:
        A ``yuv420p`` frame, not yet flagged as interlaced.
    """
    height, width = upper.shape[:2]
    frame = av.VideoFrame(width, height, "yuv420p")
    halves = []
    for parity, picture in enumerate((upper, lower)):
        half = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture[parity::2]), format="rgb24")
        halves.append(half.reformat(format="yuv420p", interpolation="AREA"))
    for place, plane in enumerate(frame.planes):
        rows = np.zeros((plane.height, plane.line_size), dtype=np.uint8)
        for parity, half in enumerate(halves):
            source = half.planes[place]
            field = np.frombuffer(memoryview(source), dtype=np.uint8).reshape(source.height, -1)
            rows[parity::2, : plane.width] = field[:, : plane.width]
        plane.update(rows.tobytes())
    return frame


class FieldMarker:
    """Flags frames as interlaced, upper field first (a filter graph: PyAV has no setter for it)."""

    def __init__(self, size: tuple[int, int], time_base: Fraction) -> None:
        """Prepare for ``yuv420p`` frames of one size (width, height) and time base."""
        self._graph = Graph()
        source = self._graph.add_buffer(
            width=size[0], height=size[1], format=av.VideoFormat("yuv420p"), time_base=time_base
        )
        sink = self._graph.add("buffersink")
        self._graph.link_nodes(source, self._graph.add("setfield", "tff"), sink).configure()

    def mark(self, frame: av.VideoFrame) -> av.VideoFrame:
        """Return the same picture with the flags of an interlaced frame."""
        self._graph.push(frame)
        marked = self._graph.pull()
        if not isinstance(marked, av.VideoFrame):
            raise TypeError("the filter graph returned no picture")
        return marked
