"""What is refused before a token reaches a model."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor, nn

from tokpipe.encode._weights import digest_of
from tokpipe.errors import CacheError, WeightsMismatch
from tokpipe.export._media import Media
from tokpipe.export._models.family import Family
from tokpipe.export._models.seal import seal_of

#: By model, the last digest of each encoder in each dtype, and the seal of what it was taken of.
_KNOWN: weakref.WeakKeyDictionary[Any, dict[tuple[str, str], tuple[object, str]]] = (
    weakref.WeakKeyDictionary()
)
_FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def check_media(family: Family, media: Media, *, allow_mismatch: bool) -> tuple[str, ...]:
    """Refuse rows that are not this model's.

    Returns:
        Sentences on what could not be checked.

    Raises:
        CacheError: Rows before the projector, of another width, or without their deeper rows.
        WeightsMismatch: They were made by other weights.
    """
    name = type(family.model).__name__
    stage = str(media.about.get("stage"))
    if stage != "post_projector":
        raise CacheError(
            f"the {media.stream} rows are {stage}, {name} takes post_projector",
            hint="tokpipe project CACHE --to MODEL, or encode again with --stage post_projector",
            code="export.stage",
        )
    width = int(media.data.shape[1])
    if width != family.dim:
        raise CacheError(
            f"the {media.stream} rows are {width} wide, {name} has a hidden size of {family.dim}",
            hint="a cache after the projector serves one model; encode the media for this one",
            code="export.width",
        )
    wanted = family.deepstack if media.stream == "video" else 0
    if len(media.deepstack) != wanted:
        raise CacheError(
            f"{name} takes {wanted} rows beside each {media.stream} token, the cache has "
            f"{len(media.deepstack)}",
            hint="encode the media for this model", code="export.deepstack",
        )  # fmt: skip
    return _check_weights(family, media, allow_mismatch=allow_mismatch)


def _check_weights(family: Family, media: Media, *, allow_mismatch: bool) -> tuple[str, ...]:
    known = media.about.get("weights")
    stream, name = media.stream, type(family.model).__name__
    if media.unproven:
        return (media.unproven,)
    if gone(family, stream):
        return (f"{name} has no {stream} tower: that its weights made the rows is not checked",)
    parts = family.parts(stream)
    skipped = family.without(media)
    tensors = tensors_of(parts, skipped)
    if any(t.is_meta or not (t.is_floating_point() or t.numel() == 1) for t in tensors):
        return (f"the {stream} tower is quantised or elsewhere: its weights are not checked",)
    own = next((t.dtype for t in tensors if t.is_floating_point()), torch.float32)
    # Loaded in a narrower type than they lie in, weights cannot be compared any more.
    dtypes = dict.fromkeys((own, *(_FLOATS if own == torch.float32 else (torch.float32,))))
    seal = seal_of(tensors)
    if any(_digest(family, stream, seal, dtype, parts, skipped) == known for dtype in dtypes):
        return ()
    if allow_mismatch:
        return (f"the {stream} rows were made by other weights than those of this model",)
    cast = own != torch.float32
    raise WeightsMismatch(
        f"the {stream} rows were made by other weights than those of this {name}: "
        f"{str(known)[:19]}" + (f", unless they were cast to {own}".replace("torch.", "") * cast),
        hint="encode the media with this checkpoint, load it with dtype='auto', or pass "
        "allow_mismatch=True",
        code="export.weights",
    )


def tensors_of(parts: tuple[nn.Module, ...], skipped: tuple[str, ...]) -> list[Tensor]:
    starts = tuple(f"{name}." for name in skipped)
    return [
        tensor for part in parts for name, tensor in part.state_dict().items()
        if not name.startswith(starts)
    ]  # fmt: skip


def gone(family: Family, stream: str) -> bool:
    """A part of the encoder was deleted."""
    for name in family.towers.get(stream, ()):
        part: Any = family.base
        for leaf in name.split("."):
            part = getattr(part, leaf, None)
        if not isinstance(part, nn.Module) or next(part.parameters(), None) is None:
            return True
    return False


def _digest(
    family: Family,
    stream: str,
    seal: object,
    dtype: torch.dtype,
    parts: tuple[nn.Module, ...],
    skipped: tuple[str, ...],
) -> str:
    """The digest, taken anew unless the weights still have the seal they had then."""
    kept = _KNOWN.setdefault(family.model, {})
    key = (" ".join((stream, *skipped)), str(dtype))
    then, digest = kept.get(key, (None, ""))
    if then != seal:
        digest = digest_of(*parts, without=skipped, dtype=dtype)
        kept[key] = (seal, digest)
    return digest
