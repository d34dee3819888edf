"""The Audio Spectrogram Transformer: patches of a Kaldi filter bank of 10.24 s.

Tokens are in order of time, then of frequency from low to high (the network's own order is
frequency first); class and distillation token are left out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tokpipe.encode._attend import Seen, attention_rows, heads_of
from tokpipe.encode._hf.load import config_source, front_end, library
from tokpipe.encode._sound.columns import COLUMNS, place_columns
from tokpipe.encode._sound.family import about, check_stage, extractor_of
from tokpipe.encode._sound.kaldi_fbank import ast_fbank
from tokpipe.encode._sound.lengths import HOP, patch_grid
from tokpipe.encode._sound.tower import catching, spans_of_edges
from tokpipe.encode._tower import Outline

if TYPE_CHECKING:
    from tokpipe.encode.hf_audio import HfAudio


class AstSound:
    """Patches 16 x 16, overlapping where the strides are shorter."""

    layers = "layers"
    precise: tuple[str, ...] = ()

    def __init__(self, config: Any, settings: HfAudio) -> None:
        """Keep what counts; see ``Sound``."""
        self.settings = settings
        self.config = config
        check_stage(settings, config.num_hidden_layers, projector=False)
        self.chunk = config.max_length * HOP
        size = config.patch_size
        patch = int(size if isinstance(size, int) else size[0])
        strides = (config.frequency_stride, config.time_stride)
        self.rows, self.cols = patch_grid(config.num_mel_bins, config.max_length, patch, strides)
        self._mean_std: tuple[float, float] | None = None

    @property
    def hooked(self) -> bool:
        """See ``Sound``."""
        return self.settings.layer >= 0

    def outline(self) -> Outline:
        """See ``Sound``."""
        facts = about(
            self.settings, family=self.config.model_type, chunk_exact=True,
            window_samples=self.chunk, mel_bins=self.config.num_mel_bins, rows=self.rows,
        )  # fmt: skip
        width = int(self.config.hidden_size)
        return Outline(dim=width, extras=COLUMNS, rate=16_000, about=facts)

    def _heard(self, samples: int) -> int:
        """Columns of patches that begin before the sound's end."""
        step = int(self.config.time_stride) * HOP
        return min(self.cols, -(-samples // step))

    def times(self, samples: int) -> Tensor:
        """See ``Sound``; the patches of one column share a span."""
        edges = torch.arange(self._heard(samples) + 1, dtype=torch.float64)
        spans = spans_of_edges(edges * (self.config.time_stride * HOP), samples)
        return spans.repeat_interleave(self.rows, 0)

    def build(self) -> tuple[Any, Any]:
        """See ``Sound``."""
        model = front_end(library().ASTModel, self.config, self.settings)
        made = extractor_of(
            self.settings, config_source(self.settings), "ASTFeatureExtractor",
            num_mel_bins=self.config.num_mel_bins, max_length=self.config.max_length,
        )  # fmt: skip
        self._mean_std = (made.mean, made.std) if made.do_normalize else (0.0, 0.5)
        return model, None

    def features(self, wave: Tensor) -> Tensor:
        """See ``Sound``; [1, max_length, B]."""
        mean, std = self._mean_std or (0.0, 0.5)
        bins, frames = self.config.num_mel_bins, self.config.max_length
        return ast_fbank(wave, frames, bins=bins, mean=mean, std=std)[None]

    def tokens(self, tower: Any, projector: Any, features: Tensor, samples: int) -> Tensor:
        """See ``Sound``."""
        if self.settings.layer < 0:
            hidden: Tensor = tower(features).last_hidden_state
        else:
            with catching(tower.layers, self.settings.layer) as caught:
                tower(features)
            hidden = caught[0]
        return self._in_time(hidden[0], samples)

    def _in_time(self, rows: Tensor, samples: int) -> Tensor:
        """Patches [n, ...] in order of time, of rows that begin with the special tokens."""
        patches = rows[-self.rows * self.cols :].reshape(self.rows, self.cols, *rows.shape[1:])
        return patches.transpose(0, 1)[: self._heard(samples)].flatten(0, 1)

    def attending(self, tower: Any) -> nn.Module:
        """See ``Sound``: the last block that runs."""
        module: nn.Module = tower.layers[-1].attention
        return module

    def columns(
        self, module: nn.Module, seen: Seen, samples: int, wanted: frozenset[str]
    ) -> dict[str, Tensor]:
        """See ``Sound``; ``attention`` is that of the class token, [1, n, H]."""
        made = place_columns(module, seen, [0, seen.hidden.shape[1]], wanted)
        if "attention" in wanted:
            made["attention"] = attention_rows(seen, heads_of(module))[0, :, 0].T
        return {name: self._in_time(value, samples)[None] for name, value in made.items()}
