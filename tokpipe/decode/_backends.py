"""Which reader opens a file, and what of it a result depends on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tokpipe.device import pick_device
from tokpipe.errors import ResourceError
from tokpipe.spec import MediaInfo

if TYPE_CHECKING:
    from tokpipe.decode.pyav import MediaSource

#: Readers by name; the first is the reference.
DECODERS = ("pyav", "torchcodec")


def open_source(
    path: str | Path, info: MediaInfo, *, strict: bool = False, decoder: str = "pyav",
    device: str = "cpu",
) -> MediaSource:  # fmt: skip
    """The reader of a file that was probed; nothing is opened before its ``read``.

    Args:
        path: The file.
        info: As :func:`tokpipe.decode.probe` described it.
        strict: Raise DecodeError at the first damage; only ``pyav`` can.
        decoder: One of ``DECODERS``.
        device: As ``pick_device`` takes it; ``pyav`` always decodes on the CPU.

    Raises:
        ResourceError: No such reader or device, or it cannot be strict.
    """
    if decoder == "pyav":
        from tokpipe.decode.pyav import MediaSource

        return MediaSource(Path(path), info, strict=strict)
    if decoder == "torchcodec":
        from tokpipe.decode.torchcodec import TorchcodecSource

        return TorchcodecSource(Path(path), info, strict=strict, device=_place(device))
    raise ResourceError(f"unknown decoder `{decoder}`", hint=f"use {' or '.join(DECODERS)}")


def backend_key(decoder: str = "pyav", device: str = "cpu") -> dict[str, str]:
    """What pictures depend on: reader, versions, and for torchcodec the kind of device.

    Raises:
        MissingExtra: torchcodec is asked for and not installed.
        ResourceError: It is to decode on a device that is not there.
    """
    import av

    made = {"backend": decoder, "av": av.__version__}
    if decoder == "torchcodec":
        from tokpipe.decode.torchcodec import versions

        made |= versions() | {"decode_device": _place(device).partition(":")[0]}
    return made


def _place(device: str) -> str:
    """Where torchcodec decodes for a device: on it where it is a CUDA one, else on the CPU."""
    found = pick_device(device)
    return str(found) if found.type == "cuda" else "cpu"
