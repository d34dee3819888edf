"""Changes seen in decoded pictures: small ones compared with the one before."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter
from numpy.typing import NDArray

from tokpipe.decode._picture import DecodedPicture
from tokpipe.decode.pyav import MediaSource
from tokpipe.protocols import Picture
from tokpipe.tensors import AudioChunk

#: Size at which pictures are compared: two cells of 32 x 18 hold a word on a slide.
_WIDE, _HIGH = 32, 18
#: Mean difference of the 16 cells that differ most, and of all cells, in grey levels.
Change = tuple[float, float]
#: What either must reach, and how many times what was usual lately.
_LEVELS, _ABOVE = (6.0, 12.0), 3.0
#: Differences remembered, and seconds between two changes that are told apart.
_LATELY, _APART = 24, 0.125


class Looker:
    """Tells which pictures of a group differ abruptly from the one before.

    Measured twice: by the 16 greatest cell differences, so that a line of text counts as much as a
    whole new slide, and by all, so that a cut counts where much moves. Both thresholds follow what
    was usual lately.
    """

    def __init__(self) -> None:
        """Nothing seen yet."""
        self.small = VideoReformatter()
        self.restart()

    def restart(self) -> None:
        """Forget what was seen: a new group starts, perhaps far from the last one."""
        self.first: NDArray[np.int16] | None = None
        self.before: NDArray[np.int16] | None = None
        self.lately: list[Change] = []
        self.told = -1.0

    def edge(self) -> Edge | None:
        """The ends of what was seen since the restart."""
        if self.first is None or self.before is None:
            return None
        return Edge(self.first, self.before, self.lately)

    def differs(self, frame: Any, at: float) -> bool:
        """Whether the picture at this second shows an abrupt change; they come in order."""
        grey: Any = self.small.reformat(
            frame, width=_WIDE, height=_HIGH, format="gray", interpolation=Interpolation.AREA,
            threads=1,
        )  # fmt: skip
        now = grey.to_ndarray().astype(np.int16)
        before, self.before = self.before, now
        if before is None:
            self.first = now
            return False
        change, lately = _apart(before, now), self.lately
        self.lately = [*lately[-(_LATELY - 1) :], change]
        if not _abrupt(change, lately) or at - self.told < _APART:
            return False
        self.told = at
        return True


@dataclass(frozen=True, slots=True)
class Edge:
    """First and last small picture of a group, and what was usual towards its end."""

    first: NDArray[np.int16]
    last: NDArray[np.int16]
    lately: list[Change]

    def breaks(self, after: Edge) -> bool:
        """The group after it begins with an abrupt change."""
        return _abrupt(_apart(self.last, after.first), self.lately)


def _apart(before: NDArray[np.int16], now: NDArray[np.int16]) -> Change:
    apart = np.abs(now - before).ravel()
    return float(np.partition(apart, -16)[-16:].mean()), float(apart.mean())


def _abrupt(change: Change, lately: list[Change]) -> bool:
    usual = np.median(lately, axis=0) if lately else (0.0, 0.0)
    return any(
        now > max(level, _ABOVE * float(before))
        for now, level, before in zip(change, _LEVELS, usual, strict=True)
    )


class LookingSource(MediaSource):
    """The reference reader, with pictures marked that differ abruptly from the one before."""

    def read(self) -> Iterator[Picture | AudioChunk]:
        """Pictures in presentation order and audio blocks.

        Raises:
            DecodeError: Nothing could be decoded, or damage under ``strict``.
        """
        looker = Looker()
        for item in super().read():
            if isinstance(item, DecodedPicture) and not item.corrupt:
                item.marked = looker.differs(item.frame, item.pts)
            yield item
