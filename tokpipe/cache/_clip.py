"""Decode the stored sound of a signal cache through PyAV."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from tokpipe.errors import CacheCorrupt

#: Decoders and resamplers may end this many seconds early or late; the rest is damage.
_TOLERANCE = 0.02
_CODECS = {"opus": ("opus", "libopus"), "flac": ("flac",)}


def decode_clip(data: bytes, spec: Mapping[str, Any]) -> tuple[npt.NDArray[np.float32], int]:
    """Decode a clip to mono.

    Args:
        data: The encoded stream with its container.
        spec: ``tokpipe.clip``: codec, rate in hertz, samples.

    Returns:
        (float32 [L] in -1..1, rate in hertz), L exactly the recorded number of samples.

    Raises:
        CacheCorrupt: It cannot be decoded, holds another codec, or has another length.
    """
    rate, samples = int(spec["rate"]), int(spec["samples"])
    limit = samples + int(_TOLERANCE * rate)
    parts: list[npt.NDArray[np.float32]] = []
    length = 0
    for part in _decode(data, str(spec["codec"]), rate):
        parts.append(part)
        length += len(part)
        if length > limit:
            break
    if not samples - int(_TOLERANCE * rate) <= length <= limit:
        raise CacheCorrupt(
            f"the clip decodes to {length} samples, {samples} expected", code="cache.clip"
        )
    out = np.zeros(samples, dtype=np.float32)
    joined = np.concatenate(parts) if parts else out
    out[: min(length, samples)] = joined[:samples]
    return out, rate


def _decode(data: bytes, codec: str, rate: int) -> Iterator[npt.NDArray[np.float32]]:
    import av

    try:
        with av.open(io.BytesIO(data), "r") as container:
            stream = container.streams.audio[0]
            if stream.codec_context.name not in _CODECS[codec]:
                raise CacheCorrupt(
                    f"the clip is {stream.codec_context.name}, not {codec}", code="cache.clip"
                )
            stream.codec_context.thread_type = "NONE"
            resampler = av.AudioResampler(format="flt", layout="mono", rate=rate)
            for frame in container.decode(stream):
                for out in resampler.resample(frame):
                    yield np.asarray(out.to_ndarray(), dtype=np.float32).reshape(-1)
            for out in resampler.resample(None):
                yield np.asarray(out.to_ndarray(), dtype=np.float32).reshape(-1)
    except (av.error.FFmpegError, OSError, ValueError, IndexError) as error:
        raise CacheCorrupt(f"the clip cannot be decoded: {error}", code="cache.clip") from error
