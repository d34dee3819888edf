"""Checks of values that live on a device: one transfer each, or one for all checks of a block.

Reading a single number back makes the processor wait for everything the device was given. Rules
that decide frame by frame therefore let the checks of all frames wait for the last one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

Refuse = Callable[[Sequence[bool]], None]
_waiting: ContextVar[list[tuple[Tensor, Refuse]] | None] = ContextVar("_waiting", default=None)


def check(holds: Tensor, refuse: Refuse) -> None:
    """Call ``refuse`` where one of ``holds`` bool [n] is false: now, or at the block's end.

    Args:
        holds: What must be true.
        refuse: Is given the n values and raises the error.
    """
    waiting = _waiting.get()
    if waiting is not None:
        waiting.append((holds, refuse))
        return
    found = holds.tolist()
    if not all(found):
        refuse(found)


@contextmanager
def checked_together() -> Iterator[None]:
    """Let the checks of a block wait for its end; a block within another waits for the outer."""
    if _waiting.get() is not None:
        yield
        return
    waiting: list[tuple[Tensor, Refuse]] = []
    token = _waiting.set(waiting)
    try:
        yield
    finally:
        _waiting.reset(token)
    if not waiting:
        return
    found = torch.cat([holds for holds, _ in waiting]).tolist()
    at = 0
    for holds, refuse in waiting:
        each = found[at : at + len(holds)]
        at += len(holds)
        if not all(each):
            refuse(each)
