"""Ours against the other readers on a lecture, a film and an action clip; what is aimed at beside.

    python tests/benchmarks/peers.py [--lecture FILE] [--film FILE] [--action FILE] [--out OUT]

A lecture (20 minutes) and an action clip (3 minutes) that are not given are generated; without
``--film`` there is no film. Annotations are FILE with the suffix .json, if there. Each file has its
share of ``--seconds``; its first round is always done, slow peers run in that one only.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from tokpipe.evaluate.bench_report import FileResult, Report
from tokpipe.evaluate.conditions import conditions
from tokpipe.evaluate.peers import Plan, compare
from tokpipe.testing.long_media import write_action, write_lecture

SLOW = ("torchcodec", "scenedetect", "open-clip-loop")


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of file: the peers that read it, its share of the time, and its budget.

    A lecture's forty slides, which stay at the full grid, take some 5,000 tokens.
    """

    label: str
    peers: tuple[str, ...]
    share: float
    budget: int = 2048


KINDS = (
    Kind("lecture", ("pyav", "decord", *SLOW), 0.55, 8192),
    Kind("film", ("pyav", "decord", "torchcodec"), 0.25),
    Kind("action", ("pyav", "decord"), 0.2),
)


@dataclass(frozen=True, slots=True)
class Aim:
    """A ratio (CPU time beyond imports, median) that is not to be passed."""

    label: str
    ours: str
    theirs: str
    most: float


AIMS = (
    Aim("lecture", "tokpipe:balanced", "pyav-auto", 0.15),
    Aim("lecture", "tokpipe:balanced", "decord", 0.2),
    Aim("film", "tokpipe:balanced", "pyav-auto", 0.6),
    Aim("action", "tokpipe:balanced", "pyav-auto", 1.1),
)


def aims_met(files: list[FileResult]) -> list[str]:
    """One line for each aim and each recall."""
    lines = []
    for made in files:
        found = {(r.ours, r.theirs): r.cpu_median for r in made.ratios}
        for aim in AIMS:
            value = found.get((aim.ours, aim.theirs))
            if aim.label == made.label and value is not None:
                met = "met" if value <= aim.most else "NOT met"
                lines.append(f"{met:8}{aim.label}: {aim.ours} / {aim.theirs} {value:.3f} "
                             f"(aim {aim.most:g} or less)")  # fmt: skip
        for name, recall in made.recall.items():
            other = recall.decord_same_moments
            if name.startswith("tokpipe-reuse"):
                continue
            met = "met" if recall.ours >= max(other or 0.0, 1.0) else "NOT met"
            lines.append(f"{met:8}{made.label}: {name} recall {recall.ours:.3f}, decord at as "
                         f"many pictures {other}")  # fmt: skip
    return lines


def generated(label: str, folder: Path) -> Path | None:
    """Write the file of a kind, with its annotations beside it."""
    path = folder / f"{label}.mp4"
    if label == "lecture":
        said = write_lecture(path, 20)
        path.with_suffix(".json").write_text(json.dumps(asdict(said)), encoding="utf-8")
    elif label == "action":
        write_action(path, 180)
    else:
        return None
    return path


def say(name: str) -> None:
    """What runs now."""
    sys.stderr.write(f"  {name}\n")


def main() -> None:
    """Measure, write the report and say which aims are met."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    for kind in KINDS:
        parser.add_argument(f"--{kind.label}", type=Path)
    parser.add_argument("--only", default="lecture,film,action")
    parser.add_argument("--efforts", default="fast,balanced")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--budget", type=int, help="instead of each kind's own")
    parser.add_argument("--seconds", type=float, default=540.0)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    files = []
    with tempfile.TemporaryDirectory() as folder:
        for kind in KINDS:
            if kind.label not in given.only.split(","):
                continue
            path = getattr(given, kind.label) or generated(kind.label, Path(folder))
            if path is None:
                continue
            plan = Plan(
                peers=kind.peers, once=SLOW, runs=given.runs, budget=given.budget or kind.budget,
                efforts=tuple(given.efforts.split(",")), time_budget=given.seconds * kind.share,
            )  # fmt: skip
            note = path.with_suffix(".json")
            sys.stderr.write(f"{kind.label}\n")
            made = compare(path, plan, annotations=note if note.exists() else None, seen=say)
            files.append(made.model_copy(update={"label": kind.label}))
    asked = {"runs": given.runs, "fps": 2.0, "seconds": given.seconds,
             "efforts": given.efforts.split(",")}  # fmt: skip
    report = Report(conditions=conditions(), asked=asked, files=files)
    if given.out:
        given.out.write_text(report.model_dump_json(indent=1) + "\n", encoding="utf-8")
    print("\n".join(aims_met(files)))


if __name__ == "__main__":
    main()
