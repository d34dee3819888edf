"""The page on storage forms runs as written: its commands, then its Python on what they made."""

from __future__ import annotations

import gc
import importlib.util
import re
import shlex
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

PAGE = Path(__file__).parents[2] / "docs" / "consumers" / "datasets.md"
SECTIONS = re.findall(r"\n## (.*?)\n(.*?)(?=\n## |\Z)", PAGE.read_text(encoding="utf-8"), re.S)
NEEDS = {
    "WebDataset": "webdataset", "Parquet": "pyarrow", "Hugging Face datasets": "datasets",
    "Lance": "lance",
}  # fmt: skip


@pytest.fixture
def talks(storage: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """``caches/`` of three talks in the current folder; what the second one holds."""
    (tmp_path / "caches").mkdir()
    for i in range(3):
        name = f"caches/talk.{i}{storage.SUFFIX}"
        storage.write_feature(tmp_path / name, seed=i, at=np.arange(20) / 2, video=20)
    monkeypatch.chdir(tmp_path)
    found: dict[str, Any] = storage.held(tmp_path / f"caches/talk.1{storage.SUFFIX}")
    return found


def run(body: str, space: dict[str, Any]) -> None:
    """Run the blocks of a section in order."""
    from tokpipe_cli.app import app

    for kind, block in re.findall(r"```(console|python)\n(.*?)```", body, re.S):
        if kind == "python":
            if "megatron" not in block or importlib.util.find_spec("megatron"):
                exec(block, space)
            continue
        for line in block.splitlines():
            words = shlex.split(line.removeprefix("$ tokpipe "))
            done = CliRunner().invoke(app, words, prog_name="tokpipe")
            assert done.exit_code == 0, done.output


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:'pin_memory':UserWarning")
@pytest.mark.parametrize(("title", "body"), SECTIONS, ids=[title for title, _ in SECTIONS])
def test_page_runs_as_written(
    talks: dict[str, Any], title: str, body: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if title in NEEDS:
        pytest.importorskip(NEEDS[title], reason=f"{NEEDS[title]} is not installed")
    if title == "Hugging Face datasets":
        datasets = pytest.importorskip("datasets")
        monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(Path("hub").absolute()))
    space: dict[str, Any] = {"np": np}
    with warnings.catch_warnings():
        # WebDataset leaves its files to the garbage collector.
        warnings.simplefilter("ignore", ResourceWarning)
        run(body, space)
        gc.collect()
    times = "times" if title == "npy per video" else "at"
    seen = np.asarray(space[times], dtype=np.float64)
    if title == "npy per video":
        assert set(seen) <= set(talks["video.at"])
    else:
        assert np.array_equal(seen, talks["video.at"])
    if title == "Lance":
        assert space["near"]["item"].to_pylist()[0] == "talk_2"
    elif title != "npy per video":
        assert np.asarray(space["tokens"]).shape == talks["video.tokens"].shape
    else:
        assert space["rows"].shape == (100, 8)


def test_page_has_a_section_for_each_form() -> None:
    assert [title for title, _ in SECTIONS] == [
        "WebDataset", "Parquet", "Hugging Face datasets", "Lance", "npz", "npy per video", "pt",
    ]  # fmt: skip
