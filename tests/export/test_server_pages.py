"""The pages on vLLM and SGLang: their Python runs on what the exports write."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tokpipe.cache.reader import open_cache
from tokpipe.export import exporter_from
from tokpipe.export._servers.kinds import KINDS

pytest.importorskip("transformers", minversion="5.18")
PAGES = Path(__file__).parents[2] / "docs" / "consumers"


def blocks(name: str) -> list[str]:
    """Python of a page without what says that it is not run."""
    found = re.findall(r"```python\n(.*?)```", (PAGES / name).read_text(encoding="utf-8"), re.S)
    return [block for block in found if not block.startswith("# not run: ")]


@pytest.fixture
def talk(
    beside: Callable[[str], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], Path]:
    """``talk.tokpipe.safetensors`` of a kind in the working folder."""
    monkeypatch.chdir(tmp_path)
    served = beside("served_models")

    def of(kind: str) -> Path:
        model = served.save(kind, tmp_path / kind, beside("mrope_models"))
        levels = served.LEVELS.get(kind, 0)
        made: Path = served.cache_of(tmp_path / "talk.tokpipe.safetensors", model, levels=levels)
        return made

    return of


def export(path: Path, name: str, to: str, **more: Any) -> None:
    with open_cache(path) as cache:
        exporter_from(to, **more)[1].write(cache, Path(name))


def run(block: str) -> dict[str, Any]:
    names: dict[str, Any] = {}
    exec(block, names)
    return names


def test_vllm_page(
    talk: Callable[[str], Path], beside: Callable[[str], Any], tmp_path: Path
) -> None:
    export(talk("qwen2_5_vl"), "talk-vllm", "vllm", prompt="What is shown?")
    board = beside("board_caches").write_board(
        tmp_path / "board.tokpipe.safetensors", [1.0, 13.3, 13.7], duration=20.0
    )
    export(board, "talk-frames", "vllm", model=str(tmp_path / "qwen2_5_vl"))
    http, python, frames = blocks("vllm.md")
    assert run(http)["rows"].shape == (24, 48)
    inputs = run(python)["inputs"]
    assert inputs["prompt"].endswith("What is shown?")
    assert run(frames)["seconds"] == [1.0, 1.0, 13.3, 13.3, 13.7, 13.7]


@pytest.mark.parametrize("kind", ["qwen2_vl", "qwen3_vl"])
def test_sglang_page(kind: str, talk: Callable[[str], Path]) -> None:
    talk(kind)
    (block,) = blocks("sglang.md")
    assert len(run(block)["slots"]) == 24


def test_the_page_names_every_kind() -> None:
    """As people write them; the table of kinds knows more than the page says in one word."""
    text = (PAGES / "vllm.md").read_text(encoding="utf-8").lower()
    squeezed = re.sub(r"[^a-z0-9]", "", text)
    for name, kind in KINDS.items():
        if kind.takes:
            assert re.sub(r"[^a-z0-9]|vl$", "", name) in squeezed, name
