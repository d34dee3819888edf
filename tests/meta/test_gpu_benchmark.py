"""The GPU benchmark runs: it is seldom started, and must not be broken by then."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "gpu.py"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_without_a_gpu_it_says_what_to_do() -> None:
    done = run()
    assert done.returncode == 3
    assert "--device cpu --tiny" in done.stderr
    assert not done.stdout


def test_unknown_parts_are_named() -> None:
    done = run("--device", "cpu", "--tiny", "--only", "encode,fly")
    assert done.returncode == 2
    assert "fly" in done.stderr


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_part_runs_at_toy_sizes() -> None:
    pytest.importorskip("open_clip")
    done = run("--device", "cpu", "--tiny", "--workers", "2")
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, Any] = json.loads(done.stdout)
    assert found["decode"]["pyav_2_processes"] > 0
    assert found["encode"]["ratio"] > 0 and 0 <= found["encode"]["idle"] <= 1
    assert found["whole"]["pyav_cpu"]["ratio"] > 0
    assert found["merge"]["after_merge"] < found["merge"]["tokens"]
    assert found["cluster"]["all"]["ratio"] > 0
    assert found["neighbours"]["seconds"] > 0
