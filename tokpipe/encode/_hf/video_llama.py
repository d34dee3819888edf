"""VideoLLaMA3: patches of one frame, on a grid that varies with the picture.

Its own compression mask is not applied, as compressing is a recipe's business.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from tokpipe.encode._hf.load import config_source, read_processor
from tokpipe.encode._hf.patch_tower import PatchTower, VideoLlama3Tower
from tokpipe.encode._hf.patches import Layout
from tokpipe.encode._hf.qwen import PatchFamily
from tokpipe.encode._projection import Project

if TYPE_CHECKING:
    from tokpipe.encode.hf_vision import HfVision


class VideoLlama3Family(PatchFamily):
    """VideoLLaMA3: patches of one frame, groups averaged in the tower.

    Pictures enter as frames of a video (2 x 2 patches a token), or as images (one patch a token)
    with ``tiles``.
    """

    rope = "1-D"
    parts = ("vision_model", "projector")
    beside = ("vision_model",)

    def __init__(self, config: Any, settings: HfVision) -> None:
        self.kind = "image" if settings.tiles else "video"
        super().__init__(config, settings)

    def _model(self) -> type[nn.Module]:
        from transformers import VideoLlama3ForConditionalGeneration

        return VideoLlama3ForConditionalGeneration

    def _layout(self) -> Layout:
        # The tower takes any merge; processors say which, that of images another than of videos.
        found = read_processor(*config_source(self.settings), self.kind)
        return Layout(int(found.merge_size))

    def _every(self) -> int:
        return int(self.vision.num_hidden_layers)

    def _dims(self) -> tuple[int, int]:
        return self._width(), int(self.config.text_config.hidden_size)

    def _facts(self) -> Mapping[str, Any]:
        return {"grouped": "mean", "enters_as": self.kind, "compression_mask": False}

    def _tower(self, model: Any) -> tuple[Any, nn.Module, type[PatchTower]]:
        return model.vision_model, model.projector, VideoLlama3Tower

    def _rowwise(self, model: Any) -> tuple[Project, ...]:
        return (model.projector,)

    def _cut(self, visual: Any) -> tuple[nn.Module, ...]:
        layers = visual.encoder.layers
        if self.depth < len(layers):
            # A hidden state between two blocks is one no norm has been over.
            visual.encoder.layers, visual.post_layernorm = layers[: self.depth], nn.Identity()
        return tuple(block.self_attn for block in visual.encoder.layers)

    def process(self, pictures: list[Tensor]) -> tuple[Tensor, Tensor]:
        """See the base class; each picture is a video of one frame, with its bounds."""
        if self.kind == "image":
            return super().process(pictures)
        low, high = self._bounds()
        made = self._processor()(
            videos=[picture[None] for picture in pictures], do_sample_frames=False,
            size={"shortest_edge": low, "longest_edge": high}, use_token_compression=False,
            input_data_format="channels_first", return_tensors="pt",
        )  # fmt: skip
        return made["pixel_values_videos"], made["video_grid_thw"]
