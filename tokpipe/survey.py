"""The rows of the survey's lists, and where each stands here.

Shao et al., "A Survey of Token Compression for Efficient Multimodal Large Language Models",
arXiv:2507.20198, and its companion lists of image, vision transformer, video and audio methods.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

#: Why a method is not an operator here, by status.
STATUS = {
    "runs": "runs here",
    "llm": "acts inside the language model",
    "trained": "is a trained module",
    "unspecified": "is not specified well enough to run",
    "encoder": "is a design or change of an encoder",
    "inputs": "needs inputs that no media file holds",
    "reading": "is no method: a survey, benchmark or position",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One row of a list.

    Attributes:
        name: As the list names it.
        slug: Lower case with ``-``, as operators are named.
        lists: Lists it stands in: image, vit, video, audio.
        status: A key of ``STATUS``.
        runs: Names of the operators or presets that run it, or the part of it that can run.
        reason: Why not, or which part.
        carries: What a cache holds so that a consumer can still run it.
    """

    name: str
    slug: str
    lists: tuple[str, ...]
    status: str
    runs: tuple[str, ...] = ()
    reason: str = ""
    carries: str = ""

    @property
    def why(self) -> str:
        """One line: what runs of it, or why it does not run."""
        if self.status == "runs":
            return f"{self.name} runs as {' or '.join(f'`{name}`' for name in self.runs)}"
        text = f"{self.name} {STATUS[self.status]}"
        return f"{text}: {self.reason}" if self.reason else text


@cache
def rows() -> tuple[Row, ...]:
    """Every row, in the lists' order."""
    raw = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
    out = []
    for row in raw["row"]:
        lists, runs = tuple(row.pop("lists")), tuple(row.pop("runs", ()))
        out.append(Row(lists=lists, runs=runs, **row))
    return tuple(out)


def find(slug: str) -> Row | None:
    """The row of that name that does not run here under it, None where there is none."""
    return next((row for row in rows() if row.slug == slug), None)
