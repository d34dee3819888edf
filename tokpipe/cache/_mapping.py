"""Features as views of their file, each process with its own pages for what it writes.

Fresh memory costs more than reading: a page of it is found, cleared and entered, while the system
has the pages of the file at hand. So an item is read into one buffer that is used again, which
checks it and brings it into the cache of the system, and its features are mapped from there.
"""

from __future__ import annotations

import mmap
import threading
from collections.abc import Iterable
from math import prod
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from tokpipe.cache._item import Bytes, Files, Place, fill
from tokpipe.errors import CacheCorrupt

#: Items above this many bytes get memory of their own.
MOST = 1 << 26
_FILES = Files()


class Source(NamedTuple):
    """Features in a file: first byte, dtype and shape."""

    path: str
    offset: int
    dtype: torch.dtype
    shape: tuple[int, ...]


class Scratch(threading.local):
    """A buffer of each thread that is used again and grows to the largest item."""

    def __init__(self) -> None:
        self._held: Bytes = np.empty(0, dtype=np.uint8)

    def __reduce__(self) -> tuple[type[Scratch], tuple[()]]:
        """A copy in another process has its own."""
        return Scratch, ()

    def take(self, size: int) -> Bytes:
        """``size`` bytes, until the next call."""
        if len(self._held) < size:
            self._held = np.empty(size, dtype=np.uint8)
        return self._held[:size]


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
