"""One vector for each frame of a stream, of tokens that may stand for several frames."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from tokpipe.cache.format import KIND_LAYOUT

if TYPE_CHECKING:
    from tokpipe.cache.reader import TokenCache

Floats = npt.NDArray[np.float64]
_ROWS = 1 << 12


def every_token(cache: TokenCache, stream: str) -> tuple[npt.NDArray[np.generic], Floats]:
    """All rows [N, D] as they are (BF16 as float32) and the time [N] of each."""
    return cache.column(f"{stream}.tokens"), cache.column(f"{stream}.at")


def mean_rows(cache: TokenCache, stream: str) -> tuple[Floats, Floats]:
    """Mean of the tokens that stand for each frame.

    Returns:
        (means [T, D], times [T]): a row for each distinct time of a token, by rising time. A token
        counts in every frame its span holds, its own at least, with the cells of one picture that
        it stands for; newlines and separators do not count.
    """
    at, pts = cache.column(f"{stream}.at"), cache.column(f"{stream}.pts")
    real = cache.column(f"{stream}.kind") < KIND_LAYOUT
    frames = np.maximum(1, cache.column(f"{stream}.extent")[:, 0])
    weight = np.where(real, cache.column(f"{stream}.mass") / frames, 0.0)
    times = np.unique(at[real]) if real.any() else np.unique(at)
    own = np.searchsorted(times, at).clip(0, len(times) - 1)
    first = np.minimum(np.searchsorted(times, pts[:, 0]), own)
    after = np.maximum(np.searchsorted(times, pts[:, 1]), own + 1)
    width = cache.tensor_info(f"{stream}.tokens").shape[1]
    # What begins and ends at each frame, for tokens of several; sums for those of one.
    change, total = np.zeros((len(times) + 1, width + 1)), np.zeros((len(times), width + 1))
    one = after - first == 1
    for start in range(0, len(at), _ROWS):
        part = slice(start, start + _ROWS)
        tokens = cache.column(f"{stream}.tokens", start, start + _ROWS).astype(np.float64)
        rows = np.column_stack([tokens, np.ones(len(tokens))]) * weight[part, None]
        single = one[part]
        _add(total, first[part][single], rows[single])
        _add(change, first[part][~single], rows[~single])
        _add(change, after[part][~single], -rows[~single])
    if not one.all():
        total += np.cumsum(change[:-1], axis=0)
    return total[:, :-1] / np.maximum(total[:, -1:], np.finfo(np.float64).tiny), times


def _add(into: Floats, where: npt.NDArray[np.intp], rows: Floats) -> None:
    """Add each row where it belongs; several times faster than ``np.add.at``."""
    if len(rows):
        order = np.argsort(where, kind="stable")
        where = where[order]
        starts = np.flatnonzero(np.diff(where, prepend=-1))
        into[where[starts]] += np.add.reduceat(rows[order], starts)


def spread(cache: TokenCache, stream: str, times: Floats, count: int) -> npt.NDArray[np.intp]:
    """Indices [count] of the frames shown in the middle of ``count`` equal parts of the media."""
    end = cache.duration or float(cache.column(f"{stream}.pts")[:, 1].max())
    wanted = (np.arange(count) + 0.5) * (end / count)
    return (np.searchsorted(times, wanted, side="right") - 1).clip(0)
