"""The command line starts fast: nothing heavy is imported until a command needs it."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROBE = """
import sys
from tokpipe_cli.app import main
sys.argv = ["tokpipe", *{words!r}]
try:
    main()
except SystemExit as stop:
    assert not stop.code, stop.code
heavy = {{"torch", "av", "numpy", "PIL", "safetensors"}} & set(sys.modules)
assert not heavy, heavy
"""


def start(code: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.parametrize(
    "words", [["--help"], ["--version"], ["ops", "list"], ["compress", "--help"]]
)
def test_light_commands_import_nothing_heavy(words: list[str]) -> None:
    done = start(PROBE.format(words=words))
    assert done.returncode == 0, done.stderr


def _children_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_help_starts_within_its_budget() -> None:
    # CPU seconds, the best of a few: the machine may be busy, the program is what is measured.
    spent = []
    for _ in range(5):
        before = _children_seconds()
        start(
            "import sys; sys.argv = ['tokpipe', '--help']; from tokpipe_cli.app import main; main()"
        )
        spent.append(_children_seconds() - before)
        if spent[-1] <= 0.6:
            break
    assert min(spent) <= 0.6


def test_version_is_the_packages() -> None:
    from tokpipe import __version__

    done = start(
        "import sys; sys.argv = ['tokpipe', '--version']; from tokpipe_cli.app import main; main()"
    )
    assert done.stdout == f"tokpipe {__version__}\n"


def test_a_reader_that_goes_away_is_no_error() -> None:
    command = f"{sys.executable} -m tokpipe_cli ops list --json | head -n 1 >/dev/null"
    done = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.stderr == ""
