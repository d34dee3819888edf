"""``tokpipe dataset``: pack caches into shards, check them, count what is in them."""

from __future__ import annotations

import re
import time
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tokpipe_cli import options as o
from tokpipe_cli.boundary import UsageProblem
from tokpipe_cli.console import Screen, show_error
from tokpipe_cli.counter import Counter
from tokpipe_cli.jsonl import emit, summarise
from tokpipe_cli.words import joined, plural, size, stamp, took

if TYPE_CHECKING:
    from tokpipe.cache.dataset_check import Checked
    from tokpipe.cache.dataset_stats import DatasetStats
    from tokpipe.cache.pack import Packed, PackedItem

EPILOG = (
    "[bold]Examples[/bold]\n\n  tokpipe dataset pack caches/ talks-dataset\n\n"
    "  tokpipe dataset verify talks-dataset --deep\n\n  tokpipe dataset stats talks-dataset"
)
app = typer.Typer(help="Pack token caches into a dataset for training, check and count it.",
                  epilog=EPILOG)  # fmt: skip
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9}
#: Columns of the longest bar of a histogram.
_BAR = 40

Folder = Annotated[
    Path,
    typer.Argument(help="A packed dataset, or a folder of token caches.", metavar="DATASET"),
]


class KeyChoice(StrEnum):
    """Ways to name items."""

    digest = "digest"
    name = "name"
    column = "column"


@app.callback(invoke_without_command=True)
def root(context: typer.Context) -> None:
    """Pack token caches into a dataset for training, check and count it."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit(2)


@app.command("pack")
def pack_(
    folder: Annotated[
        Path, typer.Argument(help="Folder of token caches, to any depth.", metavar="FOLDER")
    ],
    dataset: Annotated[Path, typer.Argument(help="Where the dataset is made.", metavar="DATASET")],
    shard_size: Annotated[
        str, typer.Option(metavar="SIZE", help="Bytes of a shard, such as 256MB or 1GB.")
    ] = "512MB",
    key: Annotated[
        KeyChoice,
        typer.Option(
            help="What names an item: digest of source and recipe, name of the file, or a column "
            "of --keys."
        ),
    ] = KeyChoice.digest,
    keys: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="CSV or JSON lines with the columns path and key."),
    ] = None,
    mixed: Annotated[
        bool, typer.Option("--mixed", help="Allow caches of different encoders and recipes.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Replace items that differ from those of their key.")
    ] = False,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
    debug: o.Debug = False,
) -> None:
    """Pack a folder of caches into a dataset; run it again to go on, or to add new caches.

    Every cache is checked before it enters. Exit code 1 if one failed; the rest is written.
    """
    screen = Screen(json=as_json, quiet=quiet, verbose=verbose, debug=debug)
    most = _bytes(shard_size)
    if not folder.is_dir():
        raise UsageProblem(f"no such folder `{folder}`", hint="name the folder of the caches")
    if (key is KeyChoice.column) != (keys is not None):
        raise UsageProblem("--key column and --keys go together", hint="give both or neither")

    from tokpipe.cache.pack import pack, read_keys

    began = time.monotonic()
    with Counter("pack", wanted=not (as_json or quiet)) as counter:

        def seen(item: PackedItem, done: int, total: int) -> None:
            counter.report(done, total)
            _told(item, counter, screen)

        made = pack(
            folder, dataset, key=key.value, keys=read_keys(keys) if keys is not None else None,
            shard_size=most, mixed=mixed, force=force, seen=seen,
        )  # fmt: skip
    if not made.items:
        raise UsageProblem(f"no token caches in `{folder}`", hint="make some with tokpipe compress")
    _close(made, time.monotonic() - began, screen)
    raise typer.Exit(1 if made.count("failed") else 0)


def _bytes(text: str) -> int:
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([kmg]?)b?", text.strip().lower())
    value = int(float(found[1]) * _UNITS[found[2]]) if found else 0
    if value < 1:
        raise UsageProblem(f"--shard-size: `{text}` is no size", hint="such as 512MB or 1GB")
    return value


def _told(item: PackedItem, counter: Counter, screen: Screen) -> None:
    if screen.json:
        more = {} if item.error is None else {"error": item.error.to_dict()}
        emit("item", input=str(item.path), status=item.status, key=item.key, **more)
    elif item.error is None:
        screen.detail(f"{item.path}: {item.status} {item.key}")
    if item.error is not None:
        if item.error.where is None:
            item.error.where = str(item.path)
        with counter.paused():
            show_error(item.error)


def _close(made: Packed, seconds: float, screen: Screen) -> None:
    counts = {status: made.count(status) for status in ("done", "skipped", "failed")}
    if screen.json:
        summary = summarise([item.status for item in made.items])
        emit("summary", **summary, output=str(made.root), shards=made.shards, bytes=made.bytes,
             warnings=made.warnings, seconds={"total": round(seconds, 3)})  # fmt: skip
        return
    for warning in made.warnings:
        screen.warn(warning)
    words = [f"{count:,} {status}" for status, count in counts.items() if count]
    if made.bytes:
        words.append(f"{size(made.bytes)} added in {took(seconds)}")
    screen.say(", ".join(words))
    screen.say(f"{made.root}  {plural(made.shards, 'shard')}", style="bold")


@app.command("verify")
def verify_(
    dataset: Folder,
    deep: Annotated[
        bool, typer.Option("--deep", help="Also compare digests, decode pictures and sound.")
    ] = False,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
    debug: o.Debug = False,
) -> None:
    """Check shards, index and every item; exit code 1 if one has a problem."""
    screen = Screen(json=as_json, quiet=quiet, debug=debug)
    if not dataset.exists():
        raise UsageProblem(f"no such folder `{dataset}`", hint="name a dataset or a folder")

    from tokpipe.cache.dataset import open_dataset
    from tokpipe.cache.dataset_check import verify_dataset

    statuses: list[str] = []
    items = 0
    with Counter("verify", wanted=not (as_json or quiet)) as counter:
        total = len(open_dataset(dataset, mixed=True)) if counter.shows else None
        for found in verify_dataset(dataset, deep):
            items += found.kind == "item"
            statuses.append("done" if found.ok else "failed")
            counter.report(items, total)
            if as_json:
                emit("verify", **found.to_dict())
            elif not found.ok:
                with counter.paused():
                    _problems(found, screen)
    bad = statuses.count("failed")
    if as_json:
        emit("summary", **summarise(statuses), items=items, deep=deep)
    else:
        state = f"{plural(bad, 'fault')}" if bad else "ok" + (" (deep)" if deep else "")
        screen.say(f"{dataset}: {state}  {plural(items, 'item')}", style="bold red" if bad else "")
    raise typer.Exit(1 if bad else 0)


def _problems(found: Checked, screen: Screen) -> None:
    screen.say(f"{found.kind} {found.name}: {plural(len(found.problems), 'problem')}", style="red")
    for code, text in found.problems:
        screen.say(f"  {code}: {text}")


@app.command("stats")
def stats_(
    dataset: Folder, as_json: o.Json = False, quiet: o.Quiet = False, debug: o.Debug = False
) -> None:
    """Count items, tokens, bytes and durations; say if encoders and dtypes are alike.

    Exit code 1 where a shard is missing or cut short.
    """
    screen = Screen(json=as_json, quiet=quiet, debug=debug)
    if not dataset.exists():
        raise UsageProblem(f"no such folder `{dataset}`", hint="name a dataset or a folder")

    from tokpipe.cache.dataset_stats import dataset_stats

    found = dataset_stats(dataset)
    if as_json:
        emit("stats", **found.to_dict())
        emit("summary", **summarise(["failed" if found.broken else "done"]))
    else:
        _show(found, screen)
    raise typer.Exit(1 if found.broken else 0)


def _show(found: DatasetStats, screen: Screen) -> None:
    form = plural(found.shards, "shard") if found.packed else "loose files"
    bad = f"{found.unreadable} cannot be read" if found.unreadable else ""
    screen.say(joined([plural(found.items, "item"), form, size(found.bytes), bad]), style="bold")
    for shard, why in found.broken:
        screen.say(f"shard {shard}: {why}; its items are counted, but cannot be read", style="red")
    for stream, count in found.tokens.items():
        names = "; ".join(found.encoders[stream]) or "?"
        screen.say(f"{stream}: {plural(count, 'token')}  {names}")
    least, middle, most = found.per_item
    screen.say(f"tokens an item: {least:,} to {most:,}, median {middle:,}")
    dtypes = ", ".join(f"{n} {name}" for name, n in found.dtypes.items())
    alike = "one encoder and dtype a stream" if found.alike else "encoders or dtypes differ"
    recipes = f"; {plural(found.recipes, 'recipe')}" if found.recipes else ""
    screen.say(f"{alike}: {dtypes}{recipes}")
    screen.say(f"durations, {stamp(found.seconds)} in all:")
    top = max((count for _, _, count in found.durations), default=1)
    for low, high, count in found.durations:
        bar = "#" * max(1, round(_BAR * count / top))
        screen.say(f"  {_span(low, high):>16}  {count:>9,}  {bar}")


def _span(low: float | None, high: float | None) -> str:
    if low is None:
        return "unknown"
    return f"{stamp(low)} to {stamp(high)}" if high is not None else f"{stamp(low)} and more"
