"""Parquet tables, read by pyarrow: tokens as binary and as lists, items, metadata, memory."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tokpipe.errors import CacheError
from tokpipe.export import Written, exporter_from
from tokpipe.export._storage.token_table import PARTS

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

Some = Callable[[str], list[Path]]


def export(target: Path, paths: list[Path], params: str = "") -> Written:
    return exporter_from(f"parquet:{params}" if params else "parquet")[1].write_all(paths, target)


def of_item(folder: Path, stream: str, key: str) -> Any:
    files = sorted(str(p) for p in folder.glob(f"{stream}-*.parquet"))
    table = pa.concat_tables([pq.read_table(name) for name in files])
    return table.filter(pa.compute.equal(table["item"], key))


def column(table: Any, name: str) -> np.ndarray[Any, Any]:
    """A column of the format, put together from those of the table."""
    parts = [table[part].to_numpy() for part in PARTS.get(name, (name,))]
    return np.stack(parts, 1) if name in PARTS else np.asarray(parts[0])


def bf16(data: bytes) -> np.ndarray[Any, Any]:
    bits = np.frombuffer(data, np.uint16).astype(np.uint32)
    return np.left_shift(bits, 16).view(np.float32)


def wide(table: Any, name: str, form: str) -> np.ndarray[Any, Any]:
    values = table[name].combine_chunks()
    if pa.types.is_fixed_size_list(values.type):
        return np.asarray(values.flatten()).reshape(len(values), values.type.list_size)
    data = b"".join(values.to_pylist())
    flat = bf16(data) if form == "bfloat16" else np.frombuffer(data, form)
    return flat.reshape(len(values), -1)


@pytest.mark.parametrize("dtype", ["F16", "BF16", "F32"])
@pytest.mark.parametrize("params", ["", "dtype=float16", "dtype=keep", "columnar=true"])
def test_parquet_has_a_row_for_each_token(
    storage: Any, some: Some, tmp_path: Path, dtype: str, params: str
) -> None:
    paths = some(dtype)
    export(tmp_path / "out", paths, params)
    for index, path in enumerate(paths):
        held = storage.held(path)
        for stream in ("video", "audio"):
            table = of_item(tmp_path / "out", stream, f"clip_{index}")
            if f"{stream}.at" not in held:
                assert len(table) == 0
                continue
            edges = held.pop(f"{stream}.members_offsets")
            members = held.pop(f"{stream}.members")
            assert table["members"].to_pylist() == [
                members[a:b].tolist() for a, b in pairwise(edges)
            ]
            for name in (n for n in held if n.startswith(f"{stream}.")):
                short = name.partition(".")[2]
                if short in ("tokens", "deepstack_1"):
                    form = table.schema.field(short).metadata[b"tokpipe.dtype"].decode()
                    choice = storage.number(name, params.partition("dtype=")[2])
                    found = wide(table, short, form)
                    storage.same(found, held[name], name, choice or "auto")
                else:
                    storage.same(column(table, short), held[name], name)


def test_parquet_keeps_bfloat16_in_two_bytes(some: Some, tmp_path: Path) -> None:
    export(tmp_path / "out", some("BF16"), "dtype=keep")
    schema = pq.read_schema(tmp_path / "out" / "video-00000.parquet")
    assert schema.field("tokens").type == pa.binary(16)
    assert schema.field("tokens").metadata == {b"tokpipe.dtype": b"bfloat16", b"tokpipe.dim": b"8"}
    with pytest.raises(CacheError, match="Arrow has no bfloat16"):
        export(tmp_path / "lists", some("BF16"), "dtype=keep,columnar=true")


@pytest.mark.parametrize("dtype", ["F16", "BF16", "F32"])
@pytest.mark.parametrize("columnar", ["false", "true"])
def test_parquet_has_a_row_for_each_item(
    storage: Any, some: Some, tmp_path: Path, dtype: str, columnar: str
) -> None:
    paths = some(dtype)
    export(tmp_path / "out", paths, f"rows=item,columnar={columnar}")
    rows = pq.read_table(tmp_path / "out" / "items-00000.parquet").to_pylist()
    for row, path in zip(rows, paths, strict=True):
        for name, wanted in storage.held(path).items():
            if name.startswith("text."):
                continue
            value = row[name.replace(".", "_")]
            if isinstance(value, bytes):
                stream = name.partition(".")[0]
                found = np.frombuffer(value, row[f"{stream}_dtype"]).reshape(wanted.shape)
                assert row[f"{stream}_shape"] == list(wanted.shape)
            else:
                found = np.array(value, dtype=wanted.dtype).reshape(wanted.shape)
            storage.same(found, wanted, name)
        assert row["text"] == storage.TEXT
        assert row["text_start"] == storage.held(path)["text.pts"][:, 0].tolist()
    assert rows[2]["audio_at"] == []
    assert rows[2]["num_audio"] == 0


def test_parquet_holds_the_atlas_of_a_signal_cache(storage: Any, tmp_path: Path) -> None:
    path = storage.write_signal(tmp_path / f"film{storage.SUFFIX}")
    export(tmp_path / "out", [path])
    held = storage.held(path)
    row = pq.read_table(tmp_path / "out" / "items-00000.parquet").to_pylist()[0]
    assert b"".join(row["video_atlas"]) == held["video.atlas"].tobytes()
    assert [len(page) for page in row["video_atlas"]] == np.diff(
        held["video.atlas_offsets"]
    ).tolist()
    table = of_item(tmp_path / "out", "video", "film")
    storage.same(column(table, "atlas_box"), held["video.atlas_box"], "video.atlas_box")
    storage.same(wide(table, "tokens", "float16"), held["video.tokens"], "video.tokens")


def test_parquet_keeps_the_metadata(storage: Any, some: Some, tmp_path: Path) -> None:
    paths = some("F16")
    export(tmp_path / "one", paths[:1])
    schema = pq.read_schema(tmp_path / "one" / "video-00000.parquet")
    with open(paths[0], "rb") as file:  # noqa: PTH123
        size = int.from_bytes(file.read(8), "little")
        kept = json.loads(file.read(size))["__metadata__"]
    found = {k.decode(): v.decode() for k, v in schema.metadata.items()}
    assert {k: found[k] for k in kept} == kept
    assert json.loads(found["tokpipe.export"])["features"] == {
        "video": "float16", "audio": "float16",
    }  # fmt: skip
    export(tmp_path / "all", paths)
    shared = pq.read_schema(tmp_path / "all" / "video-00000.parquet").metadata
    assert b"tokpipe.domain" in shared
    assert b"tokpipe.digest" not in shared
    row = pq.read_table(tmp_path / "all" / "items-00000.parquet").to_pylist()[0]
    assert json.loads(row["metadata"]) == kept


def test_parquet_has_a_row_group_for_each_item(storage: Any, some: Some, tmp_path: Path) -> None:
    paths = some("F16")
    export(tmp_path / "out", paths)
    file = pq.ParquetFile(tmp_path / "out" / "video-00000.parquet")
    assert file.num_row_groups == 3
    assert set(file.read_row_group(1)["item"].to_pylist()) == {"clip_1"}
    tokens = file.metadata.row_group(0).column(1)
    assert (tokens.path_in_schema, tokens.compression) == ("tokens", "UNCOMPRESSED")
    assert file.metadata.row_group(0).column(3).compression == "ZSTD"
    export(tmp_path / "small", paths, "shard_mb=0.0001")
    assert len(list((tmp_path / "small").glob("video-*.parquet"))) == 3


def test_parquet_refuses_caches_of_another_width(storage: Any, tmp_path: Path) -> None:
    paths = [storage.write_feature(tmp_path / f"{w}{storage.SUFFIX}", width=w) for w in (8, 16)]
    with pytest.raises(CacheError, match=r"8 wide in `8\.tokpipe.*16 in `16\.tokpipe") as error:
        export(tmp_path / "out", paths)
    assert error.value.code == "export.mixed"
    export(tmp_path / "items", paths, "rows=item")
    rows = pq.read_table(tmp_path / "items" / "items-00000.parquet").to_pylist()
    assert [row["video_shape"] for row in rows] == [[10, 8], [10, 16]]


def test_parquet_widens_caches_of_several_dtypes(storage: Any, some: Some, tmp_path: Path) -> None:
    paths = [storage.write_feature(tmp_path / f"{d}{storage.SUFFIX}", d) for d in ("F16", "BF16")]
    made = export(tmp_path / "out", paths)
    assert made.notes == ("bfloat16 and float16 features were written as float32, exactly",)
    for path, key in zip(paths, ("F16", "BF16"), strict=True):
        table = of_item(tmp_path / "out", "video", key)
        wanted = storage.held(path)["video.tokens"].astype(np.float32)
        storage.same(wide(table, "tokens", "float32"), wanted, "video.tokens")
    with pytest.raises(CacheError, match="one column holds one dtype"):
        export(tmp_path / "keep", paths, "dtype=keep")


@pytest.mark.parametrize("params", ["", "rows=item", "columnar=true"])
def test_parquet_memory_does_not_grow_with_the_number_of_caches(
    storage: Any, tmp_path: Path, params: str
) -> None:
    one = storage.write_feature(tmp_path / f"0{storage.SUFFIX}", video=4000, width=128)
    paths = [one]
    for i in range(1, 120):
        paths.append(tmp_path / f"{i}{storage.SUFFIX}")
        paths[-1].hardlink_to(one)
    before = pa.default_memory_pool()
    pool = pa.proxy_memory_pool(before)
    pa.set_memory_pool(pool)
    try:
        export(tmp_path / "out", paths, params)
    finally:
        pa.set_memory_pool(before)
    assert sum(p.stat().st_size for p in (tmp_path / "out").iterdir()) > 120e6
    # Two row groups of 32 MiB, one that fills and one that is written, and their pages.
    assert pool.max_memory() < 110e6
