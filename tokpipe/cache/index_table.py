"""Rows of a dataset's index: what they say of a cache, as JSON beside it and as Parquet parts."""

from __future__ import annotations

import hashlib
import io
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import isnan
from pathlib import Path
from typing import Any, Self

from tokpipe.cache._file import CacheFile, parse_metadata
from tokpipe.cache._publish import create, publish, sync_file, sync_folder, temp_path
from tokpipe.cache._structure import check_version, problem_error, streams_of, structure_problems
from tokpipe.digest import canonical_json
from tokpipe.errors import CacheCorrupt, CacheError, MissingExtra, error_context

_HEX = re.compile(r"[0-9a-f]{64}")
_DIGESTS = ("source_sha256", "recipe_sha256", "sha256")
#: Columns of an index part and their Arrow types, in order.
COLUMNS: dict[str, str] = {
    "key": "string", "source_uri": "string", "source_sha256": "binary32",
    "recipe_sha256": "binary32", "shard": "string", "offset": "int64", "size": "int64",
    "sha256": "binary32", "n_video": "int32", "n_audio": "int32", "dim_video": "int32",
    "dim_audio": "int32", "dtype": "string", "duration": "float64", "n_segments": "int32",
    "tokpipe_version": "string",
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexRow:
    """One item of a dataset; digests as 64 hex digits.

    Attributes:
        key: Name of the item: letters, digits, ``_`` and ``-``.
        source_uri: Name of the media it came from, as the cache records it.
        source_sha256: The media's fingerprint, or the digest of what is known of it.
        recipe_sha256: Digest of the options that made the tokens.
        shard: File name of the tar.
        offset: First byte of the cache in the tar.
        size, sha256: Bytes of the cache and their digest.
        n_video, n_audio: Tokens of each stream.
        dim_video, dim_audio: Width of each stream's tokens, 0 where it is absent.
        dtype: Safetensors dtype of the tokens; ``F16+F32`` where video and audio differ.
        duration: Seconds of the media, None when unknown.
        n_segments: Rows of the segment table.
        tokpipe_version: What wrote the cache.
    """

    key: str
    source_uri: str
    source_sha256: str
    recipe_sha256: str
    shard: str = ""
    offset: int = -1
    size: int
    sha256: str = ""
    n_video: int
    n_audio: int
    dim_video: int
    dim_audio: int
    dtype: str
    duration: float | None
    n_segments: int
    tokpipe_version: str

    def at(self, key: str, shard: str, offset: int, sha256: str) -> Self:
        """The same item under its key and in its place."""
        return replace(self, key=key, shard=shard, offset=offset, sha256=sha256)

    def to_dict(self) -> dict[str, Any]:
        """Field name -> value."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemFacts:
    """What a cache's header tells.

    Attributes:
        row: Its index row, without key, place and digest.
        encoders: Stream -> what made its tokens: name, weights, stage, width, dtype and so on;
            grids and budgets are left out.
        domain, layout: As in the cache.
        recipe: Options that made the tokens.
        header: SHA-256 of the header, which holds a digest of everything else in the file.
    """

    row: IndexRow
    encoders: Mapping[str, Mapping[str, Any]]
    domain: str
    layout: str
    recipe: Any
    header: str

    def member(self, row: IndexRow) -> bytes:
        """The JSON that stands beside the cache in a shard; says nothing of places."""
        values = {k: v for k, v in row.to_dict().items() if k not in ("shard", "offset")}
        made = {s: dict(about) for s, about in self.encoders.items()}
        return canonical_json(
            {**values, "domain": self.domain, "layout": self.layout, "encoders": made}
        ).encode()


def read_facts(
    path: str | os.PathLike[str], window: tuple[int, int] | None = None
) -> ItemFacts:  # fmt: skip
    """Read a cache's header and tell what an index says of it.

    Raises:
        CacheError: Not a cache.
        CacheCorrupt: The header is damaged.
        CacheVersion: Another major version is needed.
    """
    with error_context(str(path)), CacheFile(path, window=window) as file:
        check_version(file.header.metadata)
        metadata = parse_metadata(file.header.metadata)
        for problem in structure_problems(file, metadata):
            raise problem_error(problem)
        return _facts(file, metadata)


def _facts(file: CacheFile, metadata: Mapping[str, Any]) -> ItemFacts:
    streams = streams_of(file)
    source, recipe = metadata["tokpipe.source"], metadata["tokpipe.recipe_sha256"]
    print_ = str(source.get("fingerprint", "")).removeprefix("sha256:")
    duration = source.get("duration")
    rows = {s: file.num_rows(f"{s}.at") for s in streams}
    dims = {s: file.info(f"{s}.tokens").shape[1] for s in streams}
    dtypes = [file.info(f"{s}.tokens").dtype for s in streams]
    row = IndexRow(
        key="", source_uri=str(source.get("name", "")),
        source_sha256=print_ if _HEX.fullmatch(print_) else sha256_of(canonical_json(source)),
        recipe_sha256=recipe if _HEX.fullmatch(recipe) else sha256_of(recipe),
        size=file.size, n_video=rows.get("video", 0), n_audio=rows.get("audio", 0),
        dim_video=dims.get("video", 0), dim_audio=dims.get("audio", 0),
        dtype="+".join(dict.fromkeys(dtypes)),
        duration=None if duration is None else float(duration),
        n_segments=file.num_rows("segment.pts") if "segment.pts" in file else 0,
        tokpipe_version=metadata["tokpipe.writer"].removeprefix("tokpipe "),
    )  # fmt: skip
    encoders = {
        s: _encoder(metadata.get(f"tokpipe.encoder.{s}") or {}) | {"dim": dims[s], "dtype": dtype}
        for s, dtype in zip(streams, dtypes, strict=True)
    }
    return ItemFacts(
        row=row, encoders=encoders, domain=metadata["tokpipe.domain"],
        layout=str(metadata.get("tokpipe.layout")), recipe=metadata.get("tokpipe.recipe"),
        header=file_header_digest(file),
    )  # fmt: skip


def file_header_digest(file: CacheFile) -> str:
    """SHA-256 over a cache's metadata, in which every tensor has its digest."""
    return sha256_of(canonical_json(file.header.metadata))


def _encoder(made: Mapping[str, Any]) -> dict[str, Any]:
    params = made.get("params") or {}
    model = params.get("model") or params.get("name")
    told = {key: made.get(key) for key in ("name", "version", "weights", "stage", "layer",
                                           "deepstack", "context")}  # fmt: skip
    return {k: v for k, v in {**told, "model": model}.items() if v not in (None, "")}


def sha256_of(text: str) -> str:
    """Hex digest of a text."""
    return hashlib.sha256(text.encode()).hexdigest()


def digest_key(row: IndexRow) -> str:
    """32 hex digits of the digest of source and recipe: the same cache, the same key."""
    both = bytes.fromhex(row.source_sha256) + bytes.fromhex(row.recipe_sha256)
    return hashlib.sha256(both).hexdigest()[:32]


def row_from_json(member: Mapping[str, Any], shard: str, offset: int) -> IndexRow:
    """The index row of a JSON member and its place.

    Raises:
        CacheError: A field is missing.
    """
    try:
        values = {name: member[name] for name in COLUMNS if name not in ("shard", "offset")}
        return IndexRow(**values, shard=shard, offset=offset)
    except (KeyError, TypeError) as error:
        raise CacheError(
            f"`{shard}`: a JSON member lacks {error}", code="dataset.member"
        ) from error


# Parquet.


def need_pyarrow() -> Any:
    """The library that reads and writes index parts.

    Raises:
        MissingExtra: It is not installed.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet
    except ImportError as error:
        raise MissingExtra(
            "the index of a dataset needs pyarrow", hint='pip install "tokpipe[dataset]"',
            code="extra.dataset",
        ) from error  # fmt: skip
    return pa


def _schema(pa: Any) -> Any:
    kinds = {"string": pa.string(), "binary32": pa.binary(32), "int64": pa.int64(),
             "int32": pa.int32(), "float64": pa.float64()}  # fmt: skip
    return pa.schema([(name, kinds[kind]) for name, kind in COLUMNS.items()])


def index_bytes(rows: Iterable[IndexRow]) -> bytes:
    """An index part: sorted by key, Zstandard; the same rows give the same bytes."""
    pa = need_pyarrow()
    found = [row.to_dict() for row in sorted(rows, key=lambda row: row.key)]
    columns = {
        name: [bytes.fromhex(r[name]) if name in _DIGESTS else r[name] for r in found]
        for name in COLUMNS
    }
    out = io.BytesIO()
    pa.parquet.write_table(pa.table(columns, schema=_schema(pa)), out, compression="zstd")
    return out.getvalue()


def write_index(
    path: Path, rows: Iterable[IndexRow], *, sync: bool = True, warnings: list[str] | None = None
) -> None:
    """Write an index part under a temporary name, then rename it: the commit of its shard."""
    write_atomic(path, index_bytes(rows), sync=sync, warnings=warnings)


def write_atomic(
    path: Path, data: bytes, *, sync: bool = True, warnings: list[str] | None = None
) -> None:
    """Replace a small file in one step."""
    told: list[str] = [] if warnings is None else warnings
    temp = temp_path(path)
    descriptor = create(temp)
    try:
        with os.fdopen(descriptor, "wb", closefd=False) as stream:
            stream.write(data)
        if sync:
            sync_file(descriptor, told)
        publish(temp, path, force=True, warnings=told)
    finally:
        os.close(descriptor)
        temp.unlink(missing_ok=True)
    if sync:
        sync_folder(path.parent, told)


def read_index(path: Path, columns: Sequence[str] | None = None) -> dict[str, Any]:
    """Columns of one index part: numpy arrays, texts as lists, digests as lists of bytes.

    Raises:
        CacheCorrupt: The part cannot be read.
        MissingExtra: pyarrow is not installed.
    """
    pa = need_pyarrow()
    try:
        with pa.parquet.ParquetFile(path) as file:
            table = file.read(columns=None if columns is None else list(columns))
    except (OSError, pa.ArrowException) as error:
        raise CacheCorrupt(
            f"the index part `{path.name}` cannot be read: {error}", where=str(path),
            code="dataset.index", hint="remove it and run `tokpipe dataset pack` again",
        ) from error  # fmt: skip
    return {
        name: table[name].to_numpy() if COLUMNS.get(name, "")[:3] in ("int", "flo")
        else table[name].to_pylist()
        for name in table.column_names
    }  # fmt: skip


def index_rows(path: Path) -> list[IndexRow]:
    """All rows of an index part."""
    found = read_index(path)
    rows = []
    for values in zip(*found.values(), strict=True):
        row = dict(zip(found, values, strict=True))
        for name, kind in COLUMNS.items():
            if kind[:3] == "int":
                row[name] = int(row[name])
        duration = row["duration"]
        row["duration"] = None if duration is None or isnan(duration) else float(duration)
        row |= {name: row[name].hex() for name in _DIGESTS}
        rows.append(IndexRow(**{name: row[name] for name in COLUMNS}))
    return rows
