"""What a kind of model offers ``to_model_inputs``: one class a kind, imported when asked for.

The core writes the prompt as the model's own processor would for the same pictures, each of which
something is kept being there whole, and finds its placeholders (``Prompt``). It then leaves out
the placeholders of dropped tokens, in ids and positions alike, and sends the rows along. A family
says what the placeholders are (``script``), where they stand (``places``), and in which container
rows travel (``outputs``).

Letters: T pictures, N rows of a stream, D width, S ids of the whole prompt, K of them kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from tokpipe.export._media import Media
    from tokpipe.export._models.words import Words

_KINDS = ("image", "video", "audio")


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """What a cache offers.

    Attributes:
        media: Streams that the model takes, by name (``video``, ``audio``).
        image: Pictures are asked for as images, not as a video; None where nobody said.
        duration: Seconds of the source, None where unknown.
        size: Height and width of the pictures the tower was shown, None where not recorded.
    """

    media: Mapping[str, Media]
    image: bool | None = None
    duration: float | None = None
    size: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Placeholders of one stream, one after another.

    Attributes:
        stream: ``video`` or ``audio``.
        token: The placeholder as text.
        rows: int64 [n] row of the stream that fills each, -1 where it was dropped; from N on a row
            of ``Script.added``.
        grid: (t, rows, columns) of the placeholders where they are one whole grid; the family's
            own use.
        times: Seconds of each of the t; the family's own use.
        place: [3, n] or [n], whatever else a family wants to find again in ``places``.
    """

    stream: str
    token: str
    rows: Tensor
    grid: tuple[int, int, int] | None = None
    times: Tensor | None = None
    place: Tensor | None = None

    def __len__(self) -> int:
        """Return n."""
        return len(self.rows)


@dataclass(frozen=True, slots=True)
class Part:
    """What one marker of the prompt becomes.

    Attributes:
        marker: Text as the chat template writes it, such as ``<video>`` or
            ``<|vision_start|><|video_pad|><|vision_end|>``. The n-th part of a marker replaces its
            n-th occurrence.
        pieces: Text and runs that replace it.
    """

    marker: str
    pieces: tuple[str | Run, ...]

    @property
    def runs(self) -> Iterator[Run]:
        """The runs among the pieces."""
        return (piece for piece in self.pieces if isinstance(piece, Run))

    @property
    def text(self) -> str:
        """The pieces as the processor writes them."""
        return "".join(p.token * len(p) if isinstance(p, Run) else p for p in self.pieces)


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """How the media enter the prompt.

    Attributes:
        parts: In the order of the prompt, where one stream has several.
        content: By stream, the entries of a chat message that make the template write its
            markers, such as ``({"type": "image"},) * T``; none where another stream's entry
            stands for both.
        modality: By stream, where it is not the family's (``image`` for pictures given as images).
        added: By stream, rows [A, D] that the model adds to what an encoder gives (a learned
            newline); numbered from N on.
        placed: Every dropped token has its placeholder: original positions are known.
        notes: What was taken otherwise than the model does, one sentence each.
    """

    parts: tuple[Part, ...]
    content: Mapping[str, tuple[Mapping[str, Any], ...]]
    modality: Mapping[str, str] = field(default_factory=dict)
    added: Mapping[str, Tensor] = field(default_factory=dict)
    placed: bool = True
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """The whole prompt.

    Attributes:
        ids: int64 [S].
        runs: (first index, run) by rising index; runs never share or leave a placeholder. A run
            that text tokens interrupt is given in several, so that each is one stretch of ids.
        streams: Names, by which ``stream`` counts.
        stream: int64 [S], -1 for text.
        rows: int64 [S], row that fills a placeholder; -1 for text and for dropped tokens.
    """

    ids: Tensor
    runs: tuple[tuple[int, Run], ...]
    streams: tuple[str, ...]
    stream: Tensor
    rows: Tensor

    def __len__(self) -> int:
        """Return S."""
        return len(self.ids)

    @property
    def kept(self) -> Tensor:
        """Text, and placeholders that a row fills, bool [S]."""
        return (self.stream < 0) | (self.rows >= 0)

    def of(self, stream: str) -> Tensor:
        """Kept placeholders of a stream, bool [S]."""
        if stream not in self.streams:
            return torch.zeros(len(self), dtype=torch.bool)
        return (self.stream == self.streams.index(stream)) & (self.rows >= 0)


class Family:
    """A kind of model whose positions count ids, one after another; the base of the others.

    Attributes:
        streams: Streams it takes, in the order they stand in a prompt that says nothing else.
        modality: Key of ``mm_encoder_outputs`` a stream goes under, unless the script says
            otherwise; a stream that has none goes into ``inputs_embeds``.
        embeds: ``inputs_embeds`` gives the same as pixels (not so where rows go into deeper
            layers).
        stacked: Modalities whose rows are one tensor [n, 1, D] in ``mm_encoder_outputs``; those of
            others are a list of [n, D], one a prompt.
        axes: Rows of positions: 1, or 3 (time, height, width).
        forward_from: Where the model counts from in a forward pass; ``generate`` adds it itself.
        causal: A token sees those before it, and all of them: weights can be given as a mask.
        language: Names of the parts of ``base`` that no digest of an encoder covers.
        towers: By stream, names of the parts of ``base`` without which no digest can be taken.
        layouts: Layouts of a cache it takes.
    """

    streams: ClassVar[tuple[str, ...]] = ("video",)
    modality: ClassVar[Mapping[str, str]] = {"video": "video"}
    embeds: ClassVar[bool] = True
    stacked: ClassVar[tuple[str, ...]] = ()
    axes: ClassVar[int] = 1
    forward_from: ClassVar[int] = 0
    causal: ClassVar[bool] = True
    language: ClassVar[tuple[str, ...]] = ("language_model",)
    towers: ClassVar[Mapping[str, tuple[str, ...]]] = {"video": ("vision_tower",)}
    layouts: ClassVar[tuple[str, ...]] = ("ragged", "frames", "grid")

    def __init__(self, model: Any, words: Words) -> None:
        """Keep the model (its tower may be deleted) and its tokenizer.

        Args:
            model: ``...ForConditionalGeneration`` of transformers.
            words: Its tokenizer or processor.
        """
        self.model = model
        self.config = model.config
        self.words = words

    @property
    def base(self) -> Any:
        """The model without its head."""
        return self.model.model if hasattr(self.model, "model") else self.model

    @property
    def dim(self) -> int:
        """D, the width of the language model."""
        return int(self.config.get_text_config().hidden_size)

    @property
    def placeholders(self) -> frozenset[int]:
        """Ids of the placeholders of all media the model knows; the key has two names."""
        keys = (f"{kind}_token_{end}" for kind in _KINDS for end in ("id", "index"))
        found = (getattr(self.config, key, None) for key in keys)
        return frozenset(int(number) for number in found if number is not None)

    @property
    def window(self) -> int | None:
        """Last tokens that some layer sees alone; None where all see all.

        Without kinds of layers (Mistral) a window is that of every layer.
        """
        text = self.config.get_text_config()
        kinds = getattr(text, "layer_types", None)
        window = getattr(text, "sliding_window", None)
        slides = "sliding_attention" in kinds if kinds else True
        if not window or not slides or getattr(text, "use_sliding_window", True) is False:
            return None
        return int(window)

    @property
    def deepstack(self) -> int:
        """Rows that go beside each token into deeper layers."""
        return 0

    def script(self, given: Given) -> Script:
        """Where the rows of the streams stand.

        Raises:
            CacheError: The model cannot take them.
        """
        raise NotImplementedError

    def phrase(self, text: str) -> str:
        """The prompt as the processor changes it before markers are replaced."""
        return text

    def special(self, text: str) -> bool:
        """The tokenizer adds its special tokens to ``text``."""
        first = getattr(self.words.tokenizer, "bos_token", None)
        return not (first and text.startswith(first))

    def plain(self, markers: Sequence[str], text: str) -> str:
        """The prompt of a question where there is no chat template."""
        return "\n".join([*markers, text])

    def places(self, prompt: Prompt) -> Tensor:
        """Positions [axes, S] of the whole prompt; float32 where they are no whole numbers."""
        return torch.arange(len(prompt))[None].expand(self.axes, -1)

    def compact(self, prompt: Prompt) -> Tensor:
        """Positions int64 [axes, K] of what is kept, as though nothing had been dropped."""
        return torch.arange(int(prompt.kept.sum()))[None].expand(self.axes, -1)

    def extras(self, ids: Tensor, media: Tensor) -> dict[str, Tensor]:
        """More arguments of the model, each [K], padded with 0 in a batch.

        Args:
            ids: int64 [K].
            media: bool [K], placeholders.
        """
        return {}

    def outputs(
        self, rows: Mapping[str, Sequence[Tensor]], deep: Mapping[str, Sequence[Sequence[Tensor]]]
    ) -> dict[str, Any]:
        """``mm_encoder_outputs``.

        Args:
            rows: By modality that goes this way, [n, D] of each prompt of the batch that has it.
            deep: By modality, the levels of deepstack, each [n, D] of those prompts; no levels
                where the model has none.
        """
        from transformers.modeling_outputs import BaseModelOutputWithPooling

        made = {}
        for modality, parts in rows.items():
            value: Any = list(parts)
            if modality in self.stacked:
                # Of one token each, so that beams can be counted off prompts of any length.
                value = torch.cat(value)[:, None]
            made[modality] = BaseModelOutputWithPooling(pooler_output=value)
        return made

    def without(self, media: Media) -> tuple[str, ...]:
        """Names of the parts of what ``parts`` gives that the digest does not cover."""
        return self.language

    def parts(self, stream: str) -> tuple[nn.Module, ...]:
        """What the digest of a stream's encoder covers, but for ``without``.

        Families whose encoder records another digest override it; see ``encode._hf``.
        """
        shell = nn.Module()
        for name, child in self.base.named_children():
            # Before transformers 5 a tower was wrapped once more.
            inner = getattr(child, "vision_model", None) if name.endswith("_tower") else None
            shell.add_module(name, inner if isinstance(inner, nn.Module) else child)
        for name, parameter in self.base.named_parameters(recurse=False):
            shell.register_parameter(name, parameter)
        return (shell,)
