"""Parquet tables: a row for each token of a stream, or a row for each cache.

The folder holds ``video-*.parquet`` and ``audio-*.parquet`` with a row for each token and a row
group for each cache, and ``items-*.parquet`` with what is not a token's; with ``rows=item`` the
last alone, which then holds everything.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from tokpipe.cache.format import is_feature
from tokpipe.export._contract import Written
from tokpipe.export._storage.arrow import flat, load_arrow
from tokpipe.export._storage.columns import DType
from tokpipe.export._storage.gather import Gathered, gather
from tokpipe.export._storage.item_table import item_table
from tokpipe.export._storage.parquet_files import ParquetFiles, RowGroups
from tokpipe.export._storage.token_table import TokenTable, token_table
from tokpipe.spec import Layout

#: Bytes of a row group of tokens; a longer cache has several.
_GROUP_BYTES = 64 << 20

_TOKENS = """\
import glob, numpy as np, pyarrow.dataset as ds
rows = ds.dataset(sorted(glob.glob("FOLDER/{stream}-*.parquet"))).to_table(
    columns=["tokens", "at"], filter=(ds.field("item") == "{key}"))
tokens = np.frombuffer(b"".join(rows["tokens"].to_pylist()), "{dtype}").reshape(len(rows), -1)"""


@dataclass(frozen=True, slots=True)
class Parquet:
    """A folder of Parquet files.

    Attributes:
        rows: A row for each ``token``, streams in files of their own; or for each ``item``.
        columnar: Features as lists of numbers, which any engine computes on and reads several
            times slower; else as binary of D values, little-endian.
        dtype: Of the features: ``auto`` (F16 and F32 as they are, BF16 as float32, all exact),
            ``float16``, ``float32``, or ``keep`` (BF16 stays, in binary only).
        shard_mb: Megabytes of a file.
    """

    source: ClassVar[str] = "pyarrow 26.0.1; Parquet format 2"
    takes: ClassVar[tuple[Layout, ...]] = ("ragged", "frames", "grid")
    domains: ClassVar[tuple[str, ...]] = ("signal", "feature")
    extra: ClassVar[str] = "dataset"
    whole: ClassVar[bool] = True
    suffix: ClassVar[str] = ""
    model_use: ClassVar[str] = "no"
    accepts: ClassVar[str] = "caches of one width; all columns, pictures and sound as binary"
    loses: ClassVar[str] = "nothing; as numbers (columnar), bfloat16 becomes float32"
    python: ClassVar[str] = ""

    rows: Literal["token", "item"] = "token"
    columnar: bool = False
    dtype: DType = "auto"
    shard_mb: Annotated[float, Field(gt=0)] = 512.0

    def write_all(self, caches: Sequence[Path], target: Path) -> Written:
        """Write the files into the folder ``target``.

        Raises:
            CacheError: A file is no cache, widths differ, or a feature is beyond float16.
            MissingExtra: pyarrow is not installed.
        """
        load_arrow()
        found = gather(caches)
        target.mkdir()
        limit, whole = int(self.shard_mb * 1e6), self.rows == "item"
        items = item_table(found, self.dtype, rows=whole, binary=not self.columnar)
        raw = tuple(flat(n) for n in items.sources if is_feature(n)) if not self.columnar else ()
        with ExitStack() as stack:
            schema = items.schema.with_metadata(self._about(found, "items"))
            files = stack.enter_context(
                ParquetFiles(target, "items", schema, limit, (*raw, "video_atlas", "audio_clip"))
            )
            waiting = RowGroups(files)
            streams = [] if whole else self._streams(stack, found, target, limit)
            for key, cache, columns in found.open(self.dtype):
                waiting.add(items.row(key, cache, columns).replace_schema_metadata(None))
                for table, out in streams:
                    for batch in table.batches(key, columns, _GROUP_BYTES):
                        out.write(batch)
            waiting.flush()
        names = files.names + [name for _, out in streams for name in out.names]
        return Written(
            tokens=sum(found.tokens.values()),
            items={"items": len(found.paths), "files": len(names)},
            notes=tuple(found.notes(self.dtype)), example=self._example(found),
        )  # fmt: skip

    def _streams(
        self, stack: ExitStack, found: Gathered, target: Path, limit: int
    ) -> list[tuple[TokenTable, ParquetFiles]]:
        out = []
        for stream in found.streams:
            table = token_table(found, stream, self.dtype, lists=self.columnar)
            schema = table.schema.with_metadata(self._about(found, stream))
            raw = tuple(n.partition(".")[2] for n in table.sources if is_feature(n))
            files = ParquetFiles(target, stream, schema, limit, raw, ("item",))
            out.append((table, stack.enter_context(files)))
        return out

    def _about(self, found: Gathered, what: str) -> dict[str, str]:
        """Key-value metadata of a file: what all caches have in common, and its own form."""
        form = {stream: found.form(stream, self.dtype) for stream in found.streams}
        export = {"rows": what if what in found.streams else "items", "features": form}
        return {**found.same, "tokpipe.export": json.dumps(export, sort_keys=True)}

    def _example(self, found: Gathered) -> str:
        stream = found.streams[0]
        if self.rows == "item" or self.columnar:
            name = "items" if self.rows == "item" else stream
            read = f'pq.read_table("FOLDER/{name}-00000.parquet")'
            return f"import pyarrow.parquet as pq\ntable = {read}"
        dtype = found.form(stream, self.dtype)
        return _TOKENS.format(stream=stream, key=found.ids[0], dtype=dtype)
