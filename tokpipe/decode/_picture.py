"""A decoded frame that is converted only when somebody wants its pixels."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import av
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter

from tokpipe.errors import DecodeError

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Filter that pictures are resized by: a cubic as wide as the shrinking asks. Against the mean of
#: the surface (AREA) it loses a third less in an independent image embedding.
RESIZE = Interpolation.BICUBIC
#: SDR white of BT.2408 and the peak both transfer functions are mapped from, in cd/m2.
_WHITE, _PEAK = 203.0, 1000.0
#: Linear BT.2020 to linear BT.709 (BT.2087).
_TO_BT709 = np.array(
    [
        [1.660491, -0.587641, -0.072850],
        [-0.124550, 1.132900, -0.008349],
        [-0.018151, -0.100579, 1.118730],
    ],
    dtype=np.float32,
)


@dataclass(slots=True)
class DecodedPicture:
    """One frame on the media's clock.

    Attributes:
        pts, duration: Seconds.
        index: Rank of the pts in the stream, -1 unknown.
        usable: The decoder did not flag it, nor anything it depends on, as damaged.
        corrupt: The decoder flagged this very frame.
        rotation: Quarter turns counter-clockwise that make it upright.
        transfer: ``pq`` or ``hlg`` frames are tone-mapped to BT.709.
        marked: It shows a change, and is worth keeping between a sampler's ticks.
    """

    frame: av.VideoFrame
    reformatter: VideoReformatter
    pts: float
    duration: float
    index: int
    usable: bool = True
    corrupt: bool = False
    rotation: int = 0
    transfer: str = "unspecified"
    marked: bool = False

    def rgb(self, width: int, height: int) -> NDArray[np.uint8]:
        """uint8 [height, width, 3], upright and resized by :data:`RESIZE`.

        Raises:
            DecodeError: The picture's pixel format cannot be converted.
        """
        w, h = (height, width) if self.rotation % 2 else (width, height)
        hdr = self.transfer in ("pq", "hlg")
        try:
            out = self.reformatter.reformat(
                self.frame, width=w, height=h, format="rgb48le" if hdr else "rgb24",
                interpolation=RESIZE, threads=1,
            )  # fmt: skip
        except (av.FFmpegError, ValueError) as error:
            name = self.frame.format.name
            raise DecodeError(
                f"pictures of pixel format {name} cannot be converted",
                hint="re-encode the file, for example to yuv420p",
            ) from error
        decoded: Any = out.to_ndarray()
        pixels: NDArray[np.uint8] = tone_map(decoded, self.transfer) if hdr else decoded
        return np.ascontiguousarray(np.rot90(pixels, self.rotation)) if self.rotation else pixels


def tone_map(rgb: NDArray[np.uint16], transfer: str) -> NDArray[np.uint8]:
    """Map BT.2020 PQ or HLG to BT.709 for a standard display.

    Formulas: ST 2084 EOTF; BT.2100 HLG inverse OETF and OOTF (gamma 1.2, 1000 cd/m2); BT.2087
    matrix; extended Reinhard on the largest channel with 203 cd/m2 as white; BT.709 OETF.

    Args:
        rgb: uint16 [H, W, 3] non-linear BT.2020, full range.
        transfer: ``pq`` or ``hlg``.
    """
    light: NDArray[Any] = _linear_table(transfer)[rgb]
    if transfer == "hlg":
        luma = light @ np.array([0.2627, 0.6780, 0.0593], dtype=np.float32)
        light = light * np.maximum(luma, 1e-6)[..., None] ** np.float32(0.2) * np.float32(_PEAK)
    scene = np.maximum(light @ _TO_BT709.T, 0) / np.float32(_WHITE)
    top = np.maximum(scene.max(axis=-1, keepdims=True), 1e-6)
    white = np.float32(_PEAK / _WHITE)
    mapped = np.clip(scene * ((1 + top / white**2) / (1 + top)), 0, 1)
    video = np.where(mapped < 0.018, 4.5 * mapped, 1.099 * mapped ** np.float32(0.45) - 0.099)
    out: NDArray[np.uint8] = np.clip(video * 255 + 0.5, 0, 255).astype(np.uint8)
    return out


@cache
def _linear_table(transfer: str) -> NDArray[np.float32]:
    """Light per 16-bit code: cd/m2 for PQ, scene light 0..1 for HLG."""
    code = np.arange(65536, dtype=np.float64) / 65535
    light: NDArray[Any]
    if transfer == "pq":
        m1, m2, c1, c2, c3 = 2610 / 16384, 2523 / 32, 3424 / 4096, 2413 / 128, 2392 / 128
        power = code ** (1 / m2)
        light = 10000 * (np.maximum(power - c1, 0) / (c2 - c3 * power)) ** (1 / m1)
    else:
        a, b, c = 0.17883277, 0.28466892, 0.55991073
        light = np.where(code <= 0.5, code**2 / 3, (np.exp((code - c) / a) + b) / 12)
    return light.astype(np.float32)
