"""Many inputs: what to work on and where each result goes."""

from __future__ import annotations

from tokpipe.batch.manifest import Entry, Manifest, assign_outputs, expand

__all__ = ["Entry", "Manifest", "assign_outputs", "expand"]
