"""Shell completion of names; reads file names only, imports nothing heavy."""

from __future__ import annotations


def operator_names(incomplete: str) -> list[tuple[str, str]]:
    """Operators and presets that begin so, with their summaries."""
    return _names(incomplete, presets_only=False)


def recipe_names(incomplete: str) -> list[tuple[str, str]]:
    """Presets that begin so, with their summaries."""
    return _names(incomplete, presets_only=True)


def _names(incomplete: str, *, presets_only: bool) -> list[tuple[str, str]]:
    from tokpipe import registry

    return [
        (name, entry.summary)
        for name, entry in registry.entries().items()
        if name.startswith(incomplete) and (entry.kind == "preset" or not presets_only)
    ]
