"""Speech encoders of torchaudio's bundles: wav2vec 2.0, HuBERT, WavLM.

Source: torchaudio 2.11, ``torchaudio.pipelines``; Baevski et al., arXiv:2006.11477; Hsu et al.,
arXiv:2106.07447; Chen et al., arXiv:2110.13900.

50 tokens a second. Every token sees its whole chunk of 30 s, so chunks are a choice of ours: the
encoder has no exact one.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, ClassVar

import torch
from pydantic import Field

from tokpipe.device import settle
from tokpipe.encode._weights import check_digest

if TYPE_CHECKING:
    from tokpipe.encode._sound.tower import Sound
    from tokpipe.encode._tower import AudioTower, Outline


@dataclass(frozen=True, slots=True)
class TorchaudioBundles:
    """Encoder whose tokens are hidden states of a torchaudio speech model.

    Attributes:
        model: Name of a bundle in ``torchaudio.pipelines``, such as ``WAV2VEC2_BASE``,
            ``HUBERT_LARGE`` or ``WAVLM_BASE_PLUS``; of recognisers the head is left out. Its
            weights come from torch.hub's cache or the network.
        weights: State dict used instead of the bundle's: one file (``.safetensors``, or a torch
            file that holds tensors only), or a folder with one such file. A folder with
            ``torchaudio_model.json`` replaces the architecture too: ``{"kind": "Wav2Vec2" |
            "WavLM", "normalize": bool, "params": {...}}``, ``params`` the arguments of
            ``torchaudio.models.wav2vec2_model`` or ``wavlm_model``. ``random`` draws weights with
            a fixed seed, for tests and benchmarks.
        digest: ``sha256:...`` the weights must have; empty for any.
        layer: Hidden state taken, counted from 0, the embeddings; -1 for the encoder's own output.
    """

    source: ClassVar[str] = "torchaudio.pipelines, arXiv:2006.11477"
    modalities: ClassVar[tuple[str, ...]] = ("audio",)
    version: ClassVar[int] = 1
    domain: ClassVar[str] = "feature"

    model: str = "WAV2VEC2_BASE"
    weights: str = ""
    digest: str = ""
    layer: Annotated[int, Field(ge=-1, le=200)] = -1

    def outline(self) -> Outline:
        """What the tower gives; reads no weights.

        Raises:
            MissingExtra: torchaudio is not installed.
            ModelError: There is no such bundle or layer.
        """
        return family_of(self).outline()

    def chunk(self) -> int:
        """Samples at 16 kHz of a chunk."""
        return family_of(self).chunk

    def times(self, samples: int) -> torch.Tensor:
        """float64 [n, 2] seconds of the tokens of a chunk of ``samples``."""
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
            MissingExtra: torchaudio is not installed.
            WeightsMissing: The checkpoint is not there and cannot be fetched.
            WeightsMismatch: It is of another architecture, or its digest is not the one on record.
            ResourceError: The device is not there, or cannot run or compile it so.
        """
        from tokpipe.encode._sound.tower import load_tower

        place, kind = settle(device, dtype, compiled=compile)
        family = family_of(self)
        tower = load_tower(family, place, kind, compile=compile)
        check_digest(tower.weights, self.digest or None, self.weights or self.model)
        return tower


@lru_cache(maxsize=64)
def family_of(settings: TorchaudioBundles) -> Sound:
    """What the settings name, without weights."""
    from tokpipe.encode._sound.torchaudio_model import TorchaudioSound

    return TorchaudioSound(settings)
