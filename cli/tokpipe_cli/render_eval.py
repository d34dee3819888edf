"""Tables of ``tokpipe eval``: one line a way, numbers in columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tokpipe_cli.console import Screen
from tokpipe_cli.words import clock, joined, plural, took

if TYPE_CHECKING:
    from tokpipe.evaluate import EvalReport, Row
    from tokpipe.evaluate.needles import NeedleReport, NeedleRow
    from tokpipe.evaluate.report import Average

_HEAD = ("", "frames", "mean", "p5", "min", "gap", "events", "ssim", "min", "n")
_MEANS = ("", "files", "mean", "gap", "ssim")
_FOUND = ("", "frames", "kept", "share")
_LONGEST = 24


def show_report(report: EvalReport, screen: Screen) -> None:
    """A table for each budget and each kind of features."""
    screen.say(
        joined(
            [
                report.input, clock(report.duration), f"{report.cells} cells a frame",
                f"in {took(report.seconds['total'])}",
            ]
        ),
        style="bold",
    )  # fmt: skip
    screen.say(
        f"{plural(report.dense_frames, 'dense frame')} at {report.fps:g} fps, "
        f"{report.text_frames:,} of them rich in text"
    )
    for features in report.features:
        if len(report.features) > 1:
            screen.say(f"coverage in {features}", style="bold")
        rows = [(row, _line(row, features)) for row in report.rows]
        sizes = _sizes([_HEAD, *(line for _, line in rows)])
        screen.say(_laid(_HEAD, sizes), style="bold")
        for budget in report.budgets:
            mine = [(row, line) for row, line in rows if row.budget == budget]
            screen.say(f"{_budget(budget, mine[0][0].tokens)}", style="cyan")
            for row, line in mine:
                screen.say(_laid(line, sizes), style=_style(row.kind))
    for text in report.warnings:
        screen.warn(f"{report.input}: {text}")


def show_averages(means: Sequence[Average], screen: Screen) -> None:
    """Means over the files, a table for each kind of features."""
    for features in dict.fromkeys(mean.features for mean in means):
        screen.say(f"mean over files, coverage in {features}", style="bold")
        lines = [(mean, _mean_line(mean)) for mean in means if mean.features == features]
        sizes = _sizes([_MEANS, *(line for _, line in lines)])
        screen.say(_laid(_MEANS, sizes), style="bold")
        for budget in dict.fromkeys(mean.budget for mean, _ in lines):
            screen.say(budget, style="cyan")
            for mean, line in lines:
                if mean.budget == budget:
                    screen.say(_laid(line, sizes), style=_style(mean.kind))


def show_needles(report: NeedleReport, screen: Screen) -> None:
    """How many needles each way kept, budget by budget."""
    start, stop = report.needles[0]
    length, count = stop - start, plural(len(report.needles), "needle")
    screen.say(
        joined(
            [
                report.input, clock(report.duration), f"{report.cells} cells a frame",
                f"in {took(report.seconds['total'])}",
            ]
        ),
        style="bold",
    )  # fmt: skip
    screen.say(
        joined(
            [
                f"{count} of {length:.1f} s, {report.keys_inside} at key frames",
                "" if report.video is None else report.video,
            ]
        )
    )
    rows = [(row, _found_line(row, len(report.needles))) for row in report.rows]
    sizes = _sizes([_FOUND, *(line for _, line in rows)])
    screen.say(_laid(_FOUND, sizes), style="bold")
    for budget in dict.fromkeys(row.budget for row in report.rows):
        mine = [(row, line) for row, line in rows if row.budget == budget]
        screen.say(f"{_budget(budget, mine[0][0].tokens)}", style="cyan")
        for row, line in mine:
            screen.say(_laid(line, sizes), style=_style(row.kind))


def _found_line(row: NeedleRow, count: int) -> tuple[str, ...]:
    kept = f"{row.found:g}/{count}" if row.which is not None else f"{row.found:.1f}/{count}"
    share = f"{100 * row.found / count:.0f} %"
    return _name(row.way, row.kind), f"{row.pictures:,}", kept, share


def _line(row: Row, features: str) -> tuple[str, ...]:
    found, text = row.coverage[features], row.legibility
    return (
        _name(row.way, row.kind), f"{row.pictures:,}",
        f"{found.mean:.4f}", f"{found.p5:.3f}", f"{found.min:.3f}", _gap(row.gap_closed[features]),
        f"{row.events.hit}/{row.events.states}" if row.events else "-",
        _number(text.mean if text else None), _number(text.min if text else None),
        f"{text.pictures:,}" if text else "-",
    )  # fmt: skip


def _mean_line(mean: Average) -> tuple[str, ...]:
    return (
        _name(mean.way, mean.kind), f"{mean.files:,}", f"{mean.coverage:.4f}",
        _gap(mean.gap_closed), _number(mean.ssim),
    )  # fmt: skip


def _budget(budget: str, tokens: int) -> str:
    return f"{tokens:,} tokens ({budget})" if budget.endswith("f") else plural(tokens, "token")


def _name(way: str, kind: str) -> str:
    text = f"= {way}" if kind in ("baseline", "oracle") else way
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def _style(kind: str) -> str:
    return "dim" if kind in ("baseline", "oracle") else ""


def _gap(value: float | None) -> str:
    if value is None:
        return "-"
    # What is far from everything needs no second digit.
    return f"{value:+.2f}" if abs(value) < 10 else f"{value:+.1f}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _sizes(lines: Sequence[Sequence[str]]) -> list[int]:
    return [max(map(len, column)) for column in zip(*lines, strict=True)]


def _laid(line: Sequence[str], sizes: Sequence[int]) -> str:
    first, *rest = [
        cell.rjust(size) if i else cell.ljust(size)
        for i, (cell, size) in enumerate(zip(line, sizes, strict=True))
    ]
    return "  " + "  ".join([first, *rest]).rstrip()
