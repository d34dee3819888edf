"""Caches in a Hugging Face ``Trainer``: prompts with their items, batches, and the step itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import InitVar, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, get_worker_info

from tokpipe.cache._mapping import Rows
from tokpipe.cache.samples import Sample, Tokens
from tokpipe.errors import CacheError, MissingExtra, ModelError
from tokpipe.export._training.fitting import Encoder, check_stage, encoder_of, encoders_of

if TYPE_CHECKING:
    from tokpipe.cache.map_style import TokenCacheDataset

#: Label that no loss is taken of.
IGNORED = -100
#: Argument by which rows travel to a model that :func:`feed_rows` prepared.
ROWS = "cache_rows"
#: Argument by which the model learns what made them; a prompt's key for the same.
MADE = "cache_encoders"
Modality = Literal["image", "video"]
#: Ids, labels, and how often the placeholder among them is to be written.
Text = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], int]


class PromptDataset(Dataset[dict[str, Any]]):
    """Prompts, each with the item it speaks of; several prompts may share one item.

    Args:
        prompts: Mappings with ``key`` (or ``index``) of the item, ``input_ids`` (one placeholder
            where the media belong, or as many as there are rows) and, if wanted, ``labels``.
            Whatever else they hold is kept.
        caches: The items; without a transform.
    """

    def __init__(
        self, prompts: Sequence[Mapping[str, Any]], caches: TokenCacheDataset
    ) -> None:  # fmt: skip
        self.prompts, self.caches = prompts, caches
        self._made = encoders_of(caches.data)

    def __len__(self) -> int:
        """Return the number of prompts."""
        return len(self.prompts)

    def __getitem__(self, number: int) -> dict[str, Any]:
        """A prompt with its ``sample`` (None where that was skipped)."""
        return self.__getitems__([number])[0]

    def __getitems__(self, numbers: Sequence[int]) -> list[dict[str, Any]]:
        """The prompts of a batch."""
        prompts = [dict(self.prompts[number]) for number in numbers]
        samples = self.caches.__getitems__([self._item(prompt) for prompt in prompts])
        if type(self) is not PromptDataset:
            for stream in (t for s in samples if s is not None for t in s.streams.values()):
                stream.source = None  # whoever extends this may change features on their way
        return [{**p, "sample": s, MADE: self._made} for p, s in zip(prompts, samples, strict=True)]

    def lengths(self) -> npt.NDArray[np.int64]:
        """int64 [n] ids of each prompt with its rows, for sampling by length; reads no features."""
        rows = self.caches.lengths()
        found = [
            len(p["input_ids"]) - 1 + rows[self.caches.number(self._item(p))] for p in self.prompts
        ]
        return np.array(found, dtype=np.int64)

    @staticmethod
    def _item(prompt: Mapping[str, Any]) -> int | str:
        found: int | str | None = prompt.get("key", prompt.get("index"))
        if found is None:
            raise CacheError("a prompt names no item", code="dataset.prompt",
                             hint="give each a `key` of the dataset")  # fmt: skip
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerCollator:
    """Batches for ``Trainer`` (with ``remove_unused_columns=False``).

    Gives ``input_ids``, ``attention_mask`` and ``labels`` (int64 [B, L]; -100 on padding and
    placeholders), and the rows: as ``mm_encoder_outputs`` (transformers 5.18 and newer), or with
    ``rows=True`` as a list for a model that :func:`feed_rows` prepared.

    The model counts positions itself, one id after another: for models with positions in three
    axes (the Qwen kinds) use ``tokpipe.export.transformers.to_model_inputs``.

    Args:
        placeholder: Id of the media token, such as ``model.config.image_token_id``.
        pad: Id that fills up shorter prompts.
        modality: Key of ``mm_encoder_outputs``.
        stream: Stream of the items; None where they have one.
        side: Where the padding goes.
        rows: Give rows as they are, to a model that compares them itself.
        model: The model that batches go to, where ``rows`` is off: rows of other weights than
            those it has now are refused. It is not kept.
        allow_mismatch: They are not.
    """

    placeholder: int
    pad: int
    modality: Modality = "image"
    stream: str | None = None
    side: Literal["right", "left"] = "right"
    rows: bool = False
    model: InitVar[Any] = None
    allow_mismatch: bool = False
    _encoder: Encoder | None = field(init=False, default=None, repr=False)

    def __post_init__(self, model: Any) -> None:
        """Take the digest of the model's front end."""
        if model is not None and not self.rows and not self.allow_mismatch:
            stream = self.stream or "video"
            object.__setattr__(self, "_encoder", encoder_of(model, stream, before=False))

    def __call__(self, prompts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Make a batch; prompts whose item was skipped are left out.

        Raises:
            CacheError: Nothing is left, placeholders and rows differ in number, or the rows are
                those before a projector and ``rows`` is off.
            WeightsMismatch: Other weights made them than those of ``model``.
            MissingExtra: transformers is not installed.
        """
        read = [p for p in prompts if p["sample"] is not None]
        if not read:
            raise CacheError("nothing in the batch could be read", code="dataset.batch",
                             hint="tokpipe dataset verify names what cannot be read")  # fmt: skip
        made = self._made(read)
        found = [self._rows(p["sample"]) for p in read]
        rows = [tokens.tokens for tokens in found]
        texts = [self._text(p, len(r)) for p, r in zip(read, rows, strict=True)]
        sources = [tokens.source for tokens in found]
        known = [source for source in sources if source is not None]
        whole = type(self) is TrainerCollator and len(known) == len(sources)
        handed = Rows(rows, known if whole else ())
        rest = {ROWS: handed, MADE: made} if self.rows else _outputs(handed, self.modality)
        ids = joined(texts, self.placeholder, self.pad, self.side)
        if get_worker_info() is None:
            return {**ids, **rest}
        return _Sent({**ids, **rest}, ids, (texts, self.placeholder, self.pad, self.side))

    def _made(self, prompts: Sequence[Mapping[str, Any]]) -> list[str]:
        """What made the rows, each encoder once; compared here where no hook will do it."""
        found = dict.fromkeys(
            told[self.stream or next(iter(p["sample"].streams), "")]
            for p in prompts if (told := p.get(MADE)) and p["sample"].streams
        )  # fmt: skip
        for one in () if self.rows else found:
            check_stage(one, "post_projector", "mm_encoder_outputs")
            if self._encoder is not None:
                self._encoder.check(one, before=False)
        return list(found)

    def _rows(self, sample: Sample) -> Tokens:
        return sample.only if self.stream is None else sample[self.stream]

    def _text(self, prompt: Mapping[str, Any], rows: int) -> Text:
        """Ids, labels, and how often the placeholder is written."""
        ids = np.asarray(prompt["input_ids"], dtype=np.int64)
        told = prompt.get("labels")
        labels = ids if told is None else np.asarray(told, dtype=np.int64)
        if len(labels) != len(ids):
            raise CacheError(f"{len(labels)} labels for {len(ids)} ids", code="dataset.prompt")
        count = int((ids == self.placeholder).sum())
        if count not in (rows, 1):
            key = prompt["sample"].key
            raise CacheError(f"item `{key}` has {rows} rows, its prompt {count} placeholders",
                             code="export.placeholders",
                             hint="write one placeholder where the media belong")  # fmt: skip
        return ids, labels, rows if count == 1 else 1


def joined(
    texts: Sequence[Text], placeholder: int, pad: int, side: Literal["right", "left"]
) -> dict[str, Tensor]:
    """``input_ids``, ``attention_mask`` and ``labels`` of prompts, each of one length."""
    made = []
    for ids, labels, count in texts:
        times = np.where(ids == placeholder, count, 1)
        wide = np.repeat(ids, times)
        made.append((wide, np.where(wide == placeholder, IGNORED, np.repeat(labels, times))))
    length = max(len(ids) for ids, _ in made)
    batch = np.empty((3, len(made), length), dtype=np.int64)
    batch[0], batch[1], batch[2] = pad, 0, IGNORED
    for row, (ids, labels) in enumerate(made):
        low = 0 if side == "right" else length - len(ids)
        place = slice(low, low + len(ids))
        batch[0, row, place], batch[1, row, place], batch[2, row, place] = ids, 1, labels
    names = ("input_ids", "attention_mask", "labels")
    return dict(zip(names, torch.from_numpy(batch), strict=True))


class _Sent(dict[str, Any]):
    """A batch on its way from a worker: its ids are written out where it arrives.

    That is quicker than new shared memory. What was changed on the way goes as it is.
    """

    def __init__(self, values: Mapping[str, Any], ids: dict[str, Tensor], how: Any) -> None:
        super().__init__(values)
        self._ids, self._how = ids, how

    def __reduce__(self) -> tuple[object, ...]:
        same = all(self.get(n) is ids and ids._version == 0 for n, ids in self._ids.items())
        rest = {name: value for name, value in self.items() if not same or name not in self._ids}
        return (_arrived, (self._how, rest)) if same else (dict, (rest,))


def _arrived(how: tuple[Any, ...], rest: dict[str, Any]) -> dict[str, Any]:
    return {**joined(*how), **rest}


def _outputs(rows: list[Tensor], modality: str) -> dict[str, dict[str, Any]]:
    try:
        from transformers.modeling_outputs import BaseModelOutputWithPooling
    except ImportError as error:
        raise MissingExtra("batches for a Trainer need transformers", code="extra.encoders",
                           hint='pip install "tokpipe[encoders]"') from error  # fmt: skip
    output: Any = BaseModelOutputWithPooling
    return {"mm_encoder_outputs": {modality: output(pooler_output=rows)}}


def feed_rows(
    model: Any,
    *,
    projector: bool | Callable[[Tensor], Tensor] = False,
    modality: Modality = "image",
    stream: Literal["video", "audio"] = "video",
    allow_mismatch: bool = False,
) -> Any:
    """Let a model take ``cache_rows``, lists of rows [n, D], in place of pixels.

    Rows come to the model's device and dtype, and in the container its kind wants. With a
    projector they pass through it inside the step, with gradient: so caches from before the
    projector train it. The vision tower may be deleted.

    What made the rows is told with those of a ``PromptDataset``, and compared with the weights that
    the model has now: those of tower and projector, of the tower alone for rows that will pass
    the projector. Without its tower the stage and the width alone are compared; rows for a module
    of your own by their width.

    Args:
        model: ``...ForConditionalGeneration`` of transformers (5.18 or newer).
        projector: True takes the model's own; a module takes rows [N, D] to [N, D'].
        modality: Key of ``mm_encoder_outputs``.
        stream: Whose front end the weights are compared of.
        allow_mismatch: Take rows that other weights made.

    Returns:
        A handle; its ``remove()`` undoes this.

    Raises:
        ModelError: The model has no ``mm_encoder_outputs``, or no projector that is known.
        CacheError: In the step: rows of another stage or width than the model or its projector
            takes.
        WeightsMismatch: In the step: other weights made them.
    """
    from tokpipe.export._models.inputs import takes_outputs

    if not takes_outputs(model):
        raise ModelError(f"{type(model).__name__} has no mm_encoder_outputs", code="export.road",
                         hint="use transformers 5.18 or newer")  # fmt: skip
    own = None
    if isinstance(projector, bool) and not allow_mismatch:
        # Now, while the weights are whole: trainers cast them or divide them among devices.
        own = encoder_of(model, stream, before=projector)
    module = _projector(model) if projector is True else projector
    before = _Feeding(model, projector, module, _container(model, modality), own)
    return model.register_forward_pre_hook(before, with_kwargs=True)


@dataclass(slots=True)
class _Feeding:
    """Before each step: rows become what the model takes of its own tower.

    Attributes:
        projector: As of ``feed_rows``; ``module`` is what rows pass, if callable.
        wrap: Rows by prompt in the container of the model's kind.
        own: The front end that the rows should be of, None where nobody asks.
        fitting: Encoders whose rows were compared already.
    """

    model: Any
    projector: bool | Callable[[Tensor], Tensor]
    module: bool | Callable[[Tensor], Tensor]
    wrap: Callable[[list[Tensor]], dict[str, Any]]
    own: Encoder | None
    fitting: set[str] = field(default_factory=set)

    def __call__(self, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        rows, made = kwargs.pop(ROWS, None), kwargs.pop(MADE, None)
        if rows is None:
            return args, kwargs
        if isinstance(self.projector, bool):
            for one in {*(made or ())} - self.fitting:
                who = type(self.model).__name__
                _check_made(one, self.own, projector=self.projector, who=who)
                self.fitting.add(one)
        table, module = self.model.get_input_embeddings().weight, self.module
        sizes = [len(r) for r in rows]
        flat = torch.cat([r.to(table.device, table.dtype) for r in rows])
        _check_width(flat, module, table)
        if callable(module):
            flat = module(flat)
            if len(flat) != sum(sizes):
                raise ModelError(
                    f"the projector makes {len(flat)} rows of {sum(sizes)}",
                    hint="give one that takes rows one by one", code="export.projector",
                )  # fmt: skip
        kwargs["mm_encoder_outputs"] = self.wrap(list(torch.split(flat, sizes)))
        return args, kwargs


def _check_made(encoders: str, own: Encoder | None, *, projector: bool, who: str) -> None:
    """Refuse rows of another stage or of other weights."""
    if projector:
        check_stage(encoders, "pre_projector", "its projector")
    else:
        check_stage(encoders, "post_projector", who)
    if own is not None:
        own.check(encoders, before=projector)


def _check_width(rows: Tensor, module: object, table: Tensor) -> None:
    """Refuse rows that the projector, or without one the model, cannot take."""
    wanted: int | None = int(table.shape[1])
    if callable(module):
        layers = module.modules() if isinstance(module, nn.Module) else ()
        wanted = next((m.in_features for m in layers if isinstance(m, nn.Linear)), None)
    if wanted is not None and rows.shape[1] != wanted:
        what = "its projector" if callable(module) else "the model"
        hint = "caches from before the projector need projector=True, those after it none"
        raise CacheError(f"rows of width {rows.shape[1]}, {what} takes {wanted}", hint=hint,
                         code="export.width")  # fmt: skip


def _projector(model: Any) -> Callable[[Tensor], Tensor]:
    """The model's own projector, where it takes rows one by one."""
    for owner in (getattr(model, "model", None), model):
        found: Callable[[Tensor], Tensor] | None = getattr(owner, "multi_modal_projector", None)
        if found is not None:
            return found
    raise ModelError(f"{type(model).__name__} has no multi_modal_projector",
                     hint="give the module: feed_rows(model, projector=MODULE)",
                     code="export.projector")  # fmt: skip


def _container(model: Any, modality: str) -> Callable[[list[Tensor]], dict[str, Any]]:
    """How the model's kind wants rows."""
    from tokpipe.export._models.kinds import KINDS, family_of
    from tokpipe.export._models.words import Words

    if getattr(model.config, "model_type", "") not in KINDS:
        return lambda rows: _outputs(rows, modality)["mm_encoder_outputs"]
    family = family_of(model, Words(None))
    return lambda rows: family.outputs({modality: rows}, {modality: []})
