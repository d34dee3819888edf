"""CacheWriter: what it accepts, the bytes it writes, what it refuses."""

from __future__ import annotations

import errno
import json
import os
import resource
import stat
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tokpipe.cache import CacheWriter, open_cache
from tokpipe.errors import CacheError, OutputExists, ResourceError, TokpipeError

Make = Callable[..., Any]


def header_of(path: Path) -> tuple[dict[str, Any], int]:
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    return json.loads(raw[8 : 8 + length]), 8 + length


def test_writer_gives_the_same_bytes_however_rows_are_cut(
    tmp_path: Path, write_feature: Make
) -> None:
    whole = write_feature(tmp_path / "a.safetensors")
    pieces = write_feature(tmp_path / "b.safetensors", step=1, durability="fast")
    assert whole.read_bytes() == pieces.read_bytes()


def test_writer_aligns_data_and_features_to_64_bytes(tmp_path: Path, write_feature: Make) -> None:
    header, start = header_of(write_feature(tmp_path / "a.safetensors"))
    header.pop("__metadata__")
    assert start % 64 == 0
    features = [n for n in header if n.endswith(".tokens") or "deepstack" in n]
    assert len(features) == 3
    assert all((start + header[n]["data_offsets"][0]) % 64 == 0 for n in features)
    sizes = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "U8": 1, "F16": 2}
    assert all(t["data_offsets"][0] % sizes[t["dtype"]] == 0 for t in header.values())


def test_writer_puts_columns_before_blobs_before_features(
    tmp_path: Path, write_signal: Make
) -> None:
    header, _ = header_of(write_signal(tmp_path / "a.safetensors"))
    starts = {n: t["data_offsets"][0] for n, t in header.items() if n != "__metadata__"}
    ordered = sorted(starts, key=lambda n: starts[n])
    assert [n for n in ordered if not n.startswith("pad.")][-4:] == [
        "audio.clip", "video.atlas", "audio.tokens", "video.tokens"
    ]  # fmt: skip


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_writer_respects_the_umask(tmp_path: Path, write_feature: Make, mask: int) -> None:
    before = os.umask(mask)
    try:
        path = write_feature(tmp_path / "a.safetensors")
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask


def test_writer_leaves_nothing_when_not_finished(
    tmp_path: Path, make_rows: Make, write_feature: Make
) -> None:
    with CacheWriter(tmp_path / "a.safetensors") as writer:
        writer.append("video", make_rows("video", [0.0]))
    assert list(tmp_path.iterdir()) == []
    write_feature(tmp_path / "b.safetensors")
    assert [p.name for p in tmp_path.iterdir()] == ["b.safetensors"]


def test_writer_keeps_an_existing_file_unless_forced(tmp_path: Path, write_feature: Make) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"old")
    with pytest.raises(OutputExists):
        write_feature(path)
    assert path.read_bytes() == b"old"
    write_feature(path, force=True)
    with open_cache(path) as cache:
        assert cache.num_tokens() == 16


def test_writer_keeps_a_file_that_appears_meanwhile(
    tmp_path: Path, make_rows: Make, make_metadata: Make
) -> None:
    path = tmp_path / "a.safetensors"
    with CacheWriter(path) as writer:
        writer.append("video", {**make_rows("video", [0.0]), "rank": np.array([0])})
        path.write_bytes(b"other")
        with pytest.raises(OutputExists):
            writer.finish(make_metadata("feature", video=1))
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]
    assert path.read_bytes() == b"other"


def test_writer_omits_a_stream_without_rows(
    tmp_path: Path, make_rows: Make, make_metadata: Make
) -> None:
    metadata = make_metadata("feature", video=1)
    metadata["tokpipe.counts"]["audio"] = {"source": 50, "dropped": 50}
    with CacheWriter(tmp_path / "a.safetensors") as writer:
        writer.append("video", {**make_rows("video", [0.0]), "rank": np.array([0])})
        path = writer.finish(metadata)
    with open_cache(path) as cache:
        assert cache.streams == ("video",)
        assert cache.metadata["tokpipe.counts"]["audio"]["kept"] == 0


def test_writer_stores_bf16_bits(tmp_path: Path, make_rows: Make, make_metadata: Make) -> None:
    rows = make_rows("video", [0.0, 1.0])
    rows["tokens"] = np.array([[0x3F80, 0xC000], [0x7F00, 0x0001]], dtype=np.uint16)
    with CacheWriter(tmp_path / "a.safetensors", dtype={"video": "BF16"}) as writer:
        writer.append("video", {**rows, "rank": np.arange(2)})
        path = writer.finish(make_metadata("feature", video=2))
    with open_cache(path) as cache:
        part = cache.tokens()["video"]
        assert part.dtype == "BF16"
        assert part.tokens[0].tolist() == [1.0, -2.0]
        assert part.tokens[1].tolist() == [2.0**127, 2.0**-133]


def test_writer_spools_elsewhere_when_told(tmp_path: Path, write_feature: Make) -> None:
    (tmp_path / "spool").mkdir()
    write_feature(tmp_path / "a.safetensors", spool_dir=tmp_path / "spool")
    assert list((tmp_path / "spool").iterdir()) == []


BAD_ROWS: dict[str, tuple[str, Any, str]] = {
    "overflow": ("tokens", np.full((1, 4), 1e5, dtype=np.float32), "cache.overflow"),
    "nan": ("tokens", np.full((1, 4), np.nan, dtype=np.float32), "cache.finite"),
    "width": ("tokens", np.zeros((1, 5), dtype=np.float16), "cache.shape"),
    "text": ("tokens", np.array([["a", "b", "c", "d"]]), "cache.dtype"),
    "unsorted": ("at", np.array([-1.0]), "cache.order"),
    "rows": ("mass", np.ones(2, dtype=np.float32), "cache.shape"),
    "range": ("kind", np.array([256]), "cache.range"),
    "float kind": ("kind", np.array([0.5]), "cache.dtype"),
    "unknown": ("colour", np.array([0.5]), "cache.invalid"),
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_writer_refuses_rows(tmp_path: Path, make_rows: Make, case: str) -> None:
    name, value, code = BAD_ROWS[case]
    with CacheWriter(tmp_path / "a.safetensors") as writer:
        writer.append("video", make_rows("video", [0.0]))
        with pytest.raises(CacheError) as caught:
            writer.append("video", {**make_rows("video", [0.5]), name: value})
    assert caught.value.code == code


BROKEN_FILES = {
    "span": ("pts", np.array([[2.0, 3.0]]), "cache.span"),
    "frame": ("frame", np.array([[5, 4]]), "cache.frame"),
    "mass": ("mass", np.array([0.0]), "cache.mass"),
    "sum": ("mass", np.array([9.0]), "cache.mass"),
    "kind": ("kind", np.array([7]), "cache.kind"),
    "segment": ("segment", np.array([0]), "cache.segment"),
    "rank": ("rank", np.array([1]), "cache.rank"),
    "extent": ("cell", np.array([[0, 0, -2]]), "cache.cell"),
}


@pytest.mark.parametrize("case", BROKEN_FILES)
def test_writer_publishes_nothing_that_breaks_the_format(
    tmp_path: Path, make_rows: Make, make_metadata: Make, case: str
) -> None:
    name, value, code = BROKEN_FILES[case]
    rows = {**make_rows("video", [0.0]), "rank": np.array([0]), name: value}
    with CacheWriter(tmp_path / "a.safetensors") as writer:
        writer.append("video", rows)
        with pytest.raises(CacheError) as caught:
            writer.finish(make_metadata("feature", video=1))
    assert caught.value.code == code
    assert list(tmp_path.iterdir()) == []


def test_writer_names_missing_columns_and_keys(
    tmp_path: Path, make_rows: Make, make_metadata: Make
) -> None:
    with CacheWriter(tmp_path / "a.safetensors") as writer:
        writer.append("video", make_rows("video", [0.0]))
        with pytest.raises(CacheError, match=r"video\.rank"):
            writer.finish(make_metadata("feature", video=1))
    with CacheWriter(tmp_path / "a.safetensors") as writer:
        writer.append("video", {**make_rows("video", [0.0]), "rank": np.array([0])})
        metadata = make_metadata("feature", video=1)
        del metadata["tokpipe.recipe"]
        with pytest.raises(CacheError, match=r"tokpipe\.recipe"):
            writer.finish(metadata)


@pytest.mark.parametrize("target", ["missing/a.safetensors", "."])
def test_writer_refuses_a_target_it_cannot_write(tmp_path: Path, target: str) -> None:
    with pytest.raises(TokpipeError):
        CacheWriter(tmp_path / target)


def test_full_disk_is_a_resource_error_and_leaves_nothing(tmp_path: Path, make_rows: Make) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    rows = make_rows("video", [float(i) for i in range(4000)], width=8)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(ResourceError), CacheWriter(tmp_path / "a.safetensors") as writer:
            writer.append("video", rows)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


def test_file_system_without_fsync_is_recorded_once(
    tmp_path: Path, make_rows: Make, make_metadata: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(descriptor: int) -> None:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "fsync", refuse)
    with CacheWriter(tmp_path / "a.safetensors") as writer:
        writer.append("video", {**make_rows("video", [0.0]), "rank": np.array([0])})
        writer.finish(make_metadata("feature", video=1))
    assert len(writer.warnings) == 1
    open_cache(tmp_path / "a.safetensors").close()


@pytest.mark.parametrize("force", [True, False])
def test_file_system_without_links_and_rename_gets_a_copy(
    tmp_path: Path, write_feature: Make, monkeypatch: pytest.MonkeyPatch, force: bool
) -> None:
    def refuse(*paths: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(os, "link", refuse)
    monkeypatch.setattr(os, "replace", refuse)
    path = write_feature(tmp_path / "a.safetensors", force=force)
    open_cache(path).close()
    assert list(tmp_path.iterdir()) == [path]


def test_failed_disk_is_a_cache_error_and_leaves_nothing(
    tmp_path: Path, write_feature: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(descriptor: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(CacheError) as caught:
        write_feature(tmp_path / "a.safetensors")
    assert caught.value.code == "cache.write"
    assert list(tmp_path.iterdir()) == []


def test_memory_does_not_grow_with_rows(
    tmp_path: Path, make_rows: Make, make_metadata: Make
) -> None:
    def peak(calls: int) -> int:
        rows = make_rows("video", [0.0] * 2000, width=16)
        tracemalloc.start()
        with CacheWriter(tmp_path / str(calls), durability="fast") as writer:
            for call in range(calls):
                rows["at"] = np.full(2000, float(call))
                rows["pts"] = np.stack([rows["at"]] * 2, 1)
                writer.append("video", {**rows, "rank": np.arange(2000) + 2000 * call})
            writer.finish(make_metadata("feature", video=2000 * calls))
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    assert peak(120) < 1.2 * peak(40)
