"""A job: a recipe and its options, checked once for any number of inputs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from tokpipe.budget import AUDIO_SHARE, Budget
from tokpipe.chain import Chain, build_chain
from tokpipe.decide import check_layout
from tokpipe.device import pick_device
from tokpipe.digest import chain
from tokpipe.encode._clip import ClipCodec
from tokpipe.errors import RecipeError
from tokpipe.recipe import Recipe, load_recipe
from tokpipe.spec import LAYOUTS, Layout

DEFAULT_BUDGET = "2048"
DEFAULT_RECIPE = "auto"


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What changes the tokens besides the recipe, and how the run behaves.

    Attributes:
        budget: None takes the recipe's, else 2048 (unless the recipe removes by threshold).
        audio_share: Part of one total that goes to audio first, 0 to 1.
        pool: Most tokens a reducer of video scope sees at once.
        keep_bank: Leave decoded pictures and sound in the bank for the next run.
        strict: Fail at the first damage.
    """

    budget: Budget | None = None
    layout: Layout = "ragged"
    audio_share: float = float(AUDIO_SHARE)
    audio_codec: ClipCodec = "opus"
    pool: int | None = None
    video_stream: str = "auto"
    audio_stream: str = "auto"
    strict: bool = False
    full_hash: bool = False
    keep_bank: bool = True
    force: bool = False
    device: str = "cpu"
    batch_size: int = 16
    prefetch: int = 2


@dataclass(slots=True)
class Job:
    """A recipe and its options, checked once for any number of inputs."""

    recipe: Recipe
    options: Options
    chains: dict[str, Chain]
    budget: Budget | None
    name: str = DEFAULT_RECIPE

    def digest(self) -> str:
        """Digest of every option that changes the tokens."""
        return chain(self.settings())

    def settings(self) -> dict[str, Any]:
        """Every option that changes the tokens."""
        o = self.options
        chains = {name: made.canonical for name, made in self.chains.items()}
        return {
            **chains, "seed": self.recipe.seed, "budget": str(self.budget) if self.budget else None,
            "layout": o.layout, "audio_share": o.audio_share,
            "audio_codec": o.audio_codec, "pool": o.pool, "video_stream": o.video_stream,
            "audio_stream": o.audio_stream, "strict": o.strict,
        }  # fmt: skip


def prepare(recipe: str | Recipe = DEFAULT_RECIPE, options: Options | None = None) -> Job:
    """Check recipe and options before anything is opened.

    Raises:
        RecipeError, BudgetError, ResourceError: As they say; nothing has started.
    """
    options = options or Options()
    name = recipe if isinstance(recipe, str) else "recipe"
    made = load_recipe(recipe) if isinstance(recipe, str) else recipe
    if options.layout not in LAYOUTS:
        raise RecipeError(
            f"unknown layout `{options.layout}`", hint=f"use one of: {', '.join(LAYOUTS)}"
        )
    if not 0 <= options.audio_share <= 1:
        raise RecipeError(f"audio share {options.audio_share} is not within 0 to 1")
    pick_device(options.device)
    chains = {
        stream: build_chain(stream, steps, made.fill) for stream, steps in made.chains.items()
    }
    budget = options.budget or made.budget
    if budget is None and not _limits_itself(chains):
        budget = Budget.parse(DEFAULT_BUDGET)
    check_layout(chains, options.layout, budgeted=budget is not None)
    return Job(made, options, chains, budget, name)


def with_budget(options: Options | None, budget: str | int | Budget | None) -> Options:
    """The options with a budget put in, where one is given."""
    options = options or Options()
    return options if budget is None else replace(options, budget=Budget.parse(budget))


def _limits_itself(chains: dict[str, Chain]) -> bool:
    return any(made.removes(r) for made in chains.values() for r in made.reducers)
