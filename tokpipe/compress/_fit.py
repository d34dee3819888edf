"""Make any reducer meet a budget: never more rows, and exactly as many where that is asked.

Letters: N source tokens, K rows, B budget.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import torch
from torch import Tensor

from tokpipe.errors import BudgetError, ModelError
from tokpipe.protocols import Reducer
from tokpipe.tensors import GridMap, Query, TokenBatch, TokenMap

#: Halvings of a threshold's range at most, and the part of the target that ends the search early:
#: what is missing is filled by score, while each further step costs a whole decision.
_STEPS = 32
_CLOSE = 0.98


def fit_budget(
    reducer: Reducer,
    tokens: TokenBatch,
    budget: int,
    query: Query | None = None,
    *,
    exact: bool = True,
) -> TokenMap:
    """Reduce ``tokens`` to a budget with any rule.

    The rule's own top-k form is taken where it has one. A rule with a float field ``threshold``
    that misses the budget is bisected on it, keeping the largest count <= B. What is still above
    is trimmed (lowest score, then higher index first); with ``exact`` what is below is filled.

    Args:
        reducer: The rule.
        tokens: What it must see: one item of its scope.
        budget: Rows wanted, 0 or more.
        query: Handed to the rule.
        exact: Fill up to min(B, N); False keeps whole frames and regular grids as they are.

    Returns:
        At most ``budget`` rows in the rule's order, filled rows last.

    Raises:
        BudgetError: ``budget`` is negative.
        ModelError: The tokens hold NaN or infinity.
    """
    refuse_non_finite(tokens)
    return _fitted(reducer, tokens, budget, query, exact)


def _fitted(
    reducer: Reducer, tokens: TokenBatch, budget: int, query: Query | None, exact: bool
) -> TokenMap:
    """:func:`fit_budget` on tokens that are known to be finite."""
    n, device = len(tokens), tokens.data.device
    if budget < 0:
        raise BudgetError(f"budget {budget} is negative", hint="give 0 tokens or more")
    if budget == 0:
        return TokenMap.keep(torch.empty(0, dtype=torch.int64, device=device), n)
    if n == 0:
        return TokenMap.identity(0, device)
    target = min(budget, n)
    decision = expanded(reducer.decide(tokens, budget, query))
    if len(decision) != target and _searches(reducer):
        decision = _bisect(reducer, decision, tokens, target, query)
    if len(decision) > budget:
        decision = trim(decision, tokens, budget)
    if exact and len(decision) < target:
        decision = fill(decision, tokens, target)
    return decision


def fit_chain(
    reducers: Sequence[Reducer],
    tokens: TokenBatch,
    budget: int,
    query: Query | None = None,
    *,
    exact: bool = True,
    told: Sequence[bool] = (),
) -> TokenMap:
    """Reduce ``tokens`` to a budget with several rules, one after the other.

    Each rule but the last goes by its own count, and the last one fits what they leave. What is
    then missing is filled from the rows after the last rule that was ``told`` to remove: those
    before it stay away. Where the rules leave no more than the budget before any rule that was
    told, the rules after are not asked.
    """
    refuse_non_finite(tokens)
    told = [*told, *[False] * (len(reducers) - len(told))]
    base, rows = tokens, tokens
    before: TokenMap | None = None
    made: TokenMap | None = None
    for i, reducer in enumerate(reducers[:-1]):
        step = expanded(reducer.decide(rows, None, query))
        rows, made = rows.reduce(step), step if made is None else made.then(step)
        if told[i]:
            base, before, made = rows, made if before is None else before.then(made), None
        elif len(rows) <= budget and not any(told[i + 1 :]):
            break
    else:
        if told[-1]:
            last = own_count(reducers[-1:], rows, budget, query)
        else:
            last = _fitted(reducers[-1], rows, budget, query, exact)
        made = last if made is None else made.then(last)
    assert made is not None  # noqa: S101 - a step or the last rule made it
    if exact and not told[-1] and len(made) < min(budget, len(base)):
        made = fill(made, base, min(budget, len(base)))
    return made if before is None else before.then(made)


def own_count(
    reducers: Sequence[Reducer], tokens: TokenBatch, budget: int | None, query: Query | None = None
) -> TokenMap:
    """What the rules keep by their own counts, one after the other; a budget only bounds it."""
    refuse_non_finite(tokens)
    made: TokenMap | None = None
    rows = tokens
    for reducer in reducers:
        step = expanded(reducer.decide(rows, None, query))
        if reducer is reducers[-1] and budget is not None and len(step) > budget:
            # Its own form within the budget where it has one, rather than a part cut off.
            step = expanded(reducer.decide(rows, budget, query))
        made, rows = step if made is None else made.then(step), rows.reduce(step)
    kept = TokenMap.identity(len(tokens), tokens.data.device) if made is None else made
    return kept if budget is None or len(kept) <= budget else trim(kept, tokens, budget)


def refuse_non_finite(tokens: TokenBatch) -> None:
    """Raise ModelError where the data hold NaN or infinity: no rule can place such tokens."""
    # One sum tells; only where it does not is every value looked at.
    if bool(tokens.data.sum(dtype=torch.float32).isfinite()):
        return
    bad = torch.nonzero(~tokens.data.isfinite().all(1)).flatten().tolist()
    if bad:
        raise ModelError(
            f"{len(bad)} of {len(tokens)} tokens are not finite, the first is token {bad[0]}",
            hint="encode in float32 or bfloat16: float16 overflows"
            if tokens.data.dtype == torch.float16
            else "look at the weights and at the features they make",
            code="model.finite",
        )


def expanded(decision: TokenMap | GridMap) -> TokenMap:
    """The decision as a TokenMap."""
    return decision.expand() if isinstance(decision, GridMap) else decision


def trim(decision: TokenMap, tokens: TokenBatch, count: int) -> TokenMap:
    """Drop the rows of lowest score (NaN lowest), of equal ones the later, down to ``count``.

    Where no row has a score, evenly spread ones stay: none would mean the end of the video goes.
    """
    score = decision.score
    if score is None:
        place = decision.anchor
        score = torch.where(place >= 0, tokens.score[place.clamp(min=0)], torch.nan)
    order = _best_first(score, count)[:count].sort().values
    row = torch.full((len(decision),), -1, dtype=torch.int64, device=order.device)
    row[order] = torch.arange(order.shape[0], device=order.device)
    stays = row[decision.dst] >= 0
    return TokenMap(
        src=decision.src[stays],
        dst=row[decision.dst[stays]],
        weight=decision.weight[stays],
        share=decision.share[stays],
        anchor=decision.anchor[order],
        num_sources=decision.num_sources,
        score=None if decision.score is None else decision.score[order],
        kind=None if decision.kind is None else decision.kind[order],
    )


def fill(decision: TokenMap, tokens: TokenBatch, count: int) -> TokenMap:
    """Add sources that are no row's own place as rows of their own, up to ``count``.

    The best scored come first, of equal ones the lower index; where none has a score, they are
    evenly spread. A source that a row stood for
    leaves that row's shares; its part in the row's data stays, as the rule made it.
    """
    held = _holders(decision)
    placed = torch.zeros_like(held)
    placed[decision.anchor[decision.anchor >= 0]] = True
    missing = max(0, count - len(decision))
    # Places of other rows come last: they are needed only where rows stand for nothing there.
    parts = []
    for group in (~held & ~placed, ~held & placed):
        free = torch.nonzero(group).flatten()
        parts.append(free[_best_first(tokens.score[free], missing)])
    new = torch.cat(parts)[:missing]
    added = torch.zeros_like(held)
    added[new] = True
    share = torch.where(added[decision.src], 0.0, decision.share)
    live = (share != 0) | (decision.weight != 0)
    own = TokenMap.keep(new, len(tokens))
    score, kind = decision.score, decision.kind
    return TokenMap(
        src=torch.cat([decision.src[live], new]),
        dst=torch.cat([decision.dst[live], own.dst + len(decision)]),
        weight=torch.cat([decision.weight[live], own.weight]),
        share=torch.cat([share[live], own.share]),
        anchor=torch.cat([decision.anchor, new]),
        num_sources=decision.num_sources,
        score=None if score is None else torch.cat([score, tokens.score[new]]),
        kind=None if kind is None else torch.cat([kind, tokens.kind[new]]),
    )


def _best_first(score: Tensor, count: int) -> Tensor:
    """Indices by decreasing score, stable, NaN last; without any score ``count`` spread ones."""
    missing = score.isnan()
    n = score.shape[0]
    if 0 < count < n and bool(missing.all()):
        return (2 * torch.arange(count, device=score.device) + 1) * n // (2 * count)
    order = torch.argsort(score.masked_fill(missing, -torch.inf), descending=True, stable=True)
    return order[torch.argsort(missing[order].byte(), stable=True)]


def _holders(decision: TokenMap) -> Tensor:
    """Mask [N] of one source per row that stays in its row, so that no row is left without share.

    The row's anchor where it shares in the row, else the source with the largest share that no
    other row holds on to, else the one with the largest share.
    """
    device = decision.src.device
    held = torch.zeros(decision.num_sources, dtype=torch.bool, device=device)
    closed = torch.zeros(len(decision), dtype=torch.bool, device=device)
    own = (decision.src == decision.anchor[decision.dst]) & (decision.share > 0)
    held[decision.src[own]] = True
    closed[decision.dst[own]] = True
    rest = torch.nonzero(~closed[decision.dst] & (decision.share > 0)).flatten()
    rest = rest[torch.argsort(decision.share[rest], descending=True, stable=True)]
    for shared in (False, True):
        for entry in rest.tolist():
            row, source = decision.dst[entry], decision.src[entry]
            if not closed[row] and (shared or not held[source]):
                closed[row] = held[source] = True
    return held


def _searches(reducer: Reducer) -> bool:
    """The rule is a threshold only: no exact form of its own, nor one by whole frames."""
    return (
        is_dataclass(reducer)
        and not getattr(reducer, "exact", False)
        and "frames" not in getattr(reducer, "layouts", ())
        and any(f.name == "threshold" for f in fields(reducer))
        and isinstance(getattr(reducer, "threshold", None), float)
    )


def _bisect(
    reducer: Any, first: TokenMap, tokens: TokenBatch, target: int, query: Query | None
) -> TokenMap:
    """The decision of largest count <= target that bisection on ``threshold`` finds, else first."""
    best = first

    def count(value: float) -> int:
        nonlocal best
        found = expanded(replace(reducer, threshold=value).decide(tokens, None, query))
        better = len(found) <= target and (len(best) > target or len(found) > len(best))
        best = found if better else best
        return len(found)

    low, high = _threshold_range(reducer)
    low_count, high_count = count(low), count(high)
    rising = high_count > low_count
    for _ in range(_STEPS):
        near = _CLOSE * target <= len(best) <= target
        if near or low_count == high_count:
            break
        middle = (low + high) / 2
        if (count(middle) > target) == rising:
            high = middle
        else:
            low = middle
    return best


def _threshold_range(reducer: Any) -> tuple[float, float]:
    """Bounds declared for ``threshold``; where one is missing, a wide range around the value."""
    value = float(reducer.threshold)
    reach = max(1.0, abs(value)) * 64
    low, high = value - reach, value + reach
    hint = get_type_hints(type(reducer), include_extras=True)["threshold"]
    while get_origin(hint) is not None and get_origin(hint) is not Annotated:
        hint = next((a for a in get_args(hint) if get_origin(a) is Annotated), None)
    for mark in getattr(hint, "__metadata__", ()):
        for bound in getattr(mark, "metadata", (mark,)):
            low = max(low, float(getattr(bound, "ge", -math.inf)))
            low = max(low, math.nextafter(float(getattr(bound, "gt", -math.inf)), math.inf))
            high = min(high, float(getattr(bound, "le", math.inf)))
            high = min(high, math.nextafter(float(getattr(bound, "lt", math.inf)), -math.inf))
    return low, high
