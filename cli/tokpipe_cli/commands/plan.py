"""``tokpipe plan``: what a run would give, without decoding."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

from tokpipe_cli import options as o
from tokpipe_cli.boundary import UsageProblem, os_problem
from tokpipe_cli.console import Screen, show_error, table
from tokpipe_cli.jsonl import emit, summarise
from tokpipe_cli.words import clock, joined, plural, size

if TYPE_CHECKING:
    from tokpipe.batch import Manifest
    from tokpipe.errors import TokpipeError
    from tokpipe.plan import Plan
    from tokpipe.run import Job

EPILOG = (
    "[bold]Examples[/bold]\n\n  tokpipe plan talk.mp4 -b 2048\n\n"
    "  tokpipe plan talks/ -b 10% --json"
)


def plan(
    inputs: o.Inputs,
    video_stream: o.VideoStream = "auto",
    audio_stream: o.AudioStream = "auto",
    strict: o.Strict = False,
    decoder: o.Decoder = "pyav",
    effort: o.Effort = "balanced",
    full_hash: o.FullHash = False,
    budget: o.BudgetText = None,
    ratio: o.Ratio = None,
    threshold: o.Threshold = None,
    layout: o.Layout = "ragged",
    audio_share: o.AudioShare = 0.25,
    recipe: o.RecipeText = "auto",
    cells: o.Cells = None,
    fps: o.Fps = None,
    detail: o.Detail = None,
    encoder: o.Encoder = None,
    weights: o.Weights = None,
    fit: o.Fit = None,
    stage: o.Stage = None,
    query: o.QueryText = None,
    precision: o.Precision = "auto",
    context: o.Context = "frame",
    no_bank: o.NoBank = False,
    device: o.Device = "cpu",
    pool: o.Pool = None,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
    debug: o.Debug = False,
) -> None:
    """Show steps, token counts, bytes and memory of a run, without decoding.

    A count is exact, or an upper bound marked with "at most"; with --effort thorough "about".
    """
    given = dict(locals())
    from tokpipe.batch import expand
    from tokpipe_cli.request import request_from

    request = request_from(given)
    screen = Screen(json=as_json, quiet=quiet, debug=debug)
    raise typer.Exit(run_plan(expand(inputs), request.prepare(), screen))


def run_plan(manifest: Manifest, job: Job, screen: Screen) -> int:
    """Plan every input and show it; returns the exit code."""
    from tokpipe.errors import TokpipeError
    from tokpipe.plan import plan_file

    if not manifest.entries and not manifest.problems:
        raise UsageProblem(
            "no media files were found", hint="name video or audio files, or folders that hold some"
        )
    statuses: list[str] = []
    codes: list[int] = []
    totals = {"tokens": 0, "bytes": 0}
    failures: list[tuple[str, TokpipeError]] = [
        (str(path), error) for path, error in manifest.problems
    ]
    for entry in manifest.entries:
        try:
            made = plan_file(entry.source, job=job)
        except TokpipeError as error:
            failures.append((str(entry.source), error))
            continue
        except OSError as error:
            failures.append((str(entry.source), os_problem(error)))
            continue
        statuses.append("done")
        totals = {
            "tokens": totals["tokens"] + made.tokens["total"],
            "bytes": totals["bytes"] + made.bytes,
        }
        _show(made, screen)
    for path, problem in failures:
        statuses.append("failed")
        codes.append(problem.exit_code)
        if screen.json:
            emit("error", input=path, error=problem.to_dict())
        show_error(problem)
    if screen.json:
        emit("summary", **summarise(statuses), **totals)
    elif len(statuses) > 1:
        total = f"{plural(totals['tokens'], 'token')}, about {size(totals['bytes'])}"
        screen.say(f"{plural(len(statuses), 'input')}: {total}", style="bold")
    return _code(codes, len(statuses), bool(manifest.entries))


def _code(codes: list[int], count: int, resolved: bool) -> int:
    if not codes:
        return 0
    if not resolved:
        return 2
    return codes[0] if len(codes) == count and len(set(codes)) == 1 else 1


def _show(made: Plan, screen: Screen) -> None:
    if screen.json:
        fields: dict[str, Any] = made.to_dict()
        fields["tokens"]["text"] = 0
        emit("plan", **fields)
        return
    if screen.quiet:
        return
    screen.say(
        joined(
            [
                made.input,
                clock(made.duration),
                f"recipe {made.recipe}",
                f"budget {made.budget or 'none'}",
                f"layout {made.layout}",
            ]
        ),
        style="bold",
    )
    rows = []
    unsure = "about " if made.loose else "at most "
    for step in made.steps:
        params = ", ".join(f"{k}={v}" for k, v in step.params.items())
        noun = "frame" if step.kind == "sampler" else "token"
        count = (
            "?"
            if step.tokens is None
            else ("" if step.exact else unsure) + plural(step.tokens, noun)
        )
        rows.append((f"  {step.stream}", step.use, count, joined([step.gives, params])))
    table(rows, head=("  stream", "step", "after it", "what"))
    total = ("" if made.exact["total"] else unsure) + plural(made.tokens["total"], "token")
    offered = "" if made.candidates_exact["total"] else unsure
    screen.say(
        f"  {offered}{made.candidates['total']:,} candidates -> {total}, about {size(made.bytes)}",
        style="bold",
    )
    pool = f"pool {plural(made.pool, 'token')}" if made.pool else ""
    bank = "in the bank: " + ", ".join(made.reused) if made.reused else "in the bank: nothing"
    weights = " and the encoder's weights" if any(s.neural for s in made.steps) else ""
    memory = f"  memory about {made.peak_memory_mb:.0f} MB{weights}"
    screen.say(joined([memory, pool, bank], ", "))
    for text in made.warnings:
        screen.warn(text)
