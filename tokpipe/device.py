"""Pick a device and say clearly when it is not there; how much memory the process has taken."""

from __future__ import annotations

import resource
import sys
from typing import TYPE_CHECKING

from tokpipe.errors import ResourceError

if TYPE_CHECKING:
    import torch


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
