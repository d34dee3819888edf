"""Token caches in the form a consumer takes: one file each, found by its name.

An exporter is a frozen dataclass whose fields are its parameters, as for operators; what it says of
itself (``Exporter`` in ``tokpipe.export._contract``) makes ``export --list``, the refusals and the
table of the documentation. Names and summaries are listed without importing anything.
"""

from __future__ import annotations

from tokpipe.export._contract import Exporter, Written
from tokpipe.export._names import exporter_from, exporters, load_exporter

__all__ = ["Exporter", "Written", "exporter_from", "exporters", "load_exporter"]
