"""Tables of benchmarks.md from the figures in benchmarks/, for docs/build.py."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from tokpipe.evaluate.bench_report import Report


def filled(page: str, figures: Path) -> str:
    """The page with every ``<!-- NAME: ... -->`` to ``<!-- end -->`` made from ``NAME.json``."""

    def made(match: re.Match[str]) -> str:
        path = figures / f"{match[2]}.json"
        text = _NOT_YET if not path.exists() else _TABLES[match[2]](path)
        return f"{match[1]}\n\n{text.strip()}\n\n<!-- end -->"

    return re.sub(r"(<!-- (\w+): .*?-->)\n.*?<!-- end -->", made, page, flags=re.S)


def schema() -> str:
    """The JSON schema of what ``tokpipe bench`` writes."""
    return json.dumps(Report.model_json_schema(), indent=1) + "\n"


def _taken(conditions: dict[str, Any]) -> str:
    versions = conditions["versions"]
    named = ", ".join(f"{name} {versions[name]}" for name in sorted(versions))
    return (
        f"{conditions['cores']} cores ({conditions['processor'] or conditions['machine']}, "
        f"{conditions['system']}), load {conditions['load']} at the end, "
        f"Python {conditions['python']}, {named}."
    )


def peers_tables(path: Path) -> str:
    """Costs, ratios and recall of every file."""
    report = Report.model_validate_json(path.read_text(encoding="utf-8"))
    asked = report.asked
    taken = (
        f"Conditions: {_taken(report.conditions)} Sampling loops at {asked['fps']:g} pictures a "
        "second."
    )
    lines = [taken, ""]
    for made in report.files:
        minutes = f"{(made.duration or 0) / 60:.1f} minutes"
        rounds = f"{made.rounds} round" + ("" if made.rounds == 1 else "s")
        lines += [f"### {(made.label or made.file).capitalize()}", "",
                  f"{minutes}, {made.video}, {made.budget} tokens, {rounds}.", ""]  # fmt: skip
        lines += ["| median | wall s | CPU s | beyond imports | imports | peak MB | pictures |",
                  "|---|--:|--:|--:|--:|--:|--:|"]  # fmt: skip
        for c in made.competitors:
            if c.status != "done" or c.median is None:
                lines.append(f"| {c.name} | {c.status}: {c.reason} | | | | | |")
                continue
            m, loaded = c.median, sorted(u.cpu for u in c.imports)[len(c.imports) // 2]
            frames = "" if m.frames is None else f"{m.frames:,}"
            lines.append(f"| {c.name} | {m.wall:.2f} | {m.cpu:.2f} | {m.cpu_beyond:.2f} "
                         f"| {loaded:.2f} | {m.peak_mb:,.0f} | {frames} |")  # fmt: skip
        lines += ["", "| ours / theirs, beyond imports | CPU time | all runs | wall time |",
                  "|---|--:|---|--:|"]  # fmt: skip
        for r in made.ratios:
            runs = ", ".join(f"{v:.3g}" for v in r.cpu)
            lines.append(f"| {r.ours} / {r.theirs} | {r.cpu_median:.3g} | {runs} "
                         f"| {r.wall_median:.3g} |")  # fmt: skip
        lines += _recall(made.recall) if made.recall else []
        lines.append("")
    return "\n".join(lines)


def _recall(found: dict[str, Any]) -> list[str]:
    def part(value: float | None) -> str:
        return "" if value is None else f"{value:.2f}"

    head = (
        "| events with something kept | events | ours | decord, as many pictures "
        "| decord, as many tokens | decord, all | scene middles |"
    )
    lines = ["", head, "|---|--:|--:|--:|--:|--:|--:|"]
    for name, r in found.items():
        lines.append(f"| {name} | {r.events} | {part(r.ours)} | {part(r.decord_same_moments)} "
                     f"| {part(r.decord_same_tokens)} | {part(r.decord_all)} "
                     f"| {part(r.scenedetect)} |")  # fmt: skip
    return lines


def scale_tables(path: Path) -> str:
    """Cost per hour by length."""
    found = json.loads(path.read_text(encoding="utf-8"))
    taken = (
        f"Conditions: {_taken(found['conditions'])} Effort {found['effort']}, budget "
        f"{found['budget']}. Most over least cost per hour: {found['most_over_least']:.2f}."
    )
    head = (
        "| hours | CPU s an hour of media | peak MB | selection | bank MB "
        "| again: wall s | CPU s | times faster |"
    )
    lines = [taken, "", head, "|--:|--:|--:|--:|--:|--:|--:|--:|"]
    for row in found["lengths"]:
        if row["status"] != "done":
            lines.append(f"| {row['hours']:g} | not run: {row['reason']} | | | | | | |")
            continue
        first, again = row["first"], row["again"]
        lines.append(
            f"| {row['hours']:g} | {first['cpu_per_hour']:.1f} | {first['peak_mb']:,.0f} "
            f"| {100 * first['selection_share']:.1f} % | {row['bank_mb']:,.0f} "
            f"| {again['wall_beyond']:.2f} | {again['cpu_beyond']:.2f} | {row['speedup']:.0f} |"
        )
    return "\n".join(lines)


def dataset_tables(path: Path) -> str:
    """Loader, random access and slices of packed datasets."""
    found = json.loads(path.read_text(encoding="utf-8"))
    loader, part = found["loader"], found["slice"]
    taken = (
        f"Conditions: {_taken(found['conditions'])} {loader['items']} items, "
        f"{loader['bytes'] / 1e6:,.0f} MB, batches of 8, {loader['rounds']} rounds."
    )
    head = "| a pass over the dataset | GB/s, median | best | over sequential, median | best |"
    lines = [taken, "", head, "|---|--:|--:|--:|--:|"]
    for name, words in _PASSES.items():
        ratio, best = loader["ratio"].get(name), loader["best_ratio"].get(name)
        ends = " | | |" if ratio is None else f" | {ratio:.2f} | {best:.2f} |"
        lines.append(f"| {words} | {loader['gb_per_s'][name]:.1f} "
                     f"| {loader['best_gb_per_s'][name]:.1f}{ends}")  # fmt: skip
    head = "| one item at random | pread p50, us | item p50, us | ratio | ratio, looked at |"
    lines += ["", head, "|---|--:|--:|--:|--:|"]
    for name in ("random_access", "random_access_long_items"):
        row = found[name]
        lines.append(
            f"| {row['items']:,} items of {row['item_bytes'] / 1e6:.2f} MB "
            f"| {row['us']['pread']['p50']:.0f} | {row['us']['item']['p50']:.0f} "
            f"| {row['ratio_p50']:.2f} | {row['ratio_p50_looked_at']:.2f} |"
        )
    one = (
        f"One picture ({part['slice_tokens']} of {part['item_tokens']:,} tokens) of an item reads "
        f"{part['read_bytes']:,} of {part['item_bytes']:,} bytes, {100 * part['share']:.1f} %, "
        f"in {part['reads']} reads."
    )
    return "\n".join([*lines, "", one])


_PASSES = {
    "sequential": "reading the shards from front to back",
    "workers_2": "`Trainer`'s loader, 2 workers",
    "workers_0": "the same without workers",
    "sequential_looked_at": "reading the shards, every byte looked at",
    "workers_2_looked_at": "2 workers, every byte looked at",
    "workers_0_looked_at": "without workers, every byte looked at",
}
_TABLES = {"peers": peers_tables, "scale": scale_tables, "dataset": dataset_tables}
_NOT_YET = "Not measured yet."
