"""Coverage, baselines and the oracle, on unit vectors of frames.

Letters: T dense frames, K pictures, D width, M candidates.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokpipe.evaluate.report import Coverage, Events

Vectors = NDArray[np.float32]
#: Draws of the random baseline.
DRAWS = 20
#: Distance of oracle and uniform below which nothing is said of the gap between them.
LEAST_GAP = 0.002
#: Frames the oracle chooses among: all of them up to this many, else as many at even distances.
CANDIDATES = 4096
#: Numbers of one product of frames and pictures, so that memory does not grow with the video.
_PRODUCT = 1 << 24


def best_cosines(frames: Vectors, pictures: Vectors) -> NDArray[np.float32]:
    """Best cosine float32 [T] of each frame [T, D] to any picture [K, D]."""
    best = np.full(len(frames), -1.0, dtype=np.float32)
    step = _step(frames)
    for a in range(0, len(pictures), step):
        np.maximum(best, (frames @ pictures[a : a + step].T).max(1), out=best)
    return best


def _step(frames: Vectors) -> int:
    """Pictures that are compared with all frames at a time."""
    return max(1, _PRODUCT // len(frames))


def summed(best: NDArray[Any]) -> Coverage:
    """Mean, 5 % quantile and minimum."""
    return Coverage(float(best.mean()), float(np.quantile(best, 0.05)), float(best.min()))


def uniform(frames: int, count: int) -> list[int]:
    """Frames at the middles of ``count`` equal parts; all frames where there are no more."""
    if count >= frames:
        return list(range(frames))
    return [min(frames - 1, int((i + 0.5) * frames / count)) for i in range(count)]


def random_draws(frames: int, count: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """``DRAWS`` sets of ``count`` frames without repeats."""
    rng = np.random.default_rng(seed)
    for _ in range(DRAWS):
        yield rng.choice(frames, min(count, frames), replace=False)


def random_coverage(frames: Vectors, count: int, seed: int) -> Coverage:
    """Mean over the draws of each number."""
    draws = random_draws(len(frames), count, seed)
    found = [summed(best_cosines(frames, frames[drawn])) for drawn in draws]
    mean, p5, least = np.mean([(c.mean, c.p5, c.min) for c in found], axis=0).tolist()
    return Coverage(mean, p5, least)


def oracle(frames: Vectors, counts: Sequence[int]) -> dict[int, list[int]]:
    """Frames a greedy facility location takes that sees the features; one run for all counts.

    Gains only shrink as frames are taken, so an old gain is a bound: few are worked out again.
    """
    place = np.array(uniform(len(frames), CANDIDATES))
    most = min(max(counts), len(place))
    best = np.full(len(frames), -1.0, dtype=np.float32)
    step = _step(frames)
    parts = [place[a : a + step] for a in range(0, len(place), step)]
    bound = np.concatenate([_gains(frames, frames[part], best) for part in parts])
    chosen: list[int] = []
    while len(chosen) < most:
        fresh = np.zeros(len(place), dtype=np.bool_)
        while not fresh[top := int(bound.argmax())]:
            stale = np.argsort(-bound, kind="stable")[:32]
            stale = stale[~fresh[stale]]
            bound[stale] = _gains(frames, frames[place[stale]], best)
            fresh[stale] = True
        chosen.append(int(place[top]))
        np.maximum(best, frames @ frames[place[top]], out=best)
        bound[top] = -np.inf
    return {count: chosen[:count] for count in counts}


def _gains(frames: Vectors, candidates: Vectors, best: NDArray[np.float32]) -> NDArray[np.float64]:
    """What each candidate [M, D] would add to the sum of best cosines, float64 [M]."""
    near = frames @ candidates.T
    gains: NDArray[np.float64] = np.maximum(near - best[:, None], 0).sum(0, dtype=np.float64)
    return gains


def gap_closed(got: float, even: float, best: float) -> float | None:
    """(got - uniform) / (oracle - uniform), None where the two are too near."""
    gap = best - even
    return (got - even) / gap if gap >= LEAST_GAP else None


def states_of(note: Mapping[str, Any], first: float, end: float) -> list[tuple[float, float]]:
    """Annotated states as (start, stop) seconds: slides between changes, or visits.

    Args:
        note: Has ``slide_changes_s`` (times) or ``person_present_s`` (start and stop each).
        first, end: Seconds of the first and the last dense frame.
    """
    if "slide_changes_s" in note:
        edges = [min(0.0, first), *note["slide_changes_s"], end]
        return [(a, b) for a, b in pairwise(edges) if b > a]
    return [(float(a), float(b)) for a, b in note.get("person_present_s", ())]


def event_recall(states: Sequence[tuple[float, float]], times: Sequence[float]) -> Events | None:
    """States that hold a picture, borders included; None without states."""
    if not states:
        return None
    kept = sorted(times)
    hit = sum(bisect.bisect_left(kept, a) < bisect.bisect_right(kept, b) for a, b in states)
    return Events(len(states), hit)
