"""What ``tokpipe export`` shows: the consumers there are, one of them, and what was written."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tokpipe_cli.console import Screen, table
from tokpipe_cli.jsonl import emit, summarise
from tokpipe_cli.words import joined, plural, size

if TYPE_CHECKING:
    from tokpipe.export import ExportRecord


def show_exporters(name: str | None, screen: Screen) -> None:
    """The list of consumers, or one with its parameters."""
    from tokpipe.export import exporters

    if name is not None:
        _show_one(name.partition(":")[0].strip(), screen)
        return
    if screen.json:
        for key in exporters():
            emit("consumer", **_facts(key))
        emit("summary", **summarise(["done"] * len(exporters())))
        return
    rows = [(key, text) for key, text in exporters().items()]
    table(rows, head=("consumer", "what it makes"))
    screen.note("one with its parameters: tokpipe export --list --to NAME")


def _facts(name: str) -> dict[str, Any]:
    from dataclasses import asdict

    from tokpipe.export import exporters, load_exporter
    from tokpipe.parameters import parameters_of

    kind = load_exporter(name)
    told = ("source", "takes", "domains", "extra", "whole", "suffix", "model_use", "accepts",
            "loses", "python")  # fmt: skip
    return {
        "name": name, "summary": exporters()[name], **{key: getattr(kind, key) for key in told},
        "parameters": [asdict(p) for p in parameters_of(kind)],
    }  # fmt: skip


def _show_one(name: str, screen: Screen) -> None:
    facts = _facts(name.lower().replace("_", "-"))
    if screen.json:
        emit("consumer", **facts)
        emit("summary", **summarise(["done"]))
        return
    screen.say(f"{facts['name']}: {facts['summary']}", style="bold")
    rows = [
        ("takes", f"{joined(list(facts['domains']), ' and ')} caches, layout "
         + joined(list(facts["takes"]), ", ")),
        ("output", "one of all caches" if facts["whole"] else "one a cache"),
        ("accepts", facts["accepts"]), ("loses", facts["loses"]), ("source", facts["source"]),
    ]  # fmt: skip
    if facts["extra"]:
        rows.append(("needs", f"pip install 'tokpipe[{facts['extra']}]'"))
    if facts["python"]:
        rows.append(("in Python", facts["python"]))
    table(rows)
    if facts["parameters"]:
        screen.say("")
        table(
            [(p["name"], p["type"], str(p["default"]), p["about"]) for p in facts["parameters"]],
            head=("parameter", "type", "default", "what it does"),
        )


def show_total(statuses: Sequence[str], tokens: int, screen: Screen) -> None:
    """One line over many outputs."""
    counts = {name: count for name, count in summarise(statuses).items() if count}
    said = ", ".join(f"{count:,} {name}" for name, count in counts.items())
    screen.say(f"{said}  {plural(tokens, 'media token')}")


def show_export(record: ExportRecord, screen: Screen, *, alone: bool) -> None:
    """What was written and, of one alone or where details are asked, how the consumer takes it."""
    if record.status == "skipped":
        screen.say(f"{record.output}  already there")
        return
    parts = [plural(record.tokens, "media token")]
    if record.added > 0:
        parts.append(f"{record.added:,} added for the consumer")
    parts += [plural(count, what.removesuffix("s")) for what, count in record.items.items()]
    screen.say(f"{record.output}  {size(record.bytes)}  {joined(parts, ', ')}")
    for note in record.notes:
        screen.warn(note)
    if record.example:
        (screen.note if alone else screen.detail)(textwrap.indent(record.example.rstrip(), "  "))
