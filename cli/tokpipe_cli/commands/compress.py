"""``tokpipe compress``: media in, one token cache each out."""

from __future__ import annotations

import os
import shlex
import sys
import time
from typing import TYPE_CHECKING, Any

import typer

from tokpipe_cli import options as o
from tokpipe_cli.boundary import INTERRUPTED, UsageProblem
from tokpipe_cli.console import Screen, show_error
from tokpipe_cli.jsonl import emit, emit_item, summarise

if TYPE_CHECKING:
    from tokpipe.batch import Manifest
    from tokpipe.run import Job
    from tokpipe_cli.request import Request
    from tokpipe_cli.workers import Outcome, Task

EPILOG = (
    "[bold]Examples[/bold]\n\n  tokpipe compress talk.mp4 -b 2048\n\n"
    "  tokpipe compress talks/ -o caches/ -b 10% --workers 4\n\n"
    "  tokpipe compress a.mp4 -r 'fps:fps=1.0 | pixels | uniform; audio: mel'\n\n"
    "  tokpipe compress a.mp4 -b 2048 -e open_clip:ViT-B-16 -r divprune"
)


def compress(
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
    compile_: o.Compile = False,
    encode_batch: o.EncodeBatch = None,
    output: o.Output = None,
    audio_codec: o.AudioCodec = "opus",
    force: o.Force = False,
    no_bank: o.NoBank = False,
    device: o.Device = "cpu",
    pool: o.Pool = None,
    batch_size: o.BatchSize = 16,
    prefetch: o.Prefetch = 2,
    threads: o.Threads = None,
    workers: o.Workers = 1,
    dry_run: o.DryRun = False,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
    debug: o.Debug = False,
    no_progress: o.NoProgress = False,
) -> None:
    """Compress media files to token caches of at most so many tokens with times and places."""
    given = dict(locals())
    from tokpipe.batch import expand
    from tokpipe_cli.commands.plan import run_plan
    from tokpipe_cli.request import check_early, check_inputs, request_from

    screen = Screen(json=as_json, quiet=quiet, verbose=verbose, debug=debug)
    check_early(recipe, budget=budget, ratio=ratio, threshold=threshold)
    manifest = expand(inputs)
    check_inputs(manifest)
    request = request_from(given)
    job = request.prepare()
    if dry_run:
        raise typer.Exit(run_plan(manifest, job, screen))
    run = _Run(manifest, output, request, job, screen)
    raise typer.Exit(run.go(workers, progress=not (no_progress or quiet)))


class _Run:
    """One command's inputs, what became of them, and the exit code."""

    def __init__(
        self, manifest: Manifest, output: str | None, request: Request, job: Job, screen: Screen
    ) -> None:
        self.manifest, self.request, self.job, self.screen = manifest, request, job, screen
        self.tasks = _tasks(manifest, output)
        self.statuses: list[str] = []
        self.codes: list[int] = []
        self.tokens = 0
        self.bytes = 0

    def go(self, workers: int, *, progress: bool) -> int:
        """Work through the inputs; returns the exit code."""
        from tokpipe_cli.progress import Meter
        from tokpipe_cli.workers import run_tasks

        began = time.perf_counter()
        self._problems()
        interrupted = False
        meter = Meter([task.source.name for task in self.tasks], wanted=progress)
        try:
            with meter:
                for outcome in run_tasks(self.tasks, self.request, self.job, meter, workers):
                    with meter.paused():
                        self._show(outcome)
        except KeyboardInterrupt:
            interrupted = True
        return self._close(time.perf_counter() - began, interrupted=interrupted)

    def _problems(self) -> None:
        from tokpipe_cli.workers import Outcome, failed_record

        for path in self.manifest.ignored:
            self.screen.warn(f"{path} is a token cache and was left out")
        for path, error in self.manifest.problems:
            self._show(Outcome(-1, failed_record(path, None, self.job), error))

    def _show(self, outcome: Outcome) -> None:
        from tokpipe_cli.render_item import show_item

        record, error = outcome.record, outcome.error
        self.statuses.append(record["status"])
        self.tokens += record["tokens"]["total"]
        self.bytes += record["bytes"]
        if self.screen.json:
            emit_item(record, error)
        if error is not None:
            self.codes.append(error.exit_code)
            if self.screen.debug and outcome.trace:
                sys.stderr.write(outcome.trace)
            show_error(error)
            return
        show_item(record, self.screen, alone=len(self.tasks) + len(self.manifest.problems) == 1)

    def _close(self, seconds: float, *, interrupted: bool) -> int:
        counts: dict[str, Any] = summarise(self.statuses)
        if self.screen.json:
            emit("summary", **counts, interrupted=interrupted, seconds=round(seconds, 3))
        elif len(self.tasks) + len(self.manifest.problems) > 1:
            from tokpipe_cli.render_item import show_total

            show_total(counts, self.tokens, self.bytes, seconds, self.screen)
        if interrupted:
            from tokpipe.errors import TokpipeError

            ready = len(self.statuses) - counts["failed"]
            left = len(self.tasks) - len(self.statuses) + len(self.manifest.problems)
            line = f"tokpipe {shlex.join(sys.argv[1:])}"
            text = f"interrupted with {ready} ready and {left} to go; no half-written file is left"
            show_error(TokpipeError(text, hint=f"run the same line again to go on: {line}"))
            return INTERRUPTED
        if not counts["failed"]:
            return 0
        if not self.tasks:
            return 2
        # Nothing was written and all failed alike: that is what the code should say.
        alike = counts["failed"] == len(self.statuses) and len(set(self.codes)) == 1
        return self.codes[0] if alike else 1


def _tasks(manifest: Manifest, output: str | None) -> list[Task]:
    from tokpipe.batch import assign_outputs
    from tokpipe_cli.workers import Task

    try:
        targets = assign_outputs(manifest.entries, output)
    except FileExistsError as error:
        raise UsageProblem(str(error), hint="name a folder with -o, or give one input") from error
    sources = {os.path.realpath(e.source) for e in manifest.entries}
    for target in targets:
        if os.path.realpath(target) in sources:
            raise UsageProblem(
                f"the output `{target}` is one of the inputs", hint="name another output with -o"
            )
    return [Task(e.source, target) for e, target in zip(manifest.entries, targets, strict=True)]
