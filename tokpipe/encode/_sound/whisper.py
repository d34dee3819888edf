"""Whisper's encoder, and Qwen2-Audio and Voxtral that put a projector on one.

Windows of a fixed length (30 s), filled with zeros; every token sees its whole window. 50 tokens a
second: Qwen2-Audio averages pairs and hides the filling from attention, Voxtral lays four side by
side. Tokens that begin after the sound's end are cut.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tokpipe.encode._attend import Seen
from tokpipe.encode._hf.load import config_source, front_end, library
from tokpipe.encode._sound.columns import COLUMNS, place_columns, pooled
from tokpipe.encode._sound.family import about, check_stage, extractor_of, whisper_picture
from tokpipe.encode._sound.lengths import HOP, halved, mel_columns, qwen2_audio_tokens
from tokpipe.encode._sound.tower import catching, even_times
from tokpipe.encode._tower import Outline

if TYPE_CHECKING:
    from tokpipe.encode.hf_audio import HfAudio

#: Samples a place of the encoder stands for: two columns.
PLACE = 2 * HOP


class WhisperSound:
    """The encoder of Whisper; no projector."""

    layers = "layers"
    precise: tuple[str, ...] = ()

    def __init__(self, config: Any, settings: HfAudio) -> None:
        """Keep what counts; see ``Sound``."""
        self.settings = settings
        self.config = config
        self.audio = self._audio(config)
        check_stage(settings, self.audio.encoder_layers, projector=self._projects())
        self.chunk = self.audio.max_source_positions * PLACE

    def _audio(self, config: Any) -> Any:
        """The configuration of the encoder."""
        return config

    def _projects(self) -> bool:
        return False

    @property
    def hooked(self) -> bool:
        """See ``Sound``."""
        return self.settings.layer >= 0

    def outline(self) -> Outline:
        """See ``Sound``."""
        facts = about(
            self.settings, family=self.config.model_type, floor="window", chunk_exact=True,
            window_samples=self.chunk, mel_bins=self.audio.num_mel_bins,
        )  # fmt: skip
        return Outline(dim=self._dim(), extras=COLUMNS, rate=16_000, about=facts)

    def _dim(self) -> int:
        return int(self.audio.d_model)

    def times(self, samples: int) -> Tensor:
        """See ``Sound``."""
        return even_times(samples, -(-samples // PLACE), PLACE)

    def build(self) -> tuple[Any, Any]:
        """See ``Sound``."""
        model = front_end(library().WhisperModel, self.config, self.settings, drop=("decoder",))
        self._check_extractor()
        return model.encoder, None

    def _check_extractor(self) -> None:
        extractor_of(
            self.settings, config_source(self.settings), "WhisperFeatureExtractor",
            feature_size=self.audio.num_mel_bins, hop_length=HOP, n_fft=400,
        )  # fmt: skip

    def features(self, wave: Tensor) -> Tensor:
        """See ``Sound``; [1, B, T]."""
        return whisper_picture(wave, self.audio.num_mel_bins, self.chunk)[None]

    def tokens(self, tower: Any, projector: Any, features: Tensor, samples: int) -> Tensor:
        """See ``Sound``."""
        return self._hidden(tower, features, None)[0, : len(self.times(samples))]

    def attending(self, tower: Any) -> nn.Module:
        """See ``Sound``: the last block that runs."""
        module: nn.Module = tower.layers[-1].self_attn
        return module

    def columns(
        self, module: nn.Module, seen: Seen, samples: int, wanted: frozenset[str]
    ) -> dict[str, Tensor]:
        """See ``Sound``."""
        made = place_columns(module, seen, [0, self._attended(samples)], wanted)
        return pooled(made, self._size(), len(self.times(samples)))

    def _attended(self, samples: int) -> int:
        """Places that attend to each other: the filling too."""
        return int(self.audio.max_source_positions)

    def _size(self) -> int:
        """Places of one token."""
        return 1

    def _hidden(self, tower: Any, features: Tensor, mask: Any) -> Tensor:
        """The tower's own output, or the hidden state asked for, [1, places, D]."""
        layer = self.settings.layer
        if layer < 0:
            own: Tensor = tower(features, attention_mask=mask).last_hidden_state
            return own
        with catching(tower.layers, layer) as caught:
            tower(features, attention_mask=mask)
        return caught[0]


class _Projected(WhisperSound):
    """A Whisper encoder inside a multimodal model."""

    def _audio(self, config: Any) -> Any:
        return config.audio_config

    def _projects(self) -> bool:
        return True

    @property
    def _post(self) -> bool:
        return self.settings.stage == "post_projector"

    def _dim(self) -> int:
        width = self.config.text_config.hidden_size if self._post else self.audio.d_model
        return int(width)

    def _front(self, kind: str) -> tuple[Any, Any]:
        made = getattr(library(), kind)
        model = front_end(made, self.config, self.settings, drop=("language_model",))
        self._check_extractor()
        return model.audio_tower, model.multi_modal_projector


class Qwen2AudioSound(_Projected):
    """Qwen2-Audio: pairs averaged inside the tower, then one linear layer."""

    def times(self, samples: int) -> Tensor:
        """See ``Sound``."""
        if self.settings.layer >= 0:
            return super().times(samples)
        tokens = qwen2_audio_tokens(mel_columns(samples, filled=True))
        return even_times(samples, tokens, 2 * PLACE)

    def build(self) -> tuple[Any, Any]:
        """See ``Sound``."""
        return self._front("Qwen2AudioModel")

    def tokens(self, tower: Any, projector: Any, features: Tensor, samples: int) -> Tensor:
        """See ``Sound``."""
        hidden = self._hidden(tower, features, self._mask(tower, features, samples))
        if self._post:
            hidden = projector(hidden)
        return hidden[0, : len(self.times(samples))]

    def _attended(self, samples: int) -> int:
        places = int(self.audio.max_source_positions)
        return min(halved(mel_columns(samples, filled=True)), places)

    def _size(self) -> int:
        return 2 if self.settings.layer < 0 else 1

    def _mask(self, tower: Any, features: Tensor, samples: int) -> Any:
        """Mask of attention that hides the filling; None where there is none."""
        places = self.audio.max_source_positions
        heard = self._attended(samples)
        if heard >= places:
            return None
        from transformers.masking_utils import create_bidirectional_mask

        real = (torch.arange(places, device=features.device) < heard)[None].long()
        shape = features.new_zeros((1, places, 1))
        return create_bidirectional_mask(
            config=tower.config, inputs_embeds=shape, attention_mask=real
        )


class VoxtralSound(_Projected):
    """Voxtral: four places side by side, then two linear layers."""

    precise = ("embed_positions.weight",)

    def _size(self) -> int:
        return int(self.audio.intermediate_size // self.audio.d_model) if self._post else 1

    def times(self, samples: int) -> Tensor:
        """See ``Sound``."""
        step = PLACE * self._size()
        return even_times(samples, -(-samples // step), step)

    def build(self) -> tuple[Any, Any]:
        """See ``Sound``."""
        return self._front("VoxtralModel")

    def tokens(self, tower: Any, projector: Any, features: Tensor, samples: int) -> Tensor:
        """See ``Sound``."""
        hidden = self._hidden(tower, features, None)[0]
        if self._post:
            hidden = projector(hidden.reshape(-1, self.audio.intermediate_size))
        return hidden[: len(self.times(samples))]
