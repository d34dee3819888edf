"""Prompts and rows put together into the arguments of a model."""

from __future__ import annotations

import inspect
from collections.abc import ItemsView, Iterator, Mapping, Sequence, ValuesView
from dataclasses import dataclass, field
from functools import reduce
from typing import Any, Literal

import torch
from torch import Tensor

from tokpipe.errors import CacheError, ModelError
from tokpipe.export._models.family import Family

Positions = Literal["original", "compact"]
Road = Literal["auto", "mm_encoder_outputs", "inputs_embeds"]
Use = Literal["generate", "forward"]
_OUTPUTS = "mm_encoder_outputs"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One prompt, everything on the CPU.

    Attributes:
        ids: int64 [K].
        stream: Name of the stream of each placeholder by its number; int64 [K], -1 for text.
        places: int64 [axes, K].
        modality: By stream, key of ``mm_encoder_outputs``.
        rows: By stream, features [n, D] in the order of the prompt.
        deep: By stream, levels of deepstack [n, D].
        mass: float32 [K], source tokens each stands for; 1 for text.
        extras: More arguments [K].
        positions: Which positions ``places`` are.
        media, layout, text: Ids that are media, newlines and separators, and text.
        written: Of the text, what the media need: timestamps, separators, numbers of frames.
        notes: Sentences.
    """

    ids: Tensor
    streams: tuple[str, ...]
    stream: Tensor
    places: Tensor
    modality: Mapping[str, str]
    rows: Mapping[str, Tensor]
    deep: Mapping[str, tuple[Tensor, ...]]
    mass: Tensor
    extras: Mapping[str, Tensor]
    positions: Positions
    media: int
    layout: int
    text: int
    written: int
    notes: tuple[str, ...] = ()


class ModelInputs(dict[str, Any]):
    """Arguments of a model: ``model.generate(**inputs)`` or ``model(**inputs)``.

    May be used again and again: what ``generate`` changes in place is made anew each time it is
    taken out.

    Attributes:
        positions: ``original`` or ``compact``.
        road: By stream, ``mm_encoder_outputs`` or ``inputs_embeds``.
        use: ``generate`` (``forward`` too) or ``forward`` alone.
        weighted: The mask carries how many source tokens each token stands for.
        ids: int64 [B, K] ids of the prompts, padded on the left.
        media, layout, text: Ids of all prompts that are media tokens, newlines and separators
            with a row, and text.
        written: Of the text, what the media need: timestamps, separators, numbers of frames.
        echo: Ids at the start of what ``generate`` returns that are the prompt: K, or 0 with
            ``inputs_embeds``.
        notes: What is not as the model would have it, one sentence each.
    """

    def __init__(self, values: Mapping[str, Any], made: Made) -> None:
        super().__init__(values)
        self.made = made
        samples = made.samples
        self.positions: Positions = samples[0].positions
        self.road = dict(made.road)
        self.use: Use = made.use
        self.weighted = made.weighted
        self.ids: Tensor = made.ids
        self.media = sum(s.media for s in samples)
        self.layout = sum(s.layout for s in samples)
        self.text = sum(s.text for s in samples)
        self.written = sum(s.written for s in samples)
        self.echo = int(made.ids.shape[1]) if "input_ids" in values else 0
        self.notes = tuple(dict.fromkeys(note for s in samples for note in s.notes))

    def __getitem__(self, key: str) -> Any:
        """Return an argument; beams make more of the rows in place, so those are always new."""
        value = super().__getitem__(key)
        if key == _OUTPUTS:
            return {name: type(output)(**output) for name, output in value.items()}
        return value

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names; being overridden it makes ``**inputs`` ask for each item."""
        return iter(list(super().keys()))

    def get(self, key: str, default: Any = None) -> Any:
        """Return an argument, or the default."""
        return self[key] if key in self else default  # noqa: SIM401

    def items(self) -> ItemsView[str, Any]:  # type: ignore[override]
        """Return names and arguments."""
        return ItemsView(self)

    def values(self) -> ValuesView[Any]:  # type: ignore[override]
        """Return the arguments."""
        return ValuesView(self)

    def __repr__(self) -> str:
        """Show shapes and counts."""
        shapes = {k: tuple(v.shape) for k, v in self.items() if isinstance(v, Tensor)}
        return (
            f"ModelInputs({shapes}, media={self.media}, layout={self.layout}, text={self.text}, "
            f"positions={self.positions!r}, road={self.road})"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """What inputs were made of, for a batch of them."""

    family: Family
    samples: tuple[Sample, ...]
    asked: Road
    use: Use
    weighted: bool
    road: Mapping[str, str] = field(default_factory=dict)
    ids: Tensor = field(default_factory=lambda: torch.zeros(1, 0, dtype=torch.int64))


def assembled(
    family: Family, samples: Sequence[Sample], *, road: Road, use: Use, weighted: bool
) -> ModelInputs:
    """Arguments for one or several prompts.

    Raises:
        ModelError: The road is not one of this model or version.
        CacheError: Weights where they are not exact.
    """
    table = family.model.get_input_embeddings()
    device, dtype = table.weight.device, table.weight.dtype
    ways = _ways(family, {s for sample in samples for s in sample.rows}, road)
    ids, mask = _padded(samples, int(family.words.find("pad_token_id", 0)))
    values: dict[str, Any] = {"attention_mask": mask.to(device)}
    if use != "generate" or _moves_on(samples):
        shift = family.forward_from if use == "forward" else 0
        values["position_ids"] = (_positions(family, samples, ids.shape[1]) + shift).to(device)
    for name in dict.fromkeys(name for sample in samples for name in sample.extras):
        values[name] = _left([s.extras[name] for s in samples], ids.shape[1], 0).to(device)
    direct = [stream for stream, way in ways.items() if way != _OUTPUTS]
    if direct:
        _check_embeds(family, use)
        values["inputs_embeds"] = _embedded(family, samples, ids.to(device), direct)
    else:
        values["input_ids"] = ids.to(device)
    rest = [stream for stream, way in ways.items() if way == _OUTPUTS]
    if rest:
        values[_OUTPUTS] = family.outputs(*_rows(family, samples, rest, device, dtype))
    if weighted:
        values["attention_mask"] = _mass_mask(family, samples, mask, use).to(device, dtype)
    made = Made(
        family=family, samples=tuple(samples), asked=road, use=use, weighted=weighted, road=ways,
        ids=ids.to(device),
    )  # fmt: skip
    return ModelInputs(values, made)


def _rows(
    family: Family,
    samples: Sequence[Sample],
    streams: Sequence[str],
    device: torch.device,
    dtype: torch.dtype,
) -> tuple[dict[str, list[Tensor]], dict[str, list[list[Tensor]]]]:
    """Rows and deeper rows by modality, for ``Family.outputs``."""
    rows: dict[str, list[Tensor]] = {}
    deep: dict[str, list[list[Tensor]]] = {}
    for sample in samples:
        for stream in (s for s in streams if s in sample.rows):
            key = sample.modality[stream]
            rows.setdefault(key, []).append(_cast(sample.rows[stream], device, dtype))
            levels = deep.setdefault(key, [[] for _ in range(family.deepstack)])
            for level, found in zip(levels, sample.deep[stream], strict=True):
                level.append(_cast(found, device, dtype))
    return rows, deep


def _cast(rows: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    made = rows.to(device, dtype)
    if dtype == torch.float16 and rows.dtype != dtype and not bool(made.isfinite().all()):
        raise CacheError(
            "rows of the cache are too large for a model in float16",
            hint="load the model in bfloat16 or float32", code="export.dtype",
        )  # fmt: skip
    return made


def takes_outputs(model: Any) -> bool:
    """The model has ``mm_encoder_outputs`` (transformers 5.18 and newer)."""
    return _OUTPUTS in inspect.signature(model.forward).parameters


def _ways(family: Family, streams: set[str], road: Road) -> dict[str, str]:
    """How each stream travels."""
    able = takes_outputs(family.model)
    ways = {}
    for stream in sorted(streams, key=family.streams.index):
        if road != "inputs_embeds" and able and stream in family.modality:
            ways[stream] = _OUTPUTS
        elif family.embeds or stream not in family.modality:
            ways[stream] = "inputs_embeds"
        else:
            raise ModelError(
                f"{type(family.model).__name__} takes rows beside its {stream} tokens, which "
                "inputs_embeds cannot carry",
                hint="use transformers 5.18 or newer, and leave road at auto",
                code="export.road",
            )
    if road == _OUTPUTS and _OUTPUTS not in ways.values():
        why = "here, transformers has it from 5.18 on" if not able else "for sound"
        raise ModelError(
            f"{type(family.model).__name__} has no mm_encoder_outputs {why}",
            hint="leave road at auto, or use inputs_embeds", code="export.road",
        )  # fmt: skip
    return ways


def _check_embeds(family: Family, use: Use) -> None:
    prepare = getattr(family.model, "prepare_inputs_for_generation", None)
    if use != "generate" or prepare is None:
        return
    if "inputs_embeds" not in inspect.signature(prepare).parameters:
        raise ModelError(
            f"generate of {type(family.model).__name__} takes no inputs_embeds",
            hint='use transformers 5.18 or newer and road="auto"; model(**inputs) alone works '
            'with use="forward"', code="export.road",
        )  # fmt: skip


def _moves_on(samples: Sequence[Sample]) -> bool:
    """Positions that are given grow with the answer; those without gaps need not be given.

    Raises:
        ModelError: Gaps, and a version that gives every new token the last position (4.57).
    """
    from transformers import GenerationMixin

    update: Any = GenerationMixin._update_model_kwargs_for_generation
    if "position_ids" in update.__code__.co_consts:
        return True
    for sample in samples:
        if bool((sample.places != torch.arange(len(sample.ids))).any()):
            raise ModelError(
                "generate of this version of transformers does not count on from given positions",
                hint='use transformers 5.3 or newer, positions="compact", or use="forward" for '
                "model(**inputs)", code="export.positions",
            )  # fmt: skip
    return False


def _left(parts: Sequence[Tensor], length: int, fill: int) -> Tensor:
    """[B, length] of [K_i], padded on the left."""
    # Positions of one prompt of a batch may be whole numbers where another's are not.
    dtype = reduce(torch.promote_types, (part.dtype for part in parts))
    made = torch.full((len(parts), length), fill, dtype=dtype)
    for row, part in zip(made, parts, strict=True):
        row[length - len(part) :] = part
    return made


def _padded(samples: Sequence[Sample], pad: int) -> tuple[Tensor, Tensor]:
    """Ids and mask [B, L]."""
    length = max(len(sample.ids) for sample in samples)
    ids = _left([sample.ids for sample in samples], length, pad)
    # Never left out: without it positions with gaps are taken for packed sequences.
    return ids, _left([torch.ones_like(sample.ids) for sample in samples], length, 0)


def _positions(family: Family, samples: Sequence[Sample], length: int) -> Tensor:
    """[B, L], or [4, B, L]: one row more counts ids, by which masks are made."""
    axes = torch.stack([
        _left([sample.places[axis] for sample in samples], length, 0)
        for axis in range(family.axes)
    ])  # fmt: skip
    if family.axes == 1:
        return axes[0]
    count = _left([torch.arange(len(sample.ids)) for sample in samples], length, 0)
    return torch.cat([count[None], axes])


def _slots(sample: Sample, stream: str) -> Tensor:
    return sample.stream == sample.streams.index(stream)


def _embedded(
    family: Family, samples: Sequence[Sample], ids: Tensor, streams: Sequence[str]
) -> Tensor:
    """[B, L, D] with the rows of ``streams`` in their places."""
    table = family.model.get_input_embeddings()
    filled = torch.zeros(ids.shape, dtype=torch.bool)
    rows = []
    for line, sample in zip(filled, samples, strict=True):
        mine = torch.zeros(len(sample.ids), dtype=torch.bool)
        # A prompt of a batch may have none of them, pictures alone beside one with sound.
        for stream in (s for s in streams if s in sample.rows):
            mine |= _slots(sample, stream)
        line[len(line) - len(mine) :] = mine
        given = torch.empty(len(mine), family.dim)
        for stream in (s for s in streams if s in sample.rows):
            given[_slots(sample, stream)] = sample.rows[stream].float()
        rows.append(_cast(given[mine], ids.device, table.weight.dtype))
    filled = filled.to(ids.device)
    # A placeholder's id may lie outside the table.
    with torch.no_grad():
        embeds = table(ids.masked_fill(filled, 0)).clone()
        embeds[filled] = torch.cat(rows).to(embeds.dtype)
    made: Tensor = embeds
    return made


def _mass_mask(family: Family, samples: Sequence[Sample], mask: Tensor, use: Use) -> Tensor:
    """float32 [B, 1, L, L]: log mass where a token is seen, the least number where it is not."""
    length = mask.shape[1]
    check_weights(family, use, length)
    seen = torch.ones(length, length, dtype=torch.bool).tril() & (mask[:, None] > 0)
    # A padding token sees itself, as a row that sees nothing has no softmax.
    seen |= torch.eye(length, dtype=torch.bool)
    bias = torch.zeros(len(samples), length)
    for line, sample in zip(bias, samples, strict=True):
        line[length - len(sample.ids) :] = sample.mass.log()
    least = torch.finfo(family.model.get_input_embeddings().weight.dtype).min
    return torch.where(seen, bias[:, None], least)[:, None]


def check_weights(family: Family, use: Use, length: int = 0) -> None:
    """Refuse weights where a mask is not exact.

    Args:
        length: Ids of the longest prompt.

    Raises:
        CacheError: ``generate``, a kernel that takes no mask of numbers, or a model whose tokens
            do not simply see those before them.
    """
    text = family.config.get_text_config()
    kernel = str(getattr(text, "_attn_implementation", None) or family.config._attn_implementation)
    kinds = set(getattr(text, "layer_types", None) or ["full_attention"])
    why, hint = "", ""
    if use != "forward":
        why = "generate takes no mask of numbers"
        hint = 'use="forward" for model(**inputs); leave weights off for generate'
    elif kernel not in ("eager", "sdpa"):
        why = f"attention by {kernel} takes no mask of numbers"
        hint = 'load the model with attn_implementation="sdpa" or "eager"'
    elif not family.causal or kinds != {"full_attention"}:
        why = f"{type(family.model).__name__} makes its own masks"
        hint = "leave weights off: every token then counts once"
    elif family.window is not None and length > family.window:
        why = f"layers see the last {family.window} tokens alone, the prompt has {length}"
        hint = "leave weights off, or compress further"
    if why:
        raise CacheError(f"weights are not exact: {why}", hint=hint, code="export.weights")
