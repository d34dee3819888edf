"""Pictures that are decoded only when their pixels are asked for, at the reference's times.

For decoders that hand out a picture by its rank: the packets say when each is shown.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from tokpipe.decode._picture import RESIZE
from tokpipe.errors import ResourceError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tokpipe.decode._plain import Shown
    from tokpipe.decode._timeline import Timeline
    from tokpipe.decode.pyav import MediaSource


class ByRank(Protocol):
    """A decoder of one stream that finds pictures by their rank."""

    def rgb(self, index: int, pts: float, width: int, height: int) -> NDArray[np.uint8]:
        """uint8 [height, width, 3] of the picture of this rank, upright; ``pts`` for messages."""
        ...

    def finish(self) -> None:
        """All pictures were handed out; some may yet be asked for."""
        ...


@dataclass(slots=True)
class WantedPicture:
    """One picture that is decoded when its pixels are asked for.

    Attributes:
        pts, duration: Seconds on the media's clock.
        index: Rank of the pts in the stream.
    """

    pts: float
    duration: float
    index: int
    decoder: ByRank
    usable: bool = True
    corrupt: bool = False

    def rgb(self, width: int, height: int) -> NDArray[np.uint8]:
        """uint8 [height, width, 3], upright and resized like the reference's.

        Raises:
            DecodeError: The picture cannot be decoded, or another came out.
        """
        return self.decoder.rgb(self.index, self.pts, width, height)


class WantedReader:
    """Places packets as the reference does and hands out pictures once theirs went by."""

    def __init__(
        self, source: MediaSource, shown: Shown, box: Any, line: Timeline, decoder: ByRank
    ) -> None:
        assert source.info.video is not None  # noqa: S101 - only made when there is one
        stream = box.streams[source.info.video.index]
        self.source, self.shown, self.line, self.decoder = source, shown, line, decoder
        self.packets = line.stream(stream.time_base)
        self.seen = self.given = 0

    def push(self, packet: Any) -> Iterator[WantedPicture]:
        """The picture that is due once this packet went by."""
        report = self.source.report
        if packet.is_discard:
            report.note("edit-list", "pictures outside the edit list are not shown")
            return
        span = (packet.duration or 0) * self.packets.tick
        self.packets.place_packet(packet.pts, packet.dts, span)
        self.seen += 1
        if self.given < min(self.seen, len(self.shown.pts)):
            yield self._next()

    def finish(self) -> Iterator[WantedPicture]:
        """The pictures that are left."""
        while self.given < len(self.shown.pts):
            yield self._next()
        self.decoder.finish()

    def _next(self) -> WantedPicture:
        i, report = self.given, self.source.report
        self.given += 1
        seconds = self.line.seconds
        pts, duration = int(self.shown.pts[i]), int(self.shown.duration[i])
        report.frames += 1
        report.video_end = max(report.video_end, seconds(pts + duration))
        return WantedPicture(seconds(pts), seconds(duration), i, self.decoder)


def not_strict(name: str, strict: bool) -> None:
    """Raise ResourceError where damage that a decoder conceals would have to be told."""
    if strict:
        raise ResourceError(
            f"{name} does not tell of damage that its decoder conceals, so --strict cannot be kept",
            hint="use --decoder pyav with --strict",
        )


def shrink(picture: NDArray[np.uint8], width: int, height: int) -> NDArray[np.uint8]:
    """Resize uint8 [H, W, 3] to uint8 [height, width, 3] as the reference reader does."""
    frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
    out: Any = VideoReformatter().reformat(
        frame, width=width, height=height, format="rgb24", interpolation=RESIZE, threads=1,
    )  # fmt: skip
    small: NDArray[np.uint8] = out.to_ndarray()
    return small
