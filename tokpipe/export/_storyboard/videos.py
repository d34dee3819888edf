"""Messages of the models that take a list of frames as one video: Qwen kinds, HF processors.

Encoders with patches of two frames see each picture twice, so that two moments never share a
patch: un-doubled pictures at 1.0, 13.3 and 13.7 s would become patches at 7.2 and 13.7 s.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tokpipe.export._storyboard.board import Shown
from tokpipe.export._storyboard.messages import times_text

#: Frames a second of the clock that frame numbers are given on: any time is one to a millisecond.
CLOCK = 1000


def twice(items: Sequence[Any]) -> list[Any]:
    """Each item two times, one after the other."""
    return [item for item in items for _ in range(2)]


def metadata(
    shown: Sequence[Shown], end: float, *, doubled: bool = False
) -> dict[str, Any]:  # fmt: skip
    """What ``transformers.video_utils.VideoMetadata`` takes: frame numbers that give true times.

    Args:
        doubled: Each picture is in the list twice.
    """
    indices = [round(one.pts * CLOCK) for one in shown]
    return {
        "total_num_frames": max(round(end * CLOCK), indices[-1] + 1), "fps": float(CLOCK),
        "duration": end, "width": shown[0].width, "height": shown[0].height,
        "frames_indices": twice(indices) if doubled else indices,
    }  # fmt: skip


def frame_list(shown: Sequence[Shown], prompt: str, end: float) -> dict[str, Any]:
    """Messages for ``qwen_vl_utils``: a list of frames, which it takes for evenly spaced."""
    files = twice([one.file for one in shown])
    rate = len(files) / max(end - shown[0].pts, 1e-3)
    video = {"type": "video", "video": files, "sample_fps": rate, "raw_fps": rate}
    return {"messages": [_user([video, *_texts(shown, prompt, end)])]}


def with_metadata(
    shown: Sequence[Shown], prompt: str, end: float, *, doubled: bool
) -> dict[str, Any]:  # fmt: skip
    """Messages and keyword arguments for ``processor.apply_chat_template``."""
    files = [one.file for one in shown]
    video = {"type": "video", "video": twice(files) if doubled else files}
    return {
        "messages": [_user([video, *_texts(shown, prompt, end)])],
        "processor_kwargs": {
            "do_sample_frames": False, "video_metadata": [metadata(shown, end, doubled=doubled)],
        },
    }  # fmt: skip


def unevenness(shown: Sequence[Shown], end: float) -> float:
    """Seconds by which even spacing is wrong at most."""
    step = (end - shown[0].pts) / len(shown)
    return max(abs(one.pts - shown[0].pts - i * step) for i, one in enumerate(shown))


def _texts(shown: Sequence[Shown], prompt: str, end: float) -> list[dict[str, Any]]:
    texts = [times_text(shown, end), *([prompt] if prompt else [])]
    return [{"type": "text", "text": text} for text in texts]


def _user(content: list[dict[str, Any]]) -> dict[str, Any]:
    return {"role": "user", "content": content}
