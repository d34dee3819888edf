"""``tokpipe verify``: check caches against the format page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tokpipe_cli import options as o
from tokpipe_cli.boundary import os_problem
from tokpipe_cli.console import Screen, show_error
from tokpipe_cli.jsonl import emit, summarise
from tokpipe_cli.words import joined, plural, size


def verify(
    files: Annotated[list[Path], typer.Argument(help="Token caches.", metavar="FILE")],
    deep: Annotated[
        bool, typer.Option("--deep", help="Also check digests, features, pictures and sound.")
    ] = False,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
    debug: o.Debug = False,
) -> None:
    """Check token caches; exit code 1 if one has a problem."""
    from tokpipe.cache.verify import verify as check
    from tokpipe.errors import TokpipeError

    screen = Screen(json=as_json, quiet=quiet, debug=debug)
    statuses = []
    for path in files:
        problem: TokpipeError
        try:
            report = check(path, deep)
        except TokpipeError as error:
            problem = error
        except OSError as error:
            problem = os_problem(error)
        else:
            statuses.append("done" if report.ok else "failed")
            if as_json:
                emit("verify", **report.to_dict())
            elif report.ok:
                screen.say(
                    f"{path}: ok" + (" (deep)" if deep else "") + f"  {_counts(report.counts)}"
                )
            else:
                screen.say(f"{path}: {plural(len(report.problems), 'problem')}", style="bold red")
                for code, text in report.problems:
                    screen.say(f"  {code}: {text}")
            continue
        statuses.append("failed")
        if as_json:
            emit("error", input=str(path), error=problem.to_dict())
        show_error(problem)
    if as_json:
        emit("summary", **summarise(statuses))
    missing = all(not path.exists() for path in files)
    raise typer.Exit(0 if "failed" not in statuses else 2 if missing else 1)


def _counts(counts: object) -> str:
    assert isinstance(counts, dict)  # noqa: S101 - the report's own type is a mapping
    parts = [f"{counts[name]:,} {name}" for name in ("video", "audio") if counts.get(name)]
    parts += [
        plural(counts[name], name[:-1])
        for name in ("segments", "pages", "digests")
        if counts.get(name)
    ]
    return joined([*parts, size(counts.get("bytes", 0))], ", ")
