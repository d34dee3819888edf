"""The audio towers of Qwen2.5-Omni and Qwen3-Omni, which look through short windows.

Sound of any length; attention stays inside stretches of 2 s (Qwen2.5) or 8 s (Qwen3), so that
pieces of a multiple of that give what the whole gives. A chunk is the longest such multiple within
30 s. Only its first two columns and its last one are made without the sound beyond the border.

The tower ends in its projection to the language model: ``pre_projector`` is what that is given.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from tokpipe.encode._attend import Seen
from tokpipe.encode._hf.load import config_source, front_end, library
from tokpipe.encode._sound import lengths
from tokpipe.encode._sound.columns import COLUMNS, place_columns, pooled
from tokpipe.encode._sound.family import about, check_stage, extractor_of, whisper_picture
from tokpipe.encode._sound.lengths import HOP
from tokpipe.encode._sound.tower import catching, even_times, output_of, spans_of_edges
from tokpipe.encode._tower import Outline

if TYPE_CHECKING:
    from tokpipe.encode.hf_audio import HfAudio

#: Columns of Whisper's window, which bounds a chunk.
_LONGEST = 3000


class Qwen25OmniSound:
    """Qwen2.5-Omni: 25 tokens a second."""

    layers = "layers"
    precise: tuple[str, ...] = ()
    _thinker = "Qwen2_5OmniThinker"

    def __init__(self, config: Any, settings: HfAudio) -> None:
        """Keep what counts; see ``Sound``."""
        self.settings = settings
        self.config = getattr(config, "thinker_config", config)
        self.audio = self.config.audio_config
        check_stage(settings, self.audio.encoder_layers, projector=True)
        unit = self._unit()
        self.chunk = max(1, _LONGEST // unit) * unit * HOP
        # All chunks of a sound but the last are of one length: their places are copied once.
        self._laid = lru_cache(maxsize=8)(self._placed)

    def _unit(self) -> int:
        """Columns that see no others; pairs of places must not cross its border either."""
        window = int(self.audio.n_window)
        return 2 * window if window % 2 == 0 else 4 * window

    @property
    def hooked(self) -> bool:
        """See ``Sound``."""
        return self.settings.layer >= 0 or self.settings.stage == "pre_projector"

    def outline(self) -> Outline:
        """See ``Sound``."""
        width = self.audio.output_dim
        if self.settings.stage == "pre_projector":
            width = self.audio.d_model
        facts = about(
            self.settings, family=self.config.model_type, floor="window", chunk_exact=True,
            window_samples=self._unit() * HOP, mel_bins=self.audio.num_mel_bins,
        )  # fmt: skip
        return Outline(dim=int(width), extras=COLUMNS, rate=16_000, about=facts)

    def _columns(self, samples: int) -> int:
        """Columns of a chunk: its extractor fills the last with zeros."""
        return lengths.mel_columns(samples, filled=True)

    def times(self, samples: int) -> Tensor:
        """See ``Sound``."""
        columns = self._columns(samples)
        if self.settings.layer >= 0:
            return even_times(samples, lengths.halved(columns), 2 * HOP)
        return even_times(samples, lengths.qwen2_audio_tokens(columns), 4 * HOP)

    def build(self) -> tuple[Any, Any]:
        """See ``Sound``; the tower holds its projection."""
        known = library()
        kind = getattr(known, f"{self._thinker}Model", None)
        drop: tuple[str, ...] = ("visual", "language_model")
        if kind is None:
            # In 5.18 the parts lie in the class with the head.
            kind = getattr(known, f"{self._thinker}ForConditionalGeneration")
            drop = ("visual", "model", "lm_head")
        model = front_end(kind, self.config, self.settings, drop=drop)
        extractor_of(
            self.settings, config_source(self.settings), "WhisperFeatureExtractor",
            feature_size=self.audio.num_mel_bins, hop_length=HOP, n_fft=400,
        )  # fmt: skip
        return model.audio_tower, None

    def features(self, wave: Tensor) -> Tensor:
        """See ``Sound``; [B, T]."""
        columns = self._columns(wave.shape[0])
        # Zeros follow, enough that no column that is used is mirrored into.
        total = (columns + 3) * HOP
        return whisper_picture(wave, self.audio.num_mel_bins, total)[:, :columns]

    def tokens(self, tower: Any, projector: Any, features: Tensor, samples: int) -> Tensor:
        """See ``Sound``."""
        fed = self._fed(features)
        layer = self.settings.layer
        if layer >= 0:
            with catching(tower.layers, layer) as caught:
                tower(**fed)
            return caught[0]
        if self.settings.stage == "pre_projector":
            with output_of(tower.ln_post) as caught:
                tower(**fed)
            return caught[0]
        own: Tensor = tower(**fed).last_hidden_state
        return own

    def attending(self, tower: Any) -> nn.Module:
        """See ``Sound``: the last block that runs."""
        module: nn.Module = tower.layers[-1].self_attn
        return module

    def columns(
        self, module: nn.Module, seen: Seen, samples: int, wanted: frozenset[str]
    ) -> dict[str, Tensor]:
        """See ``Sound``."""
        made = place_columns(module, seen, self._borders(self._columns(samples)), wanted)
        return pooled(made, self._size(), len(self.times(samples)))

    def _size(self) -> int:
        """Places of one token."""
        return 2 if self.settings.layer < 0 else 1

    def _borders(self, columns: int) -> list[int]:
        """Places between which attention stays."""
        return lengths.qwen25_borders(lengths.stretches([columns], self.audio.n_window))

    def _fed(self, features: Tensor) -> dict[str, Any]:
        """Arguments of the tower, its windows worked out here: no value is read off the device."""
        columns = features.shape[1]
        pieces = lengths.stretches([columns], self.audio.n_window)
        longest = pieces[0]
        filled = pad(features, (0, len(pieces) * longest - columns))
        return {
            "input_features": features,
            "padded_feature": filled.view(-1, len(pieces), longest).transpose(0, 1),
            **self._laid(columns, features.device),
        }

    def _placed(self, columns: int, device: torch.device) -> dict[str, Tensor]:
        """What of the arguments depends on the number of columns alone."""
        pieces = lengths.stretches([columns], self.audio.n_window)
        return {
            "feature_lens": torch.tensor([columns], device=device),
            "chunk_lengths": torch.tensor(pieces, device=device),
            **self._windows(columns, pieces, device),
        }

    def _windows(self, columns: int, pieces: list[int], device: torch.device) -> dict[str, Tensor]:
        places = lengths.filled_places([lengths.halved(n) for n in pieces])
        return {
            "valid_indices": torch.tensor(places, device=device),
            "pool_indices": torch.tensor(lengths.qwen25_pairs([columns]), device=device),
            # On the CPU: the attention of each block turns it into a list.
            "cu_seqlens": torch.tensor(self._borders(columns), dtype=torch.int32),
        }


class Qwen3OmniSound(Qwen25OmniSound):
    """Qwen3-Omni: 13 tokens a second, 80 ms each and the thirteenth 40 ms."""

    _thinker = "Qwen3OmniMoeThinker"

    def _unit(self) -> int:
        return int(self.audio.n_window_infer)

    def _columns(self, samples: int) -> int:
        return lengths.mel_columns(samples)

    def _size(self) -> int:
        return 1

    def _borders(self, columns: int) -> list[int]:
        window, reach = int(self.audio.n_window), int(self.audio.n_window_infer)
        return lengths.qwen3_borders([columns], window, reach)

    def times(self, samples: int) -> Tensor:
        """See ``Sound``."""
        window = int(self.audio.n_window)
        pieces = lengths.stretches([self._columns(samples)], window)
        starts = [
            (2 * window * number + 8 * i) * HOP
            for number, n in enumerate(pieces)
            for i in range(lengths.qwen3_omni_tokens(n, window))
        ]
        return spans_of_edges(torch.tensor([*starts, 0], dtype=torch.float64), samples)

    def features(self, wave: Tensor) -> Tensor:
        """See ``Sound``; [B, T]."""
        return whisper_picture(wave, self.audio.num_mel_bins, wave.shape[0])

    def _windows(self, columns: int, pieces: list[int], device: torch.device) -> dict[str, Tensor]:
        window = int(self.audio.n_window)
        counts = [lengths.qwen3_omni_tokens(n, window) for n in pieces]
        return {
            "valid_indices": torch.tensor(lengths.filled_places(counts), device=device),
            "cu_seqlens": torch.tensor(self._borders(columns), dtype=torch.int32),
        }
