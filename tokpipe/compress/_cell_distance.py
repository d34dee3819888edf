"""How much a cell's ``pixels`` descriptor differs from another's, in borders of what is noticed.

Luma and chroma are taken apart, as root mean squares over the cell in grey levels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

#: Width of a descriptor, its luma part, and the pixels per side of each plane's cell.
DIM, LUMA = 24, 16
LUMA_SIDE, CHROMA_SIDE = 28.0, 14.0
#: Grey levels of luma and of chroma under which a cell counts as unchanged.
LUMA_LEVEL, CHROMA_LEVEL = 3.0, 4.0
#: Pictures taken together: what they need stays in the processor's cache.
_AT_ONCE = 16


def cell_change(
    now: NDArray[Any], last: NDArray[Any], luma: float = LUMA_LEVEL, chroma: float = CHROMA_LEVEL
) -> NDArray[np.float32]:
    """Change float32 [..., C] between descriptors [..., C, 24]; 1 is the border of novel.

    Args:
        luma, chroma: Grey levels that count as 1.
    """
    scale = np.float32(LUMA_SIDE * luma), np.float32(CHROMA_SIDE * chroma)
    shape = np.broadcast_shapes(now.shape, last.shape)
    if len(shape) < 3 or shape[0] <= _AT_ONCE:
        return _change(now, last, scale)
    made = np.empty(shape[:-1], np.float32)
    for a in range(0, shape[0], _AT_ONCE):
        some = slice(a, a + _AT_ONCE)
        made[some] = _change(
            now[some] if now.ndim == len(shape) else now,
            last[some] if last.ndim == len(shape) else last, scale,
        )  # fmt: skip
    return made


def follow(
    data: NDArray[Any], last: NDArray[np.float32] | None, luma: float = LUMA_LEVEL,
    chroma: float = CHROMA_LEVEL, *, border: float = 1.0, kept: bool = True,
) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:  # fmt: skip
    """Change of each cell against what stands at its place, frame after frame.

    Args:
        data: Descriptors float32 [T, C, 24].
        last: What the frames before left, None at the start: a first cell is compared with
            mid-grey and scores at least ``border``, and at least 1.
        border: Score from which a cell is kept.
        kept: Compare with the last kept cell, else with that of the frame before.

    Returns:
        Scores float32 [T, C], and what is left for the frames after.
    """
    scores = np.empty(data.shape[:2], np.float32)
    for now, out in zip(data, scores, strict=True):
        before = _grey(len(now)) if last is None else last
        out[:] = cell_change(now, before, luma, chroma)
        if last is None:
            np.maximum(out, np.float32(max(border, 1.0)), out=out)
        last = np.where((out >= border)[:, None], now, before) if kept else now
    return scores, last


def _grey(cells: int) -> NDArray[np.float32]:
    """Descriptors of flat mid-grey, what a cell shows before anything is known of it."""
    flat = np.zeros((cells, DIM), dtype=np.float32)
    flat[:, 0] = 128 * LUMA_SIDE
    return flat


def _change(
    now: NDArray[Any], last: NDArray[Any], scale: tuple[np.float32, np.float32]
) -> NDArray[np.float32]:
    step = np.subtract(now, last, dtype=np.float32)
    # Sums of squares without a copy of the squares.
    first = np.sqrt(np.einsum("...d,...d->...", step[..., :LUMA], step[..., :LUMA]))
    second = np.sqrt(np.einsum("...d,...d->...", step[..., LUMA:], step[..., LUMA:]))
    made: NDArray[np.float32] = np.maximum(first / scale[0], second / scale[1])
    return made
