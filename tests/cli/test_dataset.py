"""``tokpipe dataset``: pack, verify, stats; what is printed, events, exit codes."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import tokpipe
from tokpipe.cache.dataset import CacheDataset
from tokpipe.testing.caches import write_features

pytest.importorskip("pyarrow", reason="packing needs pyarrow")

END = ".tokpipe.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "in" / "deep").mkdir(parents=True)
    for seed in range(5):
        place = tmp_path / "in" / ("deep" if seed % 2 else "")
        write_features(place / f"c{seed}{END}", seed=seed, audio=6)
    return tmp_path / "in"


@pytest.fixture
def packed(run: Any, folder: Path, tmp_path: Path) -> Path:
    assert run("dataset", "pack", folder, tmp_path / "ds", "--shard-size", "30kB").exit_code == 0
    return tmp_path / "ds"


def test_pack_prints_what_became_of_the_inputs(run: Any, folder: Path, tmp_path: Path) -> None:
    root = tmp_path / "ds"
    result = run("dataset", "pack", folder, root, "--shard-size", "30kB")
    assert result.exit_code == 0 and result.stderr == ""
    first, second = result.stdout.splitlines()
    assert first.startswith("5 done, ") and " kB added in " in first
    assert second == f"{root}  3 shards"
    result = run("dataset", "pack", folder, root, "-v")
    assert result.stdout.splitlines() == ["5 skipped", f"{root}  3 shards"]
    assert f"deep/c1{END}: skipped " in result.stderr
    assert run("dataset", "pack", folder, root, "-q").stdout == ""


def test_pack_events(run: Any, folder: Path, tmp_path: Path, events: Any) -> None:
    (folder / f"bad{END}").write_text("nothing")
    result = run("dataset", "pack", folder, tmp_path / "ds", "--key", "name", "--json")
    assert result.exit_code == 1
    *items, summary = events(result)
    assert {i["event"] for i in items} == {"item"} and len(items) == 6
    assert {i["input"]: (i["status"], i["key"]) for i in items} == {
        f"bad{END}": ("failed", ""), f"c0{END}": ("done", "c0"), f"c2{END}": ("done", "c2"),
        f"c4{END}": ("done", "c4"), f"deep/c1{END}": ("done", "deep__c1"),
        f"deep/c3{END}": ("done", "deep__c3"),
    }  # fmt: skip
    bad = next(i for i in items if i["status"] == "failed")
    assert bad["error"]["code"] == "cache.header"
    assert {k: summary[k] for k in ("done", "warned", "failed", "skipped", "shards")} == {
        "done": 5, "warned": 0, "failed": 1, "skipped": 0, "shards": 1,
    }  # fmt: skip
    assert summary["bytes"] > 0 and result.stderr.count("error: ") == 1


def test_a_broken_cache_is_named(run: Any, folder: Path, tmp_path: Path, two_lines: Any) -> None:
    (folder / f"bad{END}").write_text("nothing")
    result = run("dataset", "pack", folder, tmp_path / "ds")
    assert result.exit_code == 1 and result.stdout.startswith("5 done, 1 failed, ")
    assert f"bad{END}" in two_lines(result)[0]
    assert (tmp_path / "ds" / "errors" / "W000.jsonl").exists()


def test_mixed_caches_are_usage(run: Any, folder: Path, tmp_path: Path, two_lines: Any) -> None:
    write_features(folder / f"z{END}", encoder="other", seed=9)
    result = run("dataset", "pack", folder, tmp_path / "ds")
    assert result.exit_code == 2 and not (tmp_path / "ds").exists()
    error, hint = two_lines(result)
    assert "`hand (" in error and "`other (" in error and f"z{END}" in error
    assert "--mixed" in hint
    assert run("dataset", "pack", folder, tmp_path / "ds", "--mixed").exit_code == 0


def test_a_changed_cache_needs_force(run: Any, folder: Path, packed: Path, two_lines: Any) -> None:
    write_features(folder / f"c0{END}", seed=0, audio=6, shift=2.0)
    result = run("dataset", "pack", folder, packed)
    assert result.exit_code == 1 and "--force" in two_lines(result)[1]
    result = run("dataset", "pack", folder, packed, "--force")
    assert result.exit_code == 0 and result.stdout.startswith("1 done, 4 skipped, ")


def test_keys_from_a_table(run: Any, folder: Path, tmp_path: Path, events: Any) -> None:
    table = tmp_path / "keys.csv"
    table.write_text("path,key\n" + "".join(f"c{n},k{n}\n" for n in range(5)))
    result = run("dataset", "pack", folder, tmp_path / "ds", "--key", "column", "--keys", table,
                 "--json")  # fmt: skip
    assert sorted(e["key"] for e in events(result)[:-1]) == [f"k{n}" for n in range(5)]


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("--shard-size", "big"), "`big` is no size"),
        (("--shard-size", "0"), "`0` is no size"),
        (("--key", "column"), "--keys"),
        (("--key", "title"), "--key"),
    ],
)
def test_pack_refuses_wrong_options(
    run: Any, folder: Path, tmp_path: Path, words: Any, text: str, two_lines: Any
) -> None:
    result = run("dataset", "pack", folder, tmp_path / "ds", *words)
    assert result.exit_code == 2 and text in two_lines(result)[0]
    assert not (tmp_path / "ds").exists()


def test_folders_that_are_not_there_or_empty(run: Any, tmp_path: Path, two_lines: Any) -> None:
    for words in (("pack", tmp_path / "gone", tmp_path / "ds"), ("verify", tmp_path / "gone"),
                  ("stats", tmp_path / "gone")):  # fmt: skip
        result = run("dataset", *words)
        assert result.exit_code == 2 and "no such folder" in two_lines(result)[0]
    (tmp_path / "empty").mkdir()
    result = run("dataset", "pack", tmp_path / "empty", tmp_path / "ds")
    assert result.exit_code == 2 and "no token caches" in two_lines(result)[0]
    assert not (tmp_path / "ds").exists()
    for verb in ("verify", "stats"):
        assert run("dataset", verb, tmp_path / "empty").exit_code == 1


def test_without_pyarrow_the_extra_is_named(
    run: Any, folder: Path, packed: Path, two_lines: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    result = run("dataset", "pack", folder, packed)
    assert result.exit_code == 3
    assert two_lines(result)[1] == 'pip install "tokpipe[dataset]"'
    assert run("dataset", "verify", packed, "--deep").exit_code == 0
    assert run("dataset", "stats", packed).exit_code == 0


def test_verify_says_ok_or_what_is_wrong(
    run: Any, folder: Path, packed: Path, events: Any
) -> None:  # fmt: skip
    result = run("dataset", "verify", packed, "--deep")
    assert result.stdout == f"{packed}: ok (deep)  5 items\n" and result.exit_code == 0
    assert run("dataset", "verify", folder).stdout == f"{folder}: ok  5 items\n"
    shard = next((packed / "shards").glob("*.tar"))
    data = bytearray(shard.read_bytes())
    data[9000] ^= 1
    shard.write_bytes(data)
    result = run("dataset", "verify", packed, "--deep")
    assert result.exit_code == 1 and "digest: the bytes of" in result.stdout
    found = events(run("dataset", "verify", packed, "--deep", "--json"))
    assert [e["event"] for e in found[:-1]] == ["verify"] * 8
    assert [e["kind"] for e in found[:-1]].count("shard") == 3
    assert [e["ok"] for e in found[:-1]].count(False) == 1
    assert (found[-1]["failed"], found[-1]["items"]) == (1, 5)


def test_stats_for_people_and_programs(
    run: Any, folder: Path, packed: Path, events: Any
) -> None:  # fmt: skip
    lines = run("dataset", "stats", packed).stdout.splitlines()
    assert lines[0].startswith("5 items  3 shards  ")
    assert lines[1] == "video: 240 tokens  hand (pre_projector, sha256:ab, 8 F16)"
    assert lines[3] == "tokens an item: 54 to 54, median 54"
    assert lines[4] == "one encoder and dtype a stream: 5 F16; 1 recipe"
    assert lines[5] == "durations, 0:15 in all:" and lines[6].endswith("#" * 40)
    stats, summary = events(run("dataset", "stats", folder, "--json"))
    assert stats["event"] == "stats" and summary["done"] == 1
    assert stats["tokens"] == {"video": 240, "audio": 30} and stats["alike"] is True
    assert stats["durations"] == [[0.0, 10.0, 5]]


def test_stats_name_shards_that_are_not_whole(run: Any, packed: Path, events: Any) -> None:
    first, second, _ = sorted((packed / "shards").glob("*.tar"))
    first.unlink()
    second.write_bytes(second.read_bytes()[:-600])
    result = run("dataset", "stats", packed)
    assert result.exit_code == 1
    missing, cut = result.stdout.splitlines()[1:3]
    assert missing.startswith(f"shard {first.name}: `{first.name}` is missing; its items")
    assert cut.startswith(f"shard {second.name}: ") and "not the index of a tar of" in cut
    stats, summary = events(run("dataset", "stats", packed, "--json"))
    assert [name for name, _ in stats["broken"]] == [first.name, second.name]
    assert summary["failed"] == 1


def test_a_dataset_is_no_cache(run: Any, folder: Path, packed: Path, two_lines: Any) -> None:
    for command in ("inspect", "verify"):
        result = run(command, packed)
        error, hint = two_lines(result)
        assert result.exit_code == 1 and "is a packed dataset, not one cache" in error
        assert "tokpipe dataset stats or verify" in hint and "tokpipe.load(path)" in hint
        error, hint = two_lines(run(command, folder))
        assert "is a folder, not a cache" in error and "tokpipe dataset verify" in hint
    found = tokpipe.load(packed)
    assert isinstance(found, CacheDataset)
    with found.open(found.keys[0]) as cache:
        assert repr(cache) == f"TokenCache({found.keys[0]!r}, feature, 48 video, 6 audio)"


def test_dataset_alone_shows_help(run: Any) -> None:
    result = run("dataset")
    assert result.exit_code == 2
    assert all(verb in result.stdout for verb in ("pack", "verify", "stats"))


def test_a_terminal_sees_progress(folder: Path, tmp_path: Path) -> None:
    parent, child = pty.openpty()
    done = subprocess.run(
        [sys.executable, "-m", "tokpipe_cli", "dataset", "pack", str(folder), str(tmp_path / "ds")],
        stderr=child, stdout=subprocess.PIPE, env={**os.environ, "TERM": "xterm"}, check=True,
        text=True,
    )  # fmt: skip
    os.close(child)
    shown = os.read(parent, 1 << 16).decode()
    os.close(parent)
    assert "5 of 5" in shown and done.stdout.startswith("5 done")


def test_an_interrupt_leaves_what_a_run_goes_on_with(folder: Path, tmp_path: Path) -> None:
    code = (
        "import os, signal, sys\n"
        "from tokpipe.cache import pack as p\n"
        "def seen(item, done, total):\n"
        "    if done == 3: os.kill(os.getpid(), signal.SIGINT)\n"
        "try: p.pack(sys.argv[1], sys.argv[2], seen=seen)\n"
        "except KeyboardInterrupt: print('stopped')\n"
    )
    root = tmp_path / "ds"
    done = subprocess.run([sys.executable, "-c", code, str(folder), str(root)], check=True,
                          capture_output=True, text=True)  # fmt: skip
    assert done.stdout == "stopped\n"
    assert (root / "shards" / "W000-000000.tar.partial").exists()
    lines = (root / "shards" / "W000-000000.tar.journal").read_text().splitlines()
    assert len([json.loads(line) for line in lines]) == 3
    from tokpipe.cache.pack import pack

    made = pack(folder, root)
    assert (made.count("skipped"), made.count("done")) == (3, 2)
