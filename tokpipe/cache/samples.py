"""Items of a dataset as torch tensors: what map-style and iterable reading have in common."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from tokpipe.cache._absent import FEATURES, rowless
from tokpipe.cache._item import (
    Bytes,
    Files,
    Place,
    RawStream,
    Spot,
    Want,
    check_times,
    fill,
    first_problem,
    header_size,
    locate,
    read_rows,
    size_of,
)
from tokpipe.cache._mapping import Buffers, Source, at_hand, mapped
from tokpipe.cache.dataset import CacheDataset
from tokpipe.cache.format import STREAMS
from tokpipe.cache.verify import verify
from tokpipe.errors import BudgetError, CacheCorrupt, CacheError, StreamMissing, TokpipeError

Verify = Literal["open", "first-touch"]
OnError = Literal["raise", "skip"]
#: First read of an item: its header, and in most the times.
_HEAD_BYTES = 1 << 15


def shared_numbers(count: int) -> Tensor:
    """int64 zeros [count] that a loader's workers see as their parent does."""
    made: Tensor = torch.zeros(count, dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]
    return made


@dataclass(slots=True, repr=False)
class Tokens:
    """Rows of one stream, in order of time.

    Attributes:
        tokens: [N, D] features in the stored dtype, or the one asked for.
        columns: The other columns by name, [N, ...] each.
        source: Where the very bytes of ``tokens`` lie in a file, None where they were cast or
            chosen.
    """

    tokens: Tensor
    columns: dict[str, Tensor]
    source: Source | None = None

    def __len__(self) -> int:
        """Return N."""
        return len(self.tokens)

    def __repr__(self) -> str:
        """Show shape, dtype and the names of the columns."""
        columns = "".join(f", {name}" for name in self.columns)
        return f"Tokens({_shape(self)}{columns})"

    @property
    def at(self) -> Tensor:
        """float64 [N] seconds."""
        return self.columns["at"]


@dataclass(slots=True, repr=False)
class Sample:
    """One item.

    Attributes:
        key: Its name.
        index: Its number in the dataset.
        streams: ``video`` and ``audio`` as far as the item has them.
        absent: Those it lacks and other items have: no rows, but their widths and columns, by
            which collators give every batch the same tensors.
    """

    key: str
    index: int
    streams: dict[str, Tokens]
    absent: dict[str, Tokens] = field(default_factory=dict)

    def __repr__(self) -> str:
        """Show key, number and the shape of each stream."""
        held = "".join(f", {name} {_shape(rows)}" for name, rows in self.streams.items())
        return f"Sample({self.key!r}, {self.index}{held})"

    def __getitem__(self, stream: str) -> Tokens:
        """The rows of one stream.

        Raises:
            StreamMissing: The item does not have it; also a ``KeyError``.
        """
        if stream not in self.streams:
            raise StreamMissing(
                f"item `{self.key}` has no {stream}, it holds: {', '.join(self.streams) or 'none'}",
                hint=f"ask `{stream!r} in sample.streams`; collators give such an item no rows",
            )
        return self.streams[stream]

    @property
    def tokens(self) -> Tensor:
        """[N, D] features of the only stream."""
        return self.only.tokens

    @property
    def only(self) -> Tokens:
        """The rows of the only stream.

        Raises:
            CacheError: The item has several streams, or none.
        """
        if not self.streams:
            raise StreamMissing(f"item `{self.key}` has none of the streams that are read")
        if len(self.streams) != 1:
            raise CacheError(f"item `{self.key}` has {len(self.streams)} streams",
                             code="dataset.stream", hint="name one: sample['video']")  # fmt: skip
        return next(iter(self.streams.values()))


def _shape(rows: Tokens) -> str:
    return f"{list(rows.tokens.shape)} {str(rows.tokens.dtype).removeprefix('torch.')}"


@dataclass(slots=True, kw_only=True)
class Reading:
    """How items are read.

    Attributes:
        data: The dataset.
        want: Streams, columns and rows.
        dtype: Of features, None as they are stored.
        verify: ``open`` checks what is cheap at every read; ``first-touch`` once an item and
            process also every digest.
        on_error: ``raise``, or ``skip`` what cannot be read and count it.
        transform: Called with each sample; what it returns is given.
        skipped: int64 [256] items that each worker skipped, in memory that they share.
    """

    data: CacheDataset
    want: Want
    dtype: torch.dtype | None = None
    verify: Verify = "open"
    on_error: OnError = "raise"
    transform: Callable[[Sample], Any] | None = None
    skipped: Tensor = field(default_factory=lambda: shared_numbers(256))
    _files: Files = field(default_factory=Files)
    _buffers: Buffers = field(default_factory=Buffers)
    _touched: set[int] = field(default_factory=set)
    _absent: dict[str, Tokens] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check the choices.

        Raises:
            BudgetError: The budget is below 1.
            CacheError: No such stream, column or choice.
        """
        want = self.want
        if want.budget is not None and want.budget < 1:
            raise BudgetError(f"the budget must be at least 1, got {want.budget}")
        if odd := [s for s in want.streams if s not in STREAMS] or not want.streams:
            raise CacheError(f"unknown streams {odd}", hint="video, audio", code="dataset.stream")
        if (column := first_problem(want.columns)) is not None:
            raise CacheError(f"rows have no column `{column}`", code="dataset.column",
                             hint="see the table of docs/format.md")  # fmt: skip
        for name, allowed in (("verify", get_args(Verify)), ("on_error", get_args(OnError))):
            if (given := getattr(self, name)) not in allowed:
                raise CacheError(f"{name}={given!r} is no choice", code="dataset.choice",
                                 hint=f"one of: {', '.join(allowed)}")  # fmt: skip
        if self.data.info.domains == ["signal"]:
            # Descriptors are a small part of such files; pictures and sound are most of them.
            self.want = replace(want, whole=False)
        made = rowless(self.data, want.streams, want.columns, self.dtype)
        self._absent = {s: Tokens(columns.pop("tokens"), columns) for s, columns in made.items()}

    def many(self, items: Sequence[int]) -> list[Any]:
        """Read several items; the place of a skipped one holds None."""
        return [self.one(item, alone=len(items) == 1) for item in items]

    def one(self, item: int, want: Want | None = None, *, alone: bool = True) -> Any:
        """Read one item.

        Args:
            item: Its number.
            want: What of it; as the options say when None.
            alone: It is not one of a batch, whose memory would be more than a processor has at
                hand, so that mapping files is quicker than reading them.

        Raises:
            TokpipeError: It cannot be read; key and file are named. With ``skip`` None is given.
        """
        place, key = self.data.place(item), self.data.key(item)
        try:
            streams = self._read(item, place, want or self.want, alone)
        except TokpipeError as error:
            if self.on_error == "skip":
                worker = get_worker_info()
                self.skipped[0 if worker is None else worker.id % len(self.skipped)] += 1
                return None
            raise type(error)(f"item `{key}` cannot be read: {error.message}", where=place.path,
                              hint=error.hint or "tokpipe dataset verify names all such items",
                              code=error.code) from error  # fmt: skip
        absent = {s: rows for s, rows in self._absent.items() if s not in streams}
        sample = Sample(key, item, streams, absent)
        return sample if self.transform is None else self.transform(sample)

    def _read(self, item: int, place: Place, want: Want, alone: bool) -> dict[str, Tokens]:
        if self.verify == "first-touch" and item not in self._touched:
            window = None if place.size < 0 else (place.offset, place.size)
            for problem in verify(place.path, True, window, False).problems:
                raise CacheCorrupt(problem.message, code=f"cache.{problem.code}")
            self._touched.add(item)
        if want.whole and not want.chosen:
            return self._whole(place, want, alone)
        if want.whole and want.start is None and want.stop is None and self._most(item, want):
            wide = replace(want, columns=tuple(dict.fromkeys((*want.columns, "rank"))))
            made = self._whole(place, replace(wide, budget=None), alone)
            return {s: _first(t, want) for s, t in made.items()}
        raw = read_rows(place, want)
        return {s: self._tokens(r) for s, r in raw.items()}

    def _most(self, item: int, want: Want) -> bool:
        """At least half of an item's rows are within the budget."""
        rows = sum(int(self.data.rows(s)[item]) for s in STREAMS)
        return want.budget is not None and 2 * want.budget >= rows

    def _whole(self, place: Place, want: Want, alone: bool) -> dict[str, Tokens]:
        item = place._replace(size=size_of(self._files, place))
        if not alone or get_worker_info() is not None:
            return self._mapped(item, want)
        held = self._buffers.take(item.size)
        flat: Bytes = held.numpy()
        fill(self._files, item, flat)
        spots = locate(flat[: header_size(flat, item.size)], item.size, want)
        return {s: self._stream(s, found, item, flat, held) for s, found in spots.items()}

    def _mapped(self, item: Place, want: Want) -> dict[str, Tokens]:
        """Columns are read, features are mapped."""
        head = self._head(item, min(item.size, _HEAD_BYTES))
        length = header_size(head, item.size)
        if length > len(head):
            head = self._head(item, length)
        spots = locate(head[:length], item.size, want)
        ends = [
            spot.stop for found in spots.values() for name, spot in found.items()
            if not _is_feature(name)
        ]  # fmt: skip
        if max(ends, default=0) > len(head):
            head = self._head(item, max(ends))
        at_hand(self._files, item, len(head))
        return {s: self._stream(s, found, item, head, None) for s, found in spots.items()}

    def _head(self, item: Place, size: int) -> Bytes:
        head: Bytes = np.empty(size, dtype=np.uint8)
        fill(self._files, item._replace(size=size), head)
        return head

    def _stream(
        self, stream: str, spots: Mapping[str, Spot], item: Place, flat: Bytes,
        held: Tensor | None,
    ) -> Tokens:  # fmt: skip
        """Columns as copies, features as views of what was read, or of the file."""
        columns = {}
        for name, spot in spots.items():
            if not _is_feature(name):
                array = spot.of(flat)
                if name == "at":
                    check_times(stream, array)
                columns[name] = _copied(array)
                continue
            dtype = FEATURES[spot.dtype]
            source = Source(item.path, item.offset + spot.start, dtype, spot.shape)
            if held is None:
                columns[name] = mapped(source, self._files)
            elif spot.start % dtype.itemsize:
                columns[name] = _copied(spot.of(flat)).view(dtype)
            else:
                columns[name] = held[spot.start : spot.stop].view(dtype).view(spot.shape)
            if name == "tokens":
                tokens = source
        made = self._cast(columns)
        if self.dtype in (None, tokens.dtype):
            made.source = tokens
        return made

    def _tokens(self, raw: RawStream) -> Tokens:
        return self._cast({
            name: _copied(array).view(FEATURES[raw.dtype]) if _is_feature(name)
            else _copied(array) for name, array in raw.columns.items()
        })  # fmt: skip

    def _cast(self, columns: dict[str, Tensor]) -> Tokens:
        if self.dtype is not None:
            for name in filter(_is_feature, columns):
                columns[name] = columns[name].to(self.dtype)
        return Tokens(columns.pop("tokens"), columns)


def _is_feature(name: str) -> bool:
    return name == "tokens" or name.startswith("deepstack_")


def _copied(array: Any) -> Tensor:
    held = np.array(array)
    return torch.from_numpy(held.view(np.int16) if held.dtype == np.uint16 else held)


def _first(found: Tokens, want: Want) -> Tokens:
    keep = found.columns["rank"] < (want.budget or 0)
    columns = {n: c[keep] for n, c in found.columns.items() if n in want.columns}
    return Tokens(found.tokens[keep], columns)


def new_tensor(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """An empty tensor; in a loader's worker in memory that its parent can take over as it is."""
    if get_worker_info() is None:
        return torch.empty(tuple(shape), dtype=dtype)
    count = int(np.prod(shape, dtype=np.int64))
    item = torch.empty((), dtype=dtype).element_size()
    storage = torch.UntypedStorage._new_shared(max(1, count) * item)  # type: ignore[no-untyped-call]
    made: Tensor = torch.empty(0, dtype=dtype).set_(storage, 0, tuple(shape))  # type: ignore[call-overload]
    return made


def reading_from(
    data: CacheDataset,
    *,
    streams: Sequence[str] | None = None,
    columns: Sequence[str] = ("at",),
    start: float | None = None,
    stop: float | None = None,
    budget: int | None = None,
    **more: Any,
) -> Reading:
    """How items are read, from the options users give; see :class:`Reading` and :class:`Want`."""
    wanted = STREAMS if streams is None else ((streams,) if isinstance(streams, str) else streams)
    want = Want(streams=tuple(wanted), columns=tuple(columns), start=start, stop=stop,
                budget=budget)  # fmt: skip
    return Reading(data=data, want=want, **more)
