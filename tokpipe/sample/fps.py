"""Choose the first frame at or after each tick of a time grid.

Source: tokpipe; the common practice of video MLLMs (Qwen2-VL, section 2.1: two frames a second).
Differs: the grid is in seconds of presentation time, never an index stride, so variable frame
rates, gaps and offsets keep their times; ticks that pass while one frame is on screen are skipped.
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
    chosen only where no other comes before the next tick. One that is ``marked`` shows a
    change: it is chosen where it is, also between ticks, but at most 8 of them a second.

    Attributes:
        fps: Ticks a second.
    """

    source: ClassVar[str] = "tokpipe; Wang et al., Qwen2-VL, arXiv:2409.12191, section 2.1"
    modalities: ClassVar[tuple[str, ...]] = ("video",)
    causal: ClassVar[bool] = True
    version: ClassVar[int] = 3

    fps: Annotated[float, Field(gt=0, le=240)] = 2.0

    def sample(self, frames: Iterable[Any]) -> Iterator[Any]:
        """Yield the chosen frames in order; items without ``usable`` (audio) pass in place."""
        origin: float | None = None
        tick, free = 0, -math.inf
        doubtful: Any = None
        for frame in frames:
            if not hasattr(frame, "usable"):
                yield frame
                continue
            if frame.corrupt:
                continue
            origin = frame.pts if origin is None else origin
            now = self._tick_at(frame.pts - origin)
            if doubtful is not None and now > tick:
                yield doubtful
                tick, doubtful = tick + 1, None
            marked = getattr(frame, "marked", False) and frame.pts >= free
            if frame.usable and (marked or now >= tick):
                yield frame
                tick, doubtful = max(tick, now + 1), None
                free = frame.pts + _APART if marked else free
            elif now >= tick and doubtful is None:
                doubtful, tick = frame, now
        if doubtful is not None:
            yield doubtful

    def _tick_at(self, elapsed: float) -> int:
        """The latest tick at ``elapsed``, with a hair of room for the rounding of times."""
        return math.floor(elapsed * self.fps + 1e-6)

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
        rate = info.video.frame_rate
        if not rate:
            return max(1, math.ceil(duration * self.fps - 1e-6))
        # A tick after the last frame has none.
        frames = max(1, math.ceil(duration * rate - 1e-6))
        return min(frames, self._tick_at(float((frames - 1) / rate)) + 1)
