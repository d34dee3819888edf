"""Rules of the house that a reader would otherwise have to check by hand."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from statistics import median
from typing import Any, get_type_hints

import pytest

from tokpipe import registry

ROOT = Path(__file__).parents[2]
SOURCES = sorted([*(ROOT / "tokpipe").rglob("*.py"), *(ROOT / "cli").rglob("*.py")])
EVERYTHING = sorted([*SOURCES, *(ROOT / "tests").rglob("*.py"), *(ROOT / "samples").rglob("*.py")])
BANNED = {"utils", "util", "common", "helpers", "helper", "misc", "tools", "stuff"}
OPERATORS = [n for n, e in registry.entries().items() if e.kind != "preset" and not e.plugin]


def lines_of(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def test_no_file_is_over_400_lines() -> None:
    long = {str(p.relative_to(ROOT)): lines_of(p) for p in EVERYTHING if lines_of(p) > 400}
    assert not long


def test_the_median_file_is_short() -> None:
    assert median(lines_of(p) for p in SOURCES) <= 150


def test_no_function_is_over_60_lines() -> None:
    long = []
    for path in EVERYTHING:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert node.end_lineno is not None
                size = node.end_lineno - node.lineno + 1
                if size > 60:
                    long.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.name} {size}")
    assert not long


def test_no_module_has_a_name_that_says_nothing() -> None:
    folders = {part for p in EVERYTHING for part in p.relative_to(ROOT).parts[:-1]}
    found = BANNED & (folders | {p.stem.strip("_") for p in EVERYTHING})
    assert not found


def tracked() -> list[Path]:
    """Files that git knows; everything that is no build product where there is no git."""
    git = shutil.which("git")
    if git is None or not (ROOT / ".git").exists():
        pytest.skip("no git checkout")
    done = subprocess.run([git, "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT,
                          capture_output=True, check=True)  # fmt: skip
    return [ROOT / name for name in done.stdout.decode().split("\0") if name]


#: Folders of some machine: home folders, and roots that only a workplace has.
_MACHINE = re.compile(rb"/(?:home|Users|root|mnt|workspace)/[\w.-]+|(?<![\w.])/work/\w+")


def test_no_tracked_file_names_a_folder_of_a_machine() -> None:
    found = {}
    for path in tracked():
        if path.is_file() and path != Path(__file__):
            data = path.read_bytes()
            if b"\0" not in data[:4096] and (match := _MACHINE.search(data)):
                found[str(path.relative_to(ROOT))] = match[0]
    assert not found


def test_top_level_holds_only_what_is_agreed() -> None:
    allowed = {"pyproject.toml", "tokpipe", "cli", "tests", "samples", "docs", "README.md",
               "CHANGELOG.md", "LICENSE"}  # fmt: skip
    names = {p.relative_to(ROOT).parts[0] for p in tracked()}
    assert {n for n in names if not n.startswith(".")} <= allowed


# Operators.


@pytest.mark.parametrize("name", OPERATORS)
def test_operator_names_its_source_and_says_what_it_does(name: str) -> None:
    kind = registry.load(name)
    module = sys.modules[kind.__module__]
    doc = module.__doc__ or ""
    assert re.search(r"^Source: \S", doc, re.MULTILINE)
    assert doc.splitlines()[0].endswith(".")
    assert len(doc.splitlines()[0]) <= 100
    assert registry.lookup(name).summary == doc.splitlines()[0][:-1]
    assert kind.source
    assert isinstance(kind.version, int)
    assert Path(str(module.__file__)).stem == name.replace("-", "_")


@pytest.mark.parametrize("name", OPERATORS)
def test_operator_numbers_have_ranges_and_are_documented(name: str) -> None:
    kind = registry.load(name)
    hints = get_type_hints(kind, include_extras=True)
    for parameter in fields(kind):
        assert re.search(rf"\b{parameter.name}\b", kind.__doc__ or ""), parameter.name
        if _numeric(hints[parameter.name]):
            assert _bounds(hints[parameter.name]), f"{name}.{parameter.name} has no range"


def _numeric(hint: Any) -> bool:
    if hint in (int, float):
        return True
    inner = getattr(hint, "__args__", ()) if "Literal" not in str(hint) else ()
    return any(_numeric(part) for part in inner)


def _bounds(hint: Any) -> bool:
    parts = [hint, *getattr(hint, "__args__", ())]
    parts += getattr(getattr(hint, "__origin__", None), "__args__", ())
    marks = [mark for part in parts for mark in getattr(part, "__metadata__", ())]
    flat = [inner for mark in marks for inner in getattr(mark, "metadata", (mark,))]
    return any(hasattr(mark, bound) for mark in flat for bound in ("ge", "gt", "le", "lt"))


def test_no_name_is_used_twice() -> None:
    stems = [p.stem.replace("_", "-") for folder in ("sample", "encode", "compress/*")
             for p in (ROOT / "tokpipe").glob(f"{folder}/[a-z]*.py")]  # fmt: skip
    stems += [p.stem for p in (ROOT / "tokpipe" / "recipes").glob("*.toml")]
    assert len(stems) == len(set(stems))
    assert set(stems) == set(OPERATORS) | set(registry.names("preset"))


_OPERATOR = '''"""Keep every other token.

Source: a test.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from tokpipe.tensors import TokenMap


@dataclass(frozen=True, slots=True)
class Halve:
    """Rows 0, 2, 4 ..."""

    source: ClassVar[str] = "a test"
    scope: ClassVar[str] = "frame"
    needs: ClassVar[tuple[str, ...]] = ()
    modalities: ClassVar[tuple[str, ...]] = ("video", "audio")
    layouts: ClassVar[tuple[str, ...]] = ("ragged",)
    causal: ClassVar[bool] = True
    exact: ClassVar[bool] = False
    version: ClassVar[int] = 1

    def decide(self, tokens, budget=None, query=None):
        return TokenMap.keep(torch.arange(0, len(tokens), 2), len(tokens))

    def out_count(self, n, budget):
        return (n + 1) // 2, False
'''
_USE = """
from pathlib import Path
from tokpipe import registry
from tokpipe.run import Options, compress_file
import sys
entry = registry.entries()["every-other"]
assert (entry.kind, entry.mechanism, entry.summary) == ("reducer", "attention",
                                                        "Keep every other token")
assert Path(registry.__file__).is_relative_to(sys.argv[1])
record = compress_file(sys.argv[2], sys.argv[3], recipe="fps | pixels | every-other", budget=9,
                  options=Options(keep_bank=False))
assert record.tokens["video"] == 9
print("found")
"""


def test_an_operator_is_one_file(tmp_path: Path, samples: Path) -> None:
    """Drop a file into a copy of the package: it is listed, and it runs to its budget."""
    copy = tmp_path / "copy" / "tokpipe"
    shutil.copytree(ROOT / "tokpipe", copy, ignore=shutil.ignore_patterns("__pycache__"))
    target = copy / "compress" / "attention" / "every_other.py"
    target.write_text(_OPERATOR, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-c", _USE, str(tmp_path), str(samples / "screen.mp4"),
         str(tmp_path / "out")],
        cwd=copy.parent, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout == "found\n", done.stderr
