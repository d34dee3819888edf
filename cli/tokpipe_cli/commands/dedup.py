"""``tokpipe dedup``: near-duplicate segments across a dataset of caches."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tokpipe_cli import options as o
from tokpipe_cli.boundary import UsageProblem
from tokpipe_cli.console import Screen, show_error
from tokpipe_cli.jsonl import emit, summarise
from tokpipe_cli.words import joined, plural, stamp

if TYPE_CHECKING:
    from tokpipe.batch.dedup import Duplicates, Segment
    from tokpipe.errors import TokpipeError

EPILOG = (
    "[bold]Examples[/bold]\n\n  tokpipe dedup caches/\n\n"
    "  tokpipe dedup caches/ --threshold 0.98 -o report.jsonl"
)


class Stream(StrEnum):
    """Streams that can be compared."""

    video = "video"
    audio = "audio"


class Search(StrEnum):
    """Ways to find neighbours."""

    auto = "auto"
    torch = "torch"
    faiss = "faiss"


def dedup(
    inputs: Annotated[
        list[Path],
        typer.Argument(help="Token caches, or folders of them.", metavar="CACHE_OR_FOLDER"),
    ],
    threshold: Annotated[
        float,
        typer.Option(
            min=0.01, max=1, metavar="COSINE",
            help="Least cosine of a copy with the segment that stands for it, 0.01 to 1.",
        ),
    ] = 0.95,
    min_seconds: Annotated[
        float, typer.Option(min=0, metavar="SECONDS", help="Leave out shorter segments.")
    ] = 0.0,
    stream: Annotated[Stream, typer.Option(help="What to compare.")] = Stream.video,
    backend: Annotated[
        Search, typer.Option(help="How to search; auto takes faiss for many segments.")
    ] = Search.auto,
    device: o.Device = "cpu",
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Write the groups there, one a line."),
    ] = None,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
    debug: o.Debug = False,
) -> None:  # fmt: skip
    """Find near-duplicate segments across token caches; exit code 1 if one cannot be read."""
    screen = Screen(json=as_json, quiet=quiet, verbose=verbose, debug=debug)
    if all(not path.exists() for path in inputs):
        raise UsageProblem(f"no such file or folder `{inputs[0]}`", hint="check the path")

    from tokpipe.batch.dedup import find_caches, find_duplicates, write_report
    from tokpipe.device import pick_device

    def seen(path: Path, problem: TokpipeError | None) -> None:
        if problem is None:
            return
        if as_json:
            emit("error", input=str(path), error=problem.to_dict())
        show_error(problem)

    caches = find_caches(inputs)
    if not caches:
        raise UsageProblem("no token caches there", hint="make some with `tokpipe compress`")
    found = find_duplicates(
        caches, threshold, stream=stream.value, min_seconds=min_seconds, backend=backend.value,
        device=pick_device(device), seen=seen,
    )  # fmt: skip
    if output is not None:
        write_report(found, output)
    if as_json:
        for group in found.groups:
            emit("group", **group.to_dict())
        emit("summary", **_summary(caches, found))
    else:
        _show(found, threshold, output, stream.value, screen)
    raise typer.Exit(1 if found.problems else 0)


def _summary(caches: list[Path], found: Duplicates) -> dict[str, object]:
    skipped, failed = len(found.absent), len(found.problems)
    statuses = ["done"] * (len(caches) - skipped - failed)
    return summarise(
        [*statuses, *["failed"] * failed, *["skipped"] * skipped],
        segments=found.segments, groups=len(found.groups), copies=len(found.copies),
        seconds=round(found.seconds, 3), copied_seconds=round(_length(found.copies), 3),
        flat=found.flat, short=found.short,
        encoders={
            name: {"caches": caches, "segments": segments}
            for name, (caches, segments) in found.encoders.items()
        },
    )  # fmt: skip


def _show(
    found: Duplicates, threshold: float, output: Path | None, stream: str, screen: Screen
) -> None:
    left = [
        f"{plural(count, what + ' segment')} left out"
        for count, what in ((found.flat, "flat"), (found.short, "short"))
        if count
    ]
    absent = [f"{plural(len(found.absent), 'cache')} without {stream}"] if found.absent else []
    caches = sum(count for count, _ in found.encoders.values())
    screen.say(joined([plural(caches, "cache"), plural(found.segments, "segment"), *left, *absent]))
    groups = f"{plural(len(found.groups), 'group')} of near-duplicates at {threshold:g}"
    count = len(found.copies)
    copies = f"{count:,} copies" if count != 1 else "1 copy"
    time = f"{_length(found.copies):,.1f} of {found.seconds:,.1f} s"
    place = [str(output)] if output is not None else []
    screen.say(joined([groups, copies, time, *place]), style="bold")
    if len(found.encoders) > 1:
        names = ", ".join(f"{name} ({count})" for name, (count, _) in found.encoders.items())
        screen.note(f"caches of different encoders are not compared: {names}")
    for group in found.groups:
        others = ", ".join(f"{_named(s)} {value:.3f}" for s, value in group.copies)
        screen.detail(f"{_named(group.representative)}: {others}")


def _named(segment: Segment) -> str:
    return f"{segment.cache} {stamp(segment.start)}-{stamp(segment.stop)}"


def _length(segments: list[Segment]) -> float:
    return sum(s.stop - s.start for s in segments)
