"""The bank: whole entries only, found by what they depend on, kept within its size."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tokpipe.cache import bank as bank_module
from tokpipe.cache.bank import (
    FRAME,
    Bank,
    BankWriter,
    bank_root,
    scratch_root,
    sweep,
    trim,
)
from tokpipe.chain import build_chain
from tokpipe.decode import probe
from tokpipe.errors import ResourceError
from tokpipe.ingest import bank_key
from tokpipe.recipe import load_recipe
from tokpipe.spec import MediaInfo

META: dict[str, Any] = {"steps": 2, "cells": 3, "grid": [1, 1, 0.0]}
ROOT = Path(__file__).parents[2]


def pictures(count: int = 2) -> list[np.ndarray[Any, np.dtype[np.uint8]]]:
    draw = np.random.default_rng(0)
    low = draw.integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)
    return list(low.repeat(7, 1).repeat(7, 2))


def write(root: Path, key: str | None = "k", size: int = 100) -> Bank:
    with BankWriter(key, root) as writer:
        for i, picture in enumerate(pictures()):
            writer.picture(picture, i / 2, 0.5, 15 * i, 1.0)
        writer.append("descriptors", np.arange(48, dtype="<f2").reshape(2, 24))
        writer.append("audio", bytes(size))
        return writer.commit(META)


def test_entry_reads_back_what_was_written(tmp_path: Path) -> None:
    write(tmp_path).close()
    bank = Bank.find("k", tmp_path)
    assert bank is not None
    assert bank.num_frames == 2
    assert bank.frames()["pts"].tolist() == [0.0, 0.5]
    assert bank.frames(1)["index"].tolist() == [15]
    assert bank.rows("descriptors", 1, 2, np.dtype("<f2"), 24)[0, 0] == 24
    assert bank.rows("nothing", 0, 5, np.dtype("<f2"), 3).shape == (0, 3)
    for (i, found), expected in zip(bank.pictures([0, 1]), pictures(), strict=True):
        assert found.shape == (28, 28, 3)
        assert np.abs(found.astype(int) - expected).mean() < 6, i
    bank.close()


def test_entry_without_a_key_vanishes_but_stays_readable(tmp_path: Path) -> None:
    bank = write(tmp_path, None)
    assert list(tmp_path.iterdir()) == []
    assert len(list(bank.pictures([0, 1]))) == 2
    bank.close()


@pytest.mark.parametrize("room", [0, 28 * 28 * 3 + 20, 1 << 20])
def test_pictures_without_a_key_come_back_as_from_the_bank(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    """They are put by as they are while there is room, and the rest as JPEG."""
    monkeypatch.setattr(bank_module, "PLAIN", room)
    banks = write(tmp_path), write(tmp_path, None)
    kept, own = ([p for _, p in bank.pictures([0, 1])] for bank in banks)
    assert all(np.array_equal(a, b) for a, b in zip(kept, own, strict=True))
    plain = [28 * 28 * 3 + 12] * min(2, room // (28 * 28 * 3 + 12))
    sizes = [bank.meta["files"]["pictures"][0] for bank in banks]
    assert sizes[1] > sizes[0] if plain else sizes[1] == sizes[0]
    assert sizes[1] >= sum(plain)
    for bank in banks:
        bank.close()


def test_fine_pictures_without_a_key_come_back_as_from_the_bank(tmp_path: Path) -> None:
    found = []
    for key in ("k", None):
        with BankWriter(key, tmp_path) as writer:
            writer.picture(pictures()[0], 0.0, 0.5, 0, 1.0)
            writer.fine_picture(pictures()[1], 0, 2)
            bank = writer.commit(META)
        found.append(bank.fine_picture(bank.fine()[0]))
        bank.close()
    assert np.array_equal(found[0], found[1])


def test_failed_fill_leaves_nothing(tmp_path: Path) -> None:
    def fail() -> None:
        with BankWriter("k", tmp_path) as writer:
            writer.append("audio", b"123")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert list(tmp_path.iterdir()) == []
    assert Bank.find("k", tmp_path) is None


@pytest.mark.parametrize(
    "text", [None, "", "{", "[]", "null", "3", '"x"', "{}", '{"steps": "a"}', "\x00\xff"]
)
def test_entry_with_a_garbled_description_is_not_trusted(tmp_path: Path, text: str | None) -> None:
    write(tmp_path).close()
    entry = tmp_path / "k" / "entry.json"
    if text is None:
        entry.unlink()
    else:
        entry.write_bytes(text.encode("latin-1"))
    assert Bank.find("k", tmp_path) is None
    # The next run puts a whole one in its place.
    write(tmp_path).close()
    bank = Bank.find("k", tmp_path)
    assert bank is not None
    assert bank.meta["steps"] == 2
    bank.close()


@pytest.mark.parametrize("name", ["frames", "pictures", "descriptors", "audio"])
@pytest.mark.parametrize("left", [None, 0, 0.5])
def test_entry_with_a_short_file_is_not_trusted(
    tmp_path: Path, name: str, left: float | None
) -> None:
    write(tmp_path).close()
    path = tmp_path / "k" / name
    if left is None:
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[: int(path.stat().st_size * left)])
    assert Bank.find("k", tmp_path) is None
    write(tmp_path).close()
    bank = Bank.find("k", tmp_path)
    assert bank is not None
    bank.close()


def test_entry_that_is_a_file_or_absent_is_none(tmp_path: Path) -> None:
    assert Bank.find("k", tmp_path) is None
    (tmp_path / "k").write_text("not a folder", encoding="utf-8")
    assert Bank.find("k", tmp_path) is None


def test_concurrent_writers_of_one_key_both_get_it(tmp_path: Path) -> None:
    start, errors = threading.Barrier(6), []

    def work() -> None:
        try:
            start.wait()
            for _ in range(5):
                bank = write(tmp_path)
                assert len(list(bank.pictures([0, 1]))) == 2
                bank.close()
        except BaseException as error:  # noqa: BLE001 - shown by the assertion below
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert [p.name for p in tmp_path.iterdir()] == ["k"]


def test_trim_removes_what_was_used_longest_ago(tmp_path: Path) -> None:
    for i, key in enumerate("abc"):
        write(tmp_path, key, 10_000).close()
        os.utime(tmp_path / key / "entry.json", (1000 + i, 1000 + i))
    used = Bank.find("a", tmp_path)  # now the youngest
    assert used is not None
    size = sum(p.stat().st_size for p in (tmp_path / "a").iterdir())
    removed = trim(tmp_path, capacity=2 * size)
    assert removed == size
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "c"]
    trim(tmp_path, keep="c", capacity=0)
    assert [p.name for p in tmp_path.iterdir()] == ["c"]
    # An open entry stays readable after it is gone.
    assert len(list(used.pictures([0, 1]))) == 2
    used.close()


def test_sweep_removes_leftovers_of_dead_processes_only(tmp_path: Path) -> None:
    child = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"],
                           capture_output=True, text=True, check=True)  # fmt: skip
    dead, alive = tmp_path / f".{int(child.stdout)}-x", tmp_path / f".{os.getpid()}-x"
    for path in (dead, alive):
        path.mkdir()
        (path / "audio").write_bytes(b"1")
    sweep(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == [alive.name]


def test_bank_root_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKPIPE_CACHE_DIR", str(tmp_path))
    assert bank_root() == tmp_path / "bank"
    monkeypatch.delenv("TOKPIPE_CACHE_DIR")
    assert bank_root().name == "bank"
    assert "tokpipe" in str(bank_root())


def test_unwritable_root_is_a_resource_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(ResourceError, match="bank"):
        BankWriter("k", tmp_path / "file" / "bank")


def test_full_disk_is_a_resource_error(tmp_path: Path) -> None:
    """A limit on the size of files stands in for a full disk."""
    code = (
        "import resource, signal, sys\n"
        "from pathlib import Path\n"
        "from tokpipe.cache.bank import BankWriter\n"
        "from tokpipe.errors import ResourceError\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))\n"
        "try:\n"
        "    with BankWriter('k', Path(sys.argv[1])) as writer:\n"
        "        for _ in range(64):\n"
        "            writer.append('audio', bytes(1 << 16))\n"
        "        writer.commit({})\n"
        "except ResourceError as error:\n"
        "    assert 'cannot write the bank' in str(error), error\n"
        "    print('refused')\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True,
                          text=True, cwd=ROOT, check=False)  # fmt: skip
    assert done.stdout == "refused\n", done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def info() -> MediaInfo:
    return probe(ROOT / "samples" / "media" / "action.mp4")


def key_of(info: MediaInfo, recipe: str = "auto", *, strict: bool = False) -> str:
    chains = {name: build_chain(name, c) for name, c in load_recipe(recipe).chains.items()}
    return bank_key(info, chains, strict)


def test_key_changes_with_everything_the_entry_depends_on(
    info: MediaInfo, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert info.video is not None
    keys = [
        key_of(info),
        key_of(replace(info, fingerprint="sha256:other")),
        key_of(info, strict=True),
        key_of(info, "video: fps:fps=1.0 | pixels; audio: mel"),
        key_of(info, "video: fps | pixels:cells=20; audio: mel"),
        key_of(info, "video: fps | pixels; audio: mel:bins=128"),
        key_of(info, "fps | pixels"),
        key_of(info, "audio: mel"),
        key_of(replace(info, video=replace(info.video, index=7))),
    ]
    for module, name in (("av", "__version__"), ("PIL", "__version__"), ("torch", "__version__"),
                         ("tokpipe.ingest", "__version__")):  # fmt: skip
        with monkeypatch.context() as patch:
            patch.setattr(f"{module}.{name}", "0.0.0")
            keys.append(key_of(info))
    with monkeypatch.context() as patch:
        patch.setattr("tokpipe.encode.pixels.Pixels.version", 99)
        keys.append(key_of(info))
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize(
    "recipe",
    [
        "video: fps | pixels; audio: mel",
        "video: fps:fps=2.0 | pixels:cells=16 | tome; audio: mel:bins=80 | adjacent-merge",
        "video: fps | pixels | temporal-drop | top-k; audio: mel | silence-gate; budget=77; seed=5",
    ],
)
def test_key_does_not_change_with_budget_seed_or_tail(info: MediaInfo, recipe: str) -> None:
    assert key_of(info, recipe) == key_of(info)


def test_description_is_canonical_json(tmp_path: Path) -> None:
    write(tmp_path).close()
    text = (tmp_path / "k" / "entry.json").read_text(encoding="utf-8")
    assert json.loads(text)["steps"] == 2
    assert FRAME.itemsize == 40


def test_pictures_decoded_side_by_side_come_in_order(tmp_path: Path) -> None:
    with BankWriter(None, tmp_path) as writer:
        for i in range(20):
            rgb = np.full((28, 56, 3), 10 * i, dtype=np.uint8)
            writer.picture(rgb, i / 2, 0.5, i, 0.0)
        bank = writer.commit({})
        wanted = [1, 2, 5, 7, 8, 9, 11, 15, 16, 19]
        found = list(bank.pictures(wanted, threads=3))
        assert [i for i, _ in found] == wanted
        for i, picture in found:
            assert abs(int(picture.mean()) - 10 * i) <= 1
        bank.close()


def test_an_entry_nobody_keeps_needs_no_bank_that_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOKPIPE_CACHE_DIR", str(tmp_path / "there"))
    assert scratch_root() == bank_root()
    # A read-only folder, also for those whom no mode stops.
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert scratch_root() != bank_root()
