"""Every wrong input ends in two lines and the right exit code, never in a traceback."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tokpipe_cli import workers


def text_file(folder: Path) -> list[str]:
    (folder / "text.mp4").write_text("just text\n" * 100)
    return [str(folder / "text.mp4")]


def empty_file(folder: Path) -> list[str]:
    (folder / "empty.mp4").touch()
    return [str(folder / "empty.mp4")]


def unwritable(folder: Path) -> list[str]:
    (folder / "file").touch()
    return [str(folder / "clip.mp4"), "-o", str(folder / "file" / "sub" / "out.safetensors")]


def with_clip(*words: str) -> Callable[[Path], list[str]]:
    return lambda folder: [str(folder / "clip.mp4"), *words]


CASES: list[tuple[str, Callable[[Path], list[str]], int, str]] = [
    ("missing", lambda folder: [str(folder / "gone.mp4")], 2, "no such file"),
    ("text", text_file, 1, "not a media file"),
    ("empty", empty_file, 1, "is empty"),
    ("folder without media", lambda folder: [str(folder / "none")], 2, "no media"),
    ("unwritable", unwritable, 3, "file"),
    ("unknown recipe", with_clip("-r", "auot"), 2, "auot"),
    ("unknown operator", with_clip("-r", "pixels | tomme"), 2, "tomme"),
    ("unknown parameter", with_clip("-r", "fps:fsp=2.0 | pixels"), 2, "fsp"),
    ("bad parameter", with_clip("-r", "fps:fps=-1.0 | pixels"), 2, "fps"),
    ("recipe file", with_clip("-r", "no.toml"), 2, "no.toml"),
    ("budget zero", with_clip("-b", "0"), 2, "budget"),
    ("budget text", with_clip("-b", "many"), 2, "many"),
    ("budget negative", with_clip("-b", "-5"), 2, "-5"),
    ("two budgets", with_clip("--ratio", "0.5", "--budget", "5"), 2, "exclude each other"),
    ("ratio", with_clip("--ratio", "1.5"), 2, "1.5"),
    ("ratio nan", with_clip("--ratio", "nan"), 2, "nan"),
    ("threshold", with_clip("--threshold", "-1"), 2, "threshold"),
    ("no threshold", with_clip("--threshold", "1", "-r", "fps | pixels | tome"), 2, "threshold"),
    ("layout", with_clip("--layout", "round"), 2, "round"),
    ("layout of recipe", with_clip("--layout", "frames", "-r", "fps | pixels | tome"), 2, "frames"),
    ("cells", with_clip("--cells", "7"), 2, "--cells"),
    ("detail", with_clip("--detail", "most"), 2, "unknown detail `most`"),
    ("detail without its step", with_clip("--detail", "low", "-r", "tome"), 2, "coverage-updates"),
    ("cells without pixels", with_clip("--cells", "8", "-r", "audio: mel"), 2, "--cells"),
    ("fps", with_clip("--fps", "0"), 2, "fps"),
    ("codec", with_clip("--audio-codec", "mp3"), 2, "mp3"),
    ("share", with_clip("--audio-share", "2"), 2, "audio-share"),
    ("device", with_clip("--device", "abacus"), 3, "abacus"),
    ("stream", with_clip("--video-stream", "9"), 1, "9"),
    ("option", with_clip("--bugdet", "5"), 2, "--bugdet"),
    ("no input", lambda _folder: [], 2, "input"),
]


@pytest.mark.parametrize(
    ("words", "code", "says"), [case[1:] for case in CASES], ids=[c[0] for c in CASES]
)
def test_compress_error_is_two_lines(
    words: Callable[[Path], list[str]], code: int, says: str, run: Any, clip: Path, two_lines: Any
) -> None:
    (clip.parent / "none").mkdir()
    result = run("compress", *words(clip.parent))
    error, hint = two_lines(result)
    assert result.exit_code == code
    assert says.lower() in error.lower()
    assert hint
    assert result.stdout == ""


def test_error_with_json_is_an_event_and_a_summary(run: Any, clip: Path, events: Any) -> None:
    error, summary = events(run("compress", clip, "-b", "many", "--json"))
    assert error["event"] == "error"
    assert error["error"]["code"] == "budget"
    assert set(error["error"]) >= {"code", "message", "hint", "where"}
    assert summary["event"] == "summary"


def test_error_shows_the_traceback_only_when_asked(run: Any, clip: Path) -> None:
    assert "Traceback" in run("compress", clip, "-b", "many", "--debug").stderr
    assert "Traceback" not in run("compress", clip, "-b", "many").stderr


def test_missing_inputs_are_a_usage_error_only_when_none_resolves(run: Any, clip: Path) -> None:
    gone = clip.with_name("gone.mp4")
    assert run("compress", gone).exit_code == 2
    assert run("compress", gone, clip, "-b", "8").exit_code == 1


@pytest.mark.parametrize("verb", ["probe", "inspect", "verify", "plan"])
def test_other_verbs_name_a_missing_file(
    verb: str, run: Any, tmp_path: Path, two_lines: Any
) -> None:
    result = run(verb, tmp_path / "gone.mp4")
    assert result.exit_code == 2
    assert "gone.mp4" in two_lines(result)[0]


@pytest.mark.parametrize("verb", ["probe", "inspect", "plan"])
def test_other_verbs_refuse_text(verb: str, run: Any, tmp_path: Path, two_lines: Any) -> None:
    result = run(verb, *text_file(tmp_path))
    assert result.exit_code == 1
    two_lines(result)


def test_command_typo_gets_a_suggestion(run: Any, two_lines: Any) -> None:
    result = run("comprss")
    assert result.exit_code == 2
    assert "`compress`" in two_lines(result)[1]


def test_unexpected_error_asks_for_a_report(
    run: Any, clip: Path, two_lines: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise ZeroDivisionError("of all things")

    monkeypatch.setattr(workers, "failed_record", broken)
    result = run("compress", clip, clip.with_name("gone.mp4"))
    error, hint = two_lines(result)
    assert result.exit_code == 1
    assert error == "unexpected ZeroDivisionError: of all things"
    assert "report" in hint
