"""``tokpipe eval needles``: put known pictures into a video, compress it, count what is left."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tokpipe_cli import measure as m
from tokpipe_cli import options as o
from tokpipe_cli.boundary import UsageProblem
from tokpipe_cli.console import Screen
from tokpipe_cli.jsonl import emit

if TYPE_CHECKING:
    from tokpipe.evaluate.needles import NeedleReport
    from tokpipe.ingest import Progress

EPILOG = (
    "[bold]Examples[/bold]\n\n  tokpipe eval needles film.mp4 --budget 32f,64f\n\n"
    "  tokpipe eval needles film.mp4 --needle-seconds frame --hours 1\n\n"
    "  tokpipe eval needles film.mp4 --needle-from other.mp4 -o with-needles/"
)
_Length = Annotated[
    str,
    typer.Option(
        metavar="SECONDS", rich_help_panel="Needles",
        help="Length of a needle in seconds, or `frame` for one picture.",
    ),
]  # fmt: skip
_Count = Annotated[
    int, typer.Option(min=1, metavar="N", rich_help_panel="Needles", help="Needles in each file.")
]
_From = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", rich_help_panel="Needles", show_default="painted patterns",
        help="Take the needles from this video.",
    ),
]  # fmt: skip
_Hours = Annotated[
    float | None,
    typer.Option(
        metavar="HOURS", rich_help_panel="Needles", show_default="as long as the host",
        help="Run the host over and over to this length.",
    ),
]  # fmt: skip
_Budgets = Annotated[
    str,
    typer.Option(
        "--budget", "-b", metavar="LIST", rich_help_panel="Budget",
        help="Budgets to try: tokens (2048,8192) or frames' worth of them (32f,64f).",
    ),
]  # fmt: skip
_Keep = Annotated[
    Path | None,
    typer.Option(
        "--output", "-o", metavar="DIR", rich_help_panel="Output",
        help="Leave the videos with needles there.",
    ),
]  # fmt: skip


def needles(
    inputs: o.Inputs,
    needle_seconds: _Length = "2",
    count: _Count = 20,
    needle_from: _From = None,
    hours: _Hours = None,
    seed: m.Seed = 0,
    budget: _Budgets = "64f",
    recipe: m.Recipes = None,
    layout: o.Layout = "ragged",
    effort: o.Effort = "balanced",
    output: _Keep = None,
    video_stream: o.VideoStream = "auto",
    no_bank: o.NoBank = False,
    device: o.Device = "cpu",
    pool: o.Pool = None,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
    debug: o.Debug = False,
    no_progress: o.NoProgress = False,
) -> None:
    """Put known pictures into a video, compress it, and count those that are kept.

    Needles lie inside groups of pictures, never at key frames.
    Uniform and random frames stand beside every recipe.
    """
    given = dict(locals())
    screen = Screen(json=as_json, quiet=quiet, verbose=verbose, debug=debug)
    hunt = _Hunt(given, screen)
    raise typer.Exit(
        m.measure_each(inputs, screen, hunt.one, wanted=not no_progress, close=hunt.close)
    )


class _Hunt:
    """What one command line wants of every host; all of it is checked before the first."""

    def __init__(self, given: dict[str, Any], screen: Screen) -> None:
        from tokpipe.evaluate.budgets import parse_budgets
        from tokpipe.evaluate.score import picture_job
        from tokpipe.run import Options
        from tokpipe_cli.request import options_from

        self.given, self.screen = given, screen
        self.length = _length(given["needle_seconds"])
        self.budgets = parse_budgets(given["budget"])
        self.options = Options(**options_from(given))
        self.recipes = m.split_recipes(given["recipe"] or ["auto"])
        for recipe in self.recipes:
            picture_job(recipe, self.options)
        self.folder: Path | None = given["output"]
        if self.folder is not None and self.folder.exists() and not self.folder.is_dir():
            raise UsageProblem(f"`{self.folder}` is a file", hint="name a folder with -o")
        self.reports: list[NeedleReport] = []

    def one(self, path: Path, progress: Progress) -> tuple[str, Callable[[], None]]:
        """Search one host; gives its status, and what shows the result."""
        from tokpipe.errors import OutputExists
        from tokpipe.evaluate.needles import find_needles

        kept = None
        if self.folder is not None:
            kept = self.folder / f"{path.stem}-needles.mp4"
            if kept.exists():
                raise OutputExists(f"`{kept}` is there already", hint="name another folder with -o")
        report = find_needles(
            path, self.recipes, self.budgets, needle_seconds=self.length,
            count=self.given["count"], hours=self.given["hours"],
            needle_from=self.given["needle_from"], keep=kept, options=self.options,
            seed=self.given["seed"], progress=progress,
        )  # fmt: skip
        self.reports.append(report)
        return "done", lambda: self._show(report)

    def close(self) -> dict[str, Any]:
        """What the summary says besides the counts."""
        return {"needles": sum(len(report.needles) for report in self.reports)}

    def _show(self, report: NeedleReport) -> None:
        from tokpipe_cli.render_eval import show_needles

        if self.screen.json:
            emit("needles", **report.to_dict())
        else:
            show_needles(report, self.screen)


def _length(text: str) -> float | None:
    """Seconds of a needle, None for one picture."""
    if text == "frame":
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise UsageProblem(
            f"cannot read --needle-seconds `{text}`", hint="write seconds above 0, or `frame`"
        )
    return value
