"""The bytes of one item as columns: read whole in one go, or only the rows that are asked for."""

from __future__ import annotations

import json
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, prod
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from tokpipe.cache._file import Array, CacheFile, Pread
from tokpipe.cache._header import header_length
from tokpipe.cache._structure import check_version
from tokpipe.cache.format import ITEM_BYTES, NUMPY_DTYPES, STREAMS
from tokpipe.cache.reader import TokenCache
from tokpipe.errors import CacheCorrupt, CacheError

#: Files that are kept open at a time.
_OPEN_FILES = 64
Bytes = npt.NDArray[np.uint8]
#: Makes a writable buffer of so many bytes.
Allocate = Callable[[int], Bytes]


class Place(NamedTuple):
    """Where an item lies: file, first byte, bytes (-1: all of the file)."""

    path: str
    offset: int
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Want:
    """What is read of an item.

    Attributes:
        streams: Of ``video`` and ``audio``; those an item lacks are left out.
        columns: Columns beside ``tokens``, by name without the stream.
        start, stop: Seconds, ``start <= at < stop``; None is open.
        budget: Only rows with ``rank < budget``; None is all.
        whole: The item is read in one go where no rows are chosen; off where features are a
            small part of it.
    """

    streams: tuple[str, ...] = STREAMS
    columns: tuple[str, ...] = ("at",)
    start: float | None = None
    stop: float | None = None
    budget: int | None = None
    whole: bool = True

    @property
    def chosen(self) -> bool:
        """Only some rows are wanted."""
        return not (self.start is None and self.stop is None and self.budget is None)


class RawStream(NamedTuple):
    """Columns of one stream; BF16 as uint16 bit patterns.

    Attributes:
        dtype: Safetensors dtype of the features.
        columns: ``tokens`` and what else was wanted, [N, ...] each.
    """

    dtype: str
    columns: dict[str, Array]


class _Open:
    """A descriptor that is closed with its last user."""

    def __init__(self, path: str) -> None:
        self.fd = -1
        self.fd = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))

    def __del__(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)


class Files:
    """Descriptors by path, a bounded number; opened on first use, never pickled.

    Reads name their offset, so a forked process may share descriptors.
    """

    def __init__(self) -> None:
        self._open: OrderedDict[str, _Open] = OrderedDict()
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type[Files], tuple[()]]:
        """A copy in another process opens its own."""
        return Files, ()

    def get(self, path: str) -> _Open:
        """The open file of a path.

        Raises:
            CacheError: It cannot be opened.
        """
        with self._lock:
            found = self._open.get(path)
            if found is None:
                try:
                    found = self._open[path] = _Open(path)
                except OSError as error:
                    raise CacheError(f"cannot open the file: {error.strerror}",
                                     where=path, code="cache.open") from error  # fmt: skip
                if len(self._open) > _OPEN_FILES:
                    self._open.popitem(last=False)
            return found


def size_of(files: Files, place: Place) -> int:
    """Bytes of an item."""
    return place.size if place.size >= 0 else os.fstat(files.get(place.path).fd).st_size


def fill(files: Files, place: Place, buffer: Bytes) -> None:
    """Read an item into a buffer of its size.

    Raises:
        CacheError: The file cannot be read.
        CacheCorrupt: It is shorter than the item.
    """
    handle, view, at = files.get(place.path), memoryview(buffer.data), place.offset
    while view:
        try:
            count = os.preadv(handle.fd, [view], at)
        except OSError as error:
            raise CacheError(f"cannot read: {error.strerror}", where=place.path,
                             code="cache.read") from error  # fmt: skip
        if not count:
            raise CacheCorrupt("the file ends inside the cache", where=place.path,
                               code="cache.size")  # fmt: skip
        view, at = view[count:], at + count


class Spot(NamedTuple):
    """Where a tensor lies in an item: safetensors dtype, shape, first byte and the one after."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int

    def of(self, head: Bytes) -> Array:
        """The tensor as a view of the item's first bytes."""
        return head[self.start : self.stop].view(NUMPY_DTYPES[self.dtype]).reshape(self.shape)


def header_size(head: Bytes, size: int) -> int:
    """Bytes of an item before its data, from the first eight.

    Raises:
        CacheCorrupt: It cannot be.
    """
    return 8 + header_length(head[:8].tobytes(), size)


def locate(header: Bytes, size: int, want: Want) -> dict[str, dict[str, Spot]]:
    """Where the wanted columns of each stream lie.

    The header is trusted no further than that; ``tokpipe.cache.verify`` checks all.

    Args:
        header: Length and header.
        size: Bytes of the item.

    Raises:
        CacheCorrupt: The header is damaged, or a column is absent or does not fit the item.
        CacheVersion: Another major version of the format is needed.
    """
    base, out, last = len(header), {}, 0
    try:
        raw = json.loads(str(header[8:].data, "utf-8"))
        metadata = raw.pop("__metadata__")
        check_version(metadata)
        for entry in raw.values():
            if (stop := entry["data_offsets"][1]) > last:
                last = stop
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise CacheCorrupt(f"the header is damaged: {error}", code="cache.header") from error
    if last != size - base:
        raise CacheCorrupt("the data do not end where the file ends", code="cache.size")
    for stream in want.streams:
        if f"{stream}.tokens" not in raw:
            continue
        names = ("tokens", *(c for c in want.columns if f"{stream}.{c}" in raw))
        spots = {n: _spot(base, size, f"{stream}.{n}", raw) for n in names}
        if len({spot.shape[0] for spot in spots.values()}) > 1:
            raise CacheCorrupt(f"{stream}: columns differ in rows", code="cache.shape")
        out[stream] = spots
    return out


def _spot(base: int, size: int, name: str, raw: Mapping[str, Any]) -> Spot:
    try:
        entry = raw[name]
        kind, shape, (start, stop) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        if kind not in NUMPY_DTYPES or not shape or min(shape) < 0:
            raise ValueError(f"{kind} {list(shape)} is none of a cache")
        if (
            not (0 <= start <= stop <= size - base)
            or stop - start != prod(shape) * ITEM_BYTES[kind]
        ):
            raise ValueError("its bytes do not hold its shape")
        return Spot(kind, shape, base + start, base + stop)
    except (TypeError, KeyError, ValueError) as error:
        raise CacheCorrupt(f"tensor `{name}`: {error}", code="cache.header") from error


def check_times(stream: str, at: Array | None) -> None:
    """Refuse times that do not rise or are not finite."""
    if at is None or not len(at):
        return
    # In order, the first and the last are the least and the largest; NaN is never in order.
    ends = isfinite(at.item(0)) and isfinite(at.item(-1))
    if not ends or not (at[1:] >= at[:-1]).all():
        raise CacheCorrupt(f"`{stream}.at` is not monotone and finite", code="cache.order")


def read_rows(place: Place, want: Want, pread: Pread = os.pread) -> dict[str, RawStream]:
    """Only the wanted rows, by ranged reads: the header, a search in ``at``, and the ranges.

    Raises:
        CacheError: As :func:`locate`.
    """
    window = None if place.size < 0 else (place.offset, place.size)
    with CacheFile(place.path, pread, window) as file:
        check_version(file.header.metadata)
        cache, out = TokenCache(file, {}), {}
        for stream in want.streams:
            if f"{stream}.tokens" not in file:
                continue
            low, high = cache.rows(stream, want.start, want.stop)
            names = ("tokens", *(c for c in want.columns if f"{stream}.{c}" in file))
            if want.budget is None:
                columns = {n: file.read(f"{stream}.{n}", low, high) for n in names}
            else:
                rank = file.read(f"{stream}.rank", low, high)
                rows = low + np.flatnonzero(rank < want.budget)
                columns = {n: _gather(file, f"{stream}.{n}", rows) for n in names}
            check_times(stream, columns.get("at"))
            out[stream] = RawStream(file.info(f"{stream}.tokens").dtype, columns)
        return out


def _gather(file: CacheFile, name: str, rows: npt.NDArray[np.int64]) -> Array:
    """Rows by rising number; neighbours are read at once."""
    if not len(rows):
        return file.read(name, 0, 0)
    gap = 1 + (1 << 14) // max(1, file.info(name).row_bytes)
    parts = []
    for run in np.split(rows, np.flatnonzero(np.diff(rows) > gap) + 1):
        low = int(run[0])
        block = file.read(name, low, int(run[-1]) + 1)
        parts.append(block if len(block) == len(run) else block[run - low])
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def count_rows(place: Place, want: Want) -> dict[str, int]:
    """Rows of each stream that :func:`read_rows` would give; features are not read."""
    window = None if place.size < 0 else (place.offset, place.size)
    with CacheFile(place.path, window=window) as file:
        cache, out = TokenCache(file, {}), {}
        for stream in want.streams:
            if f"{stream}.tokens" in file:
                low, high = cache.rows(stream, want.start, want.stop)
                out[stream] = high - low
                if want.budget is not None:
                    rank = file.read(f"{stream}.rank", low, high)
                    out[stream] = int((rank < want.budget).sum())
        return out


def first_problem(columns: Sequence[str]) -> str | None:
    """The first column that the format does not have for rows."""
    from tokpipe.cache._slice import SLICE_COLUMNS

    known = {*SLICE_COLUMNS, *(f"deepstack_{k}" for k in range(1, 10)), "atlas_box", "clip_offset"}
    return next((c for c in columns if c not in known), None)
