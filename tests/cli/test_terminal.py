"""In a real terminal: the bar moves and goes, lines fit, Ctrl-C leaves nothing broken."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pexpect
import pyte
import pytest

from tokpipe_cli.progress import heartbeat_line

END = ".tokpipe.safetensors"
SCRIPT = "from tokpipe_cli.app import main; main()"


class Terminal:
    """A command under a pseudo terminal, its bytes fed to a screen."""

    def __init__(self, words: list[str], cwd: Path, *, width: int = 80, **env: str) -> None:
        self.screen = pyte.Screen(width, 40)
        self.stream = pyte.ByteStream(self.screen)
        self.raw = b""
        self.frames: set[str] = set()
        full = {**os.environ, "TERM": "xterm-256color", **env}
        full.pop("COLUMNS", None)
        self.child: Any = pexpect.spawn(
            sys.executable,
            ["-c", SCRIPT, *words],
            cwd=str(cwd),
            env=full,
            dimensions=(40, width),
            timeout=60,
        )

    def read(self, until: float) -> bool:
        """Feed what comes; True when the program has ended."""
        stop = time.monotonic() + until
        while time.monotonic() < stop:
            try:
                data = self.child.read_nonblocking(65536, timeout=0.1)
            except pexpect.TIMEOUT:
                continue
            except pexpect.EOF:
                self.child.close()
                return True
            self.raw += data
            self.stream.feed(data)
            self.frames |= {line for line in self.lines() if "decode" in line or "/2:0" in line}
        return False

    def lines(self) -> list[str]:
        return [line.rstrip() for line in self.screen.display if line.strip()]

    @property
    def status(self) -> int:
        code: int = self.child.exitstatus
        return code


@pytest.fixture
def long_clip(samples: Path, tmp_path: Path) -> Path:
    """Two minutes: long enough to look at while it runs."""
    return Path(shutil.copy(samples / "lecture.mp4", tmp_path / "lecture.mp4"))


@pytest.mark.parametrize("width", [40, 80, 200])
def test_progress_moves_and_leaves_three_lines(width: int, long_clip: Path) -> None:
    terminal = Terminal(
        ["compress", "lecture.mp4", "-b", "2048", "--no-bank", "--effort", "thorough"],
        long_clip.parent, width=width,
    )  # fmt: skip
    assert terminal.read(60)
    assert terminal.status == 0
    assert len(terminal.frames) >= 3
    assert any("/2:00" in frame and " left" in frame for frame in terminal.frames)
    assert width < 60 or any("x " in frame for frame in terminal.frames)
    text = "".join(line.ljust(width) if len(line) == width else line for line in terminal.lines())
    assert "lecture.mp4" in text
    assert "-> 2,048 tokens" in text
    assert "lecture" + END in text
    assert "decode" not in text
    assert "━" not in text


def test_no_progress_shows_none(clip: Path) -> None:
    terminal = Terminal(["compress", "clip.mp4", "-b", "150", "--no-progress"], clip.parent)
    assert terminal.read(60)
    assert b"open" not in terminal.raw
    assert b"\x1b[?25l" not in terminal.raw
    assert len(terminal.lines()) == 3


def test_dumb_terminal_gets_plain_lines(clip: Path) -> None:
    terminal = Terminal(["compress", "clip.mp4", "-b", "150"], clip.parent, TERM="dumb")
    assert terminal.read(60)
    assert b"\x1b" not in terminal.raw
    assert len(terminal.lines()) == 3


def test_no_color_is_honoured(clip: Path) -> None:
    coloured = Terminal(["ops", "show", "tomme"], clip.parent)
    assert coloured.read(30)
    assert b"\x1b[1;31m" in coloured.raw
    plain = Terminal(["ops", "show", "tomme"], clip.parent, NO_COLOR="1")
    assert plain.read(30)
    assert b"\x1b[1;31m" not in plain.raw
    assert plain.lines()[0] == "error: unknown operator `tomme`"


@pytest.mark.parametrize("width", [40, 80, 200])
def test_tables_fit_the_terminal(width: int, clip: Path) -> None:
    terminal = Terminal(["ops", "list"], clip.parent, width=width)
    assert terminal.read(30)
    lines = terminal.raw.decode().replace("\r", "").splitlines()
    bare = [line.replace("\x1b[1m", "").replace("\x1b[0m", "") for line in lines]
    assert max(map(len, bare)) <= width


def test_interrupt_leaves_nothing_broken_and_says_how_to_go_on(run: Any, long_clip: Path) -> None:
    words = ["compress", "lecture.mp4", "-b", "2048", "--no-bank", "--fps", "10"]
    terminal = Terminal(words, long_clip.parent)
    while not terminal.frames and not terminal.read(0.2):
        pass
    terminal.child.sendintr()
    assert terminal.read(30)
    assert terminal.status == 130
    text = "".join(terminal.lines())
    assert "interrupted with 0 ready and 1 to go" in text
    assert "--budget" in text or "-b 2048" in text
    assert [p.name for p in long_clip.parent.iterdir()] == ["lecture.mp4"]
    assert run("compress", long_clip, "-b", "2048", "--no-bank", "--fps", "1").exit_code == 0


def test_interrupt_stops_workers(long_clip: Path) -> None:
    folder = long_clip.parent
    shutil.copy(long_clip, folder / "b.mp4")
    command = [
        sys.executable,
        "-c",
        SCRIPT,
        "compress",
        ".",
        "-b",
        "2048",
        "--fps",
        "30",
        "--no-bank",
        "--workers",
        "2",
    ]
    env = {**os.environ, "TOKPIPE_CACHE_DIR": str(folder / "bank")}
    child = subprocess.Popen(command, cwd=folder, env=env, stderr=subprocess.PIPE, text=True)
    while not (folder / "bank" / "bank").is_dir() and child.poll() is None:
        time.sleep(0.1)
    child.send_signal(signal.SIGINT)
    _, stderr = child.communicate(timeout=30)
    assert child.returncode == 130
    assert "interrupted with 0 ready and 2 to go" in stderr
    assert not list(folder.glob("*" + END))
    assert not list((folder / "bank" / "bank").iterdir())


def test_heartbeat_line_says_what_is_known() -> None:
    assert heartbeat_line("open", 0, None, 31) == "open, 0:31 so far"
    assert heartbeat_line("decode", 60, 120, 30) == "decode 1:00 of 2:00, 2.0x, 0:30 left"
    assert heartbeat_line("decode", 60, None, 30) == "decode 1:00, 2.0x"
