"""Choose the frame on screen at each tick of a time grid.

Source: tokpipe; the common practice of video MLLMs (Qwen2-VL, section 2.1: two frames a second).
Differs: the grid is in seconds of presentation time, never an index stride, so variable frame
rates, gaps and offsets keep their times; a frame on screen over several ticks is chosen once.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import Field

from tokpipe.spec import MediaInfo

#: Seconds between two marked frames.
_APART = 0.125


@dataclass(frozen=True, slots=True)
class Fps:
    """Sampler on a time grid that starts at the first frame.

    A frame the decoder flagged as corrupt is never chosen; one that may depend on damage is
    chosen only where nothing else is on screen within a tick. One that is ``marked`` shows a
    change: it is chosen where it is, also between ticks, but at most 8 of them a second.

    Attributes:
        fps: Ticks a second.
    """

    source: ClassVar[str] = "tokpipe; Wang et al., Qwen2-VL, arXiv:2409.12191, section 2.1"
    modalities: ClassVar[tuple[str, ...]] = ("video",)
    causal: ClassVar[bool] = True
    version: ClassVar[int] = 2

    fps: Annotated[float, Field(gt=0, le=240)] = 2.0

    def sample(self, frames: Iterable[Any]) -> Iterator[Any]:
        """Yield the chosen frames in order; items without ``usable`` (audio) pass in place."""
        origin: float | None = None
        tick, free = 0, -math.inf
        sound: Any = None
        doubtful: Any = None
        for frame in frames:
            if not hasattr(frame, "usable"):
                yield frame
                continue
            if frame.corrupt:
                continue
            origin = frame.pts if origin is None else origin
            due = self._ticks_before(frame.pts - origin)
            if due > tick:
                if (chosen := sound or doubtful) is not None:
                    yield chosen
                    sound = doubtful = None
                tick = due
            if frame.usable and getattr(frame, "marked", False) and frame.pts >= free:
                yield frame
                # It is on screen at the next tick too, and not chosen twice.
                sound = doubtful = None
                free = frame.pts + _APART
            elif frame.usable:
                sound = frame
            else:
                doubtful = frame
        if (
            origin is not None
            and (last := sound or doubtful) is not None
            and self._on_tick(last, origin, tick)
        ):
            yield last

    def _ticks_before(self, elapsed: float) -> int:
        """Ticks strictly before ``elapsed``, with a hair of room for the rounding of times."""
        return math.ceil(elapsed * self.fps - 1e-6)

    def _on_tick(self, frame: Any, origin: float, tick: int) -> bool:
        """The next tick falls while the last frame is on screen (it lasts at least one instant)."""
        stop = frame.pts + max(frame.duration, 1e-3)
        return bool(tick / self.fps + origin < stop - 1e-9)

    def count(self, info: MediaInfo) -> int | None:
        """Ticks the video's duration holds, and never more than its frames; marks come besides."""
        if info.video is None:
            return 0
        start = max(0.0, (info.video.start or 0.0) - info.zero)
        duration = info.video.duration
        if duration is None and info.duration is not None:
            duration = info.duration - start
        if duration is None:
            return None
        ticks = max(1, math.ceil(duration * self.fps - 1e-6))
        rate = info.video.frame_rate
        return min(ticks, max(1, math.ceil(duration * rate - 1e-6))) if rate else ticks
