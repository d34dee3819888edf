"""Run the rules of a recipe on tokens of one's own: features of any encoder, in memory."""

from __future__ import annotations

from typing import Any

import torch

from tokpipe import registry
from tokpipe.card import card
from tokpipe.chain import Chain
from tokpipe.compress._fit import fit_chain, own_count
from tokpipe.errors import BudgetError, RecipeError
from tokpipe.recipe import Recipe, build, load_recipe
from tokpipe.spec import MODALITIES, StepSpec
from tokpipe.tensors import Query, TokenBatch, TokenMap


def map_tokens(
    tokens: TokenBatch,
    recipe: str | Recipe,
    budget: int | None = None,
    query: Query | None = None,
    *,
    exact: bool = True,
) -> TokenMap:
    """Decide which tokens become which rows; ``TokenBatch.reduce`` applies it.

    Args:
        tokens: N tokens of one item, frames in order, with the columns the rules need.
        recipe: Name of an operator or preset, a line, or a Recipe; its reducers run one after the
            other, its samplers and encoder have no part.
        budget: Most rows; None goes by the rules' own counts, ratios and thresholds (a rule that
            takes its count from the user alone keeps all). A ratio, threshold or count written in
            a line holds; the budget then only bounds it.
        query: What the text asks, for rules that need it.
        exact: Fill up to min(budget, N); False keeps whole frames and regular grids as they are.

    Returns:
        Rows in the order of the last rule's paper.

    Example:
        >>> at = torch.zeros(4, dtype=torch.float64)
        >>> tokens = TokenBatch.build(torch.eye(4), at)
        >>> map_tokens(tokens, "uniform-tokens", budget=2).anchor.tolist()
        [1, 3]

    Raises:
        RecipeError: An unknown name, an unmet need, or a projector, which makes new vectors.
        BudgetError: The budget is negative.
        ModelError: The tokens hold NaN or infinity.
    """
    if budget is not None and (isinstance(budget, bool) or not isinstance(budget, int)):
        raise BudgetError(f"budget {budget!r} is no whole number", hint="give a number of tokens")
    chain = _rules(tokens, recipe)
    rules = chain.reducers
    with torch.no_grad():
        if budget is None:
            return own_count(rules, tokens, None, query)
        told = [chain.removes(rule) for rule in rules]
        return fit_chain(rules, tokens, budget, query, exact=exact, told=told)


def reduce_tokens(
    tokens: TokenBatch,
    recipe: str | Recipe,
    budget: int | None = None,
    query: Query | None = None,
    *,
    exact: bool = True,
) -> TokenBatch:
    """Decide and apply, see :func:`map_tokens`; rows come in the order of the cache."""
    with torch.no_grad():
        return tokens.reduce(map_tokens(tokens, recipe, budget, query, exact=exact)).sorted()


def _rules(tokens: TokenBatch, recipe: str | Recipe) -> Chain:
    """The reducers of the tokens' own stream, checked for what they work on."""
    fill = False
    steps: tuple[StepSpec, ...]
    named = isinstance(recipe, str) and registry.known(recipe.strip())
    if named and registry.lookup(named).kind in ("reducer", "projector"):
        steps = (StepSpec(use=named),)
    else:
        made = load_recipe(recipe) if isinstance(recipe, str) else recipe
        # A preset brings the default of the other stream along: only its own is meant.
        streams = card(named).modalities if named else tuple(made.chains)
        present = [MODALITIES[code] for code in sorted(set(tokens.modality.tolist()))]
        steps, fill = made.chains[next((s for s in present if s in streams), streams[0])], made.fill
    out = Chain(fill=fill)
    for step in steps:
        if (rule := _built(step)) is not None:
            out.reducers.append(rule)
            out.rules.append(step)
            _check_streams(tokens, step.use, rule)
    if not out.reducers:
        raise RecipeError("the recipe has no reducers", hint="name one, for example `tome`")
    return out


def _check_streams(tokens: TokenBatch, name: str, rule: Any) -> None:
    for code, stream in enumerate(MODALITIES):
        if stream not in rule.modalities and bool((tokens.modality == code).any()):
            raise RecipeError(
                f"`{name}` works on {' and '.join(rule.modalities)}, these are {stream} tokens",
                hint="`modality` of a TokenBatch is 0 for video, 1 for audio",
            )


def _built(step: StepSpec) -> Any:
    """The rule of a step, None for a sampler or an encoder."""
    kind = registry.lookup(step.use).kind
    if kind == "projector":
        raise RecipeError(
            f"`{step.use}` makes new vectors, it is no map",
            hint="call its `project` on the tokens",
        )
    rule = build(step) if kind == "reducer" else None
    if rule is not None and not hasattr(rule, "decide"):
        raise RecipeError(
            f"`{step.use}` works on a stream of signal cells only",
            hint="use it with `tokpipe.compress_file`",
        )
    return rule
