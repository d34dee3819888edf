"""Lance tables: a row for each cache with the whole file as a blob, or a row for each token.

The folder holds ``items.lance``; with ``rows=token`` also ``video.lance`` and ``audio.lance``,
whose features are fixed-size lists, as vector search takes them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from tokpipe.errors import MissingExtra
from tokpipe.export._contract import Written
from tokpipe.export._storage.arrow import load_arrow
from tokpipe.export._storage.columns import NumpyDType
from tokpipe.export._storage.gather import Gathered, gather
from tokpipe.export._storage.item_table import item_table
from tokpipe.export._storage.token_table import token_table
from tokpipe.spec import Layout

#: Bytes of a batch of tokens.
_BATCH_BYTES = 16 << 20

_WHOLE = """\
import lance, safetensors.numpy
items = lance.dataset("FOLDER/items.lance")
cache = safetensors.numpy.load(items.take_blobs("cache", indices=[0])[0].read())"""
_ROWS = """\
import lance
tokens = lance.dataset("FOLDER/{stream}.lance")
rows = tokens.to_table(filter="item = '{key}' and at < 60", columns=["tokens", "at"])"""


@dataclass(frozen=True, slots=True)
class Lance:
    """A folder of Lance tables.

    Attributes:
        rows: A row for each ``item``, the cache's file in the blob column ``cache``; or for each
            ``token``.
        dtype: Of the features with ``rows=token``: ``auto`` (F16 and F32 as they are, BF16 as
            float32, all exact), ``float16`` or ``float32``.
    """

    source: ClassVar[str] = "pylance 14.0.2"
    takes: ClassVar[tuple[Layout, ...]] = ("ragged", "frames", "grid")
    domains: ClassVar[tuple[str, ...]] = ("signal", "feature")
    extra: ClassVar[str] = "lance"
    whole: ClassVar[bool] = True
    suffix: ClassVar[str] = ""
    model_use: ClassVar[str] = "no"
    accepts: ClassVar[str] = "any caches as items; caches of one width as tokens"
    loses: ClassVar[str] = "nothing as items; as tokens, bfloat16 becomes float32"
    python: ClassVar[str] = ""

    rows: Literal["item", "token"] = "item"
    dtype: NumpyDType = "auto"

    def write_all(self, caches: Sequence[Path], target: Path) -> Written:
        """Write the tables into the folder ``target``.

        Raises:
            CacheError: A file is no cache, widths differ, or a feature is beyond float16.
            MissingExtra: pylance is not installed.
        """
        lance = _load()
        found = gather(caches)
        as_tokens = self.rows == "token"
        tables = [
            token_table(found, stream, self.dtype, lists=True)
            for stream in (found.streams if as_tokens else ())
        ]
        target.mkdir()
        _write(lance, target / "items.lance", *self._items(found))
        for table in tables:
            batches = (
                batch
                for key, _, columns in found.open(self.dtype)
                for batch in table.batches(key, columns, _BATCH_BYTES)
            )
            schema = table.schema.with_metadata(found.same)
            _write(lance, target / f"{table.stream}.lance", schema, batches)
        stream = found.streams[0]
        return Written(
            tokens=sum(found.tokens.values()),
            items={"items": len(found.paths), "tables": 1 + len(tables)},
            notes=tuple(found.notes(self.dtype) if as_tokens else ()),
            example=_ROWS.format(stream=stream, key=found.ids[0]) if as_tokens else _WHOLE,
        )

    def _items(self, found: Gathered) -> tuple[Any, Iterator[Any]]:
        """Schema and rows of the table of items."""
        pa = load_arrow("lance")
        as_tokens = self.rows == "token"
        table = item_table(found, "auto", rows=False, blobs=as_tokens)
        fields = list(table.schema)
        if not as_tokens:
            mark = {"lance-encoding:blob": "true"}
            fields.append(pa.field("cache", pa.large_binary(), metadata=mark))
        schema = pa.schema(fields).with_metadata(
            {**found.same, "tokpipe.export": json.dumps({"rows": self.rows})}
        )

        def rows() -> Iterator[Any]:
            for (key, cache, columns), path in zip(found.open("auto"), found.paths, strict=True):
                row = table.row(key, cache, columns)
                if not as_tokens:
                    blob = pa.array([path.read_bytes()], pa.large_binary())
                    row = row.append_column(fields[-1], blob)
                yield from row.replace_schema_metadata(schema.metadata).to_batches()

        return schema, rows()


def _load() -> Any:
    try:
        import lance
    except ImportError as error:
        raise MissingExtra(
            "pylance is not installed", hint="pip install 'tokpipe[lance]'"
        ) from error
    return lance


def _write(lance: Any, path: Path, schema: Any, batches: Iterator[Any]) -> None:
    lance.write_dataset(batches, str(path), schema=schema)
