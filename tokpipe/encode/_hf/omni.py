"""Vision front ends of the Qwen2.5-Omni and Qwen3-Omni thinkers: those of Qwen2.5-VL and Qwen3-VL.

Their attention has three matrices in place of one, and the parts lie in the thinker.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import nn

from tokpipe.encode._hf.load import front_end, library
from tokpipe.encode._hf.qwen import PatchFamily, Qwen3VlFamily, Qwen25VlFamily

if TYPE_CHECKING:
    from tokpipe.encode.hf_vision import HfVision


class _Thinker(PatchFamily):
    """What the two have in common."""

    #: transformers' name of the thinker without its ending.
    thinker: str
    rope = "tmrope: (t, h, w), t in seconds by position_id_per_seconds"

    def __init__(self, config: Any, settings: HfVision) -> None:
        super().__init__(getattr(config, "thinker_config", config), settings)

    def front(self, beside: tuple[str, ...] = ()) -> Any:
        """See ``PatchFamily``."""
        known = library()
        kind = getattr(known, f"{self.thinker}Model", None)
        drop: tuple[str, ...] = ("audio_tower", "language_model")
        if kind is None:
            # In 5.18 the parts lie in the class with the head.
            kind = getattr(known, f"{self.thinker}ForConditionalGeneration")
            drop = ("audio_tower", "model", "lm_head")
        return front_end(kind, self.config, self.settings, drop=(*drop, *beside))

    def _model(self) -> type[nn.Module]:
        made: type[nn.Module] = getattr(library(), f"{self.thinker}ForConditionalGeneration")
        return made

    def _facts(self) -> Mapping[str, Any]:
        return {"position_id_per_seconds": self.config.position_id_per_seconds}


class Qwen25OmniFamily(_Thinker, Qwen25VlFamily):
    """Qwen2.5-Omni."""

    thinker = "Qwen2_5OmniThinker"


class Qwen3OmniFamily(_Thinker, Qwen3VlFamily):
    """Qwen3-Omni."""

    thinker = "Qwen3OmniMoeThinker"

    def _facts(self) -> Mapping[str, Any]:
        return {**super()._facts(), "deepstack_layers": list(self._levels())}
