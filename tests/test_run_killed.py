"""A run that is killed at any moment leaves a whole cache or none, and the next run cleans up."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

import tokpipe

ROOT = Path(__file__).parents[1]
#: Imports once and forks a worker for every path it is told: importing takes longer than running.
_SERVER = """
import os, sys
import tokpipe.ingest, tokpipe.assemble, tokpipe.decide
from tokpipe.run import Options, compress_file
import tokpipe.decode.pyav
print("ready", flush=True)
for line in sys.stdin:
    source, target = line.rstrip("\\n").split("\\t")
    worker = os.fork()
    if worker == 0:
        try:
            compress_file(source, target, budget=600, options=Options(prefetch=2))
        except BaseException as error:
            print(type(error).__name__, error, file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    print(worker, flush=True)
    print(os.waitpid(worker, 0)[1], flush=True)
"""
KILLS = 20


class Runner:
    """Runs in a process of its own that can be killed."""

    def __init__(self, cache: Path) -> None:
        """Start the server and wait until it has imported everything."""
        environment = {**os.environ, "TOKPIPE_CACHE_DIR": str(cache), "OMP_NUM_THREADS": "1"}
        self.server = subprocess.Popen(
            [sys.executable, "-c", _SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            text=True, cwd=ROOT, env=environment,
        )  # fmt: skip
        assert self._line() == "ready"

    def _line(self) -> str:
        assert self.server.stdout is not None
        return self.server.stdout.readline().strip()

    def run(self, source: Path, target: Path, kill_after: float | None = None) -> int:
        """Wait status of one run, killed after so many seconds if it still runs then."""
        assert self.server.stdin is not None
        self.server.stdin.write(f"{source}\t{target}\n")
        self.server.stdin.flush()
        worker = int(self._line())
        if kill_after is not None:
            time.sleep(kill_after)
            # The server reaps it, so the id may be gone, but not be another's: ids are not reused
            # that soon.
            with suppress(ProcessLookupError):
                os.kill(worker, signal.SIGKILL)
        return int(self._line())

    def close(self) -> None:
        """End the server."""
        assert self.server.stdin is not None
        assert self.server.stdout is not None
        self.server.stdin.close()
        self.server.wait(timeout=30)
        self.server.stdout.close()


@pytest.fixture
def runner(tmp_path: Path) -> Iterator[Runner]:
    made = Runner(tmp_path / "cache")
    yield made
    made.close()


def leftovers(folder: Path) -> list[str]:
    """Unfinished files of ours: all their names begin with a dot."""
    return [p.name for p in folder.iterdir() if p.name.startswith(".")] if folder.is_dir() else []


def test_killed_run_leaves_a_whole_cache_or_none(
    runner: Runner, samples: Path, tmp_path: Path
) -> None:
    source, out, bank = samples / "action.mp4", tmp_path / "out", tmp_path / "cache" / "bank"
    out.mkdir()
    target = out / "action.tokpipe.safetensors"
    began = time.perf_counter()
    assert runner.run(source, target) == 0
    length = time.perf_counter() - began
    whole = target.read_bytes()
    draw, killed, dirty = random.Random(7), 0, 0
    for number in range(KILLS):
        target.unlink(missing_ok=True)
        if number % 4:
            shutil.rmtree(bank)  # else the bank's entry is reused and only the cache is written
        share = (number + draw.random()) / KILLS
        status = runner.run(source, target, kill_after=share * length)
        killed += os.WIFSIGNALED(status)
        if target.exists():
            assert tokpipe.verify(target, deep=True).ok
        dirty += len(leftovers(out)) + len(leftovers(bank))
        assert runner.run(source, target) == 0, "the re-run succeeds"
        assert target.read_bytes() == whole
        assert leftovers(out) == []
        assert leftovers(bank) == []
    assert killed >= KILLS // 2
    assert dirty > 0, "no kill hit a file being written"
