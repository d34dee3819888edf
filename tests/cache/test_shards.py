"""Shards: their bytes, what is committed when, and what a kill at any moment leaves."""

from __future__ import annotations

import gc
import hashlib
import json
import os
import re
import tarfile
from pathlib import Path

import numpy as np
import pytest

from tokpipe.cache import open_cache
from tokpipe.cache._shard_files import committed, pairs, read_idx
from tokpipe.cache._tar import BLOCK
from tokpipe.cache.dataset import open_dataset
from tokpipe.cache.dataset_check import verify_dataset
from tokpipe.cache.index_table import COLUMNS, digest_key, index_rows, read_facts
from tokpipe.cache.pack import pack
from tokpipe.cache.shards import ShardWriter
from tokpipe.errors import CacheCorrupt, CacheError
from tokpipe.testing.caches import write_features

END = ".tokpipe.safetensors"
COUNT = 24
#: Six caches of about 7 kB fill a shard.
SHARD = 60_000


@pytest.fixture(scope="module")
def caches(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("caches")
    for seed in range(COUNT):
        write_features(folder / f"c{seed:02}{END}", seed=seed)
    return folder


@pytest.fixture(scope="module")
def packed(caches: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("packed") / "ds"
    assert pack(caches, root, shard_size=SHARD).count("done") == COUNT
    return root


def contents(root: Path) -> dict[str, bytes]:
    """Bytes of every file but locks."""
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.suffix != ".lock"
    }


def all_sound(root: Path) -> bool:
    return all(found.ok for found in verify_dataset(root, deep=True))


# Bytes.


def test_shards_are_tars_of_pairs(packed: Path, caches: Path) -> None:
    files = {digest_key(read_facts(p).row): p for p in caches.glob(f"*{END}")}
    seen = []
    for shard in sorted((packed / "shards").glob("*.tar")):
        with tarfile.open(shard) as tar:
            names = tar.getnames()
            assert [n.rpartition(".")[2] for n in names] == ["safetensors", "json"] * (
                len(names) // 2
            )
            for name in names[::2]:
                key = name.removesuffix(".safetensors")
                data, beside = tar.extractfile(name), tar.extractfile(f"{key}.json")
                assert data is not None and beside is not None
                read = data.read()
                assert read == files[key].read_bytes()
                told = json.load(beside)
                assert told["key"] == key and told["size"] == len(read)
                assert told["sha256"] == hashlib.sha256(read).hexdigest()
                assert told["encoders"]["video"]["name"] == "hand"
                seen.append(key)
    assert sorted(seen) == sorted(files) and len(seen) == COUNT


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_webdataset_reads_shards(packed: Path) -> None:
    wds = pytest.importorskip("webdataset", reason="webdataset is not installed")
    shards = sorted(str(p) for p in (packed / "shards").glob("*.tar"))
    found = list(wds.WebDataset(shards, shardshuffle=False).decode())
    assert len(found) == COUNT
    assert {f["json"]["n_video"] for f in found} == {48}
    assert all(f["safetensors"][8:24].startswith(b'{"__metadata__"') for f in found)
    gc.collect()  # it leaves files open: the warning belongs to this test


def test_idx_holds_first_headers_and_size(packed: Path) -> None:
    for shard in (packed / "shards").glob("*.tar"):
        raw = np.fromfile(f"{shard}.idx", dtype="<u8").tolist()
        with tarfile.open(shard) as tar:
            starts = [m.offset for m in tar.getmembers()][::2]
        assert raw == [*starts, shard.stat().st_size] == read_idx(shard)


def test_index_is_what_the_shards_hold(packed: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    total = 0
    for stem, _, part in committed(packed):
        table = parquet.read_table(part)
        assert table.column_names == list(COLUMNS)
        assert parquet.ParquetFile(part).metadata.row_group(0).column(0).compression == "ZSTD"
        rows = table.to_pylist()
        assert [r["key"] for r in rows] == sorted(r["key"] for r in rows)
        data = (packed / "shards" / f"{stem}.tar").read_bytes()
        places = {p.key: (p.offset, p.size) for p in pairs(packed / "shards" / f"{stem}.tar")}
        for row in rows:
            assert (row["offset"], row["size"]) == places[row["key"]]
            item = data[row["offset"] : row["offset"] + row["size"]]
            assert row["sha256"] == hashlib.sha256(item).digest()
            assert row["shard"] == f"{stem}.tar"
            assert (row["n_video"], row["n_audio"], row["dim_video"]) == (48, 0, 8)
            assert (row["dtype"], row["duration"], row["n_segments"]) == ("F16", 3.0, 0)
            assert row["recipe_sha256"] == bytes.fromhex("a" * 64)
        total += len(rows)
    assert total == COUNT


def test_same_caches_give_the_same_bytes(packed: Path, caches: Path, tmp_path: Path) -> None:
    other = tmp_path / "other names"
    for number, path in enumerate(sorted(caches.glob(f"*{END}"), reverse=True)):
        target = other / f"{number % 3}" / f"x{number}{END}"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    pack(other, tmp_path / "ds", shard_size=SHARD)
    assert contents(tmp_path / "ds") == contents(packed)


def test_an_item_in_a_shard_is_a_cache(packed: Path, caches: Path) -> None:
    data = open_dataset(packed)
    key = digest_key(read_facts(caches / f"c03{END}").row)
    with data.open(key) as cache, open_cache(caches / f"c03{END}") as loose:
        mine, other = cache.tokens(0.5, 1.5)["video"], loose.tokens(0.5, 1.5)["video"]
        assert np.array_equal(mine.tokens, other.tokens) and len(mine) == 16
        assert np.array_equal(cache.column("video.tokens"), loose.column("video.tokens"))
        assert cache.metadata == loose.metadata


def test_the_page_says_what_is_there(caches: Path, packed: Path, tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "dataset.md").read_text(encoding="utf-8")
    assert all(f"`{name}`" in page for name in COLUMNS)
    tree = {line.split()[0] for line in page.split("```")[1].splitlines()[2:] if line.strip()}
    made = {str(p.relative_to(packed)) for p in packed.rglob("*") if p.is_file()}
    assert tree - {"errors/W000.jsonl"} <= made
    (block,) = re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    for name, number in (("a", 0), ("b", 1)):
        (tmp_path / f"{name}{END}").write_bytes((caches / f"c{number:02}{END}").read_bytes())
    before = Path.cwd()
    os.chdir(tmp_path)
    try:
        exec(compile(block, "dataset.md", "exec"), {})
    finally:
        os.chdir(before)
    (part,) = committed(tmp_path / "my-dataset")
    assert part[0] == "W003-000000" and [r.key for r in index_rows(part[2])] == ["talk-1", "talk-2"]


# Seal and commit.


def test_shards_are_sealed_at_their_size(packed: Path) -> None:
    sizes = [p.stat().st_size for p in sorted((packed / "shards").glob("*.tar"))]
    assert len(sizes) > 2 and all(size <= SHARD + BLOCK * 2 for size in sizes)
    assert min(sizes[:-1]) > SHARD / 2


def test_a_large_cache_has_a_shard_of_its_own(tmp_path: Path) -> None:
    big = write_features(tmp_path / f"big{END}", video=600, width=64)
    small = write_features(tmp_path / f"small{END}", seed=1)
    with ShardWriter(tmp_path / "ds", shard_size=20_000) as writer:
        for key, path in (("a", small), ("b", big), ("c", small)):
            writer.append(key, path)
    assert [r.key for _, _, part in committed(tmp_path / "ds") for r in index_rows(part)] == [
        "a", "b", "c",
    ]  # fmt: skip
    assert len(committed(tmp_path / "ds")) == 3


def test_only_the_index_part_commits(caches: Path, tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path)
    row = writer.append("one", caches / f"c00{END}")
    writer.append("two", (caches / f"c01{END}").read_bytes())
    assert set(writer.pending) == {"one", "two"} and row.offset == BLOCK
    sealed = writer.seal()
    assert (tmp_path / "shards" / "W000-000000.tar").exists() and committed(tmp_path) == []
    writer.leave()
    with ShardWriter(tmp_path) as again:
        # Sealed but not committed: as good as open.
        assert again.pending == {r.key: r for r in sealed.rows}
        assert not (tmp_path / "shards" / "W000-000000.tar").exists()
    assert [r for _, _, part in committed(tmp_path) for r in index_rows(part)] == list(sealed.rows)
    names = sorted(p.name for p in (tmp_path / "shards").iterdir())
    assert names == [".W000.lock", "W000-000000.tar", "W000-000000.tar.idx"]


def test_garbage_is_swept_and_foreign_files_stay(caches: Path, tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    shards.mkdir()
    foreign = ["notes.txt", "W000-1.tar", "X000-000001.tar", "W001-000004.tar.partial",
               "W001-000005.tar", "W000-000003.tar.bak", "W0000000003.tar"]  # fmt: skip
    garbage = ["W000-000001.tar", "W000-000001.tar.idx", "W000-000002.tar.partial",
               "W000-000003.tar.journal", "W000-000000.tar.idx"]  # fmt: skip
    for name in foreign + garbage:
        (shards / name).write_bytes(b"something")
    with ShardWriter(tmp_path) as writer:
        writer.append("one", caches / f"c00{END}")
    there = {p.name for p in shards.iterdir()}
    assert set(foreign) <= there
    assert not {n for n in garbage if (shards / n).exists()}
    assert all((shards / name).read_bytes() == b"something" for name in foreign)
    # After every number that is taken, also by others.
    assert [stem for stem, _, _ in committed(tmp_path)] == ["W000-000006"]


def test_a_prefix_has_one_writer(caches: Path, tmp_path: Path) -> None:
    with ShardWriter(tmp_path) as writer:
        with pytest.raises(CacheError, match="another process writes") as caught:
            ShardWriter(tmp_path)
        assert caught.value.code == "dataset.busy"
        with ShardWriter(tmp_path, prefix="W001") as other:
            other.append("one", caches / f"c00{END}")
        writer.append("two", caches / f"c01{END}")
    with ShardWriter(tmp_path):
        pass
    assert open_dataset(_with_info(tmp_path)).keys == ["one", "two"]


def _with_info(root: Path) -> Path:
    from tokpipe.cache.dataset_info import DatasetInfo

    DatasetInfo().write(root)
    return root


@pytest.mark.parametrize("key", ["", "a/b", "a.b", "..", "a b", "x" * 90, "-a"])
def test_keys_that_cannot_name_a_member(caches: Path, tmp_path: Path, key: str) -> None:
    with ShardWriter(tmp_path) as writer, pytest.raises(CacheError) as caught:
        writer.append(key, caches / f"c00{END}")
    assert caught.value.code == "dataset.key"


def test_a_failed_append_leaves_the_shard_as_it_was(caches: Path, tmp_path: Path) -> None:
    path = tmp_path / f"short{END}"
    path.write_bytes((caches / f"c02{END}").read_bytes())
    facts = read_facts(path)
    path.write_bytes(path.read_bytes()[:-100])  # changes after it was looked at
    with ShardWriter(tmp_path / "ds") as writer:
        writer.append("one", caches / f"c00{END}")
        before = writer.size
        with pytest.raises(CacheError, match="changed while it was read"):
            writer.append("two", path, facts)
        assert writer.size == before and set(writer.pending) == {"one"}
        writer.append("three", caches / f"c01{END}")
    assert all_sound(_with_info(tmp_path / "ds"))
    assert [p.key for p in pairs(tmp_path / "ds" / "shards" / "W000-000000.tar")] == [
        "one", "three",
    ]  # fmt: skip


# Kills.


def open_shard(caches: Path, root: Path, count: int) -> tuple[Path, Path]:
    """A shard that a writer left after ``count`` items: tar and journal."""
    writer = ShardWriter(root)
    for number in range(count):
        writer.append(f"k{number:02}", caches / f"c{number:02}{END}")
    writer.leave()
    tar = root / "shards" / "W000-000000.tar.partial"
    return tar, root / "shards" / "W000-000000.tar.journal"


@pytest.mark.parametrize("cut", [1, 511, 512, 5000, 9000, 40_000])
@pytest.mark.parametrize("which", ["tar", "journal", "both"])
def test_a_torn_tail_is_cut_back(caches: Path, tmp_path: Path, cut: int, which: str) -> None:
    tar, journal = open_shard(caches, tmp_path, 6)
    for path in [tar] * (which != "journal") + [journal] * (which != "tar"):
        os.truncate(path, max(0, path.stat().st_size - cut))
    with ShardWriter(tmp_path) as writer:
        left = list(writer.pending)
        assert left == [f"k{n:02}" for n in range(len(left))] and len(left) < 6
        for number in range(len(left), 6):
            writer.append(f"k{number:02}", caches / f"c{number:02}{END}")
    shard = tmp_path / "shards" / "W000-000000.tar"
    for number, pair in enumerate(pairs(shard)):
        data = shard.read_bytes()[pair.offset : pair.offset + pair.size]
        assert data == (caches / f"c{number:02}{END}").read_bytes()
    reference = tmp_path / "reference"
    open_shard(caches, reference, 6)
    with ShardWriter(reference):
        pass
    assert shard.read_bytes() == (reference / "shards" / "W000-000000.tar").read_bytes()


def test_bytes_that_never_reached_the_disk_are_cut(caches: Path, tmp_path: Path) -> None:
    """After a power cut a file may have its length but not its last bytes."""
    tar, _ = open_shard(caches, tmp_path, 6)
    with tar.open("r+b") as file:
        file.seek(tar.stat().st_size * 4 // 6)
        file.write(bytes(3000))
    with ShardWriter(tmp_path) as writer:
        assert list(writer.pending) == ["k00", "k01", "k02", "k03"]


def test_a_damaged_idx_is_named(packed: Path, tmp_path: Path) -> None:
    shard = tmp_path / "W000-000000.tar"
    shard.write_bytes((packed / "shards" / shard.name).read_bytes())
    good = (packed / "shards" / f"{shard.name}.idx").read_bytes()
    for bad in (b"", good[:-3], good[8:], good[:-8], good[:8] * 2):
        Path(f"{shard}.idx").write_bytes(bad)
        with pytest.raises(CacheCorrupt, match="idx"):
            read_idx(shard)
    Path(f"{shard}.idx").unlink()
    with pytest.raises(CacheCorrupt, match="missing"):
        read_idx(shard)
