"""What rows must be to go to a model that trains: told by their caches, compared once."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from tokpipe.encode._weights import digest_of, part_digest
from tokpipe.errors import CacheError, TokpipeError, WeightsMismatch

if TYPE_CHECKING:
    from tokpipe.cache.dataset import CacheDataset
    from tokpipe.export._models.family import Family

#: What of an encoder is compared.
_TOLD = ("name", "stage", "weights", "tower", "layer", "final_norm", "enters_as")
#: Items that are tried for what they say of their encoder.
_TRIED = 8
_FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def encoders_of(data: CacheDataset) -> dict[str, str]:
    """What the items of a dataset say of their encoders, by stream, as JSON.

    All items of a dataset have one encoder unless it is mixed: then those of its index.
    """
    found = {stream: list(made) for stream, made in data.info.streams.items()}
    if not data.info.mixed:
        for number in range(min(len(data), _TRIED)):
            try:
                with data.open(number) as cache:
                    about = {s: cache.metadata.get(f"tokpipe.encoder.{s}") or {} for s in found}
                    streams = cache.streams
            except TokpipeError:
                continue
            found |= {s: [_told(about[s])] for s in streams if s in found}
            break
    return {s: json.dumps([_told(one) for one in made]) for s, made in found.items()}


def _told(about: Mapping[str, Any]) -> dict[str, Any]:
    told = {name: about[name] for name in _TOLD if about.get(name) is not None}
    if (about.get("projected") or {}).get("checked") == "nothing":
        told.pop("weights", None)
    return told


def check_stage(encoders: str, wanted: str, who: str) -> None:
    """Refuse rows from before a projector where those after it belong, and the reverse.

    Args:
        encoders: As of :func:`encoders_of`.
        who: Takes the rows.

    Raises:
        CacheError: They are of another stage.
    """
    for about in json.loads(encoders):
        stage = about.get("stage", "signal")
        if stage != wanted:
            raise CacheError(
                f"the rows are {stage}, {who} takes {wanted}",
                hint="feed_rows(model, projector=True) takes pre_projector, else they must be "
                "post_projector: tokpipe project CACHE --to MODEL",
                code="export.stage",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoder:
    """The front end of a model: plain values, taken while its weights are whole.

    Attributes:
        model: Name of the model's class.
        whole: Digests of tower and projector, by what kind of picture entered; none where they
            cannot be compared, because the tower was deleted or is quantised.
        towers: Digests of what makes the rows before the projector, by its last norm.
        layer: Hidden state that the projector takes.
        dtype: Of the tower.
    """

    model: str
    whole: Mapping[str, frozenset[str]] = field(default_factory=dict)
    towers: Mapping[bool, str] = field(default_factory=dict)
    layer: int = -1
    dtype: str = ""

    def check(self, encoders: str, *, before: bool) -> None:
        """Refuse rows that other weights made.

        Args:
            encoders: As of :func:`encoders_of`.
            before: They are those before the projector, which may be another one.

        Raises:
            WeightsMismatch: They were.
        """
        for about in json.loads(encoders):
            known = about.get("weights")
            own = self.whole.get(str(about.get("enters_as")), self.whole.get("", frozenset()))
            if not known or not own or known in own:
                continue
            if before and not self._other_tower(about):
                continue
            raise WeightsMismatch(
                f"the rows were made by other weights than those of this {self.model}: "
                f"{str(known)[:19]}",
                hint="encode the media with this checkpoint, load it with dtype='auto', or pass "
                "allow_mismatch=True",
                code="export.weights",
            )

    def _other_tower(self, about: Mapping[str, Any]) -> bool:
        made, own = about.get("tower") or {}, self.towers.get(bool(about.get("final_norm")))
        layer = about.get("layer")
        same = self.layer == (max(layer) if isinstance(layer, list) else layer)
        return same and own is not None and made.get("dtype") == self.dtype and (
            made.get("weights") != own
        )  # fmt: skip


def encoder_of(model: Any, stream: str, *, before: bool) -> Encoder:
    """The front end of a model, as far as it is there.

    Args:
        before: Rows before its projector will come.
    """
    from tokpipe.export._models.checks import gone
    from tokpipe.export._models.kinds import KINDS, family_of
    from tokpipe.export._models.words import Words

    bare = Encoder(model=type(model).__name__)
    if getattr(model.config, "model_type", "") not in KINDS:
        return bare
    family = family_of(model, Words(None))
    if stream not in family.streams or gone(family, stream):
        return bare
    whole = {entered: _whole(family, stream, entered) for entered in ("", "image")}
    if not all(whole.values()):
        return bare
    if not before or stream != "video":
        return Encoder(model=bare.model, whole=whole)
    return Encoder(model=bare.model, whole=whole, **_tower(family))


def _whole(family: Family, stream: str, entered: str) -> frozenset[str]:
    """Digests of tower and projector in each dtype a checkpoint may have; none if not to be had."""
    from tokpipe.export._models.checks import tensors_of

    skipped = family.without(_Entered({"enters_as": entered}))  # type: ignore[arg-type]
    try:
        parts = family.parts(stream)
    except AttributeError:  # the projector was deleted
        return frozenset()
    tensors = tensors_of(parts, skipped)
    if any(t.is_meta or not (t.is_floating_point() or t.numel() == 1) for t in tensors):
        return frozenset()
    own = next((t.dtype for t in tensors if t.is_floating_point()), torch.float32)
    # Loaded in a narrower type than they lie in, weights cannot be compared any more.
    dtypes = dict.fromkeys((own, *(_FLOATS if own == torch.float32 else (torch.float32,))))
    return frozenset(digest_of(*parts, without=skipped, dtype=dtype) for dtype in dtypes)


@dataclass(frozen=True, slots=True)
class _Entered:
    """As much of ``Media`` as says how pictures entered."""

    about: Mapping[str, Any]


def _tower(family: Family) -> dict[str, Any]:
    """``towers``, ``layer`` and ``dtype`` of an encoder with a tower of one fixed depth."""
    tower = getattr(family.base, family.towers["video"][0], None)
    tower = getattr(tower, "vision_model", tower)
    vision = getattr(family.config, "vision_config", None)
    count, asked = (
        getattr(vision, "num_hidden_layers", None),
        getattr(family.config, "vision_feature_layer", None),
    )
    if not isinstance(tower, nn.Module) or count is None:
        return {}
    listed = [-1] if asked is None else asked if isinstance(asked, list | tuple) else [asked]
    layer = max(k if k >= 0 else count + 1 + k for k in listed)
    found = {normed: part_digest(tower, layer, normed=normed) for normed in (False, True)}
    return {
        "towers": {normed: made["weights"] for normed, made in found.items()}, "layer": layer,
        "dtype": found[True]["dtype"],
    }  # fmt: skip
