"""SmolVLM2 and Idefics3: a frame is squashed to one square; s x s patches are joined and projected.

Frames are resized twice, as the models do: first until the long side has the processor's length,
then to the square. With ``tiles`` pictures enter as the models' images: a large copy cut into
squares, then the whole as the last tile, unless the copy is no larger than one square.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

from torch import nn

from tokpipe.encode._fit import Frame
from tokpipe.encode._hf.front import FrontFamily
from tokpipe.encode._hf.views import Layout, View, crops

#: Longest side the processors ever make.
_LONGEST = 4096


class SmolVlmFamily(FrontFamily):
    """SmolVLM, SmolVLM2 and Idefics3."""

    language = "text_model"
    tower = "vision_model"
    projector = "connector"

    @property
    def model(self) -> str:  # type: ignore[override]
        """Transformers' class."""
        return "Idefics3Model" if self.config.model_type == "idefics3" else "SmolVLMModel"

    @property
    def kind(self) -> Literal["image", "video"]:  # type: ignore[override]
        """Idefics3 knows no videos."""
        return "image" if self.config.model_type == "idefics3" else "video"

    def _merge(self) -> int:
        return self._divides(int(self.config.scale_factor))

    def _side(self) -> int:
        return int(self.processor().max_image_size["longest_edge"])

    def _layer(self) -> int | list[int]:
        return -1

    def _norms(self) -> bool:
        return True

    def _project(self, model: Any) -> nn.Module:
        made: nn.Module = model.connector.modality_projection
        return made

    def _facts(self) -> Mapping[str, Any]:
        order = "crops, then the whole picture" if self.tiled else "raster"
        return {"order": order, "merged": "pixel shuffle"}

    def _before(self, height: int, width: int) -> tuple[tuple[int, int], ...]:
        return (self._first(height, width),)

    def _first(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the first copy: its long side is given, the short one is even."""
        longest = min(int(self.processor().size["longest_edge"]), _LONGEST)
        shape = width / height
        if width >= height:
            short = int(longest / shape)
            return max(short + short % 2, 1), longest
        short = int(longest * shape)
        return longest, max(short + short % 2, 1)

    def _tiled(self, height: int, width: int) -> Layout:
        side = self.side
        first = self._first(height, width)
        shape = first[1] / first[0]
        if first[1] >= first[0]:
            wide = _multiple(first[1], side)
            high = _multiple(int(wide / shape), side)
        else:
            high = _multiple(first[0], side)
            wide = _multiple(int(high * shape), side)
        if (high, wide) == (side, side):
            whole = View(frame=Frame(0, 0, side, side), side=side, before=(first,))
            return crops(None, whole, self.tokens, self.grid * self.patch)
        cut = View(
            frame=Frame(0, 0, high, wide), side=side, before=(first,),
            tiles=(high // side, wide // side),
        )  # fmt: skip
        whole = View(frame=Frame(0, 0, side, side), side=side, before=(first, (high, wide)))
        return crops(cut, whole, self.tokens, self.grid * self.patch)


def _multiple(length: int, side: int) -> int:
    return math.ceil(length / side) * side
