"""What lies in a dataset's folders: shards that are committed, and the items of a shard."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tokpipe.cache._tar import BLOCK, padded, read_header
from tokpipe.errors import CacheCorrupt

SHARDS, INDEX = "shards", "index"
CACHE_END, JSON_END = ".safetensors", ".json"
SHARD_NAME = re.compile(r"(W\d{3,})-(\d{6,})\.tar(\.partial|\.journal|\.idx)?")


class Pair(NamedTuple):
    """One item in a shard: the cache and its JSON."""

    key: str
    offset: int
    size: int
    json_offset: int
    json_size: int


def names_in(folder: Path) -> list[str]:
    """Names in a folder, sorted; none where it cannot be listed."""
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []


def committed(root: str | os.PathLike[str]) -> list[tuple[str, int, Path]]:
    """Shards of a dataset that are committed: (name without suffix, number, index part).

    In the order in which a later item replaces an earlier one of the same key.
    """
    found = []
    for name in names_in(Path(root) / INDEX):
        stem, dot, end = name.rpartition(".")
        match = SHARD_NAME.fullmatch(f"{stem}.tar")
        if dot and end == "parquet" and match:
            found.append((stem, int(match[2]), Path(root) / INDEX / name))
    return sorted(found, key=lambda part: (part[1], part[0]))


def read_idx(shard: Path) -> list[int]:
    """Offset of each pair's first header, and the size of the tar.

    Raises:
        CacheCorrupt: The ``.idx`` is missing, torn, or not that of this tar.
    """
    path = shard.with_name(shard.name + ".idx")
    try:
        data, size = path.read_bytes(), shard.stat().st_size
    except OSError as error:
        raise CacheCorrupt(f"`{Path(error.filename or path).name}` is missing", where=str(path),
                           code="dataset.shard") from error  # fmt: skip
    edges = np.frombuffer(data[: len(data) // 8 * 8], dtype="<u8").astype(np.int64)
    fine = len(data) % 8 == 0 and len(edges) > 1 and edges[0] == 0 and (np.diff(edges) > 0).all()
    if not fine or int(edges[-1]) != size:
        raise CacheCorrupt(f"`{path.name}` is not the index of a tar of {size} bytes",
                           where=str(path), code="dataset.shard")  # fmt: skip
    return [int(edge) for edge in edges]


def pairs(shard: Path) -> Iterator[Pair]:
    """Items of a sealed shard from its headers alone, in order.

    Raises:
        CacheCorrupt: The tar or its ``.idx`` is damaged.
    """
    edges = read_idx(shard)
    with shard.open("rb") as file:
        for start in edges[:-1]:
            name, size = read_header(os.pread(file.fileno(), BLOCK, start))
            after = start + BLOCK + padded(size)
            other, beside = read_header(os.pread(file.fileno(), BLOCK, after))
            key = name.removesuffix(CACHE_END)
            if name != key + CACHE_END or other != key + JSON_END:
                raise CacheCorrupt(f"`{name}` and `{other}` are no pair", where=str(shard),
                                   code="dataset.shard")  # fmt: skip
            yield Pair(key, start + BLOCK, size, after + BLOCK, beside)


def members(shard: Path, found: Iterable[Pair]) -> Iterator[tuple[Pair, dict[str, Any]]]:
    """The JSON beside each item.

    Raises:
        CacheCorrupt: One is no JSON object.
    """
    with shard.open("rb") as file:
        for pair in found:
            try:
                told = json.loads(os.pread(file.fileno(), pair.json_size, pair.json_offset))
            except ValueError as error:
                raise CacheCorrupt(f"the JSON of `{pair.key}` is damaged", where=str(shard),
                                   code="dataset.member") from error  # fmt: skip
            yield pair, told
