"""The same tests on transformers 4.57.6, in a process of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("transformers")
pytest.importorskip("torchvision")

WANTED = ("transformers==4.57.6", "tokenizers>=0.22,<0.23", "huggingface_hub>=0.34,<1.0")
TESTS = sorted(
    path for path in Path(__file__).parent.glob("test_transformers*.py") if path != Path(__file__)
)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with transformers 4.57.6: TOKPIPE_TRANSFORMERS_4, or one filled from an index."""
    given = os.environ.get("TOKPIPE_TRANSFORMERS_4")
    if given:
        return Path(given)
    folder = tmp_path_factory.mktemp("transformers4")
    found = shutil.which(
        "uv", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    )
    pip = [found, "pip", "install", "--python", sys.executable] if found else [
        sys.executable, "-m", "pip", "install"
    ]  # fmt: skip
    ran = subprocess.run(
        [*pip, "--quiet", "--no-deps", "--target", str(folder), *WANTED],
        capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    if ran.returncode:
        pytest.skip(f"no package index gives transformers 4.57.6: {ran.stderr.strip()[-200:]}")
    return folder


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_everything_holds_with_transformers_4(library: Path, tmp_path: Path) -> None:
    old = {**os.environ, "PYTHONPATH": str(library), "TOKPIPE_CACHE_DIR": str(tmp_path)}
    ran = subprocess.run(
        [
            sys.executable, "-m", "pytest", "-q", "-n", "0", "-W", "ignore", "-p",
            "no:cacheprovider", *map(str, TESTS),
        ],
        cwd=Path(__file__).parents[2], env=old, capture_output=True, text=True, timeout=800,
        check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout[-4000:] + ran.stderr[-1000:]
    version = subprocess.run(
        [sys.executable, "-c", "import transformers; print(transformers.__version__)"],
        env=old, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert version.stdout.startswith("4.57")
    assert " passed" in ran.stdout
