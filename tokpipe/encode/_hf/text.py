"""Text towers of CLIP and SigLIP: a query's vectors, long ones in parts, nothing cut off."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tokpipe.encode._hf.load import config_source, front_end, placed, read_tokenizer
from tokpipe.encode._text_parts import text_parts
from tokpipe.errors import WeightsMissing
from tokpipe.tensors import Query


class TextTower:
    """The text half of a model of pictures and text, on the device of its vision half.

    Args:
        kind: The class of the whole model, such as ``CLIPModel``.
        drop: Parts of it that are not for text.
        space: Column its vectors are compared with.
        fill: Pad to the longest text, as SigLIP was trained; CLIP is not padded.
    """

    def __init__(
        self,
        kind: Any,
        config: Any,
        settings: Any,
        place: tuple[torch.device, torch.dtype],
        *,
        drop: tuple[str, ...],
        space: str,
        fill: bool,
    ) -> None:
        """Read tokenizer and weights."""
        self._tokens = read_tokenizer(*config_source(settings))
        # Where its files are missing, the library makes one that knows no words.
        known, needed = len(self._tokens), int(config.text_config.vocab_size)
        if known * 2 < needed:
            raise WeightsMissing(
                f"the tokenizer of `{settings.model}` knows {known} of {needed} tokens",
                hint="put the model's tokenizer files into its folder, or fetch it while online",
            )
        self._model = placed(front_end(kind, config, settings, drop=drop), *place)
        self._device, self._space, self._fill = place[0], space, fill
        self._room = int(config.text_config.max_position_embeddings)

    @torch.inference_mode()
    def embed(self, text: str) -> Query:
        """One row of float32 [M, E] for each part of the text that fits the tower."""
        rows = [self._vector(part) for part in text_parts(text, self._fits)]
        return Query(text=text, pooled=torch.cat(rows).float(), space=self._space)

    def _fits(self, text: str) -> bool:
        return len(self._tokens(text, verbose=False)["input_ids"]) <= self._room

    def _vector(self, text: str) -> Tensor:
        how = {"padding": "max_length", "max_length": self._room} if self._fill else {}
        ids = self._tokens(text, return_tensors="pt", verbose=False, **how)["input_ids"]
        found: Tensor = self._model.get_text_features(ids.to(self._device)).pooler_output
        return found
