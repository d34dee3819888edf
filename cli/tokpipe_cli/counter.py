"""Progress of many small things on stderr: a bar on a terminal, a line every 30 s elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

from tokpipe_cli.console import animated, console
from tokpipe_cli.progress import HEARTBEAT
from tokpipe_cli.words import stamp


class Counter:
    """Shows how many are through; use as a context manager.

    Args:
        name: What is done.
        wanted: False shows nothing at all.

    Attributes:
        shows: Something may be shown.
    """

    def __init__(self, name: str, *, wanted: bool) -> None:
        """Show nothing yet."""
        self.name, self.shows = name, wanted
        self._rich: Any = None
        self._task: Any = None
        self._began = self._told = time.monotonic()

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:  # fmt: skip
        """Clear what is shown."""
        self._stop()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Clear what is shown while other lines are written; the next report shows it again."""
        self._stop()
        yield

    def report(self, done: int, total: int | None) -> None:
        """So many are through."""
        if not self.shows:
            return
        text = f"{done:,}" + (f" of {total:,}" if total else "")
        if animated():
            self._draw(done, total, text)
        elif time.monotonic() - self._told >= HEARTBEAT:
            self._told = time.monotonic()
            console(stderr=True).print(f"{self.name}: {text}, {stamp(self._told - self._began)}")

    def _draw(self, done: int, total: int | None, text: str) -> None:
        if self._rich is None:
            from rich.progress import BarColumn, Progress, TextColumn

            self._rich = Progress(
                TextColumn("{task.description}", markup=False), BarColumn(bar_width=32),
                TextColumn("{task.fields[info]}", markup=False),
                console=console(stderr=True, live=True), transient=True, refresh_per_second=8,
                redirect_stdout=False, redirect_stderr=False,
            )  # fmt: skip
            self._task = self._rich.add_task(self.name, total=total, info=text)
            self._rich.start()
        self._rich.update(self._task, completed=done, total=total, info=text)

    def _stop(self) -> None:
        if self._rich is not None:
            self._rich.stop()
            self._rich = None
