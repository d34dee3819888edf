"""An open cache file: header, ranged reads of rows, blocks; no checks beyond the header."""

from __future__ import annotations

import json
import mmap
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from tokpipe.cache._header import Header, TensorInfo, header_length, parse_header
from tokpipe.cache.format import DATASET_INFO, METADATA, NUMPY_DTYPES
from tokpipe.errors import CacheCorrupt, CacheError

#: ``pread(descriptor, length, offset)``; another one may count or fetch the bytes.
Pread = Callable[[int, int, int], bytes]
Array = npt.NDArray[Any]

#: First read: header and, in short files, the columns, in one request.
_HEAD_BYTES = 1 << 16
#: Bytes of a block when a whole column is walked.
_BLOCK_BYTES = 1 << 20
#: A single system read moves at most about 2 GiB; larger ones are split.
_READ_BYTES = 1 << 30


class CacheFile:
    """Raw access to the tensors of one file.

    Args:
        path: The cache, or a file that holds it among others.
        pread: Reads bytes at an offset; ``os.pread`` unless bytes are to be counted.
        window: First byte and number of bytes of the cache in the file; None is the whole file.

    Raises:
        CacheError: The file cannot be opened.
        CacheCorrupt: Its header is not that of a whole safetensors file.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        pread: Pread = os.pread,
        window: tuple[int, int] | None = None,
    ) -> None:
        self.path = Path(path)
        self._base = 0 if window is None else window[0]
        self._pread: Pread = (
            pread if window is None else lambda fd, n, at: pread(fd, n, at + self._base)
        )
        self._map: mmap.mmap | None = None
        self._fd = -1
        try:
            mode = self.path.stat().st_mode
            if stat.S_ISDIR(mode):
                raise _folder_error(self.path)
            if not stat.S_ISREG(mode):
                # Opening a pipe would wait for a writer that never comes.
                raise CacheError(
                    "the cache is not a regular file", where=str(path), code="cache.open"
                )
            self._fd = os.open(self.path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
            self.size = os.fstat(self._fd).st_size
            if window is not None:
                if window[0] + window[1] > self.size:
                    raise CacheCorrupt("the file ends inside the cache", code="cache.size")
                self.size = window[1]
            self.header: Header = self._read_header()
        except (OSError, ValueError) as error:
            self.close()
            reason = getattr(error, "strerror", None) or error
            raise CacheError(f"cannot open the cache: {reason}", where=str(path), code="cache.open",
                             hint="check the path and its permissions") from error  # fmt: skip
        except CacheError:
            self.close()
            raise

    def _read_header(self) -> Header:
        head = self._pread(self._fd, min(self.size, _HEAD_BYTES), 0)
        length = header_length(head, self.size)
        body = head[8 : 8 + length]
        if len(body) < length:
            body += self._bytes(8 + len(body), 8 + length)
        return parse_header(body, self.size)

    def close(self) -> None:
        """Close the descriptor; arrays that were handed out stay valid."""
        self._map = None
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        """Close."""
        self.close()

    def __contains__(self, name: str) -> bool:
        """The file has a tensor of this name."""
        return name in self.header.tensors

    def info(self, name: str) -> TensorInfo:
        """Entry of a tensor.

        Raises:
            CacheError: There is none of this name.
        """
        found = self.header.tensors.get(name) or self.header.pads.get(name)
        if found is None:
            raise CacheError(f"the cache has no tensor `{name}`", code="cache.no_tensor")
        return found

    def num_rows(self, name: str) -> int:
        """Size of a tensor's first axis."""
        return self.info(name).shape[0]

    def _bytes(self, start: int, stop: int) -> bytes:
        if self._fd < 0:
            raise CacheError("the cache is closed", code="cache.closed")
        parts = []
        while start < stop:
            try:
                part = self._pread(self._fd, min(stop - start, _READ_BYTES), start)
            except OSError as error:
                raise CacheError(f"cannot read the cache: {error}", code="cache.read") from error
            if not part:
                raise CacheCorrupt("the file became shorter while it was read", code="cache.size")
            parts.append(part)
            start += len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Array:
        """Rows [start, stop) of a tensor by one ranged read; read-only, BF16 as bit patterns."""
        info = self.info(name)
        stop = info.shape[0] if stop is None else min(stop, info.shape[0])
        start = min(max(start, 0), stop)
        base = self.header.data_start + info.start
        data = self._bytes(base + start * info.row_bytes, base + stop * info.row_bytes)
        array = np.frombuffer(data, dtype=self._dtype(name, info))
        return array.reshape((stop - start, *info.shape[1:]))

    def view(self, name: str) -> Array:
        """A whole tensor as a read-only view of the memory-mapped file."""
        info = self.info(name)
        if info.start == info.stop:
            return np.empty(info.shape, dtype=self._dtype(name, info))
        if self._fd < 0:
            raise CacheError("the cache is closed", code="cache.closed")
        skipped = self._base % mmap.ALLOCATIONGRANULARITY
        if self._map is None:
            self._map = mmap.mmap(
                self._fd, skipped + self.size, access=mmap.ACCESS_READ,
                offset=self._base - skipped,
            )  # fmt: skip
        dtype = self._dtype(name, info)
        count = (info.stop - info.start) // dtype.itemsize
        base = skipped + self.header.data_start + info.start
        return np.frombuffer(self._map, dtype=dtype, count=count, offset=base).reshape(info.shape)

    @staticmethod
    def _dtype(name: str, info: TensorInfo) -> np.dtype[Any]:
        if info.dtype not in NUMPY_DTYPES:
            raise CacheError(f"`{name}` is {info.dtype}, which this version cannot read",
                             code="cache.dtype")  # fmt: skip
        return NUMPY_DTYPES[info.dtype]

    def blocks(self, name: str) -> Iterator[tuple[int, Array]]:
        """Walk a tensor in blocks of about 1 MiB: (first row, rows). Memory stays flat."""
        info = self.info(name)
        step = max(1, _BLOCK_BYTES // max(1, info.row_bytes))
        for start in range(0, info.shape[0], step):
            yield start, self.read(name, start, start + step)

    def raw_blocks(self, name: str) -> Iterator[bytes]:
        """Walk the bytes of a tensor, whatever its dtype."""
        info, base = self.info(name), self.header.data_start
        for start in range(info.start, info.stop, _BLOCK_BYTES):
            yield self._bytes(base + start, base + min(start + _BLOCK_BYTES, info.stop))


def _folder_error(path: Path) -> CacheError:
    """What to call instead where a folder is named as a cache."""
    if (path / DATASET_INFO).is_file():
        return CacheError(
            f"`{path}` is a packed dataset, not one cache", code="cache.open",
            hint="tokpipe dataset stats or verify; in Python tokpipe.load(path).open(key)",
        )  # fmt: skip
    return CacheError(
        f"`{path}` is a folder, not a cache",
        code="cache.open",
        hint="name a file in it; tokpipe dataset verify and tokpipe.load take folders of caches",
    )


def parse_metadata(raw: dict[str, str]) -> dict[str, Any]:
    """Decode the JSON of known keys; other values stay text.

    Raises:
        CacheCorrupt: A known key does not hold JSON.
    """
    out: dict[str, Any] = {}
    for key, value in raw.items():
        known = METADATA.get(key)
        if known is None or known.form == "text":
            out[key] = value
            continue
        try:
            out[key] = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise CacheCorrupt(
                f"metadata `{key}` is not valid JSON: {error}", code="cache.metadata"
            ) from error
    return out
