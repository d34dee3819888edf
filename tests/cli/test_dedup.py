"""``tokpipe dedup``: two lines for people, events for programs, exit codes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

END = ".tokpipe.safetensors"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, clip_source: Path) -> Path:
    """A cache of the clip."""
    from tokpipe.run import Options, compress_file

    folder = tmp_path_factory.mktemp("made")
    clip = Path(shutil.copy(clip_source, folder / "clip.mp4"))
    compress_file(clip, budget=150, options=Options(keep_bank=False))
    return folder / f"clip{END}"


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A folder with the cache and a copy of it."""
    for name in ("a", "b"):
        shutil.copy(made, tmp_path / f"{name}{END}")
    return tmp_path


def test_dedup_prints_two_lines(run: Any, folder: Path) -> None:
    result = run("dedup", folder)
    assert result.exit_code == 0
    first, second = result.stdout.splitlines()
    assert first.startswith("2 caches  2 segments")
    assert second.startswith("1 group of near-duplicates at 0.95  1 copy  2.0 of 4.1 s")
    assert result.stderr == ""


def test_dedup_verbose_names_the_copies(run: Any, folder: Path) -> None:
    result = run("dedup", folder, "-v")
    assert f"a{END} 0:00-0:02: " in result.stderr and "1.000" in result.stderr


@pytest.mark.parametrize("stream", ["video", "audio"])
def test_dedup_events(run: Any, folder: Path, events: Any, stream: str) -> None:
    group, summary = events(run("dedup", folder, "--stream", stream, "--json"))
    assert group["event"] == "group"
    assert group["representative"]["cache"] == str(folder / f"a{END}")
    assert [c["similarity"] for c in group["copies"]] == [1.0]
    assert set(group["copies"][0]) == {"cache", "start", "stop", "similarity"}
    assert summary["event"] == "summary"
    assert {k: summary[k] for k in ("done", "warned", "failed", "skipped")} == {
        "done": 2, "warned": 0, "failed": 0, "skipped": 0,
    }  # fmt: skip
    assert (summary["segments"], summary["groups"], summary["copies"]) == (2, 1, 1)
    assert summary["encoders"] == {
        "pixels" if stream == "video" else "mel": {"caches": 2, "segments": 2}
    }


def test_dedup_writes_a_report(run: Any, folder: Path, events: Any) -> None:
    report = folder / "report.jsonl"
    result = run("dedup", folder, "-o", report, "--json")
    (line,) = report.read_text().splitlines()
    group = events(result)[0]
    assert json.loads(line) == {k: v for k, v in group.items() if k not in ("v", "event")}
    assert str(report) in run("dedup", folder, "-o", report).stdout


def test_dedup_goes_on_after_a_bad_cache(run: Any, folder: Path, events: Any) -> None:
    (folder / f"bad{END}").write_text("no cache")
    result = run("dedup", folder, folder / "gone", "--json")
    assert result.exit_code == 1
    found = events(result)
    assert [e["event"] for e in found] == ["error", "error", "group", "summary"]
    assert [Path(e["input"]).name for e in found[:2]] == [f"bad{END}", "gone"]
    assert found[-1]["failed"] == 2
    assert result.stderr.count("error: ") == result.stderr.count("hint: ") == 2


def test_dedup_without_inputs_is_usage(
    run: Any, tmp_path: Path, two_lines: Any, events: Any
) -> None:
    result = run("dedup", tmp_path / "gone")
    assert result.exit_code == 2
    assert "no such file or folder" in two_lines(result)[0]
    result = run("dedup", tmp_path, "--json")
    assert result.exit_code == 2
    assert [e["event"] for e in events(result)] == ["error", "summary"]


@pytest.mark.parametrize(
    "words", [("--threshold", "0"), ("--threshold", "1.2"), ("--stream", "text"),
              ("--backend", "annoy"), ("--min-seconds", "-1")]
)  # fmt: skip
def test_dedup_refuses_wrong_options(run: Any, folder: Path, words: Any, two_lines: Any) -> None:
    result = run("dedup", folder, *words)
    assert result.exit_code == 2
    assert words[0] in two_lines(result)[0]


def test_dedup_short_segments_and_quiet(run: Any, folder: Path) -> None:
    assert "2 short segments left out" in run("dedup", folder, "--min-seconds", "5").stdout
    assert run("dedup", folder, "-q").stdout == ""
