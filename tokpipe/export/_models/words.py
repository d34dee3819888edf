"""The tokenizer of a model, alone or inside its processor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tokpipe.errors import ModelError


@dataclass(frozen=True, slots=True)
class Words:
    """A processor, or a tokenizer alone."""

    processor: Any

    @property
    def tokenizer(self) -> Any:
        """The tokenizer."""
        return getattr(self.processor, "tokenizer", self.processor)

    def find(self, name: str, default: Any = None) -> Any:
        """An attribute of the processor, else of the tokenizer, else ``default``."""
        for owner in (self.processor, self.tokenizer):
            if getattr(owner, name, None) is not None:
                return getattr(owner, name)
        return default

    def token(self, number: int) -> str:
        """A token as text, by its id.

        Raises:
            ModelError: The tokenizer has none of this number.
        """
        found = self.tokenizer.convert_ids_to_tokens(int(number))
        if not found:
            raise ModelError(
                f"the tokenizer has no token of id {number}, the model's placeholder",
                hint="give the processor that belongs to the model",
            )
        return str(found)

    def number(self, text: str) -> int:
        """The id of one token.

        Raises:
            ModelError: The tokenizer has no such token.
        """
        found = self.tokenizer.convert_tokens_to_ids(text)
        if found is None or self.tokenizer.convert_ids_to_tokens(int(found)) != text:
            raise ModelError(
                f"the tokenizer has no token `{text}`",
                hint="give the processor that belongs to the model",
            )
        return int(found)

    def ids(self, text: str, *, special: bool) -> list[int]:
        """Ids of a text."""
        made = self.tokenizer(text, add_special_tokens=special)["input_ids"]
        return [int(number) for number in made]

    def chat(self, messages: Sequence[Any], *, generation: bool) -> str | None:
        """Messages by the chat template; None where there is none."""
        for owner in (self.processor, self.tokenizer):
            if getattr(owner, "chat_template", None):
                made = owner.apply_chat_template(
                    list(messages), tokenize=False, add_generation_prompt=generation
                )
                return str(made)
        return None
