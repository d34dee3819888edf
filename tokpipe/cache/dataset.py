"""Read a dataset of caches, packed or a folder of loose files: which items, where, how long.

Needs numpy alone. With pyarrow the index parts are read; without it the ``.idx`` files and the JSON
members say the same.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tokpipe.cache._item import Place
from tokpipe.cache._shard_files import SHARDS, committed, members, pairs
from tokpipe.cache.dataset_info import Alike, DatasetInfo, is_dataset, read_info
from tokpipe.cache.format import STREAMS, SUFFIX
from tokpipe.cache.index_table import COLUMNS, ItemFacts, read_facts, read_index, row_from_json
from tokpipe.cache.pack import find_below, name_key
from tokpipe.cache.reader import TokenCache
from tokpipe.errors import CacheError, MissingExtra, TokpipeError

__all__ = ["CacheDataset", "open_dataset"]

#: Loose files that are shuffled and split as if they were one shard.
_LOOSE_GROUP = 64
_READ = ("key", "offset", "size", "n_video", "n_audio", "dim_video", "dim_audio", "dtype",
         "duration")  # fmt: skip


@dataclass(slots=True, eq=False, repr=False)
class CacheDataset:
    """Items of a dataset in a fixed order. Use :func:`open_dataset`.

    Attributes:
        root: The folder.
        info: What the items have in common.
        groups: int64 [G+1] first item of each shard (of 64 loose files), and their number.
        sizes: int64 [n] bytes of each item.
        dims: Stream -> int32 [n] width of its tokens, 0 where absent.
        dtypes: Safetensors dtype of each item's tokens.
        durations: float64 [n] seconds, NaN where unknown.
        problems: Loose files whose header cannot be read: item number -> error.
        packed: The items lie in shards.
    """

    root: Path
    info: DatasetInfo
    groups: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int64]
    dims: dict[str, npt.NDArray[np.int32]]
    dtypes: npt.NDArray[np.str_]
    durations: npt.NDArray[np.float64]
    packed: bool
    _keys: npt.NDArray[np.bytes_]
    _paths: list[str]
    _file: npt.NDArray[np.int32]
    _offsets: npt.NDArray[np.int64]
    _rows: dict[str, npt.NDArray[np.int64]]
    problems: dict[int, TokpipeError] = field(default_factory=dict)
    _numbers: dict[bytes, int] = field(default_factory=dict)

    def __len__(self) -> int:
        """Return the number of items."""
        return len(self._keys)

    def __repr__(self) -> str:
        """Show the folder and what is in it."""
        kind = f"{len(self.groups) - 1} shards" if self.packed else "loose files"
        tokens = ", ".join(f"{int(self._rows[s].sum()):,} {s}" for s in self.info.streams)
        return f"CacheDataset({self.root.name!r}, {len(self):,} items in {kind}, {tokens} tokens)"

    @property
    def keys(self) -> list[str]:
        """Name of every item, in order."""
        return [key.decode() for key in self._keys.tolist()]

    def number(self, item: int) -> int:
        """An item's number from 0; negative ones count from the end.

        Raises:
            IndexError: There is no such item.
        """
        found = item + len(self) if item < 0 else item
        if not 0 <= found < len(self):
            raise IndexError(f"item {item} of a dataset of {len(self)}")
        return found

    def find(self, key: str) -> int:
        """Number of the item of a key.

        Raises:
            KeyError: There is none.
        """
        if not self._numbers:
            self._numbers = {k: i for i, k in enumerate(self._keys.tolist())}
        found = self._numbers.get(key.encode())
        if found is None:
            raise KeyError(f"the dataset has no item `{key}`")
        return found

    @property
    def shards(self) -> list[str]:
        """File of every item, in order."""
        return [self._paths[number] for number in self._file.tolist()]

    def key(self, item: int) -> str:
        """Name of an item."""
        return bytes(self._keys[item]).decode()

    def rows(self, stream: str) -> npt.NDArray[np.int64]:
        """int64 [n] tokens of a stream in each item, as they are stored."""
        return self._rows[stream]

    def place(self, item: int) -> Place:
        """Where an item lies."""
        path = self._paths[self._file[item]]
        return Place(path, int(self._offsets[item]), int(self.sizes[item]))

    def window(self, item: int) -> tuple[Path, tuple[int, int]]:
        """File, and first byte and bytes of an item in it."""
        place = self.place(item)
        return Path(place.path), (place.offset, place.size)

    def open(self, item: int | str) -> TokenCache:
        """Open one item with every check, by number or key."""
        number = self.find(item) if isinstance(item, str) else self.number(item)
        path, window = self.window(number)
        return TokenCache.open(path, window=window, name=self.key(number))


def open_dataset(
    path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]], *, mixed: bool = False
) -> CacheDataset:
    """Open a packed dataset, a folder of loose caches (to any depth), or a list of files.

    Loose files take their place below the folder as key; their headers are all read. Of two items
    of one key in a packed dataset the newer one counts.

    Args:
        path: What to read.
        mixed: Allow loose files of different encoders; a packed dataset says itself if it may.

    Raises:
        CacheError: There is nothing to read.
        CacheCorrupt: An index part is damaged.
        CacheVersion: The dataset needs another version.
        RecipeError: Loose files of different encoders or widths.
    """
    if isinstance(path, str | os.PathLike):
        root = Path(path)
        if is_dataset(root):
            return _packed(root)
        files = find_below(root) if root.is_dir() else [root]
        if not root.exists():
            raise CacheError(f"no such folder `{root}`", code="dataset.folder",
                             hint="name a dataset, or a folder of token caches")  # fmt: skip
    else:
        files = [Path(p) for p in path]
        root = Path(os.path.commonpath([p.parent for p in files])) if files else Path()
    if not files:
        raise CacheError(f"no token caches in `{root}`", code="dataset.empty",
                         hint=f"their names end in {SUFFIX}")  # fmt: skip
    return _loose(root if root.is_dir() else root.parent, files, mixed)


def _packed(root: Path) -> CacheDataset:
    info, parts = read_info(root), committed(root)
    tables = [_table(root, stem, part) for stem, _, part in parts]
    names = [f"{stem}.tar" for stem, _, _ in parts]
    columns = {name: [value for t in tables for value in t[name]] for name in ("key", "dtype")}
    keys = np.array([key.encode() for key in columns["key"]], dtype=np.bytes_)
    shard = np.repeat(np.arange(len(tables), dtype=np.int32), [len(t["key"]) for t in tables])
    number = {
        name: np.concatenate([np.asarray(t[name]) for t in tables]) if tables else np.empty(0)
        for name in _READ if name not in columns
    }  # fmt: skip
    offsets = number["offset"].astype(np.int64)
    # Of one key the item of the newest shard counts; then the order in which they lie.
    _, last = np.unique(keys[::-1], return_index=True)
    kept = len(keys) - 1 - last
    kept = kept[np.lexsort((offsets[kept], shard[kept]))]
    sizes = np.bincount(shard[kept], minlength=len(tables))
    return CacheDataset(
        root=root, info=info, packed=True,
        groups=np.concatenate([[0], np.cumsum(sizes[sizes > 0])]).astype(np.int64),
        sizes=number["size"][kept].astype(np.int64),
        dims={s: number[f"dim_{s}"][kept].astype(np.int32) for s in STREAMS},
        dtypes=np.array(columns["dtype"], dtype=np.str_)[kept],
        durations=number["duration"][kept].astype(np.float64), _keys=keys[kept],
        _paths=[str(root / SHARDS / name) for name in names], _file=shard[kept],
        _offsets=offsets[kept],
        _rows={s: number[f"n_{s}"][kept].astype(np.int64) for s in STREAMS},
    )  # fmt: skip


def _table(root: Path, stem: str, part: Path) -> dict[str, Any]:
    """Columns of one shard from its index part, or without pyarrow from the shard itself."""
    try:
        return read_index(part, _READ)
    except MissingExtra:
        shard = root / SHARDS / f"{stem}.tar"
        found = [row_from_json(told, shard.name, pair.offset)
                 for pair, told in members(shard, pairs(shard))]  # fmt: skip
        missing = float("nan")
        return {
            name: [missing if v is None else v for v in (getattr(row, name) for row in found)]
            for name in COLUMNS
        }


def _loose(root: Path, files: list[Path], mixed: bool) -> CacheDataset:
    keys = _loose_keys(root, files)
    facts, problems = _each(files, read_facts)
    alike = Alike(DatasetInfo(key="name", mixed=mixed))
    for path, found in zip(files, facts, strict=True):
        if found is not None:
            # Recipes may differ in a folder; encoders, widths and dtypes may not.
            alike.info.recipes, alike.info.recipe = [], None
            alike.add(found, str(path))
    rows = [None if found is None else found.row for found in facts]

    def column(name: str, absent: Any, dtype: Any) -> Any:
        values = [absent if r is None else getattr(r, name) for r in rows]
        return np.array([absent if v is None else v for v in values], dtype=dtype)

    count = len(files)
    return CacheDataset(
        root=root, info=alike.info, packed=False, problems=problems,
        groups=np.array([*range(0, count, _LOOSE_GROUP), count], dtype=np.int64),
        sizes=column("size", -1, np.int64),
        dims={s: column(f"dim_{s}", 0, np.int32) for s in STREAMS},
        dtypes=column("dtype", "", np.str_), durations=column("duration", np.nan, np.float64),
        _keys=np.array([key.encode() for key in keys], dtype=np.bytes_),
        _paths=[str(path) for path in files], _file=np.arange(count, dtype=np.int32),
        _offsets=np.zeros(count, dtype=np.int64),
        _rows={s: column(f"n_{s}", 0, np.int64) for s in STREAMS},
    )  # fmt: skip


def _loose_keys(root: Path, files: Iterable[Path]) -> list[str]:
    """Keys as ``dataset pack --key name`` gives them; the plain path where two would be alike."""
    relative = [Path(os.path.relpath(path, root)) for path in files]
    keys = [name_key(path) for path in relative]
    seen: dict[str, int] = {}
    for key in keys:
        seen[key] = seen.get(key, 0) + 1
    return [
        key if seen[key] == 1 else path.as_posix().removesuffix(SUFFIX)
        for key, path in zip(keys, relative, strict=True)
    ]


def _each(
    files: Iterable[Path], read: Callable[[Path], ItemFacts]
) -> tuple[list[ItemFacts | None], dict[int, TokpipeError]]:
    out: list[ItemFacts | None] = []
    problems: dict[int, TokpipeError] = {}
    for number, path in enumerate(files):
        try:
            out.append(read(path))
        except TokpipeError as error:
            problems[number] = error
            out.append(None)
    return out, problems
