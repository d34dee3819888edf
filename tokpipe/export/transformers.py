"""Arguments for a model of transformers: ids, positions and rows in place of pictures and sound.

``to_model_inputs`` writes the prompt that the model's own processor would write for the same
pictures, leaves out the placeholders of tokens that were dropped, and gives rows by
``mm_encoder_outputs`` (transformers 5.18 and newer) or ``inputs_embeds`` (4.57 and newer). The
model's vision or audio tower is not used and may be deleted.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from tokpipe.cache.reader import TokenCache, open_cache
from tokpipe.errors import CacheError, error_context
from tokpipe.export._contract import check_choices, check_layout
from tokpipe.export._media import Media, read_media
from tokpipe.export._models.chat import wanted
from tokpipe.export._models.checks import check_media
from tokpipe.export._models.family import Family, Given
from tokpipe.export._models.inputs import (
    ModelInputs,
    Positions,
    Road,
    Use,
    assembled,
    check_weights,
)
from tokpipe.export._models.kinds import family_of
from tokpipe.export._models.prompt import prompt_of
from tokpipe.export._models.sample import sample_of
from tokpipe.export._models.words import Words

if TYPE_CHECKING:
    from tokpipe.export._contract import ModelUse, Written
    from tokpipe.spec import Layout

__all__ = ["ModelInputs", "Transformers", "batch_inputs", "to_model_inputs"]


_CHOICES = {"positions": Positions, "road": Road, "use": Use}


@dataclass(frozen=True, slots=True)
class Transformers:
    """Models of transformers, in the user's own process."""

    source: ClassVar[str] = "transformers (Hugging Face), 4.57 to 5.x"
    takes: ClassVar[tuple[Layout, ...]] = ("ragged", "frames", "grid")
    domains: ClassVar[tuple[str, ...]] = ("feature",)
    extra: ClassVar[str] = "encoders"
    whole: ClassVar[bool] = False
    suffix: ClassVar[str] = ""
    model_use: ClassVar[ModelUse] = "needed"
    accepts: ClassVar[str] = "rows after the projector of the very model, any subset of them"
    loses: ClassVar[str] = "the mass of merged tokens, except in a forward pass with weights"
    python: ClassVar[str] = "tokpipe.to_model_inputs(cache, model, processor, messages)"
    writes: ClassVar[bool] = False

    def write(self, cache: TokenCache, target: Path) -> Written:
        """Nothing is written: inputs are made where the model is.

        Raises:
            CacheError: Always.
        """
        raise CacheError(
            "`transformers` takes a cache in Python, there is nothing to write",
            hint=f"tokpipe.{self.python}", code="export.python",
        )  # fmt: skip

    def write_all(self, caches: Sequence[Path], target: Path) -> Written:
        """See ``write``."""
        raise CacheError(
            "`transformers` takes a cache in Python, there is nothing to write",
            hint=f"tokpipe.{self.python}", code="export.python",
        )  # fmt: skip


def to_model_inputs(
    cache: TokenCache | str | os.PathLike[str],
    model: Any,
    processor: Any,
    messages: str | Sequence[Mapping[str, Any]] | Sequence[int] | Tensor,
    *,
    positions: Positions = "original",
    road: Road = "auto",
    use: Use = "generate",
    weights: bool = False,
    streams: Sequence[str] | None = None,
    allow_mismatch: bool = False,
) -> ModelInputs:
    """Make a model's arguments from a cache of its own rows.

    Args:
        cache: A feature cache after the projector, open or its path.
        model: ``...ForConditionalGeneration`` of transformers; its tower may be deleted.
        processor: The model's processor, or its tokenizer alone.
        messages: A question; a chat with one ``{"type": "video"}`` or ``{"type": "image"}`` (or
            ``{"type": "audio"}``) where the media belong, which come first where there is none;
            or ready input ids [S] or [1, S] with one placeholder, or all of them.
        positions: ``original``: those the tokens would have had, had every picture of which one is
            kept been given whole. ``compact``: counted without gaps.
        road: How rows travel; ``auto`` takes ``mm_encoder_outputs`` where the version has it.
        use: ``forward`` if the inputs are for ``model(**inputs)`` alone.
        weights: Let a token count as many times as the source tokens it stands for, by a mask
            [B, 1, K, K] of numbers: as so many copies at one place that see one another. Exact in
            ``forward`` of models whose attention is causal; other uses are refused.
        streams: Streams of the cache to give; all the model takes where None.
        allow_mismatch: Take rows of other weights than the model's.

    Returns:
        Arguments for ``model.generate(**inputs)`` or ``model(**inputs)``, on the model's device.

    Raises:
        ModelError: A kind of model that is not known, or a road it has not.
        WeightsMismatch: The rows were made by other weights.
        CacheError: Rows the model cannot take, or a prompt they do not fit.
    """
    check_choices(_CHOICES, positions=positions, road=road, use=use)
    with nullcontext(cache) if isinstance(cache, TokenCache) else open_cache(cache) as opened:
        words = Words(processor)
        family = family_of(model, words)
        if weights:
            check_weights(family, use)
        with error_context(str(opened.info.get("name", ""))):
            check_layout(family.layouts, opened.layout, type(model).__name__)
            media = _media(opened, family, streams)
            notes = _left_out(opened, media)
            for found in media.values():
                notes += check_media(family, found, allow_mismatch=allow_mismatch)
            given = Given(
                media=media, image=wanted(messages), duration=opened.duration, size=_size(media)
            )
            script = family.script(given)
            prompt = prompt_of(family, script, messages, compact=positions == "compact")
            sample = sample_of(family, prompt, script, media, positions, notes)
    return assembled(family, [sample], road=road, use=use, weighted=weights)


def batch_inputs(inputs: Sequence[ModelInputs]) -> ModelInputs:
    """Join the inputs of several prompts to one model, padded on the left.

    Args:
        inputs: Of ``to_model_inputs`` with the same model and the same options.

    Raises:
        CacheError: There are none, or they differ in model or options.
    """
    made = [one.made for one in inputs]
    if not made:
        raise CacheError("there are no inputs to join", code="export.batch")
    first = made[0]
    kinds = {(id(m.family.model), m.asked, m.use, m.weighted) for m in made}
    schemes = {sample.positions for m in made for sample in m.samples}
    if len(kinds) > 1 or len(schemes) > 1:
        raise CacheError(
            "inputs to join differ in model, positions, road, use or weights",
            hint="make them with the same options", code="export.batch",
        )  # fmt: skip
    samples = [sample for m in made for sample in m.samples]
    return assembled(
        first.family, samples, road=first.asked, use=first.use, weighted=first.weighted
    )


def _media(cache: TokenCache, family: Family, asked: Sequence[str] | None) -> dict[str, Media]:
    """Streams of features that the model takes, in the family's order."""
    wants = [s for s in family.streams if asked is None or s in asked]
    there = [
        s for s in wants
        if s in cache.streams and "stage" in (cache.metadata.get(f"tokpipe.encoder.{s}") or {})
    ]  # fmt: skip
    if there:
        return {stream: read_media(cache, stream) for stream in there}
    present = [stream for stream in wants if stream in cache.streams]
    if present:
        read_media(cache, present[0])  # says what is wrong with it
    raise CacheError(
        f"{type(family.model).__name__} takes {' and '.join(family.streams)}, the cache has "
        f"{' and '.join(cache.streams) or 'nothing'}",
        hint="export to a model that takes it",
        code="cache.stream",
    )


def _left_out(cache: TokenCache, media: Mapping[str, Media]) -> tuple[str, ...]:
    return tuple(
        f"the {stream} of the cache is not given" for stream in cache.streams if stream not in media
    )


def _size(media: Mapping[str, Media]) -> tuple[int, int] | None:
    found = media["video"].about.get("picture") if "video" in media else None
    return (int(found[0]), int(found[1])) if found else None
