"""Where text goes: results to stdout, everything else to stderr."""

from __future__ import annotations

import os
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from tokpipe.errors import TokpipeError

#: Columns under which tables put every value on a line of its own.
NARROW = 60


def console(*, stderr: bool = False, live: bool = False) -> Console:
    """A rich console on the present stdout or stderr; nothing is highlighted or marked up.

    Lines are left to the terminal to wrap, except on a ``live`` one, which redraws them.
    """
    from rich.console import Console

    return Console(stderr=stderr, highlight=False, markup=False, emoji=False, soft_wrap=not live)


@dataclass(frozen=True, slots=True, kw_only=True)
class Screen:
    """What a command may show.

    Attributes:
        json: Results are events on stdout; nothing for people goes there.
        quiet: Only errors.
        verbose: Also details.
        debug: Tracebacks of errors.
    """

    json: bool = False
    quiet: bool = False
    verbose: bool = False
    debug: bool = False

    def say(self, text: str, style: str = "") -> None:
        """Write a line of result for people to stdout."""
        if not self.json and not self.quiet:
            console().print(text, style=style or None)

    def detail(self, text: str) -> None:
        """Write a line to stderr when asked for details."""
        if self.verbose:
            console(stderr=True).print(text, style="dim")

    def warn(self, text: str) -> None:
        """Write a ``warning:`` line to stderr."""
        if not self.quiet:
            _labelled("warning", "yellow", text)

    def note(self, text: str) -> None:
        """Write a line that is neither result nor warning to stderr."""
        if not self.quiet:
            console(stderr=True).print(text, style="dim")


_DEBUG_HINT = "run the command with --debug for details"
#: Hints of errors that come without one, by the first word of their code.
_GENERAL_HINT = {
    "cache": "media files go to `tokpipe probe`; for a broken cache see `tokpipe verify --deep`",
}


def hinted(error: TokpipeError) -> TokpipeError:
    """The error with a hint: its own, else a general one of its kind."""
    error.hint = error.hint or _GENERAL_HINT.get(error.code.partition(".")[0], _DEBUG_HINT)
    return error


def show_error(error: TokpipeError) -> None:
    """The two lines of an error on stderr."""
    _labelled("error", "bold red", str(error))
    _labelled("hint", "cyan", hinted(error).hint or "")


def _labelled(label: str, style: str, text: str) -> None:
    out = console(stderr=True)
    # A message of several lines (from a codec, say) must stay one line.
    out.print(f"{label}:", style=style, end=" ")
    out.print(" ".join(text.split()))


def width() -> int | None:
    """Columns of the terminal stdout is, None when it is a file or a pipe."""
    if not sys.stdout.isatty():
        return None
    return console().width


def table(
    rows: Sequence[Sequence[str]], *, head: Sequence[str] = (), file: IO[str] | None = None
) -> None:
    """Write aligned columns to stdout; the last one wraps to the terminal.

    A pipe gets full lines; a narrow terminal gets the last column on a line of its own.
    """
    out = console() if file is None else None
    limit = width() if file is None else None
    every = [list(head), *map(list, rows)] if head else [list(row) for row in rows]
    if not every:
        return
    sizes = [max(len(row[i]) for row in every) for i in range(len(every[0]) - 1)]
    for number, row in enumerate(every):
        lead = "  ".join(cell.ljust(n) for cell, n in zip(row, sizes, strict=False))
        style = "bold" if head and number == 0 else None
        for line in _fitted(lead, row[-1], limit):
            if out is not None:
                out.print(line, style=style)
            else:
                print(line, file=file)


def _fitted(lead: str, last: str, limit: int | None) -> list[str]:
    lead = f"{lead}  " if lead else ""
    if limit is None or len(lead) + len(last) <= limit:
        return [(lead + last).rstrip()]
    room = limit - len(lead)
    if limit < NARROW or room < 24:
        wrapped = textwrap.wrap(last, max(16, limit - 4)) or [""]
        return [lead.rstrip(), *("    " + line for line in wrapped)]
    wrapped = textwrap.wrap(last, room) or [""]
    return [lead + wrapped[0], *(" " * len(lead) + line for line in wrapped[1:])]


def animated() -> bool:
    """Whether stderr is a terminal that can redraw a line."""
    return sys.stderr.isatty() and os.environ.get("TERM", "") not in ("dumb", "unknown", "")
