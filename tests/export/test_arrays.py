"""Plain files of numpy and torch: .npz, .npy per video, .pt."""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tokpipe.cache import open_cache
from tokpipe.errors import CacheError, RecipeError
from tokpipe.export import Written, exporter_from
from tokpipe.export._run import export_cache

Some = Callable[[str], list[Path]]


def export(name: str, path: Path, target: Path) -> Written:
    with open_cache(path) as cache:
        return exporter_from(name)[1].write(cache, target)


@pytest.mark.parametrize("dtype", ["F16", "BF16", "F32"])
@pytest.mark.parametrize("choice", ["auto", "float16", "float32"])
def test_npz_gives_every_tensor_back(
    storage: Any, some: Some, tmp_path: Path, dtype: str, choice: str
) -> None:
    for path in (*some(dtype)[1:], storage.write_signal(tmp_path / f"film{storage.SUFFIX}")):
        target = tmp_path / f"{path.name}.npz"
        made = export(f"npz:dtype={choice}", path, target)
        held = storage.held(path)
        with np.load(target) as found:
            assert set(found.files) == {*held, "metadata"}
            for name, wanted in held.items():
                storage.same(found[name], wanted, name, storage.number(name, choice))
            metadata = json.loads(str(found["metadata"]))
        assert metadata["tokpipe.layout"] == "ragged"
        assert made.items == {"arrays": len(held)}


def test_npz_says_what_a_dtype_costs(some: Some, tmp_path: Path) -> None:
    notes = {}
    for dtype in ("F16", "BF16", "F32"):
        for choice in ("auto", "float16"):
            made = export(f"npz:dtype={choice}", some(dtype)[0], tmp_path / f"{dtype}{choice}.npz")
            notes[dtype, choice] = " ".join(made.notes)
    assert notes["F16", "auto"] == notes["F32", "auto"] == notes["F16", "float16"] == ""
    assert notes["BF16", "auto"] == "bfloat16 features were written as float32, exactly"
    assert "rounded where it is below 6.1e-05" in notes["BF16", "float16"]
    assert "rounded to 11 bits" in notes["F32", "float16"]


def test_pooling_forms_repeat_byte_for_byte(some: Some, tmp_path: Path) -> None:
    for name in ("npz", "pt"):
        for number in (1, 2):
            export(name, some("F16")[0], tmp_path / f"other_name_{number}.{name}")
        first, second = sorted(tmp_path.glob(f"*.{name}"))
        assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize("dtype", ["F16", "BF16", "F32"])
def test_pt_loads_tensors_alone(storage: Any, some: Some, tmp_path: Path, dtype: str) -> None:
    kinds = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}
    for path in (*some(dtype)[1:], storage.write_signal(tmp_path / f"film{storage.SUFFIX}")):
        target = tmp_path / f"{path.name}.pt"
        export("pt", path, target)
        held = storage.held(path)
        for mapped in (False, True):
            found = torch.load(target, weights_only=True, mmap=mapped)
            assert set(found) == {*held, "metadata"}
            for name, wanted in held.items():
                tensor = found[name]
                if tensor.dtype == torch.bfloat16:
                    tensor = tensor.float()
                storage.same(tensor.numpy(), wanted, name)
        assert found["metadata"]["tokpipe.format"] == "1.0"
        stored = dtype if "film" not in path.name else "F16"
        assert found["video.tokens"].dtype == kinds[stored]


# One vector for each frame.


def npy(paths: list[Path], target: Path, params: str = "") -> Written:
    return exporter_from(f"npy:{params}" if params else "npy")[1].write_all(paths, target)


def slow_means(held: dict[str, Any]) -> tuple[Any, Any]:
    """What the page says, token by token."""
    at, pts = held["video.at"], held["video.pts"]
    real = [i for i in range(len(at)) if held["video.kind"][i] < 3]
    times = np.unique(at[real])
    out = []
    for time in times:
        rows, weights = [], []
        for i in real:
            if at[i] == time or pts[i, 0] <= time < pts[i, 1]:
                rows.append(held["video.tokens"][i].astype(np.float64))
                weights.append(held["video.mass"][i] / max(1, held["video.extent"][i, 0]))
        out.append(np.average(rows, axis=0, weights=weights))
    return np.array(out), times


@pytest.mark.parametrize("dtype", ["F16", "BF16", "F32"])
def test_npy_is_the_mean_of_the_tokens_that_stand_for_a_frame(
    storage: Any, tmp_path: Path, dtype: str
) -> None:
    path = storage.write_feature(tmp_path / f"a.b{storage.SUFFIX}", dtype, video=60)
    npy([path], tmp_path / "out", "dtype=float32")
    held = storage.held(path)
    wanted, times = slow_means(held)
    found = np.load(tmp_path / "out" / "a_b.npy")
    assert (found.shape, found.dtype) == ((60, 8), np.float32)
    np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-6)
    assert np.array_equal(np.load(tmp_path / "out" / "a_b.times.npy"), times)
    # Spans of 0.4 s over frames 0.17 s apart: most frames are shown by several tokens.
    assert not np.allclose(found, held["video.tokens"].astype(np.float32))


def test_npy_of_whole_frames_is_their_plain_mean(storage: Any, tmp_path: Path) -> None:
    at = np.repeat(np.arange(5.0), 4)
    path = storage.write_feature(tmp_path / f"a{storage.SUFFIX}", video=20, at=at)
    npy([path], tmp_path / "out")
    tokens = storage.held(path)["video.tokens"].astype(np.float64).reshape(5, 4, 8)
    found = np.load(tmp_path / "out" / "a.npy")
    assert np.array_equal(found, tokens.mean(1).astype(np.float16))
    assert np.load(tmp_path / "out" / "a.times.npy").tolist() == [0.0, 1.0, 2.0, 3.0, 4.0]


def test_npy_takes_as_many_frames_as_asked(storage: Any, tmp_path: Path) -> None:
    at = np.repeat(np.arange(50) * 2.0, 2)
    path = storage.write_feature(tmp_path / f"a{storage.SUFFIX}", video=100, at=at)
    made = npy([path], tmp_path / "few", "frames=10")
    times = np.load(tmp_path / "few" / "a.times.npy")
    # 99.5 s in ten parts: the frame shown in the middle of each.
    assert times.tolist() == [4.0, 14.0, 24.0, 34.0, 44.0, 54.0, 64.0, 74.0, 84.0, 94.0]
    assert made.items == {"caches": 1, "rows": 10}
    npy([path], tmp_path / "many", "frames=100")
    rows, again = (np.load(tmp_path / "many" / f"a{end}.npy") for end in ("", ".times"))
    assert (rows.shape, rows.dtype) == ((100, 8), np.float16)
    assert len(np.unique(again)) == 50


@pytest.mark.parametrize("dtype", ["F16", "BF16", "F32"])
def test_npy_of_all_tokens_is_the_tokens(
    storage: Any, some: Some, tmp_path: Path, dtype: str
) -> None:
    path = some(dtype)[0]
    npy([path], tmp_path / "out", "pool=all,dtype=float32,stream=audio")
    held = storage.held(path)
    found = np.load(tmp_path / "out" / "clip_0.npy")
    storage.same(found, held["audio.tokens"].astype(np.float32), "audio.tokens")
    times = np.load(tmp_path / "out" / "clip_0.times.npy")
    storage.same(times, held["audio.at"], "audio.at")


def test_npy_refuses_what_it_cannot_pool(some: Some, tmp_path: Path) -> None:
    with pytest.raises(CacheError, match="has no audio") as error:
        npy(some("F16"), tmp_path / "out", "stream=audio")
    assert error.value.code == "cache.stream"
    with pytest.raises(RecipeError, match="frames counts pooled rows"):
        npy(some("F16"), tmp_path / "out", "pool=all,frames=3")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows limits no file size")
@pytest.mark.parametrize("name", ["pt", "npz"])
def test_a_full_disk_is_an_error_of_the_disk(storage: Any, tmp_path: Path, name: str) -> None:
    """At any place in the file, and nothing of it is left."""
    import resource

    path = storage.write_feature(tmp_path / f"big{storage.SUFFIX}", "F32", video=3000, audio=5)
    export(name, path, tmp_path / "whole")
    whole = (tmp_path / "whole").stat().st_size
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    _, exporter = exporter_from(name)
    try:
        for most in (0, 100, whole // 2, whole - 10):
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))
            with pytest.raises(OSError, match=os.strerror(errno.EFBIG)):
                export_cache(path, tmp_path / "out", name, exporter)
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, old)
    assert sorted(p.name for p in tmp_path.iterdir()) == [path.name, "whole"]
