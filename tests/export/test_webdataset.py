"""WebDataset shards, read by webdataset itself; energon's files by their schema, and by it."""

from __future__ import annotations

import filecmp
import gc
import io
import json
import os
import sqlite3
import struct
import tarfile
import tracemalloc
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tokpipe.errors import CacheError
from tokpipe.export import Written, exporter_from
from tokpipe.export._storage.gather import item_ids

Some = Callable[[str], list[Path]]


def export(target: Path, paths: list[Path], params: str = "") -> Written:
    name = f"webdataset:{params}" if params else "webdataset"
    return exporter_from(name)[1].write_all(paths, target)


def read(folder: Path, *handlers: Any) -> dict[str, dict[str, Any]]:
    """Samples by key, through the library's own pipeline."""
    wds = pytest.importorskip("webdataset")
    shards = sorted(str(path) for path in folder.glob("*.tar"))
    with warnings.catch_warnings():
        # The library leaves its files to the garbage collector.
        warnings.simplefilter("ignore", ResourceWarning)
        data = wds.WebDataset(shards, shardshuffle=False, empty_check=False).decode(*handlers)
        found = list(data)
        del data
        gc.collect()
    assert len({sample["__key__"] for sample in found}) == len(found)
    return {sample["__key__"]: sample for sample in found}


@pytest.mark.parametrize("dtype", ["F16", "BF16", "F32"])
@pytest.mark.parametrize("choice", ["auto", "float16", "float32"])
def test_webdataset_gives_every_tensor_back(
    storage: Any, some: Some, tmp_path: Path, dtype: str, choice: str
) -> None:
    paths = some(dtype)
    made = export(tmp_path / "out", paths, f"dtype={choice}")
    samples = read(tmp_path / "out")
    assert list(samples) == ["clip_0", "clip_1", "clip_2"]
    assert made.tokens == sum(len(storage.held(p)["video.at"]) for p in paths) + 10
    for sample, path in zip(samples.values(), paths, strict=True):
        for name, wanted in storage.held(path).items():
            form = storage.number(name, choice)
            storage.same(sample[f"{name}.npy"], wanted, name, form)
        assert sample["json"]["metadata"]["tokpipe.source"]["name"] == "lecture.v2.mp4"
        assert [line[2] for line in sample["json"]["transcript"]] == storage.TEXT


def test_webdataset_keeps_bfloat16_as_safetensors(storage: Any, some: Some, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load

    wds = pytest.importorskip("webdataset")
    paths = some("BF16")
    export(tmp_path / "out", paths, "dtype=keep")
    plain = read(tmp_path / "out")["clip_1"]["video.tokens.safetensors"]
    assert isinstance(plain, bytes)
    handled = read(tmp_path / "out", wds.handle_extension("safetensors", load))["clip_1"]
    for name in ("video.tokens", "video.deepstack_1", "audio.tokens"):
        tensor = handled[f"{name}.safetensors"][name]
        assert tensor.dtype == torch.bfloat16
        storage.same(tensor.float().numpy(), storage.held(paths[1])[name], name)


def test_webdataset_of_a_signal_cache_holds_descriptors_and_atlas(
    storage: Any, tmp_path: Path
) -> None:
    path = storage.write_signal(tmp_path / f"film{storage.SUFFIX}")
    export(tmp_path / "out", [path])
    sample = read(tmp_path / "out")["film"]
    wanted = storage.held(path)
    assert "video.atlas" in wanted
    for name, array in wanted.items():
        storage.same(sample[f"{name}.npy"], array, name)


def test_webdataset_samples_have_the_same_members_where_sound_is_absent(
    some: Some, tmp_path: Path
) -> None:
    made = export(tmp_path / "out", some("F16"))
    samples = read(tmp_path / "out")
    silent, other = samples["clip_2"], samples["clip_0"]
    assert set(silent) == set(other)
    assert silent["audio.tokens.npy"].shape == (0, 3)
    assert silent["audio.members_offsets.npy"].tolist() == [0]
    assert "1 of 3 caches have no audio: 0 rows" in made.notes


def test_webdataset_shards_keep_their_size_and_repeat_byte_for_byte(
    storage: Any, tmp_path: Path
) -> None:
    paths = [
        storage.write_feature(tmp_path / f"{i}{storage.SUFFIX}", seed=i, video=100)
        for i in range(9)
    ]
    made = export(tmp_path / "a", paths, "shard_mb=0.15,val=0.3")
    export(tmp_path / "b", paths, "shard_mb=0.15,val=0.3")
    shards = sorted((tmp_path / "a").glob("*.tar"))
    assert made.items == {"samples": 9, "shards": len(shards)}
    assert 3 <= len(shards) < 9
    assert all(shard.stat().st_size <= 150_000 for shard in shards)
    assert list(read(tmp_path / "a")) == [str(i) for i in range(9)]
    files = [p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*") if p.is_file()]
    _, differ, odd = filecmp.cmpfiles(tmp_path / "a", tmp_path / "b", files, shallow=False)
    assert (differ, odd) == ([], [])


def test_item_ids_have_no_dot_and_are_not_the_same() -> None:
    end = ".tokpipe.safetensors"
    assert item_ids([Path(f"a.b.mp4{end}"), Path(f"späte Stunde{end}")]) == (
        "a_b_mp4", "späte_Stunde",
    )  # fmt: skip
    clash = item_ids([Path(f"/x/one/a{end}"), Path(f"/x/two/a{end}"), Path(f"/x/two/b.c{end}")])
    assert clash == ("one--a", "two--a", "two--b_c")
    same = item_ids([Path(f"/x/a.b{end}"), Path(f"/x/a_b{end}"), Path(f"/x/...{end}")])
    assert same == ("a_b", "a_b~2", "item")


def test_webdataset_reads_long_names_that_are_not_ascii(storage: Any, tmp_path: Path) -> None:
    name = "Führung_" * 18
    path = storage.write_feature(tmp_path / f"{name}{storage.SUFFIX}")
    export(tmp_path / "out", [path])
    sample = read(tmp_path / "out")[name.rstrip("_")]
    storage.same(sample["video.at.npy"], storage.held(path)["video.at"], "video.at")


def test_webdataset_says_when_float16_cannot_hold_a_feature(storage: Any, tmp_path: Path) -> None:
    wide = np.full((2, 4), 1e6, dtype=np.float32)
    path = storage.write_feature(tmp_path / f"a{storage.SUFFIX}", "F32", video=2, width=4,
                                 tokens=wide)  # fmt: skip
    with pytest.raises(CacheError, match="reaches 1e\\+06, beyond the range of float16") as error:
        export(tmp_path / "out", [path], "dtype=float16")
    assert error.value.code == "export.overflow"
    assert "dtype=float32" in str(error.value.hint)


def test_energon_index_points_at_every_member(storage: Any, some: Some, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export(out, some("F16"), "shard_mb=0.06,val=0.34")
    meta = out / ".nv-meta"
    info = json.loads((meta / ".info.json").read_text())
    assert info["energon_version"] == "7.4.1"
    assert list(info["shard_counts"].values()) == [1, 1, 1]
    base = sqlite3.connect(meta / "index.sqlite")
    rows = base.execute("SELECT * FROM samples ORDER BY tar_file_id, sample_index").fetchall()
    names = list(info["shard_counts"])
    for shard, key, index, offset, size in rows:
        data = (out / names[shard]).read_bytes()
        edges = struct.unpack(f"<{info['shard_counts'][names[shard]] + 1}Q",
                              (out / f"{names[shard]}.idx").read_bytes())  # fmt: skip
        assert (edges[index], edges[index + 1]) == (offset, offset + size)
        with tarfile.open(fileobj=io.BytesIO(data[offset : offset + size])) as tar:
            members = {m.name: (m.offset_data + offset, m.size) for m in tar}
        parts = base.execute(
            "SELECT part_name, content_byte_offset, content_byte_size FROM sample_parts"
            " WHERE tar_file_id = ? AND sample_index = ?", (shard, index),
        ).fetchall()  # fmt: skip
        assert {f"{key}.{p}": (at, n) for p, at, n in parts} == members
    base.close()


def test_energon_configuration_is_yaml_of_whole_shards(some: Some, tmp_path: Path) -> None:
    yaml = pytest.importorskip("yaml")
    export(tmp_path / "out", some("F16"), "shard_mb=0.06,val=0.34")
    meta = tmp_path / "out" / ".nv-meta"
    assert yaml.safe_load((meta / "split.yaml").read_text()) == {
        "split_parts": {
            "train": ["shard-000000.tar", "shard-000001.tar"], "val": ["shard-000002.tar"],
            "test": [],
        },
        "exclude": [],
    }  # fmt: skip
    assert yaml.safe_load((meta / "dataset.yaml").read_text()) == {
        "__module__": "megatron.energon", "__class__": "CrudeWebdataset",
    }  # fmt: skip


@pytest.mark.filterwarnings("ignore:'pin_memory':UserWarning")
def test_energon_reads_the_samples(storage: Any, some: Some, tmp_path: Path) -> None:
    energon = pytest.importorskip("megatron.energon", reason="energon is not installed")
    paths = some("F16")
    export(tmp_path / "out", paths)

    # Samples as they come; a class of its own, as energon asks for one.
    members = {
        "cookers": (energon.Cooker(energon.stateless(lambda sample: sample)),),
        "batch": lambda self, samples: samples,
    }
    plain = type("Plain", (energon.DefaultTaskEncoder,), members)
    data = energon.get_val_dataset(
        tmp_path / "out", split_part="train", batch_size=1, task_encoder=plain(),
        worker_config=energon.WorkerConfig(rank=0, world_size=1, num_workers=0),
    )  # fmt: skip
    found = {batch[0]["__key__"]: batch[0] for batch in energon.get_loader(data)}
    wanted = storage.held(paths[0])
    for name in wanted:
        storage.same(found["clip_0"][f"{name}.npy"], wanted[name], name)


def test_webdataset_memory_does_not_grow_with_the_number_of_caches(
    storage: Any, tmp_path: Path
) -> None:
    one = storage.write_feature(tmp_path / f"0{storage.SUFFIX}", video=2000, width=64)
    paths = [one]
    for i in range(1, 200):
        paths.append(tmp_path / f"{i}{storage.SUFFIX}")
        os.link(one, paths[-1])
    export(tmp_path / "warm", paths[:2])
    tracemalloc.start()
    export(tmp_path / "out", paths)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8e6
    assert sum(p.stat().st_size for p in (tmp_path / "out").glob("*.tar")) > 100e6
