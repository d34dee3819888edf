"""Rows of a training set as the trainers read them.

Sources: LLaMA-Factory 0.9.5 (``data/converter.py``), ms-swift 4.6.0 (``template/base.py``), TRL
1.16.0 (``data_utils.prepare_multimodal_messages``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from tokpipe.export._storyboard.board import Shown
from tokpipe.export._storyboard.messages import parts_of, times_text
from tokpipe.export._storyboard.videos import twice
from tokpipe.export._training.pairs import Pair, without_tags

Style = Literal["llama-factory", "ms-swift", "trl"]
Media = Literal["images", "videos"]

#: The entry of ``dataset_info.json`` beside its name and media column.
_INFO = {
    "file_name": "data.jsonl",
    "formatting": "sharegpt",
    "tags": {
        "role_tag": "role", "content_tag": "content", "user_tag": "user",
        "assistant_tag": "assistant",
    },
}  # fmt: skip


def row_of(
    key: str, shown: Sequence[Shown], pair: Pair, end: float, style: Style, media: Media,
    *, doubled: bool,
) -> dict[str, Any]:  # fmt: skip
    """One row: the media, their times as text, the question and the answer.

    Args:
        key: The cache's id; files lie in the folder of that name.
        end: Seconds the media lasts.
        media: ``images``: each picture with its own time. ``videos``: one list of frames.
        doubled: In a list of frames, each picture twice.
    """
    files = [f"images/{key}/{one.file}" for one in shown]
    row: dict[str, Any] = {"id": key}
    if media == "videos":
        content: Any = f"<video>\n{without_tags(times_text(shown, end))}\n{pair.question}"
        row["videos"] = [twice(files) if doubled else files]
    else:
        parts = parts_of(shown, pair.question, "interleaved", end)
        row["images"] = files
        texts = [without_tags(part) if isinstance(part, str) else None for part in parts]
        if style == "trl":
            content = [
                _text(t) if t is not None else {"type": "image", "text": None} for t in texts
            ]
        else:
            content = _tagged(texts)
    answer: Any = [_text(pair.answer)] if style == "trl" else pair.answer
    said = [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]
    return {**row, "messages": said, "times": [one.pts for one in shown]}


def dataset_info(name: str, media: Media) -> dict[str, Any]:
    """LLaMA-Factory's ``dataset_info.json`` for the folder."""
    return {name: {**_INFO, "columns": {"messages": "messages", media: media}}}


def _tagged(texts: Sequence[str | None]) -> str:
    """Texts on lines of their own, a tag for each picture right after its time."""
    out = ""
    for text in texts:
        out += "<image>" if text is None else f"\n{text}"
    return out.strip("\n")


def _text(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}
