"""Run reducers over a stream of token blocks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch

from tokpipe.compress._fit import expanded
from tokpipe.tensors import TokenBatch


def is_stream(reducer: Any) -> bool:
    """The reducer works block by block."""
    return hasattr(reducer, "push")


def meets_budget(reducer: Any) -> bool:
    """The reducer takes a budget: it is no mere scorer of a stream."""
    return not is_stream(reducer) or hasattr(reducer, "settle")


def removes(reducer: Any) -> bool:
    """The reducer was told to remove tokens, by a threshold, a ratio or a count of its own."""
    if getattr(reducer, "drop", False):
        return True
    if is_stream(reducer):
        return getattr(reducer, "threshold", None) is not None
    # Counts of its own show against the same rule with nothing set.
    return bool(reducer.out_count(1000, None) != type(reducer)().out_count(1000, None))


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
        if is_stream(reducer):
            blocks = through_stream(blocks, reducer, reducer.start(None, None))
        else:
            blocks = _by_block(blocks, reducer)
    return blocks


def _by_block(blocks: Iterator[TokenBatch], reducer: Any) -> Iterator[TokenBatch]:
    for block in by_frame(blocks) if reducer.scope == "frame" else blocks:
        yield block.reduce(expanded(reducer.decide(block, None)))


def by_frame(blocks: Iterable[TokenBatch]) -> Iterator[TokenBatch]:
    """Cut blocks into their frames."""
    for block in blocks:
        for step in torch.unique(block.cell[:, 0]).tolist():
            yield block.take(block.cell[:, 0] == step)
