"""Packing that is killed at random moments, and goes on: nothing is lost, nothing twice."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tokpipe.cache.dataset import open_dataset
from tokpipe.cache.dataset_check import verify_dataset
from tokpipe.cache.pack import pack
from tokpipe.testing.caches import write_features

pytest.importorskip("pyarrow", reason="packing needs pyarrow")

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


_SERVER = """
import os, sys
from tokpipe.cache.pack import pack
import pyarrow.parquet
print("ready", flush=True)
for line in sys.stdin:
    source, target, size = line.rstrip("\\n").split("\\t")
    worker = os.fork()
    if worker == 0:
        try:
            pack(source, target, shard_size=int(size))
        except BaseException as error:
            print(type(error).__name__, error, file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    print(worker, flush=True)
    print(os.waitpid(worker, 0)[1], flush=True)
"""


class Server:
    """Forks a worker that packs; imports once."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", _SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            text=True,
        )  # fmt: skip
        assert self._line() == "ready"

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def run(self, source: Path, target: Path, size: int, kill: float | None = None) -> int:
        """Pack, killed after so many seconds; returns the worker's wait status."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{source}\t{target}\t{size}\n")
        self.process.stdin.flush()
        worker = int(self._line())
        if kill is not None:
            time.sleep(kill)
            with suppress(ProcessLookupError):
                os.kill(worker, signal.SIGKILL)
        return int(self._line())


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    made = Server()
    yield made
    assert made.process.stdin is not None
    made.process.stdin.close()
    made.process.wait()
    assert made.process.stdout is not None
    made.process.stdout.close()


@pytest.mark.parametrize("seed", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 2, 3))])
def test_killed_at_random_moments_nothing_is_lost_or_twice(
    server: Server, caches: Path, packed: Path, tmp_path: Path, seed: int
) -> None:
    drawn, root, kills = random.Random(seed), tmp_path / "ds", 0
    started = time.monotonic()
    assert server.run(caches, tmp_path / "whole", SHARD) == 0
    length = time.monotonic() - started
    for _ in range(15):
        status = server.run(caches, root, SHARD, kill=drawn.uniform(0, 0.6 * length))
        if status == 0:
            break
        kills += 1
        for path in (*root.glob("shards/*.partial"), *root.glob("shards/*.journal")):
            if drawn.random() < 0.3:
                os.truncate(path, max(0, path.stat().st_size - drawn.randrange(1, 9000)))
    else:
        assert server.run(caches, root, SHARD) == 0
    assert kills > 0
    assert contents(root) == contents(packed)
    assert all_sound(root)


def test_killed_runs_can_be_read_while_they_are_open(
    server: Server, caches: Path, tmp_path: Path
) -> None:
    root, seen = tmp_path / "ds", set[str]()
    for _ in range(6):
        server.run(caches, root, SHARD, kill=0.15)
        if (root / "tokpipe-dataset.json").exists():
            keys: list[Any] = open_dataset(root).keys
            assert seen <= set(keys)
            seen = set(keys)
