"""Where the features of an item are put: memory that is used again, or pages of the file itself.

Fresh memory costs more than reading: a page of it is found, cleared and entered. One item is
therefore read into a buffer that comes back when its tensors are gone. The items of a batch are
mapped; a loader's worker hands over their places, since bytes would go through shared memory, which
is fresh for every batch. Whoever maps sees to it that the system has the pages at hand, so that a
trainer does not wait for a disk, and a disk that fails is an error with a name.
"""

from __future__ import annotations

import mmap
import os
import weakref
from collections import deque
from collections.abc import Iterable
from math import prod
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from tokpipe.cache._item import Bytes, Files, Place, fill
from tokpipe.errors import CacheCorrupt

_FILES = Files()
#: Bytes from one look to the next whether the system has a file's pages at hand.
_STEP = 1 << 18
_BLOCK_BYTES = 1 << 18
#: Buffers that wait for use at most, and their bytes together.
_WAITING, _WAITING_BYTES = 64, 1 << 28


class Source(NamedTuple):
    """Features in a file: first byte, dtype and shape."""

    path: str
    offset: int
    dtype: torch.dtype
    shape: tuple[int, ...]


class Buffers:
    """Memory for items, used again once nothing refers to it any more; never pickled."""

    def __init__(self) -> None:
        self._waiting: deque[Bytes] = deque()

    def __reduce__(self) -> tuple[type[Buffers], tuple[()]]:
        """A copy in another process has its own."""
        return Buffers, ()

    def take(self, size: int) -> Tensor:
        """A uint8 tensor [size]; it and all views of it gone, the memory is used again."""
        if not size:
            return torch.empty(0, dtype=torch.uint8)
        held = self._fitting(size)
        view = memoryview(held.data)[:size]
        # The storage refers to this view, whatever tensors and arrays refer to the storage.
        weakref.finalize(view, self._back, held).atexit = False
        return torch.frombuffer(view, dtype=torch.uint8)

    def _fitting(self, size: int) -> Bytes:
        for _ in range(len(self._waiting)):
            try:
                held = self._waiting.pop()  # the last one back is the nearest to the processor
            except IndexError:
                break
            if size <= len(held) <= 2 * size:
                return held
            self._waiting.appendleft(held)
        return np.empty(size + size // 8, dtype=np.uint8)

    def _back(self, held: Bytes) -> None:
        self._waiting.append(held)
        while len(self._waiting) > _WAITING or sum(map(len, self._waiting)) > _WAITING_BYTES:
            try:
                self._waiting.popleft()
            except IndexError:
                break


class Rows(list[Tensor]):
    """Features of a batch, [n, D] each. Pickled, it holds places, and is mapped where it arrives.

    Args:
        rows: The features.
        sources: Where the same bytes lie in files.
    """

    def __init__(self, rows: Iterable[Tensor], sources: Iterable[Source] = ()) -> None:
        super().__init__(rows)
        self.sources = tuple(sources)

    def __reduce__(self) -> tuple[object, ...]:
        """Places where they still say what the tensors hold; else the tensors."""
        same = len(self.sources) == len(self) and all(row._version == 0 for row in self)
        return (map_rows, (self.sources,)) if same else (list, (list(self),))


def map_rows(sources: Iterable[Source]) -> list[Tensor]:
    """Features from their places.

    Raises:
        CacheError: A file is gone, or shorter than it was.
    """
    return [mapped(source, _FILES) for source in sources]


def mapped(source: Source, files: Files) -> Tensor:
    """A tensor over the file's pages; what is written to it stays in this process.

    Raises:
        CacheError: The file is gone, or shorter than it was.
    """
    size = prod(source.shape) * source.dtype.itemsize
    skipped = source.offset % mmap.ALLOCATIONGRANULARITY
    if not size or source.offset % source.dtype.itemsize:
        return _read(source, size, files)
    try:
        held = mmap.mmap(files.get(source.path).fd, size + skipped, access=mmap.ACCESS_COPY,
                         offset=source.offset - skipped)  # fmt: skip
    except ValueError as error:
        raise CacheCorrupt("the file became shorter while it was read", where=source.path,
                           code="cache.size") from error  # fmt: skip
    except OSError:
        return _read(source, size, files)
    count = prod(source.shape)
    flat = torch.frombuffer(held, dtype=source.dtype, count=count, offset=skipped)
    return flat.view(source.shape)


def _read(source: Source, size: int, files: Files) -> Tensor:
    """The same where files cannot be mapped."""
    flat = torch.empty(size, dtype=torch.uint8)
    fill(files, Place(source.path, source.offset, size), flat.numpy())
    return flat.view(source.dtype).view(source.shape)


def at_hand(files: Files, place: Place, start: int) -> None:
    """Bring an item's bytes from ``start`` on into the system's cache, where they are not there.

    Raises:
        CacheError: They cannot be read.
    """
    handle, stop = files.get(place.path), place.offset + place.size
    if _there(handle.fd, place.offset + start, stop):
        return
    block = np.empty(_BLOCK_BYTES, dtype=np.uint8)
    for at in range(place.offset + start, stop, _BLOCK_BYTES):
        size = min(_BLOCK_BYTES, stop - at)
        fill(files, Place(place.path, at, size), block[:size])


def _there(descriptor: int, start: int, stop: int) -> bool:
    """Looks at a byte every 256 KiB say that reading would not wait."""
    flag = getattr(os, "RWF_NOWAIT", None)
    if flag is None:
        return False
    byte = [bytearray(1)]
    try:
        return all(
            os.preadv(descriptor, byte, at, flag) for at in (*range(start, stop, _STEP), stop - 1)
        )
    except OSError:
        return False
