"""WebDataset shards: tar files of .npy and .json members, with the index that energon reads.

Every tensor of a cache is a member under its own name, so that the default decoders of webdataset
and of energon give numpy arrays without a handler.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from tokpipe.digest import sha256_text
from tokpipe.export._contract import Written
from tokpipe.export._storage.columns import DType, Plain, describe, metadata_text
from tokpipe.export._storage.energon import EnergonIndex, split_shards
from tokpipe.export._storage.gather import gather
from tokpipe.export._storage.npy import npy_bytes, safetensors_bytes
from tokpipe.export._storage.tar import Member, Shards
from tokpipe.spec import Layout

if TYPE_CHECKING:
    from tokpipe.cache.reader import TokenCache

_EXAMPLE = """\
import glob, webdataset as wds
data = wds.WebDataset(sorted(glob.glob("FOLDER/*.tar")), shardshuffle=False).decode()
for sample in data:
    tokens, at = sample["{stream}.tokens.npy"], sample["{stream}.at.npy"]"""


@dataclass(frozen=True, slots=True)
class WebDataset:
    """Shards of samples; the key of a sample is its cache's name without dots.

    Attributes:
        dtype: Of the features: ``auto`` (F16 and F32 as they are, BF16 as float32, all exact),
            ``float16``, ``float32``, or ``keep``, where BF16 becomes a ``.safetensors`` member.
        shard_mb: Megabytes of a shard; one sample may be larger.
        val: Share of the shards in energon's split ``val``.
        test: Share of the shards in energon's split ``test``.
    """

    source: ClassVar[str] = "webdataset 1.0.2; megatron-energon 7.4.1"
    takes: ClassVar[tuple[Layout, ...]] = ("ragged", "frames", "grid")
    domains: ClassVar[tuple[str, ...]] = ("signal", "feature")
    extra: ClassVar[str] = ""
    whole: ClassVar[bool] = True
    suffix: ClassVar[str] = ""
    model_use: ClassVar[str] = "no"
    accepts: ClassVar[str] = "any cache; every tensor is a member its default decoders read"
    loses: ClassVar[str] = "time slices of one file; bfloat16 unless dtype=keep"
    python: ClassVar[str] = ""

    dtype: DType = "auto"
    shard_mb: Annotated[float, Field(gt=0)] = 512.0
    val: Annotated[float, Field(ge=0, lt=1)] = 0.0
    test: Annotated[float, Field(ge=0, lt=1)] = 0.0

    def write_all(self, caches: Sequence[Path], target: Path) -> Written:
        """Write shards and metadata into the folder ``target``.

        Raises:
            CacheError: A file is no cache, or a feature is beyond float16.
        """
        found = gather(caches)
        target.mkdir()
        index = EnergonIndex(target)
        try:
            with Shards(target, int(self.shard_mb * 1e6)) as shards:
                for key, cache, columns in found.open(self.dtype):
                    placed = shards.add(key, list(_members(cache, columns)))
                    index.add(placed, sha256_text(metadata_text(cache)["tokpipe.digest"]))
            names = list(shards.counts)
            index.finish(shards.counts, split_shards(names, self.val, self.test))
        finally:
            index.close()
        notes = found.notes(self.dtype)
        if len(names) == 1 and (self.val or self.test):
            notes.append("one shard cannot be split: all of it is in train")
        stream = found.streams[0]
        return Written(
            tokens=sum(found.tokens.values()),
            items={"samples": len(found.paths), "shards": len(names)},
            notes=tuple(notes), example=_EXAMPLE.format(stream=stream),
        )  # fmt: skip


def _members(cache: TokenCache, columns: dict[str, Plain]) -> Iterator[Member]:
    about = json.dumps(describe(cache, columns), sort_keys=True, ensure_ascii=False).encode()
    yield Member("json", len(about), [about])
    for name, column in columns.items():
        if column.form == "bfloat16":
            yield Member(f"{name}.safetensors", *safetensors_bytes(column))
        else:
            yield Member(f"{name}.npy", *npy_bytes(column))
