"""LLaVA-NeXT-Video and Video-LLaVA.

LLaVA-NeXT-Video pools the patches of a frame in windows (24 x 24 to 12 x 12), then projects; its
images are LLaVA-NeXT's, whole and in crops, with ``tiles``.

Video-LLaVA has two towers. Frames go through that of videos, whose class token the model keeps: it
is the first of a frame's 257 tokens, and as it is no cell of the grid its row and column are -1.
Images, with ``tiles``, go through the other tower, one tile each, by the model's own choice without
the class token.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from tokpipe.encode._hf.front import FrontFamily
from tokpipe.encode._hf.head import Pool, windows
from tokpipe.encode._hf.live import part_with
from tokpipe.encode._hf.llava import LlavaNextFamily
from tokpipe.encode._hf.views import Layout
from tokpipe.encode._weights import digest_of
from tokpipe.errors import ModelError


class LlavaNextVideoFamily(LlavaNextFamily):
    """LLaVA-NeXT-Video."""

    model = "LlavaNextVideoModel"
    kind: ClassVar[Literal["image", "video"]] = "video"
    pools = True

    def _kernel(self) -> int:
        return int(self.config.spatial_pool_stride)

    def _pool(self, model: Any) -> Pool:
        return windows(self.grid, self._kernel(), model.vision_resampler)

    def _facts(self) -> Mapping[str, Any]:
        stride, mode = self._kernel(), self.config.spatial_pool_mode
        pooled = f"{stride} x {stride}, {mode}, before the projector"
        return {**super()._facts(), "pool": pooled if self.pooling else "none"}


class VideoLlavaFamily(FrontFamily):
    """Video-LLaVA."""

    model = "VideoLlavaModel"

    @property
    def kind(self) -> Literal["image", "video"]:  # type: ignore[override]
        """Images have a processor of their own."""
        return "image" if self.settings.tiles else "video"

    @property
    def tower(self) -> str:  # type: ignore[override]
        """Images have a tower of their own."""
        return _TOWERS[self.settings.tiles]

    def _dropped(self) -> tuple[str, ...]:
        return (self.language, _TOWERS[not self.settings.tiles])

    def _layer(self) -> int | list[int]:
        found: int | list[int] = self.config.vision_feature_layer
        return found

    def _classes(self) -> int:
        if not self.tiled:
            return self.prefix
        select = str(self.config.vision_feature_select_strategy)
        return 0 if select == "default" else self.prefix

    def _tiled(self, height: int, width: int) -> Layout:
        return self._whole(height, width)

    def _facts(self) -> Mapping[str, Any]:
        return {"enters_as": "image" if self.tiled else "video"}

    def __post_init__(self) -> None:
        """See the base class; where class tokens are dropped there must be one."""
        super().__post_init__()
        if not self.prefix:
            raise ModelError(
                f"`{self.settings.model}` has a tower without class token, the model drops one",
                hint="use the checkpoint's own config.json",
            )

    @classmethod
    def digest(cls, model: Any, *, tiles: bool = False) -> str | None:
        """See the base class; of the tower of frames, or with ``tiles`` that of images."""
        part = part_with(model, _TOWERS[tiles], cls.projector)
        if part is None:
            return None
        return digest_of(part, without=(cls.language, _TOWERS[not tiles]))


#: Its towers by ``tiles``.
_TOWERS = {False: "video_tower", True: "image_tower"}
