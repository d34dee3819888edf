"""Pick a device and say clearly when it is not there; how models run on it and how many at once.

Precision. Products of float32 are of float32 (IEEE), whatever the tower's type, unless ``tf32`` is
asked for: PyTorch itself lets convolutions round their factors to TF32 on a GPU, which would make a
GPU's tokens differ from a CPU's by 1e-3. ``float16`` and ``bfloat16`` are asked for by name when a
tower is loaded.
"""

from __future__ import annotations

import gc
import os
import resource
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, TypeVar

from tokpipe.errors import ResourceError

if TYPE_CHECKING:
    import torch

T = TypeVar("T")
#: Names of the types a tower may be loaded in.
DTYPES = ("float32", "bfloat16", "float16")
#: More decoders than this do not feed one GPU faster.
_MOST_DECODERS = 16
#: Words of errors that mean memory ran out but are not of PyTorch's own class for it.
_MEMORY_WORDS = ("not enough memory", "DefaultCPUAllocator", "CUBLAS_STATUS_ALLOC_FAILED")


def pick_device(name: str = "cpu") -> torch.device:
    """Resolve ``cpu``, ``cuda``, ``cuda:N``, ``mps`` or ``auto`` (cuda if there, else cpu).

    Raises:
        ResourceError: The device does not exist on this machine.
    """
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ResourceError(
            f"unknown device `{name}`", hint="use cpu, cuda, cuda:N, mps or auto"
        ) from error
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            raise ResourceError(
                f"device `{name}` is not available: {count} CUDA devices found",
                hint="use --device cpu, or check the driver with `tokpipe doctor`",
            )
    elif device.type == "mps" and not torch.backends.mps.is_available():
        raise ResourceError("device `mps` is not available", hint="use --device cpu")
    elif device.type not in ("cpu", "mps"):
        raise ResourceError(
            f"device `{name}` is not supported", hint="use cpu, cuda, cuda:N, mps or auto"
        )
    return device


def peak_memory_mb() -> float:
    """Largest resident size of this process so far, in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Linux counts in KiB, macOS in bytes.
    return peak / (1 << 20 if sys.platform == "darwin" else 1 << 10)


def decode_threads(device: torch.device) -> int:
    """Decoders to run side by side: to feed a GPU all cores but one, 16 at most; else one.

    Each decoder itself runs with one thread, see ``decode.pyav``.
    """
    if device.type == "cpu":
        return 1
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return max(1, min(_MOST_DECODERS, cores - 1))


def torch_dtype(name: str, device: torch.device) -> torch.dtype:
    """The type a tower's weights are to have.

    Raises:
        ResourceError: Not one of ``DTYPES``, or this GPU cannot compute in it.
    """
    import torch

    if name not in DTYPES:
        raise ResourceError(f"a tower cannot run in `{name}`", hint=f"use {', '.join(DTYPES)}")
    if name == "bfloat16" and device.type == "cuda":
        # PyTorch would go on without: it emulates, several times slower than float32.
        with torch.cuda.device(device):
            native = torch.cuda.is_bf16_supported(including_emulation=False)
        if not native:
            raise ResourceError(
                f"`{torch.cuda.get_device_name(device)}` does not compute in bfloat16",
                hint="use --precision float16 or float32",
            )
    made: torch.dtype = getattr(torch, name)
    return made


def settle(
    device: torch.device | str, dtype: str, *, compiled: bool = False
) -> tuple[torch.device, torch.dtype]:
    """Where and in what a tower is to run; refuses what this machine cannot do.

    Args:
        device: As :func:`pick_device` takes it.
        dtype: One of ``DTYPES``.
        compiled: The tower will be run through ``torch.compile``.

    Raises:
        ResourceError: No such device, a type it does not compute in, or nothing to compile with.
    """
    place = pick_device(str(device))
    kind = torch_dtype(dtype, place)
    if compiled:
        _check_compiler(place)
    return place, kind


def _check_compiler(device: torch.device) -> None:
    """Say now what ``torch.compile`` would say in the middle of the first forward pass."""
    hint = "leave --compile out"
    if device.type == "cuda" and find_spec("triton") is None:
        raise ResourceError("torch.compile on a GPU needs Triton", hint=f"install it, or {hint}")
    compilers = (os.environ.get("CXX"), "c++", "g++", "clang++")
    if not any(name and shutil.which(name) for name in compilers):
        raise ResourceError(
            "torch.compile needs a C++ compiler", hint=f"install g++ or set CXX, or {hint}"
        )


@contextmanager
def inference(*, tf32: bool = False) -> Iterator[None]:
    """No gradients, and float32 products as precise as the module docstring says.

    The precision is a setting of the process; it is put back on leaving, so hold this around a
    call, never around a ``yield`` to somebody else.

    Args:
        tf32: Let float32 products on a GPU round their factors to TF32.
    """
    import torch

    backends: Any = torch.backends
    kinds = (backends.cuda.matmul, backends.cudnn.conv)
    before = [kind.fp32_precision for kind in kinds]
    with ExitStack() as undo:
        for kind, was in zip(kinds, before, strict=True):
            undo.callback(setattr, kind, "fp32_precision", was)
            kind.fp32_precision = "tf32" if tf32 else "ieee"
        undo.enter_context(torch.inference_mode())
        yield


def image_layout(device: torch.device) -> torch.memory_format:
    """How pictures and convolutions are best laid out: channels last on a GPU.

    Elsewhere as they are: CPU kernels gain nothing and their results would change in the last bit.
    """
    import torch

    return torch.channels_last if device.type == "cuda" else torch.contiguous_format


def out_of_memory(error: BaseException) -> bool:
    """The error means that memory of a device or of the machine ran out."""
    import torch

    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error) for word in _MEMORY_WORDS)


def free_memory(device: torch.device) -> None:
    """Let go of what PyTorch's allocator keeps for later."""
    import torch

    gc.collect()
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.empty_cache()


@dataclass(slots=True)
class BatchTuner:
    """How many items go through a model at once: as many as are worth it and fit.

    A fixed size stays, but for running out of memory: that halves it for good, and the batch is
    tried again. Without one the size starts small and doubles while items a second rise by a
    twentieth at least and ``fits`` agrees; then the best size stays. What comes out of a model must
    not depend on the size.

    Attributes:
        fixed: The size that was asked for, None to tune.
        start: First size tried.
        limit: Largest size ever used.
        fits: Whether so many items would fit into memory; asked before each doubling.
        free: Gives back cached memory, called after running out.
        what: Name of an item in messages.
        size: Items of the next batch.
        settled: Nothing is being tried any more.
    """

    fixed: int | None = None
    start: int = 8
    limit: int = 1024
    fits: Callable[[int], bool] = lambda _size: True
    free: Callable[[], None] = lambda: None
    what: str = "pictures"
    size: int = field(init=False)
    settled: bool = field(init=False)
    tried: list[int] = field(init=False, default_factory=list)
    _rates: dict[int, list[float]] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        """Start at the first size."""
        if self.fixed is not None and self.fixed < 1:
            raise ValueError(f"BatchTuner: a batch of {self.fixed}")
        self.size = self.fixed or min(self.start, self.limit)
        self.settled = self.fixed is not None

    def record(self, count: int, seconds: float) -> None:
        """Note how long a batch took; batches of another size than the tried one are ignored.

        Of each size the first batch is warm-up, the second counts.
        """
        if self.settled or count != self.size or seconds <= 0:
            return
        rates = self._rates.setdefault(count, [])
        rates.append(count / seconds)
        if len(rates) < 2:
            return
        best = max((r[1] for size, r in self._rates.items() if size < count), default=0.0)
        if rates[1] < 1.05 * best:
            self.size, self.settled = count // 2, True
        elif 2 * count > self.limit or not self.fits(2 * count):
            self.settled = True
        else:
            self.size = 2 * count

    def run(self, total: int, call: Callable[[int, int], T]) -> Iterator[T]:
        """Results of ``call(a, b)`` over pieces of 0..total that fit, in order.

        Raises:
            ResourceError: One item alone does not fit.
        """
        a = 0
        while a < total:
            b = min(total, a + self.size)
            failure = None
            try:
                out = call(a, b)
            except Exception as error:  # what is not about memory goes on up
                if not out_of_memory(error):
                    raise
                failure = str(error).partition("\n")[0]
            if failure is None:
                yield out
                a = b
            else:
                # Outside the handler: the error holds the frames, and they hold the tensors.
                self._shrink(b - a, failure)

    def _shrink(self, count: int, failure: str) -> None:
        self.tried.append(count)
        self.free()
        if count == 1:
            sizes = ", ".join(str(size) for size in dict.fromkeys(self.tried))
            raise ResourceError(
                f"out of memory with a batch of 1 (tried {sizes} {self.what}): {failure}",
                hint="use a smaller model, --precision bfloat16, smaller pictures, or --device cpu",
            )
        self.size = self.limit = count // 2
        self.settled = True
