"""The moments of a cache: the times it holds pictures of, what they weigh, and fewer of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from tokpipe.cache.format import KIND_LAYOUT
from tokpipe.errors import CacheError

if TYPE_CHECKING:
    from tokpipe.cache.reader import TokenCache

#: Decimals of a second that times in text may have.
_DECIMALS = (1, 2, 3)


@dataclass(frozen=True, slots=True)
class Moment:
    """A time of which the cache holds tokens.

    Attributes:
        pts: Seconds: an ``at`` of the cache.
        stop: Seconds until which it stands for the media: the next one's time, or the end.
        segment: Row of the segment table, -1 none.
        score: Highest of its tokens', None where the method has none.
        rank: Lowest of its tokens': what a budget above it holds.
        tokens: Its video tokens.
    """

    pts: float
    stop: float
    segment: int
    score: float | None
    rank: int
    tokens: int

    def with_next(self, other: Moment) -> Moment:
        """Stand for the following moment as well."""
        scores = [s for s in (self.score, other.score) if s is not None]
        return replace(
            self, stop=other.stop, score=max(scores, default=None),
            rank=min(self.rank, other.rank), tokens=self.tokens + other.tokens,
        )  # fmt: skip


def moments_of(cache: TokenCache) -> list[Moment]:
    """Every moment of the video, by rising time.

    Raises:
        CacheError: The cache holds no video.
    """
    if "video" not in cache.streams:
        raise CacheError(
            "the cache holds no picture", hint="use a recipe that keeps some of the video",
            code="cache.stream",
        )  # fmt: skip
    real = np.asarray(cache.column("video.kind")) < KIND_LAYOUT
    at, segment, score, rank = (
        np.asarray(cache.column(f"video.{name}"))[real]
        for name in ("at", "segment", "score", "rank")
    )
    times, first, count = np.unique(at, return_index=True, return_counts=True)
    bounds = [*first.tolist(), len(at)]
    stops = [*times[1:].tolist(), end_of(cache)]
    found = []
    for i, pts in enumerate(times.tolist()):
        rows = slice(bounds[i], bounds[i + 1])
        best = np.nanmax(score[rows]) if not np.isnan(score[rows]).all() else None
        found.append(
            Moment(pts, max(stops[i], pts), int(segment[bounds[i]]),
                   None if best is None else float(best), int(rank[rows].min()), int(count[i]))
        )  # fmt: skip
    return found


def end_of(cache: TokenCache) -> float:
    """Seconds at which the media ends, as far as the cache tells."""
    clock = cache.metadata.get("tokpipe.clock") or {}
    known = clock.get("end") or cache.duration or 0.0
    return max(float(known), float(np.max(cache.column("video.pts")[:, 1])))


def fewer(moments: Sequence[Moment], most: int) -> list[Moment]:
    """At most so many, spread over all: of each run of neighbours the one of the lowest rank.

    Runs are equally long but for one, so that where the cache holds much, much is kept. What is
    kept stands for the media until the next one that is kept.

    Args:
        most: 0 keeps all.
    """
    if not most or len(moments) <= most:
        return list(moments)
    edges = [len(moments) * i // most for i in range(most + 1)]
    runs = [moments[a:b] for a, b in pairwise(edges)]
    kept = [min(run, key=lambda moment: moment.rank) for run in runs]
    stops = [*(moment.pts for moment in kept[1:]), moments[-1].stop]
    return [replace(moment, stop=stop) for moment, stop in zip(kept, stops, strict=True)]


def time_labels(times: Sequence[float]) -> list[str]:
    """Times as text, ``[00:13.3]`` or ``[1:02:13.3]``; more decimals where they tell two apart."""
    for decimals in _DECIMALS:
        labels = [f"[{time_label(time, decimals)}]" for time in times]
        if len(set(labels)) == len(set(times)):
            break
    return labels if times else []


def time_label(seconds: float, decimals: int = 1) -> str:
    """``13.333`` as ``00:13.3``, ``-1.5`` as ``-00:01.5``; hours where there are any."""
    units = round(abs(seconds) * 10**decimals)
    sign = "-" if seconds < 0 and units else ""
    whole, part = divmod(units, 10**decimals)
    minutes, second = divmod(whole, 60)
    hours, minute = divmod(minutes, 60)
    tail = f"{minute:02}:{second:02}.{part:0{decimals}}"
    return f"{sign}{hours}:{tail}" if hours else f"{sign}{tail}"
