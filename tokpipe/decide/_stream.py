"""Run reducers over a stream of token blocks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from tokpipe.chain import Chain, decides
from tokpipe.compress._fit import expanded
from tokpipe.tensors import TokenBatch


def is_stream(reducer: Any) -> bool:
    """The reducer works block by block."""
    return hasattr(reducer, "push")


def meets_budget(reducer: Any) -> bool:
    """The reducer takes a budget: it is no mere scorer of a stream, and no projector."""
    return hasattr(reducer, "decide") or hasattr(reducer, "settle")


def together(chain: Chain, reducers: list[Any]) -> int:
    """Index of the first reducer that is decided with the last, on the same tokens at once.

    That is one that must see more than a frame, or one whose own count was not told: what it
    leaves is only an order of the candidates where a budget asks for more.
    """
    for i, reducer in enumerate(reducers[:-1]):
        if decides(reducer) and (reducer.scope != "frame" or chain.orders(reducer)):
            return i
    return len(reducers) - 1


def through_stream(blocks: Iterable[TokenBatch], reducer: Any, state: Any) -> Iterator[TokenBatch]:
    """Push blocks through a stream reducer; yield rows as soon as they are settled."""
    carried: TokenBatch | None = None
    for new in blocks:
        state, tmap = reducer.push(state, carried, new)
        both = new if carried is None or not len(carried) else TokenBatch.cat([carried, new])
        rows = both.reduce(tmap)
        settled = state.settled
        if settled is None or bool(settled.all()):
            yield rows
            carried = None
            continue
        if bool(settled.any()):
            yield rows.take(settled)
        carried = rows.take(~settled)
    if carried is not None and len(carried):
        yield carried.reduce(reducer.finish(state, carried))


def through_all(blocks: Iterator[TokenBatch], reducers: list[Any]) -> Iterator[TokenBatch]:
    """Push blocks through reducers that come before the last: they score, or remove if told to."""
    for reducer in reducers:
        if hasattr(reducer, "project"):
            blocks = _projected(blocks, reducer)
        elif is_stream(reducer):
            blocks = through_stream(blocks, reducer, reducer.start(None, None))
        else:
            blocks = _by_block(blocks, reducer)
    return blocks


def _by_block(blocks: Iterator[TokenBatch], reducer: Any) -> Iterator[TokenBatch]:
    for block in by_frame(blocks) if reducer.scope == "frame" else blocks:
        yield block.reduce(expanded(reducer.decide(block, None)))


def _projected(blocks: Iterator[TokenBatch], projector: Any) -> Iterator[TokenBatch]:
    for block in by_frame(blocks) if projector.scope == "frame" else blocks:
        yield projector.project(block)


def by_frame(blocks: Iterable[TokenBatch]) -> Iterator[TokenBatch]:
    """Cut blocks into their frames."""
    for block in blocks:
        for step in torch.unique(block.cell[:, 0]).tolist():
            yield block.take(block.cell[:, 0] == step)


def priority_of(rows: TokenBatch) -> Tensor:
    """Priority float64 [K] in (0, 1) by score, else by mass: low ones are given up last."""
    score = torch.where(torch.isnan(rows.score), rows.mass, rows.score)
    order = torch.argsort(torch.argsort(score, descending=True, stable=True))
    return spread(order)


def spread(order: Tensor) -> Tensor:
    """Ranks [K] as priorities float64 in (0, 1), comparable whatever K."""
    return (order.double() + 0.5) / max(1, len(order))
