"""``tokpipe eval`` and ``eval needles``: tables, events, plots, exit codes."""

from __future__ import annotations

import json
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from tokpipe.testing.media import AudioTrack, VideoTrack, write_media

BASE = ["uniform", "random", "downsampled", "oracle"]


def test_eval_prints_a_table(run: Any, clip: Path) -> None:
    result = run("eval", clip, "-b", "2f", "-r", "auto,uniform")
    assert result.exit_code == 0, result.stderr
    head, dense, columns, budget, *rows = result.stdout.splitlines()
    assert head.startswith(f"{clip}  2.0 s  28 cells a frame  in ")
    assert dense.startswith("4 dense frames at 2 fps, ")
    assert all(len(line) <= 80 for line in (columns, *rows))
    assert columns.split() == ["frames", "mean", "p5", "min", "gap", "events", "ssim", "min",
                               "n"]  # fmt: skip
    assert budget == "56 tokens (2f)"
    assert [row.split()[0] for row in rows[:2]] == ["auto", "uniform"]
    assert [row.split()[1] for row in rows[2:]] == BASE
    assert result.stderr == ""
    assert list(clip.parent.iterdir()) == [clip]


def test_eval_events(run: Any, clip: Path, tmp_path: Path, events: Any) -> None:
    notes = tmp_path / "notes.json"
    notes.write_text(json.dumps({"clip.mp4": {"slide_changes_s": [1.0]}}))
    found, summary = events(run("eval", clip, "-b", "1f,2f", "--annotations", notes, "--json"))
    assert (found["event"], found["input"], found["plot"]) == ("eval", str(clip), None)
    assert [r["way"] for r in found["rows"]] == ["auto", *BASE] * 2
    assert found["rows"][0]["events"]["states"] == 2
    assert summary["event"] == "summary"
    assert {k: summary[k] for k in ("done", "warned", "failed", "skipped")} == {
        "done": 1, "warned": 0, "failed": 0, "skipped": 0,
    }  # fmt: skip
    assert len(summary["ways"]) == 10


def test_eval_of_several_files_ends_with_means(run: Any, clip: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.mp4"
    write_media(other, VideoTrack(frames=20, fps=Fraction(10)))
    result = run("eval", clip, other, "-b", "1f")
    assert result.exit_code == 0
    assert "mean over files, coverage in descriptors" in result.stdout


def test_eval_goes_on_after_a_file_without_video(
    run: Any, clip: Path, tmp_path: Path, events: Any
) -> None:
    sound = tmp_path / "sound.m4a"
    write_media(sound, AudioTrack(), container="mp4")
    result = run("eval", sound, clip, tmp_path / "gone.mp4", "-b", "1f", "--json")
    assert result.exit_code == 1
    found = events(result)
    assert [e["event"] for e in found] == ["error", "error", "eval", "summary"]
    assert found[-1]["failed"] == 2 and found[-1]["done"] == 1
    assert result.stderr.count("error: ") == result.stderr.count("hint: ") == 2


def test_eval_of_sound_alone(run: Any, tmp_path: Path, two_lines: Any) -> None:
    sound = tmp_path / "sound.m4a"
    write_media(sound, AudioTrack(), container="mp4")
    result = run("eval", sound)
    assert result.exit_code == 1
    assert "holds no video" in two_lines(result)[0]


@pytest.mark.parametrize("kind", ["svg", "png"])
def test_eval_plots(run: Any, clip: Path, tmp_path: Path, kind: str) -> None:
    pytest.importorskip("matplotlib")
    folder = tmp_path / "plots" / "new"
    result = run("eval", clip, "-b", "1f,2f", "--plot", folder, "--plot-as", kind, "--json")
    assert result.exit_code == 0, result.stderr
    path = folder / f"clip.{kind}"
    head = path.read_bytes()[:400]
    assert head.startswith(b"\x89PNG") if kind == "png" else b"<svg" in head
    assert json.loads(result.stdout.splitlines()[0])["plot"] == str(path)


def test_eval_without_matplotlib_says_what_to_install(
    run: Any, clip: Path, tmp_path: Path, two_lines: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    result = run("eval", clip, "--plot", tmp_path)
    assert result.exit_code == 3
    error, hint = two_lines(result)
    assert "matplotlib" in error and "tokpipe[eval]" in hint


def test_eval_of_another_tools_storyboard(run: Any, clip: Path, tmp_path: Path) -> None:
    cache, folder = tmp_path / "clip.tokpipe.safetensors", tmp_path / "board"
    run("compress", clip, "-b", "200", "-o", cache)
    assert run("inspect", cache, "--frames", folder).exit_code == 0
    result = run("eval", clip, "--storyboard", folder)
    assert result.exit_code == 0, result.stderr
    assert "board" in result.stdout and "auto" not in result.stdout


@pytest.mark.parametrize(
    ("words", "code", "what"),
    [
        (("--budget", "8g"), 2, "cannot read budget"),
        (("--recipe", "nothing-such"), 2, "nothing-such"),
        (("--recipe", "auto,uniforn"), 2, "uniforn"),
        (("--plot", ".", "--plot-as", "gif"), 2, "gif"),
        (("--fps", "0"), 2, "dense frames"),
        (("--effort", "some"), 2, "effort"),
        (("--annotations", "gone.json"), 1, "gone.json"),
        (("--storyboard", "gone"), 1, "no storyboard"),
        (("--encoder", "open_clipp:x"), 2, "open_clipp"),
        (("--nothing",), 2, "--nothing"),
    ],
)
def test_eval_refuses(
    run: Any, clip: Path, two_lines: Any, words: Any, code: int, what: str
) -> None:
    result = run("eval", clip, *words)
    assert result.exit_code == code, result.stderr
    assert what in two_lines(result)[0]


def test_eval_without_inputs_is_usage(
    run: Any, tmp_path: Path, two_lines: Any, events: Any
) -> None:
    assert run("eval").exit_code == 2
    result = run("eval", tmp_path / "gone.mp4")
    assert result.exit_code == 2
    assert "no such file" in two_lines(result)[0]
    result = run("eval", tmp_path, "--json")
    assert result.exit_code == 2
    assert [e["event"] for e in events(result)] == ["error", "summary"]


def test_eval_help_is_that_of_its_default(run: Any) -> None:
    for words in (("eval", "--help"), ("eval", "score", "--help")):
        text = run(*words).stdout
        assert "--storyboard" in text and "eval needles" in text
    assert "--needle-seconds" in run("eval", "needles", "--help").stdout


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("host") / "host.mp4"
    write_media(path, VideoTrack(size=(112, 64), fps=Fraction(10), frames=150))
    return path


def test_needles_print_a_table(run: Any, host: Path, tmp_path: Path) -> None:
    folder = tmp_path / "kept"
    words = ("eval", "needles", host, "--count", "2", "-b", "4f,8f", "-o", folder)
    result = run(*words)
    assert result.exit_code == 0, result.stderr
    head, what, columns, *rows = result.stdout.splitlines()
    assert head.startswith(str(host)) and what.endswith("host-needles.mp4")
    assert what.startswith("2 needles of 2.0 s, 0 at key frames")
    assert columns.split() == ["frames", "kept", "share"]
    assert len(rows) == 2 * 4
    assert (folder / "host-needles.mp4").exists()
    # What is there is not overwritten.
    result = run(*words)
    assert result.exit_code == 1 and "is there already" in result.stderr


def test_needles_events(run: Any, host: Path, events: Any) -> None:
    found, summary = events(
        run("eval", "needles", host, "--needle-seconds", "frame", "--count", "3", "-b", "2f",
            "-r", "auto,uniform", "--json")
    )  # fmt: skip
    assert found["event"] == "needles" and found["keys_inside"] == 0 and found["video"] is None
    assert len(found["needles"]) == 3 == summary["needles"]
    assert [r["way"] for r in found["rows"]] == ["auto", "uniform", "uniform", "random"]


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (("--needle-seconds", "two"), "--needle-seconds"),
        (("--needle-seconds", "0"), "--needle-seconds"),
        (("--count", "0"), "--count"),
        (("--count", "99"), "room"),
        (("--hours", "-1"), "--hours"),
        (("--budget", "x"), "budget"),
    ],
)
def test_needles_refuse(run: Any, host: Path, two_lines: Any, words: Any, what: str) -> None:
    result = run("eval", "needles", host, *words)
    assert result.exit_code == 2
    assert what in two_lines(result)[0]
