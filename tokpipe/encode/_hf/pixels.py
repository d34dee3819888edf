"""Pictures as an image processor of transformers makes them, without leaving the device.

Source: the Pillow image processors of transformers (``CLIPImageProcessorPil`` ...), whose results
these are to the bit on the CPU; DINOv3's, which resizes floats, likewise. Elsewhere resized
pictures differ by a grey level here and there, two at most, see ``_fit.resized_by_torch``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tokpipe.encode._fit import Fit, Frame, constant, fitted, frame_of
from tokpipe.encode._tower import Places
from tokpipe.errors import ModelError

_BILINEAR, _BICUBIC = 2, 3
_COLOURS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Pixels:
    """What of an image processor decides how a picture looks to a tower.

    Attributes:
        mean, std: Of each colour, on the scale after ``scale``.
        scale: Factor of grey levels 0..255, usually 1/255.
        bicubic: Resize bicubically, else bilinearly.
        floats: Resize after scaling, without rounding to grey levels.
        short: Short side in pixels of the resized picture before its centre is cut out; 0 where
            the processor squashes.
        size: Height and width of what it makes, (0, 0) where that depends on the picture.
        processor: Name of its class.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    scale: float
    bicubic: bool
    floats: bool = False
    short: int = 0
    size: tuple[int, int] = (0, 0)
    processor: str = ""

    @property
    def fill(self) -> tuple[int, ...]:
        """Three grey levels 0 .. 255, those nearest to the mean."""
        return tuple(min(255, max(0, round(m / self.scale))) for m in self.mean)

    def about(self) -> dict[str, Any]:
        """For ``Outline.about``."""
        return {
            "processor": self.processor,
            "mean": list(self.mean),
            "std": list(self.std),
            "rescale": self.scale,
            "interpolation": "bicubic" if self.bicubic else "bilinear",
        }

    def normalised(self, pixels: Tensor) -> Tensor:
        """float32 [T, 3, H, W] of uint8 [T, H, W, 3], or of such floats already scaled."""
        seen = pixels if pixels.is_floating_point() else self.scaled(pixels)
        mean = constant(self.mean, torch.float32, pixels.device)
        std = constant(self.std, torch.float32, pixels.device)
        return ((seen - mean) / std).permute(0, 3, 1, 2).contiguous()

    def scaled(self, pixels: Tensor) -> Tensor:
        """float32 like uint8 ``pixels``, each value rounded once."""
        # A division by 255 rounds as the product in double precision does, which devices may lack.
        if self.scale == 1 / 255:
            return pixels.float() / 255
        return (pixels.double() * self.scale).float()

    def placed(self, pixels: Tensor, frame: Frame, canvas: tuple[int, int]) -> Tensor:
        """float32 [T, 3, h, w]: uint8 [T, H, W, 3] resized, put on the canvas, normalised."""
        if self.floats:
            return self._placed_floats(pixels, frame, canvas)
        made = fitted(pixels, frame, canvas, bicubic=self.bicubic, fill=self.fill)
        return self.normalised(made)

    def _placed_floats(self, pixels: Tensor, frame: Frame, canvas: tuple[int, int]) -> Tensor:
        # The processor multiplies single precision numbers by the scale.
        seen = (pixels.permute(0, 3, 1, 2) * self.scale).contiguous()
        seen = torch.nn.functional.interpolate(
            seen,
            (frame.height, frame.width),
            mode="bicubic" if self.bicubic else "bilinear",
            align_corners=False,
            antialias=True,
        )
        top, left = max(0, -frame.top), max(0, -frame.left)
        seen = seen[:, :, top : top + canvas[0], left : left + canvas[1]]
        mean = constant(self.mean, torch.float32, pixels.device)[:, None, None]
        std = constant(self.std, torch.float32, pixels.device)[:, None, None]
        seen = (seen - mean) / std
        if tuple(seen.shape[2:]) == canvas:
            return seen.contiguous()
        out = seen.new_zeros(len(seen), _COLOURS, *canvas)
        y, x = max(0, frame.top), max(0, frame.left)
        out[:, :, y : y + seen.shape[2], x : x + seen.shape[3]] = seen
        return out


def pixels_of(processor: Any) -> Pixels:
    """Read an image processor of transformers.

    Raises:
        ModelError: It makes something else than pictures of three colours, or resizes in a way
            this module does not.
    """
    name = type(processor).__name__
    resample = int(getattr(processor, "resample", None) or _BILINEAR)
    if resample not in (_BILINEAR, _BICUBIC):
        raise ModelError(
            f"{name} resizes by Pillow's filter {resample}; bilinear and bicubic are known",
            hint="set `resample` to 2 or 3 in preprocessor_config.json",
        )
    normal = bool(getattr(processor, "do_normalize", True))
    size, crop = _sides(processor, "size"), _sides(processor, "crop_size")
    crops = bool(getattr(processor, "do_center_crop", False)) and crop is not None
    return Pixels(
        mean=_colours(processor.image_mean, name) if normal else (0.0,) * _COLOURS,
        std=_colours(processor.image_std, name) if normal else (1.0,) * _COLOURS,
        scale=float(processor.rescale_factor) if getattr(processor, "do_rescale", True) else 1.0,
        bicubic=resample == _BICUBIC,
        floats=name.startswith("DINOv3"),
        short=_short(processor) if crops else 0,
        size=(crop if crops else size) or (0, 0),
        processor=name,
    )


def _colours(values: Any, name: str) -> tuple[float, ...]:
    found = tuple(float(v) for v in (values if isinstance(values, list | tuple) else [values] * 3))
    if len(found) != _COLOURS:
        raise ModelError(
            f"{name} is for pictures of {len(found)} channels, frames have three",
            hint="use a tower for colour pictures",
        )
    return found


def _read(processor: Any, name: str) -> Mapping[str, Any]:
    """A size of a processor as a dict; one number is the short side."""
    value = getattr(processor, name, None)
    if isinstance(value, int):
        return {"shortest_edge": value}
    return {k: value[k] for k in dict(value) if value[k] is not None} if value else {}


def _sides(processor: Any, name: str) -> tuple[int, int] | None:
    value = _read(processor, name)
    if "height" in value and "width" in value:
        return int(value["height"]), int(value["width"])
    if "shortest_edge" in value:
        return int(value["shortest_edge"]), int(value["shortest_edge"])
    return None


def _short(processor: Any) -> int:
    value = _read(processor, "size")
    return int(value.get("shortest_edge", 0))


def frame_for(
    pixels: Pixels, picture: tuple[int, int], canvas: tuple[int, int], patch: tuple[int, int],
    fit: Fit,
) -> Frame:  # fmt: skip
    """Where a picture of ``picture`` (height, width) lands on the canvas.

    ``crop`` is the processor's own where it crops: the short side becomes its ``short``; else the
    short side fills the canvas. The centre is rounded down, as transformers does.
    """
    if fit != "crop":
        return frame_of(*picture, canvas, patch, fit)
    short, long = min(picture), max(picture)
    side = pixels.short or max(canvas)
    other = int(side * long / short)
    high, wide = (side, other) if picture[0] <= picture[1] else (other, side)
    return Frame(-((high - canvas[0]) // 2), -((wide - canvas[1]) // 2), high, wide)


def patch_places(frame: Frame, patch: tuple[int, int], grid: tuple[int, int]) -> Places:
    """Places of patches from the canvas's top left corner; what is left over belongs to none."""
    y = torch.arange(grid[0] + 1, dtype=torch.float64) * patch[0]
    x = torch.arange(grid[1] + 1, dtype=torch.float64) * patch[1]
    return Places.regular((y - frame.top) / frame.height, (x - frame.left) / frame.width)
