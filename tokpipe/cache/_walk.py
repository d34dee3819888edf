"""In which order a training run goes through a dataset, and who takes which part of it.

One order of all items follows from seed and epoch. Ranks take even ranges of it, the workers of a
rank even ranges of those, so nothing is read twice or left out however many shards there are, and
each still reads shards from front to back. A place in the order is one number: resuming is exact.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

Order = npt.NDArray[np.int64]
Even = Literal["no", "drop", "repeat"]


@dataclass(frozen=True, slots=True)
class Part:
    """One consumer of several.

    Attributes:
        rank, world: Process of a training run, and how many there are.
        worker, workers: Loader worker of that process, and how many it has.
    """

    rank: int = 0
    world: int = 1
    worker: int = 0
    workers: int = 1

    def __post_init__(self) -> None:
        if not (0 <= self.rank < self.world and 0 <= self.worker < self.workers):
            raise ValueError(f"no such part: {self}")


def whole_order(groups: Order, *, shuffle: bool, seed: int, epoch: int, buffer: int) -> Order:
    """int64 [n] all items in the order of an epoch.

    Args:
        groups: int64 [G+1] first item of each shard, and the number of items.
        shuffle: Shards in random order, and items among their neighbours; else as they lie.
        seed, epoch: Say which random order.
        buffer: How far about an item moves, as with a shuffle buffer of this many items.
    """
    count = int(groups[-1]) if len(groups) else 0
    if not shuffle:
        return np.arange(count, dtype=np.int64)
    drawn = np.random.default_rng([seed, epoch])
    shards = drawn.permutation(len(groups) - 1)
    parts = [np.arange(groups[s], groups[s + 1], dtype=np.int64) for s in shards]
    order = np.concatenate([np.empty(0, dtype=np.int64), *parts])
    places = np.arange(count) + drawn.random(count) * buffer
    return order[np.argsort(places, kind="stable")]


def part_of(order: Order, part: Part, even: Even = "no") -> Order:
    """The items one consumer takes, in their order.

    Args:
        even: ``drop``: every rank takes as many as the shortest, the last items of the order are
            left out. ``repeat``: as many as the longest, a rank's first item comes again.
    """
    count = len(order) // part.world * part.world if even == "drop" else len(order)
    mine = _range(order[:count], part.rank, part.world)
    if even == "repeat" and len(mine) < -(-count // part.world):
        mine = np.concatenate([mine, (mine if len(mine) else order)[:1]])
    return _range(mine, part.worker, part.workers)


def _range(order: Order, index: int, count: int) -> Order:
    return order[index * len(order) // count : (index + 1) * len(order) // count]


def taken(
    lengths: list[int], batches: int, batch_size: int, drop_last: bool = False
) -> tuple[list[int], int]:
    """What the workers of a loader gave for its first batches, and whose turn is next.

    Args:
        lengths: Items of each worker; they take turns, one that has ended is passed over.
        batches: Batches the loader handed out.
        batch_size: Items of a full batch.
        drop_last: The loader leaves out a worker's last batch where it is not full.

    Returns:
        (items each worker gave, the worker after the one that gave the last batch).
    """
    left = [n // batch_size if drop_last else -(-n // batch_size) for n in lengths]
    given, turn = [0] * len(lengths), 0
    for _ in range(min(batches, sum(left))):
        while given[turn] == left[turn]:
            turn = (turn + 1) % len(lengths)
        given[turn] += 1
        turn = (turn + 1) % len(lengths)
    return [min(n, g * batch_size) for n, g in zip(lengths, given, strict=True)], turn
