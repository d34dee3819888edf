"""A folder read by the ``datasets`` library: as a data set of its card, as Parquet, streamed."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tokpipe.errors import CacheError
from tokpipe.export import Written, exporter_from

pytest.importorskip("pyarrow")

Some = Callable[[str], list[Path]]


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """``load_dataset`` without a network and with its files in a folder of this test."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()
    original = datasets.load_dataset

    def from_folder(*args: str, **options: Any) -> Any:
        cache = str(tmp_path / "hub")
        return original(*args, split="train", cache_dir=cache, **options)

    yield from_folder
    datasets.enable_progress_bars()


def export(target: Path, paths: list[Path], params: str = "") -> Written:
    name = f"hf-datasets:{params}" if params else "hf-datasets"
    return exporter_from(name)[1].write_all(paths, target)


def check(storage: Any, row: dict[str, Any], path: Path, form: str = "auto") -> None:
    """A row without a format is Python numbers, which hold float64 and all below exactly."""
    for name, wanted in storage.held(path).items():
        if not name.startswith("text."):
            found = np.array(row[name.replace(".", "_")], dtype=wanted.dtype)
            storage.same(found.reshape(wanted.shape), wanted, name)
    assert row["text"] == storage.TEXT
    assert row["num_video"] == len(row["video_at"])


@pytest.mark.parametrize("dtype", ["F16", "BF16", "F32"])
def test_datasets_read_arrays(
    storage: Any, some: Some, tmp_path: Path, load: Callable[..., Any], dtype: str
) -> None:
    paths = some(dtype)
    export(tmp_path / "out", paths)
    files = str(tmp_path / "out" / "data" / "*.parquet")
    for data in (load(str(tmp_path / "out")), load("parquet", data_files=files)):
        assert data["id"] == ["clip_0", "clip_1", "clip_2"]
        assert data.features["video_tokens"].shape == (None, 8)
        assert data.features["video_tokens"].dtype == ("float16" if dtype == "F16" else "float32")
        for row, path in zip(data, paths, strict=True):
            check(storage, row, path)
    streamed = load("parquet", data_files=files, streaming=True)
    for row, path in zip(streamed, paths, strict=True):
        check(storage, row, path)


def test_datasets_give_tensors_and_exact_times(
    storage: Any, some: Some, tmp_path: Path, load: Callable[..., Any]
) -> None:
    import torch

    paths = some("F16")
    export(tmp_path / "out", paths)
    data = load(str(tmp_path / "out"))
    view = data.with_format("torch", columns=["video_tokens", "audio_tokens"],
                            output_all_columns=True)  # fmt: skip
    for row, path in zip(view, paths, strict=True):
        held = storage.held(path)
        assert torch.equal(row["video_tokens"], torch.from_numpy(held["video.tokens"]).float())
        assert np.array_equal(np.array(row["video_at"]), held["video.at"])
    assert view[2]["audio_tokens"].shape == (0, 3)
    # What the card warns of: a format rounds every number with a point.
    rounded = data.with_format("numpy")[0]["video_at"]
    assert rounded.dtype == np.float32
    assert not np.array_equal(rounded, storage.held(paths[0])["video.at"])


@pytest.mark.parametrize("dtype", ["F16", "BF16", "F32"])
def test_datasets_read_bytes_with_their_dtype(
    storage: Any, some: Some, tmp_path: Path, load: Callable[..., Any], dtype: str
) -> None:
    import torch

    paths = some(dtype)
    export(tmp_path / "out", paths, "features=bytes,dtype=keep")
    for row, path in zip(load(str(tmp_path / "out")), paths, strict=True):
        held = storage.held(path)
        kind = getattr(torch, row["video_dtype"])
        assert kind == {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}[dtype]
        for name in ("video_tokens", "video_deepstack_1"):
            found = torch.frombuffer(bytearray(row[name]), dtype=kind).reshape(row["video_shape"])
            wanted = torch.from_numpy(held[name.replace("_", ".", 1)])
            assert torch.equal(found.float(), wanted.float())
        assert row["video_at"] == held["video.at"].tolist()
        assert row["video_cell"] == held["video.cell"].tolist()
    assert row["audio_shape"] == [0, 3]
    assert row["audio_tokens"] == b""


def test_datasets_read_a_signal_cache(
    storage: Any, tmp_path: Path, load: Callable[..., Any]
) -> None:
    path = storage.write_signal(tmp_path / f"film{storage.SUFFIX}")
    export(tmp_path / "out", [path])
    row, held = load(str(tmp_path / "out"))[0], storage.held(path)
    assert b"".join(row["video_atlas"]) == held["video.atlas"].tobytes()
    assert row["video_atlas_box"] == held["video.atlas_box"].tolist()
    assert row["video_tokens"] == held["video.tokens"].tolist()


def test_datasets_of_several_files_are_one_split(
    storage: Any, some: Some, tmp_path: Path, load: Callable[..., Any]
) -> None:
    paths = some("F16") * 400
    made = export(tmp_path / "out", paths, "shard_mb=0.5")
    names = sorted(p.name for p in (tmp_path / "out" / "data").iterdir())
    assert made.items == {"items": 1200, "files": len(names)}
    assert names[0] == f"train-00000-of-{len(names):05d}.parquet"
    assert len(names) > 1
    data = load(str(tmp_path / "out"))
    assert len(set(data["id"])) == 1200
    check(storage, data[1199], paths[-1])


def test_card_names_every_column_and_its_snippet_runs(
    storage: Any, some: Some, tmp_path: Path, load: Callable[..., Any], monkeypatch: Any
) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets, "load_dataset", lambda name, split: load(name))
    for number, params in enumerate(("", "features=bytes")):
        out = tmp_path / f"out{number}"
        export(out, some("F16"), params)
        text = (out / "README.md").read_text(encoding="utf-8")
        for column in load(str(out)).column_names:
            assert re.search(rf"^\| `{column}` \| \S", text, re.MULTILINE), column
        snippet = re.findall(r"```python\n(.*?)```", text, re.S)[0]
        found: dict[str, Any] = {}
        exec(snippet.replace("FOLDER", str(out)), found)
        held = storage.held(some("F16")[0])
        assert np.array_equal(found["tokens"].float().numpy(), held["video.tokens"])
        assert list(found["at"]) == held["video.at"].tolist()
        assert "tokpipe.encoder.video" in text


def test_datasets_as_arrays_refuse_another_width(storage: Any, tmp_path: Path) -> None:
    paths = [storage.write_feature(tmp_path / f"{w}{storage.SUFFIX}", width=w) for w in (8, 16)]
    with pytest.raises(CacheError, match="8 wide in"):
        export(tmp_path / "out", paths)
    one = storage.write_feature(tmp_path / f"b{storage.SUFFIX}", "BF16")
    with pytest.raises(CacheError, match="Arrow has no bfloat16"):
        export(tmp_path / "out", [one], "dtype=keep")
