"""Progress on stderr: a bar that moves on a terminal, a line every 30 s elsewhere."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

from tokpipe_cli.console import animated, console
from tokpipe_cli.words import stamp

#: Seconds between two lines where nothing can be redrawn.
HEARTBEAT = 30.0
Report = Callable[[int, str, float, "float | None"], None]


class Meter:
    """Shows how far each running input is; use as a context manager.

    Args:
        names: Name of each input.
        wanted: False shows nothing at all.
        heartbeat: Seconds between lines where stderr is no terminal.
    """

    def __init__(self, names: list[str], *, wanted: bool, heartbeat: float = HEARTBEAT) -> None:
        """Show nothing yet."""
        self.names, self.heartbeat = names, heartbeat
        self.done = 0
        self._state: dict[int, tuple[str, float, float | None, float]] = {}
        self._lock = threading.Lock()
        self._bars = _Bars(names) if wanted and animated() else None
        self._beats = wanted and self._bars is None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        """Begin to show."""
        if self._beats:
            self._thread = threading.Thread(
                target=self._beat, name="tokpipe-heartbeat", daemon=True
            )
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        """Clear what was shown."""
        self._stop.set()
        if self._bars is not None:
            self._bars.stop()
        if self._thread is not None:
            self._thread.join()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Clear what is shown while other lines are written; the next report shows it again."""
        if self._bars is not None:
            self._bars.stop()
        yield

    def report(self, index: int, stage: str, at: float, total: float | None) -> None:
        """One input got to ``at`` of ``total`` media seconds in a stage."""
        with self._lock:
            old = self._state.get(index)
            # Speed counts from the first media second, not from the start of a process.
            began = old[3] if old and old[0] != "open" else time.monotonic()
            self._state[index] = (stage, at, total, began)
        if self._bars is not None:
            self._bars.update(index, stage, at, total)

    def begin(self, index: int) -> None:
        """One input is looked at."""
        self.report(index, "open", 0.0, None)

    def finish(self, index: int) -> None:
        """One input is done with."""
        with self._lock:
            self._state.pop(index, None)
            self.done += 1
        if self._bars is not None:
            self._bars.finish(index)

    def _beat(self) -> None:
        while not self._stop.wait(self.heartbeat):
            with self._lock:
                state, done = dict(self._state), self.done
            out = console(stderr=True)
            for index, (stage, at, total, began) in state.items():
                place = f" ({done + 1} of {len(self.names)})" if len(self.names) > 1 else ""
                text = heartbeat_line(stage, at, total, time.monotonic() - began)
                out.print(f"{self.names[index]}{place}: {text}")


def heartbeat_line(stage: str, at: float, total: float | None, wall: float) -> str:
    """``decode 0:42 of 2:02, 31x, 0:03 left`` as far as it is known."""
    if stage == "open" or at <= 0 or wall <= 0:
        return f"{stage}, {stamp(wall)} so far"
    speed = at / wall
    line = f"{stage} {stamp(at)}" + (f" of {stamp(total)}" if total else "") + f", {speed:.1f}x"
    if total and total > at:
        line += f", {stamp((total - at) / speed)} left"
    return line


class _Bars:
    """Rich bars: one for each running input, one for all when there are several.

    A display that was stopped is made anew: rich would clear lines that are no longer its own.
    """

    def __init__(self, names: list[str]) -> None:
        self.names = names
        self.rows: dict[int, tuple[str, float, float | None]] = {}
        self.began: dict[int, float] = {}
        self.finished = 0
        self.rich: Any = None
        self.tasks: dict[int, Any] = {}

    def stop(self) -> None:
        if self.rich is not None:
            self.rich.stop()
            self.rich, self.tasks = None, {}

    def update(self, index: int, stage: str, at: float, total: float | None) -> None:
        if stage != "open":
            self.began.setdefault(index, time.monotonic())
        self.rows[index] = (stage, at, total)
        if self.rich is None:
            self._start()
        else:
            self._draw(index)

    def finish(self, index: int) -> None:
        self.rows.pop(index, None)
        self.finished += 1
        if self.rich is not None:
            if index in self.tasks:
                self.rich.remove_task(self.tasks.pop(index))
            self._count()

    def _start(self) -> None:
        from rich.progress import Progress

        out = console(stderr=True, live=True)
        self.rich = Progress(
            *_columns(out.width), console=out, transient=True, refresh_per_second=8,
            redirect_stdout=False, redirect_stderr=False,
        )  # fmt: skip
        if len(self.names) > 1:
            self.tasks[-1] = self.rich.add_task("all inputs", total=len(self.names), info="")
            self._count()
        for index in self.rows:
            self._draw(index)
        self.rich.start()

    def _count(self) -> None:
        if -1 in self.tasks:
            text = f"{self.finished} of {len(self.names)}"
            self.rich.update(self.tasks[-1], completed=self.finished, info=text)

    def _draw(self, index: int) -> None:
        stage, at, total = self.rows[index]
        wide = self.rich.console.width
        if index not in self.tasks:
            # The name, the bar and the numbers share the line.
            room = max(8, min(32, wide // 3 if wide < 100 else wide - 68))
            name = _clipped(self.names[index], room)
            self.tasks[index] = self.rich.add_task(name, total=None, info=stage)
        info = _numbers(stage, at, total, time.monotonic() - self.began.get(index, 0.0), wide)
        self.rich.update(
            self.tasks[index], completed=min(at, total or at), total=total or None, info=info
        )


def _columns(width: int) -> list[Any]:
    from rich.progress import BarColumn, TextColumn

    name = TextColumn("{task.description}", markup=False)
    info = TextColumn("{task.fields[info]}", markup=False)
    if width < 60:
        return [name, info]
    return [name, BarColumn(bar_width=min(32, max(10, width - 72))), info]


def _numbers(stage: str, at: float, total: float | None, wall: float, width: int) -> str:
    """Stage, media time, speed and time left, as many as the line holds."""
    if at <= 0 or wall <= 0.2:
        return stage
    speed = at / wall
    left = f"{stamp((total - at) / speed)} left" if total and total > at else ""
    of = f"/{stamp(total)}" if total else ""
    if width < 60:
        return f"{stamp(at)}{of} {left}".strip()
    return f"{stage} {stamp(at)}{of}  {speed:.0f}x  {left}".rstrip()


def _clipped(name: str, room: int) -> str:
    """A name of at most ``room`` columns, its end kept."""
    return name if len(name) <= room else "…" + name[-(room - 1) :]
