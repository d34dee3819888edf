"""A dataset of caches from front to back: split over ranks and workers, shuffled, resumable."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info

from tokpipe.cache._walk import Even, Part, part_of, taken, whole_order
from tokpipe.cache.dataset import CacheDataset, open_dataset
from tokpipe.cache.map_style import Paths
from tokpipe.cache.samples import OnError, Sample, Verify, reading_from, shared_numbers
from tokpipe.errors import CacheError

#: Items and bytes that are read ahead at a time.
_AHEAD_ITEMS, _AHEAD_BYTES = 16, 16_000_000


class TokenCacheStream(IterableDataset[Any]):
    """Items in the order of an epoch; each rank and worker gets its own part, none twice.

    The order follows from seed and epoch alone: shards in random order, items moved about by
    ``buffer`` places. Ranks and workers take even ranges of it, also where there are fewer shards
    than workers. Call :meth:`set_epoch` before each epoch, as with a ``DistributedSampler``; that
    reaches workers that live on.

    :meth:`state_dict` inside the process that iterates says how far it is; a loader with workers
    is resumed through torchdata's ``StatefulDataLoader``, or with :meth:`state_after`.

    Args:
        data: Folder, files, or what ``open_dataset`` gave.
        shuffle: Off, items come as they lie.
        seed: Of the order, with the epoch.
        buffer: How far an item may move from its neighbours.
        rank, world_size: This process of a training run; None asks ``torch.distributed``. Under
            a loader that splits batches itself (Accelerate, Hugging Face's ``Trainer``) give 0
            and 1.
        even: ``drop`` leaves the last items out so that every rank gets as many; ``repeat``
            gives some ranks one item twice; ``no`` keeps every item once.
        streams, columns, start, stop, budget, dtype, verify, on_error, transform: As for
            :class:`~tokpipe.cache.map_style.TokenCacheDataset`; with ``skip`` an item that cannot
            be read is passed over and counted.

    Raises:
        CacheError: There is nothing to read, or an option that does not exist.
        ValueError: A rank that is not below the world size, or a buffer below 1.
    """

    def __init__(
        self,
        data: Paths | CacheDataset,
        *,
        shuffle: bool = True,
        seed: int = 0,
        buffer: int = 1000,
        rank: int | None = None,
        world_size: int | None = None,
        even: Even = "no",
        streams: Sequence[str] | None = None,
        columns: Sequence[str] = ("at",),
        start: float | None = None,
        stop: float | None = None,
        budget: int | None = None,
        dtype: torch.dtype | None = None,
        verify: Verify = "open",
        on_error: OnError = "raise",
        transform: Callable[[Sample], Any] | None = None,
    ) -> None:
        if buffer < 1 or even not in ("no", "drop", "repeat"):
            raise ValueError(f"buffer must be at least 1 and even no, drop or repeat, got "
                             f"{buffer} and {even!r}")  # fmt: skip
        self.data = data if isinstance(data, CacheDataset) else open_dataset(data)
        self._reading = reading_from(
            self.data, streams=streams, columns=columns, start=start, stop=stop, budget=budget,
            dtype=dtype, verify=verify, on_error=on_error, transform=transform,
        )  # fmt: skip
        self.shuffle, self.seed, self.buffer, self.even = shuffle, int(seed), int(buffer), even
        found = _process() if rank is None or world_size is None else (0, 1)
        self.rank = found[0] if rank is None else int(rank)
        self.world_size = found[1] if world_size is None else int(world_size)
        Part(self.rank, self.world_size)
        self._epoch = shared_numbers(1)
        self._taken = self._turn = 0
        self._resume: dict[str, Any] | None = None

    def __len__(self) -> int:
        """Return the items of this rank, its workers together."""
        return len(part_of(np.arange(len(self.data)), Part(self.rank, self.world_size), self.even))

    def __repr__(self) -> str:
        """Show what is read, and which part of it."""
        return f"TokenCacheStream({self.data!r}, rank {self.rank} of {self.world_size})"

    @property
    def epoch(self) -> int:
        """The epoch whose order the next iteration takes."""
        return int(self._epoch)

    @property
    def skipped(self) -> int:
        """Items that were skipped, in all workers together."""
        return int(self._reading.skipped.sum())

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iteration, in workers that live on as well."""
        self._epoch[0] = int(epoch)

    def items(self, epoch: int | None = None) -> list[int]:
        """Numbers of the items that this rank and worker gives in an epoch, in their order."""
        order = whole_order(
            self.data.groups, shuffle=self.shuffle, seed=self.seed, buffer=self.buffer,
            epoch=self.epoch if epoch is None else epoch,
        )  # fmt: skip
        return [int(item) for item in part_of(order, self._part(), self.even)]

    def __iter__(self) -> Iterator[Any]:
        """Give the items of this rank and worker, from where a loaded state stopped."""
        self._taken = self._begin()
        items = self.items()
        while self._taken < len(items):
            ahead = self._ahead(items)
            for found in self._reading.many(ahead):
                self._taken += 1
                if found is not None:
                    yield found

    def _ahead(self, items: list[int]) -> list[int]:
        """The next items that are read in one go."""
        some = items[self._taken : self._taken + _AHEAD_ITEMS]
        total = 0
        for count, item in enumerate(some):
            total += max(0, int(self.data.sizes[item]))
            if total > _AHEAD_BYTES:
                return some[: max(1, count)]
        return some

    def state_dict(self) -> dict[str, Any]:
        """How far this process is in its part of the epoch; plain numbers."""
        if self._resume is not None:
            return dict(self._resume)
        return self._state([0] * self._part().worker + [self._taken], self._part())

    def state_after(
        self, batches: int, batch_size: int, num_workers: int = 0, drop_last: bool = False
    ) -> dict[str, Any]:
        """The state when a plain ``DataLoader`` over this stream has given so many batches.

        Its workers' own states cannot be asked for; they follow from the number of batches since
        workers take turns.

        Args:
            batches: Batches since the epoch began.
            batch_size, num_workers, drop_last: As given to the loader.

        Raises:
            CacheError: Items may be skipped, so that batches do not tell.
        """
        if self._reading.on_error == "skip":
            raise CacheError(
                "with on_error='skip' batches do not tell how many items were read",
                code="dataset.state", hint="use torchdata's StatefulDataLoader",
            )  # fmt: skip
        workers = max(1, num_workers)
        order = np.arange(len(self.data))
        parts = [Part(self.rank, self.world_size, w, workers) for w in range(workers)]
        lengths = [len(part_of(order, part, self.even)) for part in parts]
        given, turn = taken(lengths, batches, batch_size, drop_last)
        return {**self._state(given, parts[0]), "turn": turn}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state: the next iteration gives what that one had not given.

        Raises:
            CacheError: The state is of another dataset, order, or number of ranks or workers.
        """
        mine = self._state([], self._part())
        # How many workers there are is known in a worker alone.
        parts = ("items", "seed", "shuffle", "buffer", "even", "rank", "world")
        odd = [k for k in parts if state.get(k) != mine[k]]
        if odd:
            raise CacheError(
                f"the state has another {odd[0]}: {state.get(odd[0])!r}, here {mine[odd[0]]!r}",
                code="dataset.state", hint="resume with the same data, options, ranks and workers",
            )  # fmt: skip
        self._resume = dict(state)
        self.set_epoch(int(state["epoch"]))

    def _begin(self) -> int:
        """Items of this part that are passed over: those a loaded state has given."""
        state, self._resume, self._turn = self._resume, None, 0
        if state is None or state["epoch"] != self.epoch:
            return 0
        self._turn = int(state["turn"])
        part = self._part()
        if state["workers"] != part.workers:
            raise CacheError(f"the state is of {state['workers']} workers, here are {part.workers}",
                             code="dataset.state", hint="resume with as many workers")  # fmt: skip
        return int(state["taken"][part.worker])

    def _state(self, taken_: list[int], part: Part) -> dict[str, Any]:
        return {
            "version": 1, "items": len(self.data), "seed": self.seed, "epoch": self.epoch,
            "shuffle": self.shuffle, "buffer": self.buffer, "even": self.even,
            "rank": part.rank, "world": part.world, "workers": part.workers, "taken": taken_,
            "turn": self._turn,
        }  # fmt: skip

    def _part(self) -> Part:
        worker = get_worker_info()
        index, count = (0, 1) if worker is None else (worker.id, worker.num_workers)
        # The first worker goes on with the part whose turn it was.
        return Part(self.rank, self.world_size, (index + self._turn) % count, count)


def _process() -> tuple[int, int]:
    """Rank and world size of a running process group, else 0 of 1."""
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1
