"""The pages of the storyboard and of jsonl: their Python runs on what the export writes."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tokpipe.cache.reader import open_cache
from tokpipe.export import exporter_from
from tokpipe.export._storyboard.limits import LIMITS

PAGES = Path(__file__).parents[2] / "docs" / "consumers"


def blocks(name: str) -> list[str]:
    """Python of a page without what says that it is not run."""
    found = re.findall(r"```python\n(.*?)```", (PAGES / name).read_text(encoding="utf-8"), re.S)
    return [block for block in found if not block.startswith("# not run: ")]


@pytest.fixture
def board(beside: Callable[[str], ModuleType], tmp_path: Path) -> Path:
    made: Path = beside("board_caches").write_board(
        tmp_path / "talk.tokpipe.safetensors", [1.0, 13.333333, 13.7], duration=20.0
    )
    return made


def test_storyboard_page(
    board: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with open_cache(board) as cache:
        exporter_from("storyboard", prompt="What?")[1].write(cache, tmp_path / "talk-board")
    found = blocks("storyboard.md")
    assert len(found) == 5
    for block in found:
        here = "# in the folder" in block
        monkeypatch.chdir(tmp_path / "talk-board" if here else tmp_path)
        names: dict[str, Any] = {}
        exec(block, names)
        assert names["request"]
        if "times" in names:
            assert names["times"][::2] == [1.0, 13.333, 13.7]
    assert "[00:01.0]" in capsys.readouterr().out


def test_page_tells_the_limits_of_the_table() -> None:
    text = (PAGES / "storyboard.md").read_text(encoding="utf-8")
    for api, limits in LIMITS.items():
        row = next(line for line in text.splitlines() if line.startswith(f"| {api} |"))
        for figure in (limits.images, limits.usual, limits.side, limits.many_side, limits.useful):
            assert not figure or str(figure) in row
        for size in (limits.request, limits.image):
            assert not size or f"{size // 10**6} MB" in row


def test_jsonl_page(board: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    exporter_from("jsonl:style=trl,answer=x", prompt="q")[1].write_all([board], tmp_path / "out")
    monkeypatch.chdir(tmp_path / "out")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "hf"))
    (block,) = blocks("jsonl.md")
    names: dict[str, Any] = {}
    exec(block, names)
    assert len(names["rows"][0]["images"]) == 3
