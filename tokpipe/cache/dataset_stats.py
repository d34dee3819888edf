"""What is in a dataset, counted from its index: items, tokens, encoders, lengths."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from tokpipe.cache._shard_files import SHARDS, committed, read_idx
from tokpipe.cache.dataset import CacheDataset, open_dataset
from tokpipe.cache.dataset_info import encoder_name
from tokpipe.cache.format import STREAMS
from tokpipe.cache.pack import read_errors
from tokpipe.errors import CacheError

#: Edges in seconds of the classes of the histogram of durations.
EDGES = (0.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0, 7200.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetStats:
    """Counts of a dataset.

    Attributes:
        path: The folder.
        packed: It is a packed dataset.
        items, shards, bytes: Items that count, committed shards, bytes of the items.
        unreadable: Loose files that cannot be read, or inputs listed in ``errors/``.
        broken: (shard, why) of committed shards that are missing, or of another size than was
            written; their items are counted by the index alone.
        tokens: By stream.
        encoders: By stream, names of the encoders.
        recipes: How many recipes made the items, 0 unknown.
        dtypes, widths: Items by dtype of their tokens (``F16+F32`` where streams differ), and by
            stream and width.
        per_item: Least, median and most tokens of an item, streams together.
        seconds: Sum of the known durations.
        durations: (from, to, items) of each class in seconds; the last has no end; of unknown
            duration both are None.
    """

    path: str
    packed: bool
    items: int
    shards: int
    bytes: int
    unreadable: int
    broken: tuple[tuple[str, str], ...]
    tokens: dict[str, int]
    encoders: dict[str, list[str]]
    recipes: int
    dtypes: dict[str, int]
    widths: dict[str, dict[str, int]]
    per_item: tuple[int, int, int]
    seconds: float
    durations: tuple[tuple[float | None, float | None, int], ...]

    @property
    def alike(self) -> bool:
        """One encoder and one dtype in each stream, whether items have it or not."""
        # An encoder is named with its dtype.
        return all(len(names) == 1 for names in self.encoders.values())

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        found = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {**found, "alike": self.alike}


def dataset_stats(path: str | os.PathLike[str] | CacheDataset) -> DatasetStats:
    """Count a packed dataset or a folder of loose caches; features are not read.

    Raises:
        CacheError: There is nothing to count.
    """
    data = path if isinstance(path, CacheDataset) else open_dataset(path, mixed=True)
    tokens = {s: int(data.rows(s).sum()) for s in STREAMS if data.rows(s).any()}
    total = sum((data.rows(s) for s in STREAMS), start=np.zeros(len(data), dtype=np.int64))
    per_item = (0, 0, 0)
    if len(total):
        per_item = (int(total.min()), int(np.median(total)), int(total.max()))
    failed = len(list(read_errors(data.root))) if data.packed else len(data.problems)
    known = data.durations[np.isfinite(data.durations)]
    return DatasetStats(
        path=str(data.root), packed=data.packed, items=len(data) - len(data.problems),
        shards=len(set(data.shards)) if data.packed else 0,
        bytes=int(data.sizes[data.sizes > 0].sum()), unreadable=failed,
        broken=tuple(_broken(data)) if data.packed else (), tokens=tokens,
        encoders={s: [encoder_name(e) for e in data.info.streams.get(s, [])] for s in tokens},
        recipes=len(data.info.recipes) if data.packed else 0,
        dtypes=dict(sorted(Counter(filter(None, data.dtypes.tolist())).items())),
        widths={s: _widths(data, s) for s in tokens}, per_item=per_item,
        seconds=float(known.sum()), durations=_histogram(data),
    )  # fmt: skip


def _broken(data: CacheDataset) -> Iterator[tuple[str, str]]:
    for stem, _, _ in committed(data.root):
        shard = data.root / SHARDS / f"{stem}.tar"
        try:
            read_idx(shard)
        except CacheError as error:
            yield shard.name, error.message


def _widths(data: CacheDataset, stream: str) -> dict[str, int]:
    found = data.dims[stream][data.rows(stream) > 0]
    return {str(width): count for width, count in sorted(Counter(found.tolist()).items())}


def _histogram(data: CacheDataset) -> tuple[tuple[float | None, float | None, int], ...]:
    known = data.durations[np.isfinite(data.durations)]
    counts = np.bincount(np.searchsorted(EDGES, known, side="right"), minlength=len(EDGES) + 1)
    classes: list[tuple[float | None, float | None, int]] = [
        (low, high, int(count))
        for low, high, count in zip(EDGES, (*EDGES[1:], None), counts[1:], strict=True)
        if count
    ]
    unknown = len(data) - len(data.problems) - len(known)
    return (*classes, *([(None, None, unknown)] if unknown else []))
