"""Token caches in the form a consumer takes: one file each, found by its name.

An exporter is a frozen dataclass whose fields are its parameters, as for operators; what it says of
itself (``Exporter`` in ``tokpipe.export._contract``) makes ``export --list``, the refusals and the
table of the documentation. Names and summaries are listed without importing anything.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from tokpipe.export._contract import Exporter, Written
from tokpipe.export._names import exporter_from, exporters, load_exporter

__all__ = [
    "ExportRecord", "Exporter", "Written", "check_cache", "export_all", "export_cache",
    "exporter_from", "exporters", "load_exporter",
]  # fmt: skip
#: What reads caches, and so numpy, loads on first use.
_RUN = ("ExportRecord", "check_cache", "export_all", "export_cache")


def __getattr__(name: str) -> Any:
    """Import what runs an export."""
    if name not in _RUN:
        raise AttributeError(f"module 'tokpipe.export' has no attribute {name!r}")
    return getattr(import_module("tokpipe.export._run"), name)
