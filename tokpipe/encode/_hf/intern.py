"""InternVL: a frame is one tile; pixel shuffle joins s x s patches, then an MLP projects the row.

With ``tiles`` pictures enter as the model's images: crops on the grid whose shape is nearest to the
picture's, then the whole picture as the last tile, unless one crop is all.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from tokpipe.encode._fit import Frame
from tokpipe.encode._hf.front import FrontFamily
from tokpipe.encode._hf.views import Layout, View, crops
from tokpipe.errors import ModelError


class InternVlFamily(FrontFamily):
    """InternVL 3 and 3.5 in transformers' own form (``...-hf``)."""

    model = "InternVLModel"
    kind: ClassVar[Literal["image", "video"]] = "video"

    def _merge(self) -> int:
        select = str(self.config.vision_feature_select_strategy)
        if select != "default":
            raise ModelError(
                f"`{self.settings.model}` selects features by `{select}`, known is `default`",
                hint="use the checkpoint's own config.json",
            )
        return self._divides(int(1 / self.config.downsample_ratio))

    def _layer(self) -> int | list[int]:
        found = self.config.vision_feature_layer
        if not isinstance(found, int):
            raise ModelError(
                f"`{self.settings.model}` takes several layers, its projector one",
                hint="use the checkpoint's own config.json",
            )
        return found

    def _norms(self) -> bool:
        return True

    def _facts(self) -> Mapping[str, Any]:
        order = "crops, then the whole picture" if self.tiled else "raster"
        return {"select": "default", "order": order, "merged": "pixel shuffle"}

    def _tiled(self, height: int, width: int) -> Layout:
        from transformers.models.got_ocr2.image_processing_got_ocr2 import get_optimal_tiled_canvas

        found, side = self.processor(), self.side
        cols, rows = get_optimal_tiled_canvas(
            (height, width), (side, side), int(found.min_patches), int(found.max_patches)
        )
        whole = View(frame=Frame(0, 0, side, side), side=side)
        if rows * cols == 1:
            return crops(None, whole, self.tokens, self.grid * self.patch)
        cut = View(frame=Frame(0, 0, rows * side, cols * side), side=side, tiles=(rows, cols))
        return crops(cut, whole, self.tokens, self.grid * self.patch)
