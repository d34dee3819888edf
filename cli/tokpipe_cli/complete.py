"""Shell completion of names; reads file names only, imports nothing heavy."""

from __future__ import annotations


def operator_names(incomplete: str) -> list[tuple[str, str]]:
    """Operators, presets and aliases that begin so, with their summaries."""
    return _names(incomplete, rules_only=False)


def recipe_names(incomplete: str) -> list[tuple[str, str]]:
    """Names that begin so and are a recipe by themselves, with their summaries."""
    return _names(incomplete, rules_only=True)


def encoder_names(incomplete: str) -> list[tuple[str, str]]:
    """Cards and families of encoders with weights that begin so."""
    from tokpipe import registry
    from tokpipe.encoder_choice import card_names, read_card

    found = [(name, str(read_card(name)["about"])) for name in card_names()]
    found += [
        (f"{entry.name.replace('-', '_')}:", entry.summary)
        for entry in registry.entries().values()
        if entry.feature
    ]
    return [(name, about) for name, about in found if name.startswith(incomplete)]


def consumer_names(incomplete: str) -> list[tuple[str, str]]:
    """Consumers of caches that begin so, with their summaries."""
    from tokpipe.export import exporters

    return [(name, about) for name, about in exporters().items() if name.startswith(incomplete)]


def _names(incomplete: str, *, rules_only: bool) -> list[tuple[str, str]]:
    from tokpipe import registry

    kinds = ("preset", "reducer", "projector")
    return [
        (name, entry.summary)
        for entry in registry.entries().values()
        for name in (entry.name, *entry.aliases)
        if name.startswith(incomplete) and (entry.kind in kinds or not rules_only)
    ]
