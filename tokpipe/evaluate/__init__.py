"""How good a compression is: coverage, event recall, legibility and needles."""

from __future__ import annotations

from tokpipe.evaluate.report import Coverage, EvalReport, Events, Legibility, Row
from tokpipe.evaluate.score import evaluate_file, load_embedders, read_annotations

__all__ = [
    "Coverage",
    "EvalReport",
    "Events",
    "Legibility",
    "Row",
    "evaluate_file",
    "load_embedders",
    "read_annotations",
]
