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


def _change(
    now: NDArray[Any], last: NDArray[Any], scale: tuple[np.float32, np.float32]
) -> NDArray[np.float32]:
    step = np.subtract(now, last, dtype=np.float32)
    # Sums of squares without a copy of the squares.
    first = np.sqrt(np.einsum("...d,...d->...", step[..., :LUMA], step[..., :LUMA]))
    second = np.sqrt(np.einsum("...d,...d->...", step[..., LUMA:], step[..., LUMA:]))
    made: NDArray[np.float32] = np.maximum(first / scale[0], second / scale[1])
    return made
