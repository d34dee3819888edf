"""``tokpipe bench``: compress against other readers of the same file, each in its own process."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from tokpipe_cli import options as o
from tokpipe_cli.boundary import UsageProblem, os_problem
from tokpipe_cli.console import Screen, show_error
from tokpipe_cli.jsonl import emit, summarise

if TYPE_CHECKING:
    from tokpipe.errors import TokpipeError
    from tokpipe.evaluate.bench_report import FileResult
    from tokpipe.evaluate.peers import Plan

EPILOG = (
    "[bold]Examples[/bold]\n\n  tokpipe bench talk.mp4\n\n"
    "  tokpipe bench talk.mp4 film.mp4 --peers pyav,decord --runs 5 -o bench.json\n\n"
    "  tokpipe bench talk.mp4 --annotations talks.json"
)

Files = Annotated[list[Path], typer.Argument(help="Video files.", metavar="FILE")]
Peers = Annotated[
    str,
    typer.Option(
        metavar="NAMES",
        help="Which of pyav, decord, torchcodec, scenedetect, open-clip-loop; one that is not "
        "installed is left out with the reason.",
    ),
]
Runs = Annotated[int, typer.Option(min=1, metavar="N", help="Rounds, each with all.")]
Tokens = Annotated[
    int, typer.Option("--budget", "-b", min=1, metavar="TOKENS", help="Tokens of ours.")
]
Rate = Annotated[
    float | None,
    typer.Option(
        min=0.01, metavar="FPS", show_default="2, and ours its recipe's",
        help="Pictures a second of the loops that sample, and of ours.",
    ),
]  # fmt: skip
Efforts = Annotated[
    str,
    typer.Option(
        metavar="NAMES", show_default="that of compress",
        help="Efforts of ours to compare, such as fast,balanced.",
    ),
]  # fmt: skip
Annotations = Annotated[
    Path | None, typer.Option(metavar="JSON", help="Times of slide changes or events, for recall.")
]
TimeBudget = Annotated[
    float,
    typer.Option(
        min=0, metavar="SECONDS",
        help="Start no further round of a file that would take longer than this; 0: no limit.",
    ),
]  # fmt: skip
Timeout = Annotated[
    float, typer.Option(min=1, metavar="SECONDS", help="Longest time of one process.")
]
Output = Annotated[
    Path | None,
    typer.Option("--output", "-o", metavar="FILE", help="Write the whole report there."),
]


def bench(
    files: Files,
    peers: Peers = "pyav,decord,torchcodec,scenedetect,open-clip-loop",
    runs: Runs = 3,
    budget: Tokens = 2048,
    fps: Rate = None,
    effort: Efforts = "",
    annotations: Annotations = None,
    time_budget: TimeBudget = 0.0,
    timeout: Timeout = 900.0,
    output: Output = None,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
    debug: o.Debug = False,
) -> None:
    """Measure compress against other readers: time, CPU time, memory, and what is kept of events.

    Every run is a fresh process, all take turns, and imports are measured apart.
    """
    from tokpipe.evaluate.bench_report import Report
    from tokpipe.evaluate.conditions import conditions

    screen = Screen(json=as_json, quiet=quiet, debug=debug)
    if annotations is not None and not annotations.exists():
        raise UsageProblem(f"no such file `{annotations}`", hint="check the path")
    plan = _plan(
        peers, effort, runs=runs, budget=budget, fps=fps, timeout=timeout, time_budget=time_budget
    )
    found = [_one(path, plan, annotations, screen, first=n == 0) for n, path in enumerate(files)]
    asked = {"peers": list(plan.peers), "runs": runs, "budget": budget, "fps": plan.rate,
             "efforts": list(plan.efforts), "time_budget": time_budget}  # fmt: skip
    made = [result for result in found if result is not None]
    report = Report(conditions=conditions(), asked=asked, files=made)
    if output is not None:
        output.write_text(report.model_dump_json(indent=1) + "\n", encoding="utf-8")
    statuses = ["done" if _whole(result) else "failed" for result in found]
    if as_json:
        emit("summary", **summarise(statuses), conditions=report.conditions, asked=asked)
    missing = all(not path.exists() for path in files)
    raise typer.Exit(2 if missing else 1 if "failed" in statuses else 0)


def _plan(peers: str, effort: str, **rest: Any) -> Plan:
    from tokpipe.evaluate.peers import PEERS, Plan
    from tokpipe.job import Effort

    words = tuple(dict.fromkeys(word.strip() for word in peers.split(",") if word.strip()))
    for word in words:
        if word not in PEERS:
            raise UsageProblem(f"unknown peer `{word}`", hint=f"choose from {', '.join(PEERS)}")
    efforts = tuple(dict.fromkeys(word.strip() for word in effort.split(",")))
    for word in efforts:
        if word and word not in get_args(Effort):
            raise UsageProblem(
                f"unknown effort `{word}`", hint=f"choose from {', '.join(get_args(Effort))}"
            )
    return Plan(peers=words, efforts=efforts, **rest)


def _one(
    path: Path, plan: Plan, annotations: Path | None, screen: Screen, *, first: bool
) -> FileResult | None:
    """Compare on one file and show it; None if it cannot be read."""
    from tokpipe.errors import TokpipeError
    from tokpipe.evaluate.peers import compare

    problem: TokpipeError
    try:
        made = compare(path, plan, annotations=annotations, seen=screen.note)
    except TokpipeError as error:
        problem = error
    except OSError as error:
        problem = os_problem(error)
    else:
        _show(made, screen, first=first)
        return made
    if screen.json:
        emit("error", input=str(path), error=problem.to_dict())
    show_error(problem)
    return None


def _whole(made: FileResult | None) -> bool:
    """Whether ours ran through; a peer that cannot read a file is a result."""
    return made is not None and not any(c.ours and c.status == "failed" for c in made.competitors)


def _show(made: FileResult, screen: Screen, *, first: bool) -> None:
    if screen.json:
        emit("bench", **made.model_dump())
        return
    if screen.quiet:
        return
    from tokpipe_cli.render_bench import show_bench

    if not first:
        screen.say("")
    show_bench(made)
