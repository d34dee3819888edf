"""The wheel holds the two packages and nothing else."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_wheel_holds_exactly_the_two_packages(tmp_path: Path) -> None:
    pytest.importorskip("hatchling")
    code = (
        "import sys\n"
        "from hatchling.builders.wheel import WheelBuilder\n"
        "print(next(WheelBuilder('.').build(directory=sys.argv[1], versions=['standard'])))\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT,
                          capture_output=True, text=True, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        metadata = next(n for n in names if n.endswith("METADATA"))
        text = archive.read(metadata).decode()
        points = archive.read(metadata.replace("METADATA", "entry_points.txt")).decode()
    tops = {name.partition("/")[0] for name in names}
    assert {t for t in tops if not t.endswith(".dist-info")} == {"tokpipe", "tokpipe_cli"}
    there = {n for n in names if n.endswith(".py")}
    wanted = {str(p.relative_to(base)) for base, package in ((ROOT, "tokpipe"),
              (ROOT / "cli", "tokpipe_cli")) for p in (base / package).rglob("*.py")}  # fmt: skip
    assert there == wanted
    assert "tokpipe/recipes/auto.toml" in names
    assert any(n.endswith("licenses/LICENSE") for n in names)
    assert not [n for n in names if "__pycache__" in n or n.endswith(".pyc")]
    assert "License-Expression: Apache-2.0" in text
    assert "tokpipe = tokpipe_cli.app:main" in points
