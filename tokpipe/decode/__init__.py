"""Media files in, frames and audio on one clock out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokpipe.decode.pyav import MediaSource
    from tokpipe.spec import MediaInfo

__all__ = ["open_media", "open_source", "probe"]


def open_source(
    path: str | Path,
    info: MediaInfo,
    *,
    strict: bool = False,
    decoder: str = "pyav",
    device: str = "cpu",
    **sparse: Any,
) -> MediaSource:
    """Open a probed file with a reader of choice. See :mod:`tokpipe.decode._backends`."""
    from tokpipe.decode._backends import open_source as run

    return run(path, info, strict=strict, decoder=decoder, device=device, **sparse)


def probe(path: str | Path, *, video_stream: str = "auto", audio_stream: str = "auto") -> MediaInfo:
    """Describe a media file; decodes one picture at most. See :mod:`tokpipe.decode._probe`."""
    from tokpipe.decode._probe import probe as run

    return run(Path(path), video_stream=video_stream, audio_stream=audio_stream)


def open_media(
    path: str | Path,
    *,
    video_stream: str = "auto",
    audio_stream: str = "auto",
    strict: bool = False,
) -> MediaSource:
    """Open a media file with the reference reader.

    Args:
        path: The file.
        video_stream: ``auto``, ``none`` or a stream index of the container.
        audio_stream: The same, or a language code.
        strict: Raise DecodeError at the first damage instead of recording it.
    """
    from tokpipe.decode.pyav import MediaSource

    info = probe(path, video_stream=video_stream, audio_stream=audio_stream)
    return MediaSource(Path(path), info, strict=strict)
