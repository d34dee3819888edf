"""Pictures as files: their bytes, their names, and what a manifest says of their cells."""

from __future__ import annotations

import io
from collections.abc import Collection
from dataclasses import dataclass
from itertools import chain, count
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Format = Literal["jpeg", "webp", "png"]
#: File suffix of each format.
SUFFIXES: dict[Format, str] = {"jpeg": ".jpg", "webp": ".webp", "png": ".png"}
MANIFEST = "manifest.jsonl"
#: JPEG quality from which colours are kept at full resolution: coloured text blurs otherwise.
_FULL_COLOUR = 90


@dataclass(frozen=True, slots=True)
class Look:
    """How pictures are written.

    Attributes:
        format: jpeg, webp or png.
        quality: 1 to 100; png has none.
        max_side: Longer side in pixels at most, 0: as they are. Nothing is ever enlarged.
    """

    format: Format = "jpeg"
    quality: int = 90
    max_side: int = 0

    def size(self, width: int, height: int) -> tuple[int, int]:
        """Width and height that a picture of this size gets."""
        side = max(width, height)
        if not self.max_side or side <= self.max_side:
            return width, height
        part = self.max_side / side
        return max(1, round(width * part)), max(1, round(height * part))

    def encode(self, pixels: NDArray[np.uint8]) -> bytes:
        """Resize uint8 [H, W, 3] RGB to fit, and encode it. The same pixels give the same bytes."""
        from PIL import Image

        image = Image.fromarray(pixels)
        size = self.size(image.width, image.height)
        if size != (image.width, image.height):
            image = image.resize(size, Image.Resampling.BICUBIC)
        out = io.BytesIO()
        if self.format == "png":
            image.save(out, "PNG", compress_level=3)
        elif self.format == "webp":
            image.save(out, "WEBP", quality=self.quality, method=4)
        else:
            full = self.quality >= _FULL_COLOUR
            image.save(out, "JPEG", quality=self.quality, subsampling=0 if full else 2)
        return out.getvalue()


def picture_name(pts: float, suffix: str, taken: Collection[str] = ()) -> str:
    """File name of a picture: its time, to ten microseconds.

    Args:
        taken: Names of earlier pictures; one that is nearer than that gets a number. Names of the
            media's own times, which are not negative, sort as the times do.
    """
    time = f"{pts:012.5f}"
    numbers = (f"{time}_{number:03}{suffix}" for number in count(2))
    return next(name for name in chain([f"{time}{suffix}"], numbers) if name not in taken)


def cells_of(mask: NDArray[np.uint8]) -> dict[str, Any]:
    """Cells of a rebuilt picture in all, and by where their content is from."""
    from tokpipe.cache._rebuild import MASK_EARLIER, MASK_LATER, MASK_OWN, MASK_UNKNOWN

    counted = {"own": MASK_OWN, "earlier": MASK_EARLIER, "later": MASK_LATER,
               "unknown": MASK_UNKNOWN}  # fmt: skip
    return {"cells": int(mask.size)} | {k: int((mask == v).sum()) for k, v in counted.items()}
