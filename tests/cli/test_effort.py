"""``--effort`` and ``--threads``: how much is decoded, and that it is said."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from tokpipe.cache.reader import open_cache
from tokpipe.decode import _wanted
from tokpipe.testing.media import VideoTrack, write_media

#: Pictures of the sample lecture.
PICTURES = 1800


@pytest.fixture(autouse=True)
def _small_files_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clips here are small, and read in part all the same."""
    monkeypatch.setattr(_wanted, "SMALL", 0.0)


@pytest.mark.parametrize("effort", ["fast", "balanced", "thorough"])
def test_effort_decides_how_much_is_decoded(
    effort: str, run: Any, events: Any, samples: Path, tmp_path: Path
) -> None:
    target = tmp_path / "out.tokpipe.safetensors"
    given = ("-b", "256", "--effort", effort, "--no-bank", "--json")
    planned = events(run("plan", samples / "lecture.mp4", *given))[0]
    item = events(run("compress", samples / "lecture.mp4", *given, "-o", target))[0]
    if effort == "thorough":
        assert item["frames"]["decoded"] == PICTURES
        assert not planned["candidates_exact"]["video"]
    else:
        assert item["frames"]["decoded"] < PICTURES / 4
        assert planned["candidates_exact"]["video"]
        assert planned["frames"] == item["frames"]["sampled"]
    assert item["tokens"]["total"] == 256
    with open_cache(target) as cache:
        assert cache.provenance["decode"]["effort"] == effort


def test_threads_change_no_byte(run: Any, samples: Path, tmp_path: Path) -> None:
    outputs = [tmp_path / f"{n}.tokpipe.safetensors" for n in (1, 3)]
    for target, threads in zip(outputs, ("1", "3"), strict=True):
        result = run(
            "compress", samples / "lecture.mp4", "-b", "256", "--threads", threads, "--no-bank",
            "-o", target,
        )  # fmt: skip
        assert result.exit_code == 0
    assert outputs[0].read_bytes() == outputs[1].read_bytes()


def test_another_effort_is_another_output(run: Any, samples: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.tokpipe.safetensors"
    line = ("compress", samples / "lecture.mp4", "-b", "256", "-o", target)
    assert run(*line, "--effort", "fast").exit_code == 0
    assert "skipped" in run(*line, "--effort", "fast").stdout
    assert run(*line).exit_code == 1


def test_unknown_effort_is_a_usage_error(run: Any, clip: Path, two_lines: Any) -> None:
    result = run("compress", clip, "--effort", "lazy")
    assert result.exit_code == 2
    error, hint = two_lines(result)
    assert "unknown effort `lazy`" in error
    assert "fast, balanced, thorough" in hint


def test_a_file_read_whole_says_so_with_verbose_only(run: Any, events: Any, tmp_path: Path) -> None:
    path = tmp_path / "lossless.mkv"
    write_media(path, VideoTrack(frames=200, fps=Fraction(10), codec="ffv1"))
    quiet = run("compress", path, "-b", "64", "--no-bank")
    assert "scout" not in quiet.stderr
    loud = run("compress", path, "-b", "64", "--no-bank", "-f", "-v")
    assert "scout-sequential" in loud.stderr
    item = events(run("compress", path, "-b", "64", "--no-bank", "-f", "--json"))[0]
    assert item["status"] == "done"
    assert any(text.startswith("scout-sequential") for text in item["warnings"])
