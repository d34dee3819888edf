"""Which reader opens a file, and what of it a result depends on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tokpipe.device import pick_device
from tokpipe.errors import ResourceError
from tokpipe.spec import MediaInfo

if TYPE_CHECKING:
    from tokpipe.decode._wanted import Effort
    from tokpipe.decode.pyav import MediaSource

#: Readers by name; the first is the reference.
DECODERS = ("pyav", "torchcodec", "decord")


def open_source(
    path: str | Path, info: MediaInfo, *, strict: bool = False, decoder: str = "pyav",
    device: str = "cpu", effort: Effort | None = None, fps: float | None = None,
    threads: int | None = 1, whole: str | None = None,
) -> MediaSource:  # fmt: skip
    """The reader of a file that was probed; nothing is opened before its ``read``.

    With an ``effort`` and a sampler's ``fps``, ``pyav`` decodes only what holds something new, in
    ``threads``, and its ``read`` raises ``tokpipe.decode.Unsafe`` where the file does not let it:
    then open it again with the reason as ``whole``.

    Args:
        path: The file.
        info: As :func:`tokpipe.decode.probe` described it.
        strict: Raise DecodeError at the first damage; only ``pyav`` can.
        decoder: One of ``DECODERS``.
        device: As ``pick_device`` takes it; ``pyav`` always decodes on the CPU, ``decord`` takes
            nothing else.
        effort: fast, balanced or thorough; None decodes and shows all.
        fps: Ticks a second of the sampler that will choose from the pictures, None: any may be.
        threads: Groups of pictures decoded at once, None: a core each, at most 8; what comes out
            does not depend on it.
        whole: Why to read from end to end; it is noted in the report.

    Raises:
        ResourceError: No such reader or device, or it cannot be strict.
    """
    if decoder == "pyav":
        return _reference(Path(path), info, strict, effort, fps, threads, whole)
    if decoder == "torchcodec":
        from tokpipe.decode.torchcodec import TorchcodecSource

        return TorchcodecSource(Path(path), info, strict=strict, device=_place(device))
    if decoder == "decord":
        from tokpipe.decode.decord import DecordSource

        return DecordSource(Path(path), info, strict=strict, device=device)
    raise ResourceError(f"unknown decoder `{decoder}`", hint=f"use one of: {', '.join(DECODERS)}")


def _reference(
    path: Path, info: MediaInfo, strict: bool, effort: Effort | None, fps: float | None,
    threads: int | None, whole: str | None,
) -> MediaSource:  # fmt: skip
    from tokpipe.decode._looking import LookingSource
    from tokpipe.decode._sparse import SparseSource
    from tokpipe.decode._wanted import reads_whole
    from tokpipe.decode.pyav import MediaSource

    if effort is None or fps is None or info.video is None:
        return MediaSource(path, info, strict=strict)
    whole = whole or reads_whole(info, strict=strict)
    if whole is None:
        return SparseSource(path, info, effort=effort, fps=fps, threads=threads)
    kind = LookingSource if effort == "thorough" else MediaSource
    source = kind(path, info, strict=strict)
    source.whole = whole
    return source


def backend_key(decoder: str = "pyav", device: str = "cpu") -> dict[str, str]:
    """What pictures depend on: reader, versions, and for torchcodec the kind of device.

    Raises:
        MissingExtra: The reader asked for is not installed.
        ResourceError: It is to decode on a device that is not there.
    """
    import av

    made = {"backend": decoder, "av": av.__version__}
    if decoder == "torchcodec":
        from tokpipe.decode.torchcodec import versions

        made |= versions() | {"decode_device": _place(device).partition(":")[0]}
    if decoder == "decord":
        from tokpipe.decode.decord import versions as decord_version

        made |= decord_version()
    return made


def _place(device: str) -> str:
    """Where torchcodec decodes for a device: on it where it is a CUDA one, else on the CPU."""
    found = pick_device(device)
    return str(found) if found.type == "cuda" else "cpu"
