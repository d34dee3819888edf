"""Qwen2-Audio and Voxtral: sound into the embeddings of the prompt.

Source: transformers 5.24, the processors and models of qwen2_audio and voxtral.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from tokpipe.export._media import Media
from tokpipe.export._models.family import Family, Given, Part, Run, Script


def heard(media: Media, least: int = 1) -> tuple[Tensor, bool]:
    """Rows of the whole sound, token by token.

    Args:
        media: The stream ``audio``.
        least: Tokens come in multiples of this.

    Returns:
        int64 [n], -1 where a token was dropped, and True. Where rows have no places of their own:
        int64 [N] in their order, and False.
    """
    number = media.cell[:, 0]
    if not len(media) or int(number.min()) < 0 or len(torch.unique(number)) != len(number):
        return torch.arange(len(media)), False
    whole = max(int(number.max()) + 1, media.source)
    rows = torch.full((-(-whole // least) * least,), -1, dtype=torch.int64)
    rows[number] = torch.arange(len(media))
    return rows, True


class Qwen2Audio(Family):
    """Qwen2-Audio: 25 tokens a second."""

    streams = ("audio",)
    modality: ClassVar[Mapping[str, str]] = {}
    towers: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "audio": ("audio_tower", "multi_modal_projector")
    }

    def parts(self, stream: str) -> tuple[nn.Module, ...]:
        """See ``Family``."""
        return tuple(getattr(self.base, name) for name in self.towers[stream])

    def script(self, given: Given) -> Script:
        """See ``Family``."""
        rows, placed = heard(given.media["audio"], self._least())
        token = self.words.token(self.config.audio_token_id)
        run = Run(stream="audio", token=token, rows=rows)
        return Script(
            parts=(Part(token, (run,)),), content={"audio": ({"type": "audio"},)}, placed=placed,
            notes=self._notes(len(rows)),
        )  # fmt: skip

    def plain(self, markers: Sequence[str], text: str) -> str:
        """See ``Family``."""
        start = self.words.find("audio_bos_token", "<|audio_bos|>")
        end = self.words.find("audio_eos_token", "<|audio_eos|>")
        return "".join(f"{start}{marker}{end}" for marker in markers) + text

    def _least(self) -> int:
        return 1

    def _notes(self, count: int) -> tuple[str, ...]:
        most = int(self.config.audio_config.max_source_positions) // 2
        if count <= most:
            return ()
        return (f"the sound is one run of {count} tokens, the model's processor cuts at {most}",)


class Voxtral(Qwen2Audio):
    """Voxtral: 12.5 tokens a second, windows of 30 s filled up with silence.

    A cache has no rows of the filling: its placeholders count as dropped tokens.
    """

    def plain(self, markers: Sequence[str], text: str) -> str:
        """See ``Family``; the instruction template of the model's tokenizer."""
        sounds = "".join(f"[BEGIN_AUDIO]{marker}" for marker in markers)
        return f"<s>[INST]{sounds}{text}[/INST]"

    def special(self, text: str) -> bool:
        """See ``Family``."""
        return not text.startswith("<s>")

    def _least(self) -> int:
        """Tokens of a window."""
        audio = self.config.audio_config
        return int(audio.max_source_positions * audio.hidden_size // audio.intermediate_size)

    def _notes(self, count: int) -> tuple[str, ...]:
        return ()
