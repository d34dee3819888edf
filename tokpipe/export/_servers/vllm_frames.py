"""Keyframes as a video of JPEG pictures with their true times.

Source: vllm 0.33.0, ``multimodal/media/video.py`` (``video/jpeg``).
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from tokpipe.errors import MissingExtra, ModelError
from tokpipe.export._servers.kinds import KINDS
from tokpipe.export._storyboard.frames import board_frames
from tokpipe.export._storyboard.pictures import Look

if TYPE_CHECKING:
    from tokpipe.cache.reader import TokenCache

Doubled = Literal["auto", "yes", "no"]
#: Frame numbers are milliseconds: any time is told as exactly, also of uneven frame rates.
RATE = 1000


def pictures_of(
    cache: TokenCache, from_source: str, max_frames: int
) -> tuple[list[float], list[bytes]]:
    """Seconds and JPEG bytes of the keyframes.

    Raises:
        CacheError: The cache holds no pictures.
        MediaError: ``from_source`` is another file than the one on record.
    """
    found = board_frames(cache, look=Look("jpeg"), from_source=from_source, max_frames=max_frames)
    pairs = [(frame.pts, frame.data) for frame in found]
    return [time for time, _ in pairs], [data for _, data in pairs]


def doubled(times: Sequence[float], pictures: Sequence[bytes]) -> tuple[list[float], list[bytes]]:
    """Each keyframe twice at its own time, so that no two of them share a temporal patch."""
    return [t for t in times for _ in (0, 1)], [p for p in pictures for _ in (0, 1)]


def joins_two(model: str, doubled: Doubled = "auto") -> bool:
    """Whether each keyframe is sent twice: the model joins two frames to one temporal patch.

    Args:
        doubled: ``yes`` or ``no`` where the user knows; the model is then not looked at.

    Raises:
        WeightsMissing: Its configuration is not on disk and cannot be fetched.
        MissingExtra, ModelError: It cannot be read.
    """
    if doubled != "auto" or not model:
        return doubled == "yes"
    from tokpipe.encode._hf.load import read_config

    try:
        config = read_config(model)
    except (ModelError, MissingExtra) as error:
        # Nothing else of the model is needed here.
        raise type(error)(
            error.message, hint=f"{error.hint or 'name a local folder'}; or say yourself whether "
            "it joins two frames: doubled=yes (Qwen-VL kinds) or doubled=no",
            where=error.where, code=error.code,
        ) from error  # fmt: skip
    vision = getattr(config, "vision_config", None)
    kind = KINDS.get(str(getattr(config, "model_type", "")))
    known = kind is not None and kind.rope == "mrope"
    return int(getattr(vision, "temporal_patch_size", 2 if known else 1) or 1) > 1


def timing(times: Sequence[float], duration: float | None) -> dict[str, Any]:
    """What vLLM must be told beside the pictures: they are as many as the indices."""
    indices = [round(time * RATE) for time in times]
    total = max(round((duration or 0) * RATE), indices[-1] + 1, len(indices))
    return {"fps": RATE, "frames_indices": indices, "total_num_frames": total}


def frames_chat(
    model: str, times: Sequence[float], pictures: Sequence[bytes], prompt: str,
    duration: float | None,
) -> dict[str, Any]:  # fmt: skip
    """Body of ``/v1/chat/completions``; needs no flag of the server."""
    listed = ",".join(base64.b64encode(data).decode("ascii") for data in pictures)
    content: list[dict[str, Any]] = [
        {"type": "video_url", "video_url": {"url": f"data:video/jpeg;base64,{listed}"}}
    ]
    if prompt:
        content.append({"type": "text", "text": prompt})
    return {
        "model": model, "messages": [{"role": "user", "content": content}],
        "media_io_kwargs": {"video": {"num_frames": -1, **timing(times, duration)}},
    }  # fmt: skip


def frames_data(
    times: Sequence[float], pictures: Sequence[bytes], duration: float | None
) -> dict[str, Any]:
    """``multi_modal_data`` of the same pictures, uint8 [T, H, W, 3] with their times."""
    import numpy as np
    from PIL import Image

    frames = np.stack(
        [np.asarray(Image.open(io.BytesIO(data)).convert("RGB")) for data in pictures]
    )
    return {"video": [(frames, {**timing(times, duration), "do_sample_frames": False})]}
