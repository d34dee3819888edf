"""Text through open_clip's text tower: one vector a segment, one a word piece."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tokpipe.encode._open_clip import model as models
from tokpipe.encode._text_parts import text_parts
from tokpipe.tensors import Query


class TextTower:
    """The text half of a model, in float32: a query is embedded once, so its cost is nothing."""

    def __init__(self, model: nn.Module, chosen: models.Chosen) -> None:
        self._model: Any = model
        self._chosen = chosen
        self._tokenizer: Any = None

    @torch.inference_mode()
    def embed(self, text: str) -> Query:
        """Pooled vectors [M, E] of unit length and word pieces [L, E] in the same space.

        Raises:
            WeightsMissing: The tokenizer is on a hub that cannot be reached.
        """
        if self._tokenizer is None:
            self._tokenizer = models.tokenizer_of(self._chosen)
        context = int(self._tokenizer.context_length)
        segments = text_parts(text, lambda part: self._length(part) <= context)
        where = next(self._model.parameters()).device
        ids = self._tokenizer(segments).to(where)
        pooled = self._model.encode_text(ids, normalize=True)
        return Query(
            text=text, pooled=pooled.float().cpu(), tokens=self._pieces(ids, segments),
            space="text_space",
        )  # fmt: skip

    def _length(self, text: str) -> int:
        """Word pieces of the text, special ones included, before anything is cut off."""
        tokenizer = self._tokenizer
        inner = getattr(tokenizer, "tokenizer", None)
        if inner is None:
            return len(tokenizer.encode(text)) + 2
        return len(inner(tokenizer.clean_fn(text))["input_ids"])

    def _pieces(self, ids: Tensor, segments: list[str]) -> Tensor | None:
        """float32 [L, E]: every word piece in the space of the text; None where hidden."""
        tower = getattr(self._model, "text", self._model)
        if not hasattr(tower, "text_projection") or hasattr(self._tokenizer, "tokenizer"):
            return None
        found = self._model.forward_intermediates(
            text=ids, text_indices=1, normalize_intermediates=True, intermediates_only=True
        )["text_intermediates"][-1]
        projection = tower.text_projection
        if isinstance(projection, nn.Linear):
            found = projection(found)
        elif projection is not None:
            found = found @ projection
        # Without the start and end tokens, which are no words, and without padding.
        rows = [found[i, 1 : self._length(s) - 1] for i, s in enumerate(segments)]
        pieces = torch.cat(rows).float().cpu()
        return pieces if len(pieces) else None
