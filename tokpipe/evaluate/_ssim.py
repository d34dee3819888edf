"""Structural similarity of two luma pictures.

Source: Wang, Bovik, Sheikh, Simoncelli, Image Quality Assessment: From Error Visibility to
Structural Similarity, IEEE TIP 2004, section III-C: Gaussian window of 11 x 11 points, sigma 1.5,
K1 = 0.01, K2 = 0.03, L = 255, mean over all places where the window lies wholly inside.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_SIDE, _SIGMA = 11, 1.5
_C1, _C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2


def luma(rgb: NDArray[np.uint8]) -> NDArray[np.float32]:
    """BT.601 luma float32 [H, W], 0 to 255, of uint8 [H, W, 3]."""
    weights = np.array([0.299, 0.587, 0.114], dtype=np.float32)
    made: NDArray[np.float32] = rgb.astype(np.float32) @ weights
    return made


def ssim(one: NDArray[Any], other: NDArray[Any]) -> float:
    """Mean SSIM of two luma pictures [H, W] in grey levels, at most 1.

    A side shorter than the window takes a window as long as that side.

    Raises:
        ValueError: The pictures differ in size.
    """
    if one.shape != other.shape or one.ndim != 2:
        raise ValueError(f"ssim: expected two pictures [H, W], got {one.shape} and {other.shape}")
    x, y = one.astype(np.float64), other.astype(np.float64)
    mx, my, xx, yy, xy = _windowed(np.stack([x, y, x * x, y * y, x * y]))
    mean = (2 * mx * my + _C1) / (mx * mx + my * my + _C1)
    spread = (2 * (xy - mx * my) + _C2) / (xx - mx * mx + yy - my * my + _C2)
    return float((mean * spread).mean())


def _windowed(maps: NDArray[np.float64]) -> NDArray[np.float64]:
    """Weighted means of maps [n, H, W] under the window, at each place it fits."""
    for _ in range(2):
        # Along the rows, then (turned) along the columns: one shifted sum for each point.
        weights = _window(min(_SIDE, maps.shape[1]))
        size = maps.shape[1] - len(weights) + 1
        total = weights[0] * maps[:, :size]
        for i in range(1, len(weights)):
            total += weights[i] * maps[:, i : i + size]
        maps = total.swapaxes(1, 2)
    return maps


def _window(size: int) -> NDArray[np.float64]:
    """Gaussian float64 [size] of sum 1."""
    at = np.arange(size) - (size - 1) / 2
    weight = np.exp(-(at**2) / (2 * _SIGMA**2))
    out: NDArray[np.float64] = weight / weight.sum()
    return out
