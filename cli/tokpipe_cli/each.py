"""Commands that go over caches one by one: which caches, which outputs, and what became of each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokpipe_cli.boundary import UsageProblem, os_problem
from tokpipe_cli.console import Screen, hinted, show_error
from tokpipe_cli.jsonl import emit, emit_item, summarise

if TYPE_CHECKING:
    from tokpipe.errors import TokpipeError
    from tokpipe.run import RunRecord


@dataclass(slots=True)
class Each:
    """What became of the inputs of one command.

    Attributes:
        media: The command that media files go to first.
        failed_event: Writes the ``item`` event of a failure: (input, error).
        statuses: One for each input.
        codes: Exit codes of those that failed.
    """

    screen: Screen
    media: str = "tokpipe compress"
    failed_event: Callable[[Path, TokpipeError], None] | None = None
    statuses: list[str] = field(default_factory=list)
    codes: list[int] = field(default_factory=list)

    def guard(self, path: Path, work: Callable[[], None]) -> bool:
        """Do the work of one input; an error is shown and counted, and not passed on."""
        from tokpipe.errors import TokpipeError

        try:
            work()
        except TokpipeError as error:
            self.failed(path, error)
        except OSError as error:
            self.failed(path, os_problem(error))
        else:
            return True
        return False

    def write(self, path: Path, work: Callable[[], RunRecord]) -> bool:
        """Do the work of one input whose outcome is a cache."""
        return self.guard(path, lambda: self.done(work()))

    def failed(self, path: Path, error: TokpipeError) -> None:
        """Count and show a failure."""
        if error.code.startswith("cache.") and path.suffix not in (".safetensors", ""):
            error.hint = f"media files go to `{self.media}`"
        hinted(error)
        self.statuses.append("failed")
        self.codes.append(error.exit_code)
        if self.screen.json:
            (self.failed_event or _failed_run)(path, error)
        show_error(error)

    def done(self, record: RunRecord) -> None:
        """Count and show a cache that was written."""
        from tokpipe_cli.render_item import show_item

        self.statuses.append(record.status)
        if self.screen.json:
            emit_item(record.to_dict(), None)
        show_item(record.to_dict(), self.screen, alone=True)

    def close(self) -> int:
        """The summary, and the exit code: that of the failures where all are alike."""
        if self.screen.json:
            emit("summary", **summarise(self.statuses))
        if not self.codes:
            return 0
        alike = len(self.codes) == len(self.statuses) and len(set(self.codes)) == 1
        return self.codes[0] if alike else 1


def _failed_run(path: Path, error: TokpipeError) -> None:
    from tokpipe.run import RunRecord

    record = RunRecord(input=str(path), output="", status="failed").closed(0.0)
    emit_item(record.to_dict(), error)


def some_of(found: Sequence[Path]) -> list[Path]:
    """The caches found, each once.

    Raises:
        UsageProblem: None of them is there.
    """
    if not any(path.exists() for path in found):
        what = f"no such file `{found[0]}`" if found else "no token caches were found"
        raise UsageProblem(what, hint="name token caches, or folders that hold some")
    return list(dict.fromkeys(found))


def outputs_of(
    caches: Sequence[Path], output: str | None, suffix: str, named: Sequence[Any] = ()
) -> list[Path]:
    """An output for each cache, no two alike, named as for media.

    Args:
        output: ``-o``: a file, or a folder.
        suffix: How outputs end, in place of the caches' own two suffixes.
        named: Caches that were named themselves, not found in a folder.
    """
    from tokpipe.batch import Entry, assign_outputs
    from tokpipe.run import SUFFIX

    entries = [
        Entry(path.with_name(path.name.removesuffix(SUFFIX) + ".cache"),
              Path(path.name.removesuffix(SUFFIX) + ".cache"), named=path in named)
        for path in caches
    ]  # fmt: skip
    try:
        return assign_outputs(entries, output, suffix=suffix)
    except FileExistsError as error:
        raise UsageProblem(str(error), hint="name a folder with -o, or give one cache") from error
