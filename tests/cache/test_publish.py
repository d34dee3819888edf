"""Atomic publishing: kills, races, stale files."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tokpipe.cache import open_cache, sweep_stale
from tokpipe.cache._publish import temp_path
from tokpipe.cache.verify import verify

Make = Callable[..., Any]

_PROGRAM = """
import sys, time
import numpy as np
from tokpipe.cache import CacheWriter
from tokpipe.errors import OutputExists
target, mode = sys.argv[1:]
n = 30000
at = np.arange(n) / 100
rows = {"tokens": np.ones((n, 64), np.float16), "at": at, "pts": np.stack([at, at], 1),
        "frame": np.zeros((n, 2), int), "cell": np.zeros((n, 3), int),
        "extent": np.ones((n, 3), int), "tile": np.zeros(n, int), "mass": np.ones(n),
        "kind": np.zeros(n, int), "segment": np.full(n, -1), "score": np.full(n, np.nan),
        "rank": np.arange(n)}
meta = {"tokpipe." + k: "x" for k in ("writer", "recipe_sha256")}
meta |= {"tokpipe.domain": "feature", "tokpipe.layout": "ragged", "tokpipe.source": {},
         "tokpipe.recipe": {}, "tokpipe.encoder.video": {},
         "tokpipe.counts": {"video": {"source": n, "dropped": 0}}}
if mode == "stop":
    # Wait in the middle of the write: after the header and half of the tensors.
    from tokpipe.cache._spool import Spool
    blocks, seen = Spool.blocks, []
    def slow(self):
        seen.append(self)
        if len(seen) == 6:
            print("writing", flush=True)
            time.sleep(60)
        return blocks(self)
    Spool.blocks = slow
print("ready", flush=True)
sys.stdin.readline()
try:
    with CacheWriter(target, force=mode == "force") as writer:
        writer.append("video", rows)
        writer.finish(meta)
except OutputExists:
    print("exists", flush=True)
else:
    print("written", flush=True)
"""


def start(target: Path, mode: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen(
        [sys.executable, "-c", _PROGRAM, str(target), mode],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
    )  # fmt: skip


@pytest.mark.parametrize(("mode", "outcome"), [("force", ["written"] * 2),
                                               ("plain", ["exists", "written"])])  # fmt: skip
def test_two_writers_of_one_target_leave_one_whole_file(
    tmp_path: Path, mode: str, outcome: list[str]
) -> None:
    target = tmp_path / "a.tokpipe.safetensors"
    both = [start(target, mode) for _ in range(2)]
    for process in both:
        assert process.stdout is not None
        process.stdout.readline()
    said = []
    for process in both:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in both:
        said.append(process.communicate()[0].strip())
    assert sorted(said) == outcome
    assert [p.name for p in tmp_path.iterdir()] == [target.name]
    assert verify(target, deep=True).ok


def test_killed_writer_leaves_no_file_and_the_rest_is_swept(tmp_path: Path) -> None:
    target = tmp_path / "a.tokpipe.safetensors"
    process = start(target, "stop")
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("go\n")
    process.stdin.flush()
    assert [process.stdout.readline().strip() for _ in range(2)] == ["ready", "writing"]
    left = list(tmp_path.iterdir())
    assert [p.suffix for p in left] == [".tmp"]
    assert sweep_stale(tmp_path) == [], "its writer is alive"
    process.kill()
    process.communicate()
    assert not target.exists()
    assert sweep_stale(tmp_path) == left
    assert list(tmp_path.iterdir()) == []


def test_killed_writer_at_any_moment_leaves_nothing_under_the_name(tmp_path: Path) -> None:
    target = tmp_path / "a.tokpipe.safetensors"
    for delay in (0.0, 0.005, 0.01, 0.02, 0.04):
        process = start(target, "force")
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.readline()
        process.stdin.write("go\n")
        process.stdin.flush()
        time.sleep(delay)
        process.kill()
        process.communicate()
        sweep_stale(tmp_path)
        assert {p.name for p in tmp_path.iterdir()} <= {target.name}
        if target.exists():
            open_cache(target).close()


def test_sweep_takes_old_files_of_other_hosts_and_no_others(tmp_path: Path) -> None:
    old, young = (tmp_path / f".a.otherhost.1.{n * 8}.tmp" for n in "01")
    keep = [tmp_path / n for n in (".a.tmp", "a.host.1.00000000.tmp", ".a.h.x.00000000.tmp")]
    for path in (old, young, *keep):
        path.write_bytes(b"x")
    hour_ago = time.time() - 3700
    for path in (old, *keep):
        os.utime(path, (hour_ago, hour_ago))
    assert sweep_stale(tmp_path) == [old]
    assert sweep_stale(tmp_path / "missing") == []


def test_temp_name_fits_beside_the_longest_name(tmp_path: Path) -> None:
    target = tmp_path / ("é" * 127)
    assert len(os.fsencode(temp_path(target).name)) <= 255
    temp_path(target).touch()
