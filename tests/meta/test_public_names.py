"""What users may import stays; what start-up must not import is not imported."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

import tokpipe

ROOT = Path(__file__).parents[2]
NAMES: dict[str, list[str]] = json.loads(
    (ROOT / "tests" / "public_names.json").read_text(encoding="utf-8")
)


@pytest.mark.parametrize("module", NAMES)
def test_public_names_are_all_there(module: str) -> None:
    """A removal breaks users: it needs a major version and a line in the changelog."""
    found = importlib.import_module(module)
    assert [name for name in NAMES[module] if not hasattr(found, name)] == []


def test_public_names_are_all_listed() -> None:
    assert sorted(tokpipe.__all__) == NAMES["tokpipe"]
    assert sorted(dir(tokpipe)) == NAMES["tokpipe"]


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT,
                          check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("module", ["tokpipe", "tokpipe_cli.app", "tokpipe.registry",
                                    "tokpipe.recipe", "tokpipe.errors"])  # fmt: skip
def test_start_up_imports_nothing_heavy(module: str) -> None:
    heavy = "{'torch', 'av', 'numpy', 'PIL', 'safetensors', 'transformers'}"
    code = (
        f"import sys; sys.path.insert(0, 'cli'); import {module}; print({heavy} & set(sys.modules))"
    )
    assert run(code) == "set()"


@pytest.fixture(scope="module")
def hidden() -> list[str]:
    """Public names that are no longer what they were once every submodule is imported."""
    code = (
        "import importlib, pkgutil, tokpipe\n"
        "first = {n: getattr(tokpipe, n) for n in tokpipe.__all__}\n"
        "for m in pkgutil.iter_modules(tokpipe.__path__):\n"
        "    importlib.import_module('tokpipe.' + m.name)\n"
        "again = {n: getattr(tokpipe, n) for n in tokpipe.__all__}\n"
        "print(*(n for n in first if again[n] is not first[n] and not callable(again[n])))\n"
    )
    return run(code).split()


@pytest.mark.parametrize("name", NAMES["tokpipe"])
def test_public_name_is_not_hidden_by_a_submodule(hidden: list[str], name: str) -> None:
    assert name not in hidden


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="nothing_of_ours"):
        tokpipe.nothing_of_ours  # noqa: B018 - the access is the test
