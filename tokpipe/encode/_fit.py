"""Fit pictures into a tower of one fixed size: pad, squash or crop, and where each part goes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tokpipe.encode._tower import Places

Fit = Literal["pad", "squash", "crop"]
Filter = Literal["bilinear", "bicubic", "lanczos"]
_PILLOW = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


@dataclass(frozen=True, slots=True)
class Frame:
    """Where a picture lands on the tower's canvas, in canvas pixels.

    Attributes:
        top, left: Of the resized picture; negative where it is cropped.
        height, width: Of the resized picture.
    """

    top: int
    left: int
    height: int
    width: int


def frame_of(
    height: int, width: int, canvas: tuple[int, int], token: tuple[int, int], fit: Fit
) -> Frame:
    """Place a picture of ``height`` x ``width`` on the canvas.

    Args:
        canvas: Height and width of the tower's input.
        token: Height and width in pixels of one token.
        fit: ``squash`` stretches both sides; ``pad`` keeps the shape, centred and then moved to
            the nearest token border so that as many tokens as can be lie wholly on the picture;
            ``crop`` resizes the short side and cuts out the centre, as CLIP does.
    """
    if fit == "squash":
        return Frame(0, 0, *canvas)
    ratios = (canvas[0] / height, canvas[1] / width)
    if fit == "crop":
        # torchvision's arithmetic: the long side is truncated, the centre rounded.
        size = max(canvas)
        short, long = min(height, width), max(height, width)
        other = int(size * long / short)
        high, wide = (size, other) if height <= width else (other, size)
        return Frame(-round((high - canvas[0]) / 2.0), -round((wide - canvas[1]) / 2.0), high, wide)
    scale = min(ratios)
    high = min(canvas[0], max(1, round(height * scale)))
    wide = min(canvas[1], max(1, round(width * scale)))
    return Frame(
        _snapped(canvas[0] - high, token[0]), _snapped(canvas[1] - wide, token[1]), high, wide
    )


def _snapped(free: int, step: int) -> int:
    """The multiple of ``step`` nearest to the middle of ``free``, within it."""
    return min(round(free / 2 / step), free // step) * step


def places_of(frame: Frame, canvas: tuple[int, int], grid: tuple[int, int]) -> Places:
    """Places of a regular grid over the whole canvas."""
    y = torch.linspace(0, canvas[0], grid[0] + 1, dtype=torch.float64)
    x = torch.linspace(0, canvas[1], grid[1] + 1, dtype=torch.float64)
    return Places.regular((y - frame.top) / frame.height, (x - frame.left) / frame.width)


def fitted(
    pixels: Tensor, frame: Frame, canvas: tuple[int, int], *, bicubic: bool, fill: Sequence[int]
) -> Tensor:
    """Resize and place uint8 [T, H, W, 3]; returns uint8 [T, h, w, 3] of the canvas.

    Args:
        bicubic: Resize bicubically, else bilinearly; see :func:`resized`.
        fill: Three grey levels of what padding shows, the tower's mean colour.
    """
    how: Filter = "bicubic" if bicubic else "bilinear"
    return placed(resized(pixels, frame.height, frame.width, how), frame, canvas, fill)


def placed(pixels: Tensor, frame: Frame, canvas: tuple[int, int], fill: Sequence[int]) -> Tensor:
    """Put pictures resized for ``frame``, uint8 [T, height, width, 3], on the canvas; cut to it."""
    top, left = max(0, -frame.top), max(0, -frame.left)
    seen = pixels[:, top : top + canvas[0], left : left + canvas[1]]
    if tuple(seen.shape[1:3]) == canvas:
        return seen
    out = constant(tuple(fill), torch.uint8, pixels.device).expand(len(pixels), *canvas, 3).clone()
    y, x = max(0, frame.top), max(0, frame.left)
    out[:, y : y + seen.shape[1], x : x + seen.shape[2]] = seen
    return out


def resized(pixels: Tensor, height: int, width: int, how: Filter) -> Tensor:
    """Resize uint8 [T, H, W, 3].

    On the CPU by Pillow, whose results are those of the towers' own transforms to the bit;
    elsewhere by :func:`resized_by_torch`.
    """
    if pixels.shape[1:3] == (height, width):
        return pixels
    if pixels.device.type == "cpu":
        made = [
            np.asarray(Image.fromarray(picture).resize((width, height), _PILLOW[how]))
            for picture in pixels.numpy()
        ]
        return torch.from_numpy(np.stack(made))
    return resized_by_torch(pixels, height, width, how)


def resized_by_torch(pixels: Tensor, height: int, width: int, how: Filter) -> Tensor:
    """Resize uint8 [T, H, W, 3] on any device, within two grey levels of Pillow.

    On noise 0 to 4 % of the values differ at all, nearly all of them by one. torch has no Lanczos
    filter: bicubic takes its place, which is further off.
    """
    made = pixels.permute(0, 3, 1, 2).float()
    # Pillow rounds to grey levels between its two passes, width first. In one pass the overshoot
    # of bicubic would not be cut off between them, and noise come out up to 30 levels off.
    for size in ((made.shape[2], width), (height, width)):
        if tuple(made.shape[2:]) != size:
            made = torch.nn.functional.interpolate(
                made, size, mode="bilinear" if how == "bilinear" else "bicubic", antialias=True
            )
            made = made.round_().clamp_(0, 255)
    return made.to(torch.uint8).permute(0, 2, 3, 1)


@lru_cache(maxsize=128)
def constant(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """A few numbers [n] on a device, copied there once; not to be written to.

    Copied for every batch they would make the host wait each time until the device has come to it.
    """
    with torch.inference_mode(False):
        return torch.tensor(values, dtype=dtype, device=device)
