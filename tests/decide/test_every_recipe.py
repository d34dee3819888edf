"""Every name that is a recipe: exactly the budget where the built-in encoders suffice, else why."""

from __future__ import annotations

from pathlib import Path

import pytest

from tokpipe import registry
from tokpipe.cache import open_cache
from tokpipe.card import card
from tokpipe.errors import RecipeError
from tokpipe.recipe import load_recipe
from tokpipe.run import compress_file

BUDGET = 300
RECIPES = [n for n, e in registry.entries().items() if card(n).where and not e.plugin]
RUNS = [name for name in RECIPES if not card(name).unmet]
REFUSED = [name for name in RECIPES if card(name).unmet]


@pytest.mark.parametrize("name", RUNS)
def test_recipe_meets_the_budget(name: str, samples: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.tokpipe.safetensors"
    record = compress_file(samples / "late_audio.mp4", out, budget=BUDGET, recipe=name)
    assert record.tokens["total"] == BUDGET
    with open_cache(out) as cache:
        assert sum(map(len, cache.tokens().values())) == BUDGET


@pytest.mark.parametrize("name", REFUSED)
def test_recipe_says_what_it_needs(name: str, samples: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.tokpipe.safetensors"
    with pytest.raises(RecipeError) as caught:
        compress_file(samples / "late_audio.mp4", out, budget=BUDGET, recipe=name)
    assert caught.value.code == "recipe.needs"
    assert any(need in str(caught.value) for need in card(name).unmet)
    assert caught.value.hint and not out.exists()


def test_cards_say_what_the_operators_say() -> None:
    """What is read from the source is what the default operator has."""
    for name in RECIPES:
        facts = card(name)
        if facts.kind == "preset":
            continue
        made = registry.load(name)()
        assert made.source == facts.source and made.modalities == facts.modalities, name
        assert facts.scope in (made.scope, "by parameter"), name
        assert set(facts.needs) <= set(made.needs) or not facts.needs, name


def test_presets_fill_the_budget() -> None:
    """A preset's own ratios and counts are its paper's, not a wish to keep less than asked for."""
    presets = [n for n in registry.names("preset") if n != "auto"]
    assert [name for name in presets if not load_recipe(name).fill] == []
