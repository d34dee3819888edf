"""``tokpipe eval``: what a compression covers, beside baselines of the same budget."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from tokpipe_cli import measure as m
from tokpipe_cli import options as o
from tokpipe_cli.boundary import UsageProblem
from tokpipe_cli.commands import needles
from tokpipe_cli.console import Screen
from tokpipe_cli.jsonl import emit

if TYPE_CHECKING:
    from tokpipe.evaluate import EvalReport
    from tokpipe.ingest import Progress

EPILOG = (
    "[bold]Examples[/bold]\n\n  tokpipe eval talk.mp4 --recipe auto,uniform --plot plots/\n\n"
    "  tokpipe eval talk.mp4 --budget 2048,8192 --encoder open_clip:ViT-B-32\n\n"
    "  tokpipe eval talk.mp4 --storyboard other-tool/\n\n"
    "  tokpipe eval needles talk.mp4        (see `tokpipe eval needles --help`)"
)
_DEFAULT, _TYPES = "score", ("svg", "png", "pdf")


class _Group(TyperGroup):
    """A group that goes to its default command unless another is named."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put the name of the default command before its arguments."""
        named = bool(args) and args[0] in self.commands
        return super().parse_args(ctx, args if named else [_DEFAULT, *args])


app = typer.Typer(
    help="Measure what a compression covers, beside baselines of the same budget.", cls=_Group
)
app.command("needles", epilog=needles.EPILOG)(needles.needles)

_Storyboards = Annotated[
    list[Path] | None,
    typer.Option(
        metavar="DIR", rich_help_panel="Measure",
        help="Also score pictures another tool chose: a folder with manifest.jsonl (pts, file).",
    ),
]  # fmt: skip
_Annotations = Annotated[
    Path | None,
    typer.Option(
        metavar="JSON", rich_help_panel="Measure",
        help="Slide changes and visits by file name, for event recall.",
    ),
]  # fmt: skip
_DenseFps = Annotated[
    float,
    typer.Option(metavar="FPS", rich_help_panel="Measure", help="Dense frames a second to cover."),
]
_Encoder = Annotated[
    list[str] | None,
    typer.Option(
        "--encoder", "-e", metavar="ENCODER", rich_help_panel="Measure", show_default="none",
        help="Also measure in the features of a neural encoder, such as open_clip:ViT-B-32.",
    ),
]  # fmt: skip
_Plot = Annotated[
    Path | None,
    typer.Option(metavar="DIR", rich_help_panel="Output", help="Write a plot of each file there."),
]
_PlotAs = Annotated[
    str, typer.Option(metavar="TYPE", rich_help_panel="Output", help="svg, png or pdf.")
]


@app.command(_DEFAULT, epilog=EPILOG)
def score(
    inputs: o.Inputs,
    budget: m.Budgets = None,
    recipe: m.Recipes = None,
    layout: o.Layout = "ragged",
    effort: o.Effort = "balanced",
    storyboard: _Storyboards = None,
    annotations: _Annotations = None,
    fps: _DenseFps = 2.0,
    encoder: _Encoder = None,
    weights: o.Weights = None,
    fit: o.Fit = None,
    stage: o.Stage = None,
    precision: o.Precision = "auto",
    encode_batch: o.EncodeBatch = None,
    seed: m.Seed = 0,
    plot: _Plot = None,
    plot_as: _PlotAs = "svg",
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
    """Measure what a compression covers, beside baselines of the same budget.

    Coverage is the best cosine of each dense frame to any kept picture.
    Uniform, random, downsampled and an oracle stand beside every recipe.
    """
    given = dict(locals())
    screen = Screen(json=as_json, quiet=quiet, verbose=verbose, debug=debug)
    recipes = m.split_recipes(recipe or ([] if storyboard else ["auto"]))
    asked = _Asked(given, recipes, screen)
    raise typer.Exit(
        m.measure_each(inputs, screen, asked.one, wanted=not no_progress, close=asked.close)
    )


class _Asked:
    """What one command line wants of every file; all of it is checked before the first."""

    def __init__(self, given: dict[str, Any], recipes: list[str], screen: Screen) -> None:
        from tokpipe.evaluate.budgets import parse_budgets
        from tokpipe.evaluate.score import load_embedders, picture_job, read_annotations
        from tokpipe.run import Options
        from tokpipe_cli.request import options_from, towers_from

        self.given, self.recipes, self.screen = given, recipes, screen
        self.budgets = None if given["budget"] is None else parse_budgets(given["budget"])
        _check_plot(given["plot"], given["plot_as"])
        self.options = Options(**options_from(given))
        for recipe in recipes:
            picture_job(recipe, self.options)
        notes = given["annotations"]
        self.notes = {} if notes is None else read_annotations(notes)
        self.embedders = load_embedders(towers_from(given).steps(), self.options)
        self.reports: list[EvalReport] = []
        self.plots: set[Path] = set()

    def one(self, path: Path, progress: Progress) -> tuple[str, Callable[[], None]]:
        """Measure a file; gives its status, and what shows the report."""
        from tokpipe.evaluate.score import evaluate_file
        from tokpipe.spec import SERIOUS

        report = evaluate_file(
            path, self.recipes, self.budgets, encoders=self.embedders,
            storyboards=self.given["storyboard"] or (), note=self.notes.get(path.name),
            fps=self.given["fps"], options=self.options, seed=self.given["seed"],
            progress=progress,
        )  # fmt: skip
        self.reports.append(report)
        drawn = self._plot(report)
        serious = any(text.partition(":")[0] in SERIOUS for text in report.warnings)
        return "warned" if serious else "done", lambda: self._show(report, drawn)

    def close(self) -> dict[str, Any]:
        """Show means over several files; returns what the summary says of them."""
        from tokpipe.evaluate.report import averages
        from tokpipe_cli.render_eval import show_averages

        means = averages(self.reports)
        if len(self.reports) > 1:
            show_averages(means, self.screen)
        return {"ways": [mean.to_dict() for mean in means]}

    def _show(self, report: EvalReport, drawn: Path | None) -> None:
        from tokpipe_cli.render_eval import show_report

        if self.screen.json:
            emit("eval", **report.to_dict(), plot=None if drawn is None else str(drawn))
            return
        show_report(report, self.screen)
        if drawn is not None:
            self.screen.say(str(drawn))

    def _plot(self, report: EvalReport) -> Path | None:
        from tokpipe.evaluate.plot import write_plot

        folder, end = self.given["plot"], f".{self.given['plot_as']}"
        if folder is None:
            return None
        path, number = Path(report.input), 2
        target = folder / (path.stem + end)
        while target in self.plots:
            target = folder / (path.name + end if number == 2 else f"{path.name}-{number}{end}")
            number += 1
        self.plots.add(target)
        return write_plot(report, target)


def _check_plot(folder: Path | None, kind: str) -> None:
    from tokpipe.evaluate.plot import require_matplotlib

    if kind not in _TYPES:
        raise UsageProblem(f"cannot plot as `{kind}`", hint=f"use one of: {', '.join(_TYPES)}")
    if folder is None:
        return
    if folder.exists() and not folder.is_dir():
        raise UsageProblem(f"`{folder}` is a file", hint="name a folder with --plot")
    require_matplotlib()
