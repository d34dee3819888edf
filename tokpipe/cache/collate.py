"""Samples of different lengths as one batch: padded right or left, or packed end to end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from tokpipe.cache.format import STREAMS
from tokpipe.cache.samples import Sample, Tokens, new_tensor
from tokpipe.errors import CacheError

Side = Literal["right", "left"]


def _streams(samples: Sequence[Sample]) -> dict[str, list[Tokens | None]]:
    """Rows of every item by stream, None where an item lacks it.

    A stream that no item of the batch has, but the dataset, is there without rows.
    """
    out: dict[str, list[Tokens | None]] = {}
    for stream in STREAMS:
        rows = [sample.streams.get(stream) for sample in samples]
        if all(r is None for r in rows):
            rows = [sample.absent.get(stream) for sample in samples]
        if any(r is not None for r in rows):
            out[stream] = rows
    return out


def read_samples(found: Sequence[Any]) -> list[Sample]:
    """The samples of a batch; None, the place of one that was skipped, is left out.

    Raises:
        CacheError: Nothing is left, or something is no sample.
    """
    samples = [item for item in found if item is not None]
    if not samples:
        raise CacheError("nothing in the batch could be read", code="dataset.batch",
                         hint="tokpipe dataset verify names what cannot be read")  # fmt: skip
    if odd := [item for item in samples if not isinstance(item, Sample)]:
        raise CacheError(
            f"a batch of {type(odd[0]).__name__} instead of samples", code="dataset.batch",
            hint="collate them as the transform made them",
        )  # fmt: skip
    return samples


@dataclass(frozen=True, slots=True, kw_only=True)
class PadCollator:
    """Pad every item to the longest: B items, L rows.

    The batch is a dict: ``keys`` (list), ``index`` int64 [B], and for each stream S ``S.tokens``
    [B, L, D], ``S.mask`` bool [B, L] (True is a token), ``S.length`` int64 [B], and ``S.COLUMN``
    [B, L, ...] of every column that was read. An item without the stream has length 0; a batch of
    such items has L = 0, so that every batch of a dataset has the same tensors (but a stream of
    several widths, in a mixed dataset, is left out there).

    Args:
        side: Where the padding goes: ``right`` for training, ``left`` for generation.
        multiple: L is rounded up to a multiple of it.
    """

    side: Side = "right"
    multiple: int = 1

    def __post_init__(self) -> None:
        """Check the choices."""
        if self.side not in ("right", "left") or self.multiple < 1:
            raise CacheError(f"cannot pad {self.side!r} to multiples of {self.multiple}",
                             code="dataset.choice")  # fmt: skip

    def __call__(self, found: Sequence[Sample | None]) -> dict[str, Any]:
        """Make a batch."""
        samples = read_samples(found)
        out = _names(samples)
        for stream, rows in _streams(samples).items():
            counts = [0 if r is None else len(r) for r in rows]
            room = -(-max(counts) // self.multiple) * self.multiple
            for name in _columns(rows):
                out[f"{stream}.{name}"] = self._padded(rows, name, room)
            out[f"{stream}.length"] = torch.tensor(counts)
            mask = torch.arange(room)[None] < out[f"{stream}.length"][:, None]
            out[f"{stream}.mask"] = mask if self.side == "right" else mask.flip(1)
        return out

    def _padded(self, rows: Sequence[Tokens | None], name: str, room: int) -> Tensor:
        parts = [None if r is None else _column(r, name) for r in rows]
        like = _alike(parts, name)
        out = new_tensor((len(parts), room, *like.shape[1:]), like.dtype)
        for place, part in zip(out, parts, strict=True):
            count = 0 if part is None else len(part)
            low = 0 if self.side == "right" else room - count
            if part is not None:
                place[low : low + count] = part
            place[:low].zero_()
            place[low + count :].zero_()
        return out


@dataclass(frozen=True, slots=True)
class PackCollator:
    """Lay all items end to end, as attention kernels for ragged batches take them.

    The batch is a dict: ``keys`` (list), ``index`` int64 [B], and for each stream S ``S.tokens``
    [N, D], ``S.cu_seqlens`` int32 [B+1] (item i has rows ``cu_seqlens[i]`` to ``cu_seqlens[i+1]``),
    ``S.max_seqlen`` (int) and ``S.COLUMN`` [N, ...] of every column that was read. Items without
    the stream have no rows, as for :class:`PadCollator`.
    """

    def __call__(self, found: Sequence[Sample | None]) -> dict[str, Any]:
        """Make a batch."""
        samples = read_samples(found)
        out = _names(samples)
        for stream, rows in _streams(samples).items():
            counts = torch.tensor([0, *(0 if r is None else len(r) for r in rows)])
            for name in _columns(rows):
                parts = [_column(r, name) for r in rows if r is not None]
                like = _alike(parts, name)
                packed = new_tensor((int(counts.sum()), *like.shape[1:]), like.dtype)
                out[f"{stream}.{name}"] = torch.cat(parts, out=packed)
            out[f"{stream}.cu_seqlens"] = counts.cumsum(0).to(torch.int32)
            out[f"{stream}.max_seqlen"] = int(counts.max())
        return out


def _names(samples: Sequence[Sample]) -> dict[str, Any]:
    return {"keys": [s.key for s in samples], "index": torch.tensor([s.index for s in samples])}


def _columns(rows: Sequence[Tokens | None]) -> list[str]:
    """Columns that every item with the stream has."""
    there = [r for r in rows if r is not None]
    return ["tokens", *(n for n in there[0].columns if all(n in r.columns for r in there))]


def _column(rows: Tokens, name: str) -> Tensor:
    return rows.tokens if name == "tokens" else rows.columns[name]


def _alike(parts: Sequence[Tensor | None], name: str) -> Tensor:
    """The first part; all have its width and dtype.

    Raises:
        CacheError: They differ.
    """
    there = [part for part in parts if part is not None]
    kinds = {(tuple(p.shape[1:]), p.dtype) for p in there}
    if len(kinds) > 1:
        text = " and ".join(sorted(f"{list(shape)} {dtype}" for shape, dtype in kinds))
        raise CacheError(
            f"`{name}` of one batch is {text}", code="dataset.mixed",
            hint="batch caches of one encoder; dtype= makes the numbers alike",
        )  # fmt: skip
    return there[0]
