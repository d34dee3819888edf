"""Run reducers over a stream of token blocks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

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
    names = ("threshold", "ratio", "keep", "frames", "rows", "cols")
    explicit = any(getattr(reducer, name, None) is not None for name in names)
    return bool(getattr(reducer, "drop", False)) or (is_stream(reducer) and explicit)


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
            carried = rows.take(settled ^ settled) if settled is not None else None
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
    for block in blocks:
        yield block.reduce(expanded(reducer.decide(block, None)))
