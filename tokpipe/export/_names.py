"""Exporters by file name; names and summaries are read without importing anything."""

from __future__ import annotations

import difflib
import importlib
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokpipe.errors import UnknownOperator
from tokpipe.registry import only_class

if TYPE_CHECKING:
    from tokpipe.export._contract import Exporter

_GROUP = "tokpipe.exporters"


@cache
def exporters() -> dict[str, str]:
    """One-line summary of every exporter by name, sorted."""
    found = {}
    for path in Path(__file__).parent.glob("[a-z]*.py"):
        first = path.read_text(encoding="utf-8").partition("\n")[0].strip()
        found[path.stem.replace("_", "-")] = first.strip('"').rstrip(".")
    for point in entry_points(group=_GROUP):
        found[point.name] = f"from {point.dist.name if point.dist else 'a plug-in'}"
    return dict(sorted(found.items()))


def load_exporter(name: str) -> type[Any]:
    """Import one exporter's class.

    Raises:
        UnknownOperator: No such name; the nearest are named.
    """
    key = name.lower().replace("_", "-")
    if key not in exporters():
        near = difflib.get_close_matches(key, list(exporters()), n=2, cutoff=0.5)
        hint = "did you mean " + " or ".join(f"`{n}`" for n in near) + "?" if near else None
        raise UnknownOperator(
            f"unknown consumer `{name}`", hint=hint or "list them with `tokpipe export --list`"
        )
    for point in entry_points(group=_GROUP):
        if point.name == key:
            return point.load()  # type: ignore[no-any-return]
    module = importlib.import_module(f"tokpipe.export.{key.replace('-', '_')}")
    return only_class(module, "takes")


def exporter_from(text: str, **more: Any) -> tuple[str, Exporter]:
    """Name and exporter of ``name`` or ``name:parameter=value,parameter=value``.

    Args:
        more: Parameters given elsewhere, such as on the command line; None ones are left out.

    Raises:
        UnknownOperator: No such consumer.
        RecipeError: A parameter that it has not, or of the wrong type or range.
    """
    from tokpipe.recipe import make, parse_params

    name, colon, rest = text.partition(":")
    kind = load_exporter(name.strip())
    key = name.strip().lower().replace("_", "-")
    params = parse_params(key, rest, "--to") if colon else {}
    params |= {k: v for k, v in more.items() if v is not None}
    return key, make(kind, key, params, f"see `tokpipe export --list --to {key}`")
