"""Text towers of CLIP and SigLIP: a query's vectors, long ones in parts, nothing cut off."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tokpipe.encode._hf.load import config_source, front_end, placed, read_tokenizer
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
        rows = [self._vector(part) for part in parts(text, self._fits)]
        return Query(text=text, pooled=torch.cat(rows).float(), space=self._space)

    def _fits(self, text: str) -> bool:
        return len(self._tokens(text, verbose=False)["input_ids"]) <= self._room

    def _vector(self, text: str) -> Tensor:
        how = {"padding": "max_length", "max_length": self._room} if self._fill else {}
        ids = self._tokens(text, return_tensors="pt", verbose=False, **how)["input_ids"]
        found: Tensor = self._model.get_text_features(ids.to(self._device)).pooler_output
        return found


def parts(text: str, fits: Callable[[str], bool]) -> list[str]:
    """Cut a text between words, and within a word only where one alone is too long.

    Args:
        fits: Says whether a piece of text fits.
    """
    if fits(text):
        return [text]
    found: list[str] = []
    rest = text.split()
    while rest:
        count = _longest(rest, " ", fits)
        if not count:
            at = max(1, _longest(list(rest[0]), "", fits))
            rest[:1], count = [part for part in (rest[0][:at], rest[0][at:]) if part], 1
        found.append(" ".join(rest[:count]))
        rest = rest[count:]
    return found


def _longest(pieces: list[str], between: str, fits: Callable[[str], bool]) -> int:
    """How many of the first pieces fit together, by bisection; 0 where not even one does."""
    low, high = 0, len(pieces)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(between.join(pieces[:middle])) else (low, middle - 1)
    return low
