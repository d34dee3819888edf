"""Gemma 3 and PaliGemma: every picture is an image whose tokens see one another.

Which tokens those are is said by runs of ``token_type_ids``; the marks between pictures stay in
the prompt whatever is dropped, so that two pictures never run together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from tokpipe.export._models.family import Given, Part, Run, Script
from tokpipe.export._models.llava import Images
from tokpipe.export._models.pictures import pictures


class Gemma3(Images):
    """Gemma 3."""

    stacked: ClassVar[tuple[str, ...]] = ("image",)
    causal: ClassVar[bool] = False

    def script(self, given: Given) -> Script:
        """See ``Family``."""
        rows, placed = pictures(given.media["video"])
        token = self.image_token
        start = str(self.words.find("boi_token") or self.words.token(self.config.boi_token_index))
        end = str(self.words.find("eoi_token") or self.words.token(self.config.eoi_token_index))
        parts = tuple(
            Part(
                start,
                (f"\n\n{start}", Run(stream="video", token=token, rows=each), f"{end}\n\n"),
            )
            for each in rows
        )
        return Script(
            parts=parts, content={"video": ({"type": "image"},) * len(parts)}, placed=placed
        )

    def extras(self, ids: Tensor, media: Tensor) -> dict[str, Tensor]:
        """See ``Family``."""
        return {"token_type_ids": media.long()}


class PaliGemma(Images):
    """PaliGemma: the whole prompt sees itself; several pictures stand side by side."""

    stacked: ClassVar[tuple[str, ...]] = ("image",)
    causal: ClassVar[bool] = False
    forward_from: ClassVar[int] = 1

    def script(self, given: Given) -> Script:
        """See ``Family``."""
        rows, placed = pictures(given.media["video"])
        return self.images(rows, placed=placed)

    def plain(self, markers: Sequence[str], text: str) -> str:
        """See ``Family``."""
        return "".join(markers) + text

    def phrase(self, text: str) -> str:
        """See ``Family``: the first token of a text stands behind the pictures."""
        head, mark, rest = text.rpartition(self.image_token)
        first = str(getattr(self.words.tokenizer, "bos_token", None) or "")
        return f"{head}{mark}{first}{rest}\n"

    def special(self, text: str) -> bool:
        """See ``Family``."""
        return False

    def extras(self, ids: Tensor, media: Tensor) -> dict[str, Tensor]:
        """See ``Family``: 0 is the prompt, 1 would be what is to be learnt."""
        return {"token_type_ids": torch.zeros_like(ids)}
