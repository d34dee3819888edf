"""The pages made from the operators are those the operators make; README's Python runs."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tokpipe import registry
from tokpipe.spec import EXTRAS

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("docs")
    (folder / "benchmarks").mkdir()
    command = [sys.executable, str(DOCS / "build.py"), str(folder)]
    subprocess.run(command, check=True, cwd=ROOT)
    return folder


def test_pages_are_current(built: Path) -> None:
    stale = [
        str(page.relative_to(built)) for page in sorted(built.rglob("*.md"))
        if not (DOCS / page.relative_to(built)).exists()
        or page.read_bytes() != (DOCS / page.relative_to(built)).read_bytes()
    ]  # fmt: skip
    assert not stale, "run: python docs/build.py"


def test_every_name_has_a_page() -> None:
    pages = {page.stem for page in (DOCS / "operators").glob("*.md")}
    assert pages == {name for name, e in registry.entries().items() if e.plugin is None}


def test_links_between_pages_lead_somewhere() -> None:
    dead = []
    for page in [ROOT / "README.md", *DOCS.rglob("*.md")]:
        for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
            if not (page.parent / link).exists():
                dead.append(f"{page.relative_to(ROOT)}: {link}")
    assert not dead


def test_readme_reduces_features_as_written() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.S)
    block = next(b for b in blocks if "reduce_tokens" in b)
    found: dict[str, object] = {}
    exec(block, found)
    assert len(found["few"]) == len(found["seen"]) == 64  # type: ignore[arg-type]


def test_page_on_features_runs_as_written(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text = (DOCS / "features.md").read_text(encoding="utf-8")
    found: dict[str, object] = {}
    for block in re.findall(r"```python\n(.*?)```", text, re.S):
        exec(block, found)
    assert len(found["few"]) == len(found["kept"]) == 400  # type: ignore[arg-type]
    assert len(found["part"]) == len(found["ranked"]) == 200  # type: ignore[arg-type]
    assert capsys.readouterr().out
    assert all(f"| `{name}` |" in text for name in EXTRAS)
