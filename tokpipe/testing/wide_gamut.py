"""High dynamic range test pictures: BT.2020 with the PQ or HLG transfer, 10 bits, 4:2:0."""

from __future__ import annotations

from typing import Literal

import av
import numpy as np
from av.video.reformatter import ColorPrimaries, ColorTrc
from numpy.typing import NDArray

__all__ = ["WHITE_SIGNAL", "hdr_frame"]

WHITE_SIGNAL: dict[str, float] = {"pq": 0.5807, "hlg": 0.75}
"""Signal of graphics white (203 cd/m²) in each transfer, 0 to 1 (Rec. ITU-R BT.2408, table 1)."""

_BT2020_NON_CONSTANT = 9  # matrix coefficients, Rec. ITU-T H.273 table 4
_LUMA = np.array([0.2627, 0.6780, 0.0593])  # Rec. ITU-R BT.2020, table 4


def hdr_frame(rgb: NDArray[np.uint8], transfer: Literal["pq", "hlg"]) -> av.VideoFrame:
    """Turn a picture into a 10-bit frame whose 255 is graphics white.

    Args:
        rgb: Signal values [H, W, 3], 0 to 255, H and W even; 255 stands for `WHITE_SIGNAL`.
        transfer: ``pq`` or ``hlg``.

    Returns:
        A ``yuv420p10le`` frame in limited range with its colour properties set.
    """
    signal = rgb.astype(np.float64) / 255 * WHITE_SIGNAL[transfer]
    luma = signal @ _LUMA
    blue = (signal[..., 2] - luma) / (2 * (1 - _LUMA[2]))
    red = (signal[..., 0] - luma) / (2 * (1 - _LUMA[0]))
    frame = av.VideoFrame(rgb.shape[1], rgb.shape[0], "yuv420p10le")
    planes = [64 + 876 * luma, 512 + 896 * _halve(blue), 512 + 896 * _halve(red)]
    for plane, values in zip(frame.planes, planes, strict=True):
        rows = (
            np.frombuffer(memoryview(plane), dtype="<u2")
            .reshape(plane.height, plane.line_size // 2)
            .copy()
        )
        rows[:, : plane.width] = np.round(values)
        plane.update(rows.tobytes())
    frame.colorspace = _BT2020_NON_CONSTANT
    frame.color_primaries = ColorPrimaries.BT2020
    frame.color_trc = ColorTrc.SMPTE2084 if transfer == "pq" else ColorTrc.ARIB_STD_B67
    frame.color_range = 1
    return frame


def _halve(plane: NDArray[np.float64]) -> NDArray[np.float64]:
    height, width = plane.shape
    halved: NDArray[np.float64] = plane.reshape(height // 2, 2, width // 2, 2).mean(axis=(1, 3))
    return halved
