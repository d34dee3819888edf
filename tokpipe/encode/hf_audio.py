"""Sound towers and the audio front ends of multimodal models, through transformers.

Source: transformers (Hugging Face), >= 5.18. Whisper, Qwen2-Audio, Qwen2.5-Omni, Qwen3-Omni,
Voxtral and the Audio Spectrogram Transformer without their language models.

The kind of model is read from its ``config.json``; no code of a model repository is ever run.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import torch
from pydantic import Field

from tokpipe.device import settle
from tokpipe.encode._hf.load import find_family
from tokpipe.encode._weights import check_digest

if TYPE_CHECKING:
    from tokpipe.encode._projection import Projection
    from tokpipe.encode._sound.tower import Sound
    from tokpipe.encode._tower import AudioTower, Outline

_WHISPER = "tokpipe.encode._sound.whisper:"
_OMNI = "tokpipe.encode._sound.omni_audio:"
#: Where the family of a ``model_type`` lives, ``module:Class``.
FAMILIES = {
    "whisper": _WHISPER + "WhisperSound",
    "qwen2_audio": _WHISPER + "Qwen2AudioSound",
    "voxtral": _WHISPER + "VoxtralSound",
    "qwen2_5_omni": _OMNI + "Qwen25OmniSound",
    "qwen2_5_omni_thinker": _OMNI + "Qwen25OmniSound",
    "qwen3_omni_moe": _OMNI + "Qwen3OmniSound",
    "qwen3_omni_moe_thinker": _OMNI + "Qwen3OmniSound",
    "audio-spectrogram-transformer": "tokpipe.encode._sound.ast:AstSound",
}


@dataclass(frozen=True, slots=True)
class HfAudio:
    """Encoder whose tokens are hidden states of a transformers sound tower.

    Attributes:
        model: Name on the Hugging Face hub, or a local folder with ``config.json``. What is
            cached is used first; the network only for what is not.
        revision: Branch, tag or commit on the hub; empty for its main branch.
        weights: Local folder or one checkpoint file (``.safetensors``, or a torch file that holds
            tensors only) used instead of the model's own; a folder with its own ``config.json``
            replaces the model altogether. ``random`` draws weights from the configuration with a
            fixed seed, for tests and benchmarks.
        digest: ``sha256:...`` the weights must have; empty for any.
        stage: Tokens before or after the projector to the language model. Whisper and the Audio
            Spectrogram Transformer have none; that of the Omni models is the end of their tower.
        layer: Hidden state taken, counted from 0, the embeddings; -1 for the tower's own output.
            Hidden states of Qwen2-Audio and Qwen2.5-Omni are not yet averaged: 50 a second.
    """

    source: ClassVar[str] = "transformers (Hugging Face)"
    modalities: ClassVar[tuple[str, ...]] = ("audio",)
    version: ClassVar[int] = 1
    domain: ClassVar[str] = "feature"

    model: str = "openai/whisper-small"
    revision: str = ""
    weights: str = ""
    digest: str = ""
    stage: Literal["pre_projector", "post_projector"] = "pre_projector"
    layer: Annotated[int, Field(ge=-1, le=200)] = -1

    def outline(self) -> Outline:
        """What the tower gives; reads configuration files only.

        Raises:
            WeightsMissing: The model's configuration is neither on disk nor reachable.
            ModelError: It is of a kind tokpipe does not know.
        """
        return family_of(self).outline()

    def chunk(self) -> int:
        """Samples at 16 kHz of a chunk, from the configuration."""
        return family_of(self).chunk

    def times(self, samples: int) -> torch.Tensor:
        """float64 [n, 2] seconds of the tokens of a chunk of ``samples``, from configuration."""
        return family_of(self).times(samples)

    def load(
        self,
        device: torch.device | str = "cpu",
        dtype: str = "float32",
        *,
        compile: bool = False,  # noqa: A002
    ) -> AudioTower:
        """Read the weights and make a tower.

        Args:
            dtype: ``float32``, ``bfloat16`` or ``float16``, in which the tower runs.
            compile: Let ``torch.compile`` translate it; pays off over many chunks only.

        Raises:
            WeightsMissing: A checkpoint, or a tensor in it, is not there.
            WeightsMismatch: Shapes differ from the configuration, or the digest from the record.
            ResourceError: The device is not there, or cannot run or compile it so.
        """
        from tokpipe.encode._sound.tower import load_tower

        place, kind = settle(device, dtype, compiled=compile)
        family = family_of(self)
        tower = load_tower(family, place, kind, compile=compile)
        check_digest(tower.weights, self.digest or None, self.weights or self.model)
        return tower

    def load_projector(
        self, device: torch.device | str = "cpu", dtype: str = "float32", *, check: bool = True
    ) -> Projection:
        """Read the projector: what makes tokens of rows of stage ``pre_projector``.

        Args:
            check: Read the tower's weights too, for its digest; they go away again.

        Raises:
            ModelError: There is none.
            WeightsMissing, WeightsMismatch, ResourceError: See :meth:`load`.
        """
        from tokpipe.encode._sound.projector import load_projector

        place, kind = settle(device, dtype)
        return load_projector(family_of(self), place, kind, check=check)


@lru_cache(maxsize=64)
def family_of(settings: HfAudio) -> Sound:
    """The family of the model the settings name.

    Raises:
        ModelError: Its ``model_type`` is none of ``FAMILIES``.
    """
    made: Sound = find_family(settings, FAMILIES, "hf-audio", "sound")
    return made
