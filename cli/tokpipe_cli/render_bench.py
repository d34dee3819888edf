"""What ``tokpipe bench`` prints of one file: costs, ratios with all runs, recall."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokpipe_cli.console import console, width
from tokpipe_cli.words import clock, joined, plural

if TYPE_CHECKING:
    from rich.table import Table

    from tokpipe.evaluate.bench_report import FileResult, Ratio, Recall


#: Columns where stdout is no terminal.
_PIPE = 120


def show_bench(made: FileResult) -> None:
    """Print the tables."""
    out = console()
    title = joined([made.file, clock(made.duration), made.video, plural(made.rounds, "round")])
    out.print(title, style="bold")
    out.width = width() or _PIPE
    out.print(_costs(made))
    if made.ratios:
        out.print(_ratios(made.ratios))
    for name, recall in made.recall.items():
        out.print(_recall(name, recall))
    for c in made.competitors:
        if c.status != "done":
            out.print(f"{c.name} {c.status}: {c.reason}", style="dim")


def _table(*columns: str) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 else "right", no_wrap=number == 0)
    return table


def _costs(made: FileResult) -> Table:
    """Medians; CPU time beyond imports is what ratios are made of."""
    table = _table(
        "median", "wall s", "CPU s", "beyond imports", "imports CPU", "peak MB", "imports MB",
        "pictures",
    )  # fmt: skip
    for c in made.competitors:
        if c.status != "done" or c.median is None:
            continue
        m = c.median
        loaded, room = (_middle([getattr(u, n) for u in c.imports]) for n in ("cpu", "peak_mb"))
        table.add_row(
            c.name, f"{m.wall:.2f}", f"{m.cpu:.2f}", f"{m.cpu_beyond:.2f}", f"{loaded:.2f}",
            f"{m.peak_mb:,.0f}", f"{room:,.0f}", "" if m.frames is None else f"{m.frames:,}",
            style="bold" if c.ours else None,
        )  # fmt: skip
    return table


def _middle(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


def _ratios(ratios: list[Ratio]) -> Table:
    """Ours over theirs beyond imports: median and every run, of CPU time; median of wall time."""
    table = _table("ours / theirs", "CPU", "all runs", "wall")
    for r in ratios:
        runs = " ".join(f"{value:.3g}" for value in r.cpu)
        table.add_row(f"{r.ours} / {r.theirs}", f"{r.cpu_median:.3g}", runs, f"{r.wall_median:.3g}")
    return table


def _recall(name: str, r: Recall) -> str:
    beside = [
        (f"decord at {plural(r.moments, 'picture')}", r.decord_same_moments),
        ("decord at as many tokens", r.decord_same_tokens),
        ("decord, all pictures", r.decord_all),
        ("scene middles", r.scenedetect),
    ]
    others = [f"{text} {value:.2f}" for text, value in beside if value is not None]
    return joined([f"recall of {plural(r.events, 'event')}: {name} {r.ours:.2f}", *others], ", ")
