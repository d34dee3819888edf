"""A dataset of caches by number or key, as torch loaders with samplers take it."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset

from tokpipe.cache._item import count_rows
from tokpipe.cache.dataset import CacheDataset, open_dataset
from tokpipe.cache.format import STREAMS
from tokpipe.cache.samples import OnError, Sample, Verify, reading_from

Paths = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


class TokenCacheDataset(Dataset[Any]):
    """Items by number or key: a packed dataset, a folder of caches, or a list of them.

    Files are opened on first use in each process, so it may be handed to forked and spawned
    workers. What cannot be read is an error with key and file, never another item.

    Args:
        data: Folder, files, or what ``tokpipe.cache.dataset.open_dataset`` gave.
        streams: Of ``video`` and ``audio``; None is both.
        columns: Columns beside the tokens, as on the format page, without the stream.
        start, stop: Only tokens with ``start <= at < stop`` seconds; the rest is not read.
        budget: Only tokens with ``rank < budget``: the subset the cache would have had for it.
        dtype: Of features, such as ``torch.bfloat16``; None as they are stored.
        verify: ``open`` checks header, sizes and times at every read; ``first-touch`` also every
            digest, once an item and process.
        on_error: ``skip`` gives None for what cannot be read, which the collators leave out;
            ``skipped`` counts.
        transform: Called with each :class:`Sample`; its result is the item. Must be picklable for
            spawned workers.

    Raises:
        CacheError: There is nothing to read, or an option that does not exist.
        BudgetError: The budget is below 1.
        RecipeError: Loose files of different encoders.
    """

    def __init__(
        self,
        data: Paths | CacheDataset,
        *,
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
        self.data = data if isinstance(data, CacheDataset) else open_dataset(data)
        self._reading = reading_from(
            self.data, streams=streams, columns=columns, start=start, stop=stop, budget=budget,
            dtype=dtype, verify=verify, on_error=on_error, transform=transform,
        )  # fmt: skip
        self._lengths: dict[str, npt.NDArray[np.int64]] = {}

    def __len__(self) -> int:
        """Return the number of items."""
        return len(self.data)

    def __repr__(self) -> str:
        """Show what is read."""
        return f"TokenCacheDataset({self.data!r})"

    def __getitem__(self, item: int | str) -> Any:
        """Read one item, by number (negative from the end) or key.

        Raises:
            IndexError: No such number.
            KeyError: No such key.
            TokpipeError: It cannot be read.
        """
        return self._reading.one(self.number(item))

    def __getitems__(self, items: Sequence[int | str]) -> list[Any]:
        """Read the items of a batch."""
        return self._reading.many([self.number(item) for item in items])

    def read(
        self, item: int | str, start: float | None = None, stop: float | None = None,
        budget: int | None = None,
    ) -> Any:  # fmt: skip
        """Read one item's tokens of some seconds, or of a budget; the rest is not read."""
        want = replace(self._reading.want, start=start, stop=stop, budget=budget)
        return self._reading.one(self.number(item), want)

    def number(self, item: int | str) -> int:
        """Number of an item from 0."""
        return self.data.find(item) if isinstance(item, str) else self.data.number(int(item))

    @property
    def keys(self) -> list[str]:
        """Name of every item, in order."""
        return self.data.keys

    @property
    def skipped(self) -> int:
        """Reads that were skipped, in all processes together."""
        return int(self._reading.skipped.sum())

    def lengths(self, stream: str | None = None) -> npt.NDArray[np.int64]:
        """int64 [n] tokens of each item as they would be read; features are not read.

        Without ``start``, ``stop`` and ``budget`` the index says it, or a budget over both
        streams; else the small columns of every item are read, once.

        Args:
            stream: One stream; None is all that are read.

        Raises:
            CacheError: The stream is not read.
        """
        want = self._reading.want
        if stream is not None and stream not in want.streams:
            from tokpipe.errors import CacheError

            raise CacheError(f"the stream `{stream}` is not read", code="dataset.stream")
        stored = {s: self.data.rows(s) for s in STREAMS}
        if not want.chosen:
            found = stored
        elif want.start is None and want.stop is None and stream is None and self._all_streams():
            return np.minimum(sum(stored.values()), want.budget or 0)
        else:
            found = self._lengths or self._count()
        return sum((found[s] for s in want.streams if stream in (None, s)),
                   start=np.zeros(len(self), dtype=np.int64))  # fmt: skip

    def _all_streams(self) -> bool:
        # Ranks are joint over the streams: only of all of them is the number known.
        return all(s in self._reading.want.streams or not self.data.rows(s).any() for s in STREAMS)

    def _count(self) -> dict[str, npt.NDArray[np.int64]]:
        out = {s: np.zeros(len(self), dtype=np.int64) for s in STREAMS}
        for item in range(len(self)):
            if item not in self.data.problems:
                for stream, rows in count_rows(self.data.place(item), self._reading.want).items():
                    out[stream][item] = rows
        self._lengths = out
        return out
