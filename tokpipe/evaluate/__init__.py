"""How good a compression is, and what it costs: coverage, events, needles, time against peers.

Names load on first use: a comparison times other processes from one that stays small.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOME = {
    "Coverage": "report",
    "EvalReport": "report",
    "Events": "report",
    "Legibility": "report",
    "NeedleReport": "needles",
    "NeedleRow": "needles",
    "Row": "report",
    "evaluate_file": "score",
    "find_needles": "needles",
    "load_embedders": "score",
    "read_annotations": "score",
    "write_plot": "plot",
}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    """Import a public name where it lives."""
    if name not in _HOME:
        raise AttributeError(f"module 'tokpipe.evaluate' has no attribute {name!r}")
    return getattr(import_module(f"tokpipe.evaluate.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    """List the public names."""
    return __all__
