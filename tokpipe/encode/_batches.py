"""Feed a loaded tower: batches of its own size, filled, copied and encoded side by side.

Batches are made by a ``BatchTuner``; on a GPU a worker thread fills pinned buffers and the copies
run on streams of their own, see ``_lanes``. The host waits for one event a batch: that of the batch
before the one it has just queued.

Letters: T pictures, H W pixels, L samples.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from tokpipe.device import BatchTuner, free_memory, inference
from tokpipe.encode._lanes import BUFFERS, CudaLanes, HostLanes, Lanes, Now, Wait
from tokpipe.encode._tower import AudioTower, Encoded, VisionTower
from tokpipe.flow import prefetch

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Batch on a CPU, where larger ones gain nothing; first batch tried elsewhere.
CPU_PICTURES, CPU_SOUNDS = 16, 4
#: Bytes of one host buffer, and the most items of a batch that is tuned.
_BUFFER, _MOST = 256 << 20, 512


_Buffers = Callable[[tuple[int, ...], torch.dtype], Tensor]


class _Work(Protocol):
    """What pictures and sound do differently."""

    #: Name of an item in messages.
    what: str

    def host(self, items: Sequence[Any], buffer: _Buffers) -> Tensor:
        """One tensor that holds all items, made in ``buffer(shape, dtype)``."""
        ...

    def cut(self, host: Tensor, items: Sequence[Any], a: int, b: int) -> Tensor:
        """The part of ``host`` that holds items a to b."""
        ...

    def prepare(self, there: Tensor, items: Sequence[Any]) -> Any:
        """What the tower takes, on the device."""
        ...

    def encode(self, prepared: Any) -> list[Encoded]:
        """Tokens on the device."""
        ...


@dataclass(slots=True)
class _Pictures:
    """Pictures of one size.

    On the CPU rows must be the same whatever the batch: files repeat byte for byte, and what a bank
    holds already changes the batches of a run. Products of another shape may round otherwise, so
    each new size of batch is tried: its last picture is encoded alone, and where that gives other
    bits, batches of this size are encoded one by one.
    """

    tower: VisionTower
    columns: frozenset[str]
    what: str = "pictures"
    alike: dict[int, bool] = field(default_factory=dict)

    def host(self, items: Sequence[Any], buffer: _Buffers) -> Tensor:
        out = buffer((len(items), *items[0].shape), torch.uint8)
        np.stack(items, out=out.numpy())
        return out

    def cut(self, host: Tensor, items: Sequence[Any], a: int, b: int) -> Tensor:
        return host[a:b]

    def prepare(self, there: Tensor, items: Sequence[Any]) -> Any:
        return self.tower.prepare(there)

    def encode(self, prepared: Any) -> list[Encoded]:
        size = len(prepared)
        if size == 1 or prepared.device.type != "cpu":
            return [self.tower.encode(prepared, self.columns)]
        if self.alike.get(size, True):
            made = self.tower.encode(prepared, self.columns)
            if size in self.alike:
                return [made]
            alone = self.tower.encode(prepared[-1:], self.columns)
            self.alike[size] = _same(made, alone)
            if self.alike[size]:
                return [made]
        return [self.tower.encode(prepared[i : i + 1], self.columns) for i in range(size)]


def _same(batch: Encoded, alone: Encoded) -> bool:
    """The last picture of a batch has the bits it has alone."""
    pairs = [(batch.data, alone.data), *zip(batch.deepstack, alone.deepstack, strict=True)]
    pairs += [(batch.columns[name], alone.columns[name]) for name in alone.columns]
    return all(torch.equal(a[-1:], b) for a, b in pairs)


@dataclass(slots=True)
class _Sounds:
    tower: AudioTower
    columns: frozenset[str]
    what: str = "stretches of sound"

    def host(self, items: Sequence[Any], buffer: _Buffers) -> Tensor:
        out = buffer((sum(len(item) for item in items),), torch.float32)
        torch.cat(list(items), out=out)
        return out

    def cut(self, host: Tensor, items: Sequence[Any], a: int, b: int) -> Tensor:
        ends = np.cumsum([0, *(len(item) for item in items)])
        return host[int(ends[a]) : int(ends[b])]

    def prepare(self, there: Tensor, items: Sequence[Any]) -> Any:
        ends = np.cumsum([len(item) for item in items])
        return [there[end - len(item) : end] for end, item in zip(ends, items, strict=True)]

    def encode(self, prepared: Any) -> list[Encoded]:
        return self.tower.encode(prepared, self.columns)


def encode_pictures(
    tower: VisionTower, pictures: Iterable[tuple[int, NDArray[np.uint8]]], *, device: torch.device,
    columns: frozenset[str] = frozenset(), batch: int | None = None,
) -> Iterator[tuple[int, Encoded]]:  # fmt: skip
    """Tokens of pictures in order, each with T = 1 and on the CPU.

    Pictures of one batch are views of one tensor. ``pictures`` is read ahead by a thread on a GPU;
    closing this generator ends the thread and closes ``pictures``.

    Args:
        tower: On ``device``.
        pictures: (key, uint8 [H, W, 3]), all of one size.
        device: Where the tower is.
        columns: Extra columns to ask for, see ``VisionTower.encode``.
        batch: Pictures a forward pass; None tunes it on a GPU and takes 16 on a CPU. The tokens do
            not depend on it as far as the tower's kernels allow.

    Raises:
        ResourceError: One picture alone does not fit into memory.
    """
    return _encoded(_Pictures(tower, columns), pictures, device, batch, CPU_PICTURES)


def encode_sounds(
    tower: AudioTower, chunks: Iterable[tuple[int, Tensor]], *, device: torch.device,
    columns: frozenset[str] = frozenset(), batch: int | None = None,
) -> Iterator[tuple[int, Encoded]]:  # fmt: skip
    """Tokens of chunks of sound in order, each with T = 1 and on the CPU.

    Args:
        tower: On ``device``.
        chunks: (key, float32 [L_i]), L_i <= ``tower.chunk``.
        device: Where the tower is.
        columns: Extra columns to ask for, see ``AudioTower.encode``.
        batch: Chunks a forward pass; None tunes it on a GPU and takes 4 on a CPU.

    Raises:
        ResourceError: One chunk alone does not fit into memory.
    """
    return _encoded(_Sounds(tower, columns), chunks, device, batch, CPU_SOUNDS)


def _encoded(
    work: _Work, items: Iterable[tuple[int, Any]], device: torch.device, batch: int | None,
    small: int,
) -> Iterator[tuple[int, Encoded]]:  # fmt: skip
    tuned = batch is None and device.type == "cuda"
    lanes: Lanes = CudaLanes(device) if device.type == "cuda" else HostLanes(device)
    tuner = BatchTuner(
        None if tuned else batch or small, start=small, limit=_MOST, fits=lanes.room(),
        free=partial(free_memory, device), what=work.what,
    )  # fmt: skip
    return piped(work, items, lanes, tuner, ahead=1 if device.type == "cuda" else 0)


@dataclass(slots=True)
class _Buffer:
    """One of the host buffers.

    Attributes:
        copied: What was last copied from it is on the device.
    """

    memory: Tensor | None = None
    copied: Wait = field(default_factory=Now)

    def take(self, lanes: Lanes, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Room for so many rows, once nothing is copied from it any more."""
        self.copied.synchronize()
        held = self.memory
        if held is None or held.shape[1:] != shape[1:] or len(held) < shape[0]:
            self.memory = held = lanes.buffer(shape, dtype)
        return held[: shape[0]]


@dataclass(slots=True)
class _Batch:
    keys: list[int]
    items: list[Any]
    host: Tensor
    buffer: _Buffer


def piped(
    work: _Work, items: Iterable[tuple[int, Any]], lanes: Lanes, tuner: BatchTuner, *, ahead: int
) -> Iterator[tuple[int, Encoded]]:
    """Encode through the lanes, in order.

    Args:
        ahead: 1: a worker thread fills buffers and each batch is handed out once the next is
            queued; 0: one thing after the other.
    """
    flying: deque[tuple[list[int], Any]] = deque()
    with closing(prefetch(_filled(work, items, lanes, tuner), ahead)) as batches:
        for batch in batches:
            call = partial(_forward, work, lanes, batch)
            for a, b, returned in tuner.run(len(batch.keys), call):
                flying.append((batch.keys[a:b], returned))
                if len(flying) > ahead:
                    yield from _landed(flying, tuner)
        while flying:
            yield from _landed(flying, tuner)


def _filled(
    work: _Work, items: Iterable[tuple[int, Any]], lanes: Lanes, tuner: BatchTuner
) -> Iterator[_Batch]:
    """Batches in host buffers taken in turn; runs in the worker thread.

    A buffer comes round when the batch after it has been fetched, so its copy is queued by then.
    """
    buffers = [_Buffer() for _ in range(BUFFERS)]
    keys: list[int] = []
    held: list[Any] = []
    turn = 0

    def made() -> _Batch:
        buffer = buffers[turn % BUFFERS]
        return _Batch(keys, held, work.host(held, partial(buffer.take, lanes)), buffer)

    try:
        for key, item in items:
            keys.append(key)
            held.append(item)
            most = max(1, _BUFFER // max(1, item.nbytes))
            if len(held) >= min(tuner.size, most):
                yield made()
                keys, held, turn = [], [], turn + 1
        if held:
            yield made()
    finally:
        close = getattr(items, "close", None)
        if close is not None:
            close()


def _forward(work: _Work, lanes: Lanes, batch: _Batch, a: int, b: int) -> tuple[int, int, Any]:
    items = batch.items[a:b]
    with inference():
        returned, batch.buffer.copied = lanes.forward(
            work.cut(batch.host, batch.items, a, b),
            b - a,
            lambda there: work.prepare(there, items),
            work.encode,
        )
    return a, b, returned


def _landed(
    flying: deque[tuple[list[int], Any]], tuner: BatchTuner
) -> Iterator[tuple[int, Encoded]]:
    """Wait for the oldest batch in flight and hand its items out one by one."""
    keys, returned = flying.popleft()
    returned.finished.synchronize()
    if returned.seconds is not None:
        tuner.record(len(keys), returned.seconds())
    yield from zip(keys, _singles(returned.tokens), strict=True)


def _singles(made: list[Encoded]) -> Iterator[Encoded]:
    for tokens in made:
        for i in range(len(tokens.data)):
            row = slice(i, i + 1)
            yield replace(
                tokens, data=tokens.data[row],
                deepstack=tuple(level[row] for level in tokens.deepstack),
                columns={name: column[row] for name, column in tokens.columns.items()},
            )  # fmt: skip
