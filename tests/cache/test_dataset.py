"""Packing folders, reading what was packed, checking and counting it."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tokpipe.cache._shard_files import committed, pairs
from tokpipe.cache.dataset import open_dataset
from tokpipe.cache.dataset_check import verify_dataset
from tokpipe.cache.dataset_info import read_info
from tokpipe.cache.dataset_stats import dataset_stats
from tokpipe.cache.index_table import index_rows, write_index
from tokpipe.cache.pack import Packed, name_key, pack, read_keys
from tokpipe.errors import CacheError, CacheVersion, MissingExtra, OutputExists, RecipeError
from tokpipe.testing.caches import write_features

END = ".tokpipe.safetensors"
SHARD = 60_000


@pytest.fixture
def caches(tmp_path: Path) -> Path:
    """Twelve caches in two folders; half of them with sound."""
    for seed in range(12):
        folder = tmp_path / "in" / ("a" if seed % 2 else "b c")
        folder.mkdir(parents=True, exist_ok=True)
        write_features(folder / f"talk {seed}{END}", seed=seed, audio=12 * (seed % 2))
    return tmp_path / "in"


@pytest.fixture
def root(caches: Path, tmp_path: Path) -> Path:
    assert pack(caches, tmp_path / "ds", key="name", shard_size=SHARD).count("done") == 12
    return tmp_path / "ds"


@pytest.fixture
def no_pyarrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the extra is not installed."""
    monkeypatch.setitem(sys.modules, "pyarrow", None)


def statuses(made: Packed) -> dict[str, str]:
    return {item.path.name.removesuffix(END): item.status for item in made.items}


def problems(root: Path, deep: bool = False) -> dict[str, list[str]]:
    return {
        found.name: [p.code for p in found.problems]
        for found in verify_dataset(root, deep)
        if not found.ok
    }


# Pack.


def test_packing_again_skips_and_adds(root: Path, caches: Path, tmp_path: Path) -> None:
    before = {p: p.read_bytes() for p in root.rglob("*") if p.is_file()}
    again = pack(caches, root, key="name", shard_size=SHARD)
    assert again.count("skipped") == 12 and again.bytes == 0
    assert {p: p.read_bytes() for p in root.rglob("*") if p.is_file()} == before
    write_features(caches / f"new{END}", seed=90)
    more = pack(caches, root, key="name", shard_size=SHARD)
    assert (more.count("done"), more.count("skipped")) == (1, 12)
    assert all(path.read_bytes() == data for path, data in before.items())
    assert len(open_dataset(root)) == 13 and not problems(root, deep=True)


def test_keys_by_name_digest_and_column(caches: Path, tmp_path: Path) -> None:
    assert name_key(Path(f"b c/talk 1.x{END}")) == "b_c__talk_1_x"
    made = pack(caches, tmp_path / "n", key="name")
    assert {i.key for i in made.items} >= {"b_c__talk_0", "a__talk_11"}
    made = pack(caches, tmp_path / "d")
    assert all(len(i.key) == 32 and set(i.key) <= set("0123456789abcdef") for i in made.items)
    table = tmp_path / "keys.csv"
    lines = [f"a/talk {n}{END},id-{n}" for n in (1, 3, 5, 7, 9)]
    table.write_text("\n".join(["path,key", *lines, "talk 0,zero", f"a/talk 11{END},bad.key"]))
    made = pack(caches, tmp_path / "c", key="column", keys=read_keys(table))
    assert made.count("done") == 6 and made.count("failed") == 6
    assert {i.key for i in made.items if i.status == "done"} == {
        "zero", *(f"id-{n}" for n in (1, 3, 5, 7, 9))
    }  # fmt: skip
    errors = {i.path.name: i.error for i in made.items if i.error is not None}
    assert all(error.code == "dataset.key" for error in errors.values())
    (tmp_path / "keys.jsonl").write_text('{"path": "p", "key": "k"}\n\n')
    assert read_keys(tmp_path / "keys.jsonl") == {"p": "k"}
    (tmp_path / "keys.csv").write_text("path,name\na,b\n")
    with pytest.raises(CacheError, match="table of keys"):
        read_keys(tmp_path / "keys.csv")


def test_another_key_rule_is_refused(root: Path, caches: Path) -> None:
    with pytest.raises(CacheError, match="named by name, not by digest"):
        pack(caches, root)


def test_copies_are_skipped_and_colliding_names_fail(caches: Path, tmp_path: Path) -> None:
    shutil.copy(caches / "a" / f"talk 1{END}", caches / f"copy{END}")
    made = pack(caches, tmp_path / "d")
    assert (made.count("done"), made.count("skipped")) == (12, 1)
    write_features(caches / "a" / f"talk_1{END}", seed=50)
    made = pack(caches, tmp_path / "n", key="name")
    failed = [i for i in made.items if i.status == "failed"]
    assert [i.path.name for i in failed] == [f"talk_1{END}"]
    assert failed[0].error is not None and f"talk 1{END}" in failed[0].error.message


def test_other_recipes_and_encoders_are_refused_by_name(caches: Path, tmp_path: Path) -> None:
    write_features(caches / f"z{END}", seed=1, recipe="b")
    with pytest.raises(RecipeError, match="two recipes: `aaaaaaaaaaaa` budget=a") as caught:
        pack(caches, tmp_path / "ds")
    assert f"z{END}" in caught.value.message and "b" * 12 in caught.value.message
    assert caught.value.code == "dataset.mixed" and not (tmp_path / "ds").exists()
    write_features(caches / f"z{END}", seed=77, encoder="other")
    with pytest.raises(RecipeError, match=r"`hand \(.*` \(.*talk 1.*and `other \(") as caught:
        pack(caches, tmp_path / "ds")
    for odd in ({"width": 16}, {"dtype": "F32"}, {"dtype": "BF16"}):
        write_features(caches / f"z{END}", seed=77, **odd)
        with pytest.raises(RecipeError, match="video of two encoders"):
            pack(caches, tmp_path / "ds")
    made = pack(caches, tmp_path / "ds", mixed=True)
    assert made.count("done") == 13
    info = read_info(tmp_path / "ds")
    assert info.mixed and {e["dtype"] for e in info.streams["video"]} == {"F16", "BF16"}
    assert not problems(tmp_path / "ds", deep=True)


def test_a_dataset_refuses_later_caches_of_another_recipe(root: Path, tmp_path: Path) -> None:
    write_features(tmp_path / f"z{END}", seed=1, recipe="b")
    (tmp_path / "more").mkdir()
    shutil.move(tmp_path / f"z{END}", tmp_path / "more" / f"z{END}")
    with pytest.raises(RecipeError, match="the dataset"):
        pack(tmp_path / "more", root, key="name")


def test_a_broken_cache_fails_alone_and_is_listed(caches: Path, tmp_path: Path) -> None:
    flipped = caches / f"flip{END}"
    data = bytearray(write_features(flipped, seed=40).read_bytes())
    data[-5] ^= 1
    flipped.write_bytes(data)
    (caches / f"cut{END}").write_bytes(bytes(data[:3000]))
    (caches / f"text{END}").write_text("nothing")
    for attempt in (1, 2):
        made = pack(caches, tmp_path / "ds", key="name")
        assert made.count("failed") == 3
        lines = [
            json.loads(x) for x in (tmp_path / "ds/errors/W000.jsonl").read_text().splitlines()
        ]
        assert {x["input"]: (x["code"], x["attempts"]) for x in lines} == {
            f"flip{END}": ("cache.digest", attempt), f"cut{END}": ("cache.header", attempt),
            f"text{END}": ("cache.header", attempt),
        }  # fmt: skip
        assert {x["class"] for x in lines} == {"CacheCorrupt"}
    for name in ("flip", "cut", "text"):
        write_features(caches / f"{name}{END}", seed=40 + ord(name[0]))
    assert pack(caches, tmp_path / "ds", key="name").count("done") == 3
    assert not (tmp_path / "ds" / "errors" / "W000.jsonl").exists()
    assert len(open_dataset(tmp_path / "ds")) == 15


def test_a_changed_cache_needs_force_and_the_newest_counts(root: Path, caches: Path) -> None:
    write_features(caches / "a" / f"talk 1{END}", seed=1, audio=12, shift=1.0)
    made = pack(caches, root, key="name")
    (failed,) = [i for i in made.items if i.status == "failed"]
    assert failed.error is not None and failed.error.hint == "use --force to replace it"
    old = open_dataset(root)
    made = pack(caches, root, key="name", force=True)
    assert (made.count("done"), made.count("skipped")) == (1, 11)
    new = open_dataset(root)
    assert sorted(new.keys) == sorted(old.keys)
    with old.open("a__talk_1") as first, new.open("a__talk_1") as second:
        moved = second.column("video.tokens").astype("f4") - first.column("video.tokens")
        assert np.allclose(moved, 1.0, atol=2e-3)
    assert new.shards[new.find("a__talk_1")].endswith(f"{committed(root)[-1][0]}.tar")
    assert not problems(root, deep=True)


def test_pack_without_pyarrow_names_the_extra(
    caches: Path, tmp_path: Path, no_pyarrow: None
) -> None:
    with pytest.raises(MissingExtra, match="pyarrow") as caught:
        pack(caches, tmp_path / "ds")
    assert caught.value.hint == 'pip install "tokpipe[dataset]"' and caught.value.exit_code == 3
    assert not (tmp_path / "ds").exists()


def test_packing_into_the_packed_folder(caches: Path) -> None:
    assert pack(caches, caches / "ds").count("done") == 12
    assert pack(caches, caches / "ds").count("skipped") == 12


def test_a_folder_with_other_files_is_not_filled(caches: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("my own")
    for target, held in ((mine, "such as `thesis.txt`"), (caches, "other files")):
        with pytest.raises(OutputExists, match=held):
            pack(caches, target)
    assert [p.name for p in mine.iterdir()] == ["thesis.txt"]
    with pytest.raises(OutputExists, match="is a file"):
        pack(caches, mine / "thesis.txt")
    # What a run left that was killed before it named the dataset, and hidden files, are no others.
    (mine / "thesis.txt").rename(mine / ".hidden")
    (mine / "shards").mkdir()
    assert pack(caches, mine).count("done") == 12


# Read.


def columns(root: Path) -> tuple[object, ...]:
    data = open_dataset(root)
    return (data.keys, data.sizes.tolist(), data.rows("video").tolist(),
            data.rows("audio").tolist(), data.dims["audio"].tolist(), data.dtypes.tolist(),
            data.durations.tolist(), data.groups.tolist(),
            [data.place(i) for i in range(len(data))])  # fmt: skip


def test_without_pyarrow_the_shards_say_the_same(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_it = columns(root)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert columns(root) == with_it
    assert not problems(root, deep=True)


def test_loose_and_packed_hold_the_same_items(root: Path, caches: Path) -> None:
    packed, loose = open_dataset(root), open_dataset(caches)
    assert sorted(packed.keys) == sorted(loose.keys)
    for key in loose.keys:
        with packed.open(key) as one, loose.open(key) as two:
            assert one.metadata == two.metadata
        a, b = packed.find(key), loose.find(key)
        assert packed.rows("audio")[a] == loose.rows("audio")[b]
        assert packed.sizes[a] == loose.sizes[b]
    assert (packed.packed, loose.packed) == (True, False)
    assert "12 items" in repr(packed) and "loose files" in repr(loose)
    assert open_dataset([caches / "a" / f"talk 1{END}"]).keys == ["talk_1"]
    assert open_dataset(caches / "a" / f"talk 1{END}").keys == ["talk_1"]


def test_numbers_and_keys(root: Path) -> None:
    data = open_dataset(root)
    assert data.number(-1) == 11 and data.key(data.number(-12)) == data.keys[0]
    for wrong in (12, -13):
        with pytest.raises(IndexError, match=f"item {wrong} of a dataset of 12"):
            data.number(wrong)
    with pytest.raises(KeyError, match="no item `gone`"):
        data.find("gone")


def test_names_that_would_be_alike_keep_their_path(tmp_path: Path) -> None:
    for name in ("x 1", "x_1"):
        write_features(tmp_path / f"{name}{END}")
    assert open_dataset(tmp_path).keys == ["x 1", "x_1"]


def test_what_is_no_dataset(root: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for path, text in ((tmp_path / "gone", "no such folder"), (tmp_path / "empty", "no token")):
        with pytest.raises(CacheError, match=text):
            open_dataset(path)
    info = root / "tokpipe-dataset.json"
    whole = json.loads(info.read_text())
    info.write_text(json.dumps(whole | {"format": "1.7", "later": 1}))
    assert len(open_dataset(root)) == 12
    info.write_text(json.dumps(whole | {"format": "2.0"}))
    with pytest.raises(CacheVersion, match=r"layout 2.0"):
        open_dataset(root)
    info.write_text("{")
    with pytest.raises(CacheError, match="cannot be read"):
        open_dataset(root)


def test_loose_caches_of_two_encoders_are_refused(caches: Path) -> None:
    write_features(caches / f"z{END}", encoder="other")
    with pytest.raises(RecipeError, match="video of two encoders"):
        open_dataset(caches)
    assert len(open_dataset(caches, mixed=True)) == 13


# Check.


def damaged(change: Callable[[bytearray], None]) -> Callable[[Path], None]:
    def apply(path: Path) -> None:
        data = bytearray(path.read_bytes())
        change(data)
        path.write_bytes(data)

    return apply


def test_verify_finds_what_is_wrong(root: Path) -> None:
    assert not problems(root, deep=True)
    stem, _, part = committed(root)[0]
    shard = root / "shards" / f"{stem}.tar"
    pair = list(pairs(shard))[1]
    whole, rows = shard.read_bytes(), index_rows(part)

    def flip(data: bytearray) -> None:
        data[pair.offset + pair.size - 3] ^= 4

    damaged(flip)(shard)
    assert problems(root) == {}
    assert problems(root, deep=True) == {pair.key: ["digest", "digest"]}
    shard.write_bytes(whole)
    write_index(part, rows[1:])
    assert problems(root) == {shard.name: ["index"]}
    write_index(part, [rows[0].at(rows[0].key, rows[0].shard, 512, "0" * 64), *rows[1:]])
    assert problems(root) == {shard.name: ["index"]}
    write_index(part, rows)
    part.write_bytes(part.read_bytes()[:-9])
    assert problems(root) == {shard.name: ["index"]}
    write_index(part, rows)
    for end in (".idx", ""):
        data = Path(f"{shard}{end}").read_bytes()
        Path(f"{shard}{end}").write_bytes(data[:-8])
        assert problems(root) == {shard.name: ["shard"]}
        Path(f"{shard}{end}").write_bytes(data)
    part.unlink()
    assert problems(root) == {shard.name: ["uncommitted"]}


def test_verify_goes_through_loose_files(caches: Path) -> None:
    assert not problems(caches, deep=True)
    path = caches / "a" / f"talk 3{END}"
    os.truncate(path, path.stat().st_size - 10)
    assert problems(caches) == {str(path): ["header"]}


def test_verify_names_an_item_of_another_encoder(root: Path, tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    write_features(tmp_path / "more" / f"z{END}", encoder="other")
    pack(tmp_path / "more", root, key="name", mixed=True)
    info = root / "tokpipe-dataset.json"
    told = json.loads(info.read_text())
    told["streams"]["video"] = [e for e in told["streams"]["video"] if e["name"] == "hand"]
    info.write_text(json.dumps(told | {"mixed": False}))
    assert problems(root) == {"z": ["mixed"]}


# Count.


def test_stats_of_both_forms_agree(root: Path, caches: Path) -> None:
    packed, loose = dataset_stats(root), dataset_stats(caches)
    for found in (packed, loose):
        assert (found.items, found.tokens) == (12, {"video": 576, "audio": 72})
        assert found.alike and found.dtypes == {"F16": 12}
        assert found.widths == {"video": {"8": 12}, "audio": {"4": 6}}
        assert found.per_item == (48, 54, 60) and found.seconds == 36.0
        assert found.durations == ((0.0, 10.0, 12),)
        assert found.bytes == sum(p.stat().st_size for p in caches.rglob(f"*{END}"))
    assert (packed.shards, packed.recipes) == (len(committed(root)), 1)
    json.dumps(packed.to_dict())


def test_items_without_sound_are_no_other_encoder(tmp_path: Path) -> None:
    """Sound of another dtype than the pictures, which only some items have."""
    dtype = {"video": "F16", "audio": "F32"}
    write_features(tmp_path / f"a{END}", audio=6, dtype=dtype)
    write_features(tmp_path / f"b{END}", seed=1, dtype=dtype)
    found = dataset_stats(tmp_path)
    assert found.dtypes == {"F16": 1, "F16+F32": 1} and found.alike


def test_stats_tell_what_differs(caches: Path) -> None:
    write_features(caches / f"z{END}", encoder="other", dtype="BF16", width=16,
                   source={"name": "z", "size": 1, "duration": 4000.0})  # fmt: skip
    write_features(caches / f"y{END}", source={"name": "y", "size": 1, "duration": None})
    (caches / f"x{END}").write_text("broken")
    found = dataset_stats(caches)
    assert not found.alike and found.unreadable == 1 and found.items == 14
    assert len(found.encoders["video"]) == 2 and found.dtypes == {"BF16": 1, "F16": 13}
    assert found.durations == ((0.0, 10.0, 12), (3600.0, 7200.0, 1), (None, None, 1))
