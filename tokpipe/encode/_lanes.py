"""How batches get to a device and their tokens back: plainly, or on a GPU beside the forward pass.

    worker thread    fill pinned buffer k + 2
    side stream      copy k + 1 ─▶ prepare k + 1
    main stream                 forward k
    return stream                         copy back k - 1

Letters: T pictures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from tokpipe.encode._tower import Encoded

P = TypeVar("P")
#: Pinned buffers: one being copied from, one waiting, one being filled.
BUFFERS = 3


class Wait(Protocol):
    """Something on a device that is done some day."""

    def synchronize(self) -> None:
        """Block this thread until then."""
        ...


@dataclass(slots=True)
class Now:
    """Nothing to wait for."""

    def synchronize(self) -> None:
        """Return at once."""


@dataclass(slots=True)
class Returned:
    """Tokens on their way to the host.

    Attributes:
        tokens: Valid after ``finished``.
        seconds: Tells how long the forward pass took, valid after ``finished``; None unknown.
    """

    tokens: list[Encoded]
    finished: Wait = field(default_factory=Now)
    seconds: Callable[[], float] | None = None


class Lanes(Protocol):
    """The way to a device and back."""

    def buffer(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Host memory that copies to the device start from."""
        ...

    def forward(
        self, host: Tensor, count: int, prepare: Callable[[Tensor], P],
        encode: Callable[[P], list[Encoded]],
    ) -> tuple[Returned, Wait]:  # fmt: skip
        """Copy, prepare, encode, copy back ``count`` items.

        The second result is to be waited for before ``host`` is written to.
        """
        ...

    def room(self) -> Callable[[int], bool]:
        """Tells whether a batch of so many items will fit, judged by the batches so far."""
        ...


@dataclass(slots=True)
class HostLanes:
    """The same steps one after the other, on whatever device the tower is."""

    device: torch.device

    def buffer(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Ordinary memory."""
        return torch.empty(shape, dtype=dtype)

    def forward(
        self, host: Tensor, count: int, prepare: Callable[[Tensor], P],
        encode: Callable[[P], list[Encoded]],
    ) -> tuple[Returned, Wait]:  # fmt: skip
        """All at once; the results are copies, so that no tensor stays in inference mode."""
        made = encode(prepare(host.to(self.device)))
        with torch.inference_mode(False):
            return Returned([_moved(tokens, _cloned) for tokens in made]), Now()

    def room(self) -> Callable[[int], bool]:
        """Running out is noticed when it happens."""
        return lambda _size: True


class CudaLanes:
    """Copies and preprocessing on a stream of their own, copies back on another.

    Making one resets PyTorch's peak memory statistics of the device, which ``room`` reads.
    """

    def __init__(self, device: torch.device) -> None:
        """Make the streams; what the tower was loaded by is done before they start."""
        cuda: Any = torch.cuda
        self.device, self._cuda = device, cuda
        self.inward, self.outward = cuda.Stream(device), cuda.Stream(device)
        self.inward.wait_stream(cuda.current_stream(device))
        cuda.reset_peak_memory_stats(device)
        self._before = cuda.memory_allocated(device)
        self._largest = 0

    def buffer(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Pinned memory: only from there is a copy asynchronous."""
        # Without the device a worker thread would open a context on the first GPU.
        with self._cuda.device(self.device):
            return torch.empty(shape, dtype=dtype, pin_memory=True)

    def forward(
        self, host: Tensor, count: int, prepare: Callable[[Tensor], P],
        encode: Callable[[P], list[Encoded]],
    ) -> tuple[Returned, Wait]:  # fmt: skip
        """Queue everything and return; nothing here waits for the device."""
        cuda, inward, outward = self._cuda, self.inward, self.outward
        self._largest = max(self._largest, count)
        copied, ready, finished = (cuda.Event() for _ in range(3))
        began, ended = (cuda.Event(enable_timing=True) for _ in range(2))
        with cuda.device(self.device):
            main = cuda.current_stream(self.device)
            with cuda.stream(inward):
                there = host.to(self.device, non_blocking=True)
                copied.record(inward)
                prepared = prepare(there)
                ready.record(inward)
            main.wait_event(ready)
            for tensor in _tensors(prepared):
                tensor.record_stream(main)
            began.record(main)
            made = encode(prepared)
            ended.record(main)
            with cuda.stream(outward), torch.inference_mode(False), torch.no_grad():
                outward.wait_event(ended)
                tokens = [_moved(one, self._home) for one in made]
                finished.record(outward)
        return Returned(tokens, finished, lambda: began.elapsed_time(ended) / 1000), copied

    def room(self) -> Callable[[int], bool]:
        """More items need at most as much more memory as the largest batch so far took."""

        def fits(size: int) -> bool:
            cuda, device = self._cuda, self.device
            peak = cuda.max_memory_allocated(device) - self._before
            kept = cuda.memory_reserved(device) - cuda.memory_allocated(device)
            free = cuda.mem_get_info(device)[0] + kept
            return bool(peak * size / max(1, self._largest) <= 0.8 * free)

        return fits

    def _home(self, tensor: Tensor) -> Tensor:
        home = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        home.copy_(tensor, non_blocking=True)
        # The allocator must not hand the memory out again before the copy has read it.
        tensor.record_stream(self.outward)
        return home


def _cloned(tensor: Tensor) -> Tensor:
    return tensor.to("cpu", copy=True)


def _moved(tokens: Encoded, how: Callable[[Tensor], Tensor]) -> Encoded:
    return replace(
        tokens, data=how(tokens.data), deepstack=tuple(how(level) for level in tokens.deepstack),
        columns={name: how(column) for name, column in tokens.columns.items()},
    )  # fmt: skip


def _tensors(value: Any) -> Iterator[Tensor]:
    """Every tensor in nested lists, tuples and mappings."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _tensors(part)
    elif isinstance(value, dict):
        for part in value.values():
            yield from _tensors(part)
