"""What is exported: cache files, and items of packed datasets as files while they are needed."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self, overload

from tokpipe.cache._tar import BLOCK, padded, read_header
from tokpipe.cache.dataset import CacheDataset, open_dataset
from tokpipe.cache.dataset_info import is_dataset
from tokpipe.cache.format import SUFFIX
from tokpipe.errors import CacheCorrupt, CacheError

_BLOCK = 1 << 24


def names_of(paths: Sequence[Path]) -> Sequence[Path]:
    """What caches are called, without copying one out of a dataset."""
    return paths.names if isinstance(paths, CacheFiles) else paths


class CacheFiles(Sequence[Path]):
    """Paths of caches; an item of a dataset is copied out when its path is asked for.

    Of every dataset one item lies on the disk at a time, so that an export of any number of them
    needs no more room. Its digest is compared as it is copied. Use as a context manager.

    Attributes:
        names: What each is called: its path, or its key below the dataset.
    """

    def __init__(self, inputs: Iterable[Path]) -> None:
        """Take cache files and packed datasets, in this order."""
        self.names: list[Path] = []
        self._places: list[tuple[CacheDataset, int] | None] = []
        self._folder = tempfile.TemporaryDirectory(prefix="tokpipe-export-")
        self._last: tuple[CacheDataset, int, Path] | None = None
        for given in inputs:
            if not is_dataset(given):
                self.names.append(given)
                self._places.append(None)
                continue
            found = open_dataset(given)
            self.names += [given / f"{key}{SUFFIX}" for key in found.keys]
            self._places += [(found, number) for number in range(len(found))]

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        """Remove what was copied out."""
        self._folder.cleanup()

    def __len__(self) -> int:
        """Return the number of caches."""
        return len(self.names)

    @overload
    def __getitem__(self, item: int) -> Path: ...

    @overload
    def __getitem__(self, item: slice) -> Sequence[Path]: ...

    def __getitem__(self, item: int | slice) -> Path | Sequence[Path]:
        """The path of one; of a dataset's item only until the next one is asked for."""
        if isinstance(item, slice):
            return self.chosen(range(*item.indices(len(self))))
        place = self._places[item]
        return self.names[item] if place is None else self._copied(*place)

    def chosen(self, numbers: Iterable[int]) -> CacheFiles:
        """Some of them."""
        part = CacheFiles(())
        for number in numbers:
            part.names.append(self.names[number])
            part._places.append(self._places[number])
        return part

    def _copied(self, dataset: CacheDataset, number: int) -> Path:
        if self._last is not None:
            if self._last[:2] == (dataset, number):
                return self._last[2]
            self._last[2].unlink(missing_ok=True)
        path = Path(self._folder.name) / f"{dataset.key(number)}{SUFFIX}"
        self._last = (dataset, number, path)
        shard, window = dataset.window(number)
        try:
            with shard.open("rb") as source, path.open("wb") as target:
                digest = _copy(source, target, *window)
                told = _told(source, sum(window))
        except FileNotFoundError as error:
            raise CacheError(
                f"the shard `{shard.name}` is gone", where=os.fspath(dataset.root),
                hint="tokpipe dataset verify says what is missing", code="dataset.shard",
            ) from error  # fmt: skip
        if digest != told:
            self._last = None
            path.unlink()
            raise CacheCorrupt(
                f"item `{dataset.key(number)}`: its bytes differ from the digest beside them",
                where=os.fspath(dataset.root), code="dataset.digest",
                hint="tokpipe dataset verify --deep names all such items",
            )  # fmt: skip
        return path


def _copy(source: BinaryIO, target: BinaryIO, start: int, size: int) -> str:
    """Copy a range of bytes, and give their SHA-256 in hex."""
    running = hashlib.sha256()
    source.seek(start)
    while size > 0 and (block := source.read(min(size, _BLOCK))):
        running.update(block)
        size -= target.write(block)
    return running.hexdigest()


def _told(source: BinaryIO, end: int) -> str | None:
    """The digest that the JSON behind a cache gives it, which needs no index; None unreadable."""
    try:
        source.seek(padded(end))
        _, size = read_header(source.read(BLOCK))
        return str(json.loads(source.read(size))["sha256"])
    except (CacheCorrupt, ValueError, LookupError, TypeError):
        return None
