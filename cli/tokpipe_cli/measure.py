"""What the commands that measure share: options, and going through the inputs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tokpipe_cli.boundary import os_problem
from tokpipe_cli.complete import recipe_names
from tokpipe_cli.console import Screen, show_error
from tokpipe_cli.jsonl import emit, summarise

if TYPE_CHECKING:
    from tokpipe.batch import Manifest
    from tokpipe.errors import TokpipeError
    from tokpipe.ingest import Progress

Budgets = Annotated[
    str | None,
    typer.Option(
        "--budget", "-b", metavar="LIST", rich_help_panel="Budget", show_default="8f,16f,32f,64f",
        help="Budgets to try: tokens (2048,8192) or frames' worth of them (8f,16f).",
    ),
]  # fmt: skip
Recipes = Annotated[
    list[str] | None,
    typer.Option(
        "--recipe", "-r", metavar="RECIPE", rich_help_panel="Recipe", show_default="auto",
        autocompletion=recipe_names,
        help="Recipes to compare: names with commas between (auto,uniform), or one each time.",
    ),
]  # fmt: skip
Seed = Annotated[
    int, typer.Option(metavar="N", rich_help_panel="Measure", help="Seed of what is random.")
]
#: Measures one input, telling how far it is; gives its status, and what shows the result.
One = Callable[[Path, "Progress"], tuple[str, Callable[[], None]]]


def split_recipes(texts: list[str]) -> list[str]:
    """Names with commas between are several recipes; anything else is one."""
    from tokpipe import registry

    found: list[str] = []
    for text in texts:
        parts = [part.strip() for part in text.split(",")]
        names = all(part.endswith(".toml") or registry.known(part) is not None for part in parts)
        found += parts if names else [text]
    return list(dict.fromkeys(found))


def measure_each(
    inputs: list[Path], screen: Screen, one: One, *, wanted: bool,
    close: Callable[[], dict[str, Any]],
) -> int:  # fmt: skip
    """Go through the inputs and on after failures; returns the exit code.

    Args:
        wanted: Show progress.
        close: Called at the end; returns what the summary says besides the counts.
    """
    from tokpipe.batch import expand
    from tokpipe.errors import TokpipeError
    from tokpipe_cli.progress import Meter
    from tokpipe_cli.request import check_inputs

    manifest = expand(inputs)
    check_inputs(manifest)
    for path in manifest.ignored:
        screen.warn(f"{path} is a token cache and was left out")
    failures, statuses = _Failures(screen), list[str]()
    for path, wrong in manifest.problems:
        failures.add(path, wrong)
    names = [str(entry.source) for entry in manifest.entries]
    with Meter(names, wanted=wanted and not screen.quiet) as meter:
        for index, entry in enumerate(manifest.entries):
            meter.begin(index)
            problem: TokpipeError | None = None
            try:
                status, show = one(entry.source, _reporter(meter, index))
            except TokpipeError as error:
                problem = error
            except OSError as error:
                problem = os_problem(error)
            meter.finish(index)
            with meter.paused():
                if problem is None:
                    statuses.append(status)
                    show()
                else:
                    failures.add(entry.source, problem)
    more = close()
    if screen.json:
        failed = ["failed"] * len(failures.codes)
        emit("summary", **summarise([*statuses, *failed]), **more)
    return _code(failures.codes, len(statuses), manifest)


def _reporter(meter: Any, index: int) -> Progress:
    def report(stage: str, at: float, total: float | None) -> None:
        meter.report(index, stage, at, total)

    return report


class _Failures:
    def __init__(self, screen: Screen) -> None:
        self.screen = screen
        self.codes: list[int] = []

    def add(self, path: Path, problem: TokpipeError) -> None:
        self.codes.append(problem.exit_code)
        if self.screen.json:
            emit("error", input=str(path), error=problem.to_dict())
        show_error(problem)


def _code(codes: list[int], done: int, manifest: Manifest) -> int:
    if not codes:
        return 0
    if not manifest.entries:
        return 2
    return codes[0] if not done and len(set(codes)) == 1 else 1
