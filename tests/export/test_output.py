"""Outputs of exports: put in place in one step, nothing of others touched."""

from __future__ import annotations

import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from tokpipe.errors import OutputExists
from tokpipe.export._output import MARK, Output, output

MADE = {"to": "test", "params": {"a": (1, 2)}}


def write(goal: Path, text: str = "x", *, force: bool = False, made: object = MADE) -> Output:
    """Make a folder output with one file."""
    target = Output(goal, {"of": made}, [], force=force)
    if not target.there:
        with output(target) as temporary:
            temporary.mkdir()
            (temporary / "a.txt").write_text(text)
            target.put(temporary)
    return target


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_a_folder_is_written_once(tmp_path: Path) -> None:
    write(tmp_path / "out")
    assert names(tmp_path / "out") == [MARK, "a.txt"] and names(tmp_path) == ["out"]
    assert Output(tmp_path / "out", {"of": MADE}, [], force=False).there
    with pytest.raises(OutputExists):
        write(tmp_path / "out", made="other")


def test_a_folder_that_lost_a_file_is_not_there(tmp_path: Path) -> None:
    write(tmp_path / "out")
    (tmp_path / "out" / "a.txt").write_text("longer")
    with pytest.raises(OutputExists):
        write(tmp_path / "out")
    write(tmp_path / "out", force=True)
    assert (tmp_path / "out" / "a.txt").read_text() == "x"


def test_what_appears_meanwhile_stays(tmp_path: Path) -> None:
    goal = tmp_path / "out"
    target = Output(goal, {"of": MADE}, [], force=False)
    with output(target) as temporary:
        temporary.mkdir()
        goal.mkdir()
        (goal / "mine.txt").write_text("mine")
        with pytest.raises(OutputExists):
            target.put(temporary)
    assert names(goal) == ["mine.txt"] and names(tmp_path) == ["out"]


def test_a_file_that_appears_meanwhile_stays(tmp_path: Path) -> None:
    target = Output(tmp_path / "out.bin", {"of": MADE}, [], force=False)
    with output(target) as temporary:
        temporary.write_bytes(b"ours")
        (tmp_path / "out.bin").write_bytes(b"mine")
        with pytest.raises(OutputExists):
            target.put(temporary)
    assert (tmp_path / "out.bin").read_bytes() == b"mine"


def test_force_spares_files_that_no_export_made(tmp_path: Path) -> None:
    write(tmp_path / "out")
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(OutputExists, match="notes"):
        write(tmp_path / "out", force=True, made="other")
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    write(tmp_path / "out")
    assert "a.txt" in names(tmp_path / "out")


def test_a_link_that_leads_nowhere_stays(tmp_path: Path) -> None:
    (tmp_path / "out").symlink_to(tmp_path / "gone")
    with pytest.raises(OutputExists):
        write(tmp_path / "out")


def test_an_output_is_never_one_of_its_sources(tmp_path: Path) -> None:
    source = tmp_path / "cache"
    source.write_bytes(b"x")
    with pytest.raises(OutputExists, match="itself"):
        Output(source, {"of": MADE}, [source], force=True)


_KILLED = """
import os, sys
from pathlib import Path
from tokpipe.export._output import Output, output
goal, moment = Path(sys.argv[1]), sys.argv[2]
target = Output(goal, {"of": "new"}, [], force=True)
with output(target) as temporary:
    temporary.mkdir()
    (temporary / "a.txt").write_text("new")
    if moment == "writing":
        os._exit(9)
    rename = Path.rename
    def dying(self, other):
        rename(self, other)
        os._exit(9)
    Path.rename = dying
    target.put(temporary)
"""


@pytest.mark.parametrize("moment", ["writing", "between the renames"])
def test_a_killed_export_loses_nothing(tmp_path: Path, moment: str) -> None:
    goal = tmp_path / "out"
    write(goal, "old")
    made = subprocess.run([sys.executable, "-c", _KILLED, str(goal), moment], check=False)
    assert made.returncode == 9
    with suppress(OutputExists):
        Output(goal, {"of": MADE}, [], force=False)
    # The next run finds a whole output, the old one or the new one, and nothing beside it.
    assert names(tmp_path) == ["out"] and names(goal) == [MARK, "a.txt"]
    assert (goal / "a.txt").read_text() in ("old", "new")
