"""Items of packed datasets as inputs of exports: whole, or an error of their own."""

from __future__ import annotations

from pathlib import Path

import pytest

from tokpipe.cache.dataset import open_dataset
from tokpipe.cache.pack import pack
from tokpipe.errors import CacheCorrupt
from tokpipe.export._inputs import CacheFiles
from tokpipe.testing.caches import write_features

pytest.importorskip("pyarrow", reason="packing needs pyarrow")

END = ".tokpipe.safetensors"


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    """Three items, a, b and c, in one shard."""
    (tmp_path / "in").mkdir()
    for seed, name in enumerate("abc"):
        write_features(tmp_path / "in" / f"{name}{END}", seed=seed)
    pack(tmp_path / "in", tmp_path / "ds", key="name")
    return tmp_path / "ds"


def flip(dataset: Path, key: str, place: int) -> None:
    """Change a byte of an item, or behind it."""
    found = open_dataset(dataset)
    shard, (start, size) = found.window(found.find(key))
    data = bytearray(shard.read_bytes())
    data[start + (place if place >= 0 else size - place)] ^= 0x10
    shard.write_bytes(data)


def test_items_are_copied_as_they_are(packed: Path) -> None:
    with CacheFiles([packed]) as caches:
        for number, name in enumerate("abc"):
            copied = caches[number]
            assert copied.name == f"{name}{END}"
            assert copied.read_bytes() == (packed.parent / "in" / copied.name).read_bytes()


@pytest.mark.parametrize("place", [4000, -520], ids=["the cache", "its JSON's header"])
def test_an_item_of_other_bytes_is_an_error_of_its_own(packed: Path, place: int) -> None:
    flip(packed, "b", place)
    with CacheFiles([packed]) as caches:
        assert caches[0].is_file()
        for _ in range(2):
            with pytest.raises(CacheCorrupt, match="item `b`: its bytes differ") as caught:
                caches[1]
        assert caught.value.code == "dataset.digest"
        assert "dataset verify --deep" in (caught.value.hint or "")
        assert caches[2].is_file()


def test_the_export_of_the_others_goes_on(packed: Path, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from tokpipe_cli.app import app

    flip(packed, "b", 4000)
    words = ["export", str(packed), "--to", "npz", "-o", f"{tmp_path}/out/"]
    result = CliRunner().invoke(app, words, prog_name="tokpipe")
    assert result.exit_code == 1 and "item `b`: its bytes differ" in result.stderr
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["a.npz", "c.npz"]
