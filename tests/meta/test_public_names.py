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
    code = f"import sys; sys.path.insert(0, 'cli'); import {module}; print({heavy} & set(sys.modules))"
    assert run(code) == "set()"


@pytest.mark.parametrize("name", [n for n in NAMES["tokpipe"] if n != "__version__"])
def test_public_name_is_the_same_thing_whenever_it_is_asked_for(name: str) -> None:
    """Importing a submodule of the same name must not hide a function."""
    if name in ("compress", "plan"):
        pytest.xfail(f"the submodule tokpipe.{name} hides the function once it is imported")
    code = (
        "import importlib, pkgutil, tokpipe\n"
        f"first = tokpipe.{name}\n"
        "for m in pkgutil.iter_modules(tokpipe.__path__): importlib.import_module('tokpipe.' + m.name)\n"
        f"from tokpipe import {name} as second\n"
        f"print(first is second is tokpipe.{name}, callable(first))\n"
    )
    assert run(code) == "True True"


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="nothing_of_ours"):
        tokpipe.nothing_of_ours  # noqa: B018 - the access is the test
