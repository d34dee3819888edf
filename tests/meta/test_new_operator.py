"""One file is all it takes: a new operator appears everywhere with no other change."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NAME = "loudest-channel"


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources with the guide's operator added."""
    folder = tmp_path_factory.mktemp("tree")
    skip = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "tokpipe", folder / "tokpipe", ignore=skip)
    shutil.copytree(ROOT / "cli" / "tokpipe_cli", folder / "tokpipe_cli", ignore=skip)
    guide = (ROOT / "docs" / "write-an-operator.md").read_text(encoding="utf-8")
    found = re.search(r"<!-- operator -->\n```python\n(.*?)```", guide, re.S)
    assert found is not None
    path = folder / "tokpipe" / "compress" / "attention" / (NAME.replace("-", "_") + ".py")
    path.write_text(found[1], encoding="utf-8")
    return folder


def run(tree: Path, *words: str, **env: str) -> str:
    done = subprocess.run(
        [sys.executable, *words], cwd=tree, check=True, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(tree), **env},
    )  # fmt: skip
    return done.stdout


def test_it_is_listed_with_its_facts(tree: Path) -> None:
    lines = run(tree, "-m", "tokpipe_cli", "ops", "list", "--json").splitlines()
    facts = next(json.loads(line) for line in lines if f'"{NAME}"' in line)
    assert facts["mechanism"] == "attention" and facts["budget"] == "exact"


def test_help_shows_it(tree: Path) -> None:
    assert "strongest channel" in run(tree, "-m", "tokpipe_cli", "ops", "show", NAME)
    assert NAME in run(tree, "-m", "tokpipe_cli", "ops", "--help", COLUMNS="200")


def test_the_shell_completes_it(tree: Path) -> None:
    code = "from tokpipe_cli.complete import *; print(operator_names('loud'), recipe_names('loud'))"
    assert run(tree, "-c", code).count(NAME) == 2


def test_the_schema_knows_its_parameters(tree: Path) -> None:
    schema = json.loads(run(tree, "-m", "tokpipe_cli", "ops", "schema"))
    assert schema["$defs"][NAME]["properties"]["ratio"]["exclusiveMinimum"] == 0


def test_the_pages_are_built_with_it(tree: Path) -> None:
    run(tree, str(ROOT / "docs" / "build.py"), str(tree / "docs"))
    assert NAME in (tree / "docs" / "methods.md").read_text(encoding="utf-8")
    assert "| `ratio` |" in (tree / "docs" / "operators" / f"{NAME}.md").read_text(encoding="utf-8")


def test_the_conformance_suite_runs_it(tree: Path) -> None:
    words = ["-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", "-k", NAME, "--no-header",
             "-c", str(ROOT / "pyproject.toml"), "--rootdir", str(ROOT),
             str(ROOT / "tests" / "compress" / "test_conformance.py")]  # fmt: skip
    passed = re.search(r"(\d+) passed", run(tree, *words))
    assert passed is not None and int(passed[1]) > 10


def test_a_recipe_runs_it(tree: Path, samples: Path) -> None:
    clip = next(samples.glob("*.mp4"))
    out = tree / "out.safetensors"
    run(tree, "-m", "tokpipe_cli", "compress", str(clip), "--recipe", NAME, "--budget", "100",
        "-o", str(out))  # fmt: skip
    assert out.stat().st_size > 0
