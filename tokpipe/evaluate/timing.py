"""Run processes one at a time and say what each cost; ratios of what was measured."""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from tokpipe.errors import ResourceError


@dataclass(frozen=True, slots=True)
class Cost:
    """What one process cost.

    Attributes:
        wall: Seconds from start to end.
        cpu: CPU seconds of the process, its threads and its children.
        peak_mb: Largest resident size in MiB, of the largest process.
        wall_beyond, cpu_beyond: The same after the moment it said it was ``loaded`` (imports done);
            equal to the first two if it did not.
        output: Fields of the JSON objects it printed, later ones first; no summaries.
    """

    wall: float
    cpu: float
    peak_mb: float
    wall_beyond: float
    cpu_beyond: float
    output: dict[str, Any] = field(default_factory=dict)


class ProcessFailed(ResourceError):
    """A process ended with an error or was stopped at its time limit."""

    code = "resource.process"


def run_process(
    command: Sequence[str], *, env: Mapping[str, str] | None = None, timeout: float = 900.0
) -> Cost:
    """Run one command to its end, alone.

    Args:
        command: Program and arguments.
        env: Variables on top of those of this process.
        timeout: Seconds after which it and its children are killed.

    Returns:
        Its cost and what it printed.

    Raises:
        ProcessFailed: It failed or took too long; the message is the last line it wrote to stderr.
    """
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        began = time.monotonic()
        process = subprocess.Popen(  # noqa: S603 - commands of our own making
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, start_new_session=True,
            env={**os.environ, **(env or {})},
        )  # fmt: skip
        late = threading.Event()

        def stop() -> None:
            late.set()
            _kill(process.pid)

        timer = threading.Timer(timeout, stop)
        timer.start()
        try:
            # wait4 counts threads and the children that were waited for.
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:
            _kill(process.pid)
            process.wait()
            raise
        finally:
            timer.cancel()
        wall = time.monotonic() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        err.seek(0)
        said, complaint = out.read().decode(errors="replace"), err.read().decode(errors="replace")
    if process.returncode != 0:
        last = f"stopped after {timeout:g} s" if late.is_set() else _reason(complaint)
        raise ProcessFailed(last or f"ended with code {process.returncode}")
    output = _fields(said)
    scale = 1 << 20 if sys.platform == "darwin" else 1 << 10
    # A child may start out with its parent's peak, so its own word comes first.
    peak = float(output.get("peak_mb") or usage.ru_maxrss / scale)
    cpu = usage.ru_utime + usage.ru_stime
    # The monotonic clock is one for all processes of a machine.
    loaded = output.pop("loaded", {"cpu": 0.0, "at": began})
    return Cost(
        wall=round(wall, 3), cpu=round(cpu, 3), peak_mb=round(peak, 1),
        wall_beyond=round(began + wall - loaded["at"], 3),
        cpu_beyond=round(cpu - loaded["cpu"], 3), output=output,
    )  # fmt: skip


def _kill(group: int) -> None:
    """End a process and its children; it may have ended by itself just now."""
    with suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


def _reason(complaint: str) -> str:
    """The ``error:`` line of our own commands, else the last line."""
    lines = [line for line in complaint.splitlines() if line.strip()]
    ours = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return (ours or lines or [""])[-1].strip()


def _fields(text: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for line in text.splitlines():
        with suppress(json.JSONDecodeError):
            made = json.loads(line)
            if isinstance(made, dict) and made.get("event") != "summary":
                found |= made
    return found


def median(values: Sequence[float], places: int = 3) -> float:
    """Median, rounded."""
    return round(statistics.median(values), places)


def ratios(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """Ratios of pairs that ran in the same round, to four places.

    A pair whose lower part is too small to divide by (under a millisecond) is left out.
    """
    return [round(a / b, 4) for a, b in zip(above, below, strict=False) if b > 1e-3]
