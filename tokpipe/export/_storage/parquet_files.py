"""Numbered Parquet files of a given size, features stored as they are and columns compressed."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tokpipe.export._storage.arrow import load_arrow

#: Row groups of one file: its footer lists every column of each, and readers hold it in memory.
_GROUPS = 1000


class ParquetFiles:
    """Writes ``STEM-00000.parquet`` and so on, each table one row group.

    Args:
        folder: Where they are written.
        stem: How their names begin.
        schema: Of every table.
        limit: Bytes of tables in a file; the last one may go beyond.
        raw: Columns that are not compressed: they would hardly be smaller.
        repeated: Columns with few different values.
    """

    def __init__(
        self, folder: Path, stem: str, schema: Any, limit: int,
        raw: tuple[str, ...] = (), repeated: tuple[str, ...] = (),
    ) -> None:  # fmt: skip
        self._folder, self._stem, self._limit, self.schema = folder, stem, limit, schema
        leaves = {leaf: field.name for field in schema for leaf in _leaves(field.name, field.type)}
        self._options = {
            "compression": {k: "NONE" if name in raw else "ZSTD" for k, name in leaves.items()},
            "use_dictionary": list(repeated) or False,
            "write_statistics": [leaf for leaf, name in leaves.items() if name not in raw],
        }
        self.names: list[str] = []
        self._writer: Any = None
        self._bytes = self._groups = 0

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        """End the last file; there is always one, be it without a row."""
        if kind is None and not self.names:
            self._open()
        self._close()

    def write(self, table: Any) -> None:
        """Append a table or record batch as one row group."""
        if self._writer is not None and (self._bytes >= self._limit or self._groups >= _GROUPS):
            self._close()
        if self._writer is None:
            self._open()
        pa = load_arrow()
        if isinstance(table, pa.RecordBatch):
            table = pa.Table.from_batches([table])
        self._writer.write_table(table, row_group_size=max(1, table.num_rows))
        self._bytes += table.nbytes
        self._groups += 1

    def number_of(self) -> list[str]:
        """Rename the files to ``STEM-00000-of-00003.parquet``, as data sets on hubs are named."""
        total = len(self.names)
        for index, name in enumerate(self.names):
            new = f"{self._stem}-{index:05d}-of-{total:05d}.parquet"
            (self._folder / name).rename(self._folder / new)
            self.names[index] = new
        return self.names

    def _open(self) -> None:
        pq = load_arrow().parquet
        self.names.append(f"{self._stem}-{len(self.names):05d}.parquet")
        path = self._folder / self.names[-1]
        self._writer = pq.ParquetWriter(path, self.schema, **self._options)
        self._bytes = self._groups = 0

    def _close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None


class RowGroups:
    """Collects small tables into row groups of about ``size`` bytes."""

    def __init__(self, files: ParquetFiles, size: int = 32 << 20) -> None:
        self._files, self._size = files, size
        self._waiting: list[Any] = []
        self._bytes = 0

    def add(self, table: Any) -> None:
        """Append rows."""
        self._waiting.append(table)
        self._bytes += table.nbytes
        if self._bytes >= self._size or len(self._waiting) >= 1000:
            self.flush()

    def flush(self) -> None:
        """Write what waits."""
        if self._waiting:
            self._files.write(load_arrow().concat_tables(self._waiting).combine_chunks())
            self._waiting, self._bytes = [], 0


def _leaves(path: str, kind: Any) -> list[str]:
    """Names of the leaf columns that Parquet has for a field."""
    types = load_arrow().types
    if types.is_list(kind) or types.is_fixed_size_list(kind):
        return _leaves(f"{path}.list.element", kind.value_type)
    return [path]
