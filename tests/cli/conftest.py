"""Small clips, and a runner that keeps stdout and stderr apart."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from tokpipe.testing.media import AudioTrack, VideoTrack, write_media
from tokpipe_cli.app import app

Run = Callable[..., Result]
Events = Callable[[Result], list[dict[str, Any]]]
TwoLines = Callable[[Result], tuple[str, str]]


@pytest.fixture(scope="session")
def clip_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seconds of picture (bar codes) and sound (bursts)."""
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    write_media(path, VideoTrack(frames=20, fps=Fraction(10)), AudioTrack())
    return path


@pytest.fixture
def clip(clip_source: Path, tmp_path: Path) -> Path:
    """The clip in the test's own folder."""
    return Path(shutil.copy(clip_source, tmp_path / "clip.mp4"))


@pytest.fixture
def run() -> Run:
    """Run a command line in this process."""

    def invoke(*words: str | Path, **extra: Any) -> Result:
        return CliRunner().invoke(app, [str(w) for w in words], prog_name="tokpipe", **extra)

    return invoke


@pytest.fixture
def events() -> Events:
    """Read every event of ``--json``, checking what holds for all of them."""

    def read(result: Result) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = [json.loads(line) for line in result.stdout.splitlines()]
        assert all(e["v"] == 1 and isinstance(e["event"], str) for e in found)
        return found

    return read


@pytest.fixture
def two_lines() -> TwoLines:
    """Split stderr into error and hint, checking that it holds nothing else."""

    def read(result: Result) -> tuple[str, str]:
        lines = result.stderr.splitlines()
        assert len(lines) == 2, result.stderr
        assert lines[0].startswith("error: ")
        assert lines[1].startswith("hint: ")
        return lines[0].removeprefix("error: "), lines[1].removeprefix("hint: ")

    return read
