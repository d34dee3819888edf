"""Messages of the APIs that take pictures one by one: OpenAI, Anthropic, Gemini, HF templates."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Sequence
from typing import Any, Literal

from tokpipe.export._storyboard.board import Board, Shown
from tokpipe.export._storyboard.moments import time_label
from tokpipe.export._storyboard.pictures import Format

FramesLayout = Literal["interleaved", "listed"]
Detail = Literal["auto", "low", "high"]
#: A text, or a picture.
Part = str | Shown
#: Base64 of a picture's file.
Data = Callable[[Shown], str]


def file_data(board: Board) -> Data:
    """Reads pictures of a board as base64."""
    return lambda one: base64.b64encode((board.folder / one.file).read_bytes()).decode("ascii")


def parts_of(shown: Sequence[Shown], prompt: str, layout: FramesLayout, end: float) -> list[Part]:
    """Pictures with their true times and what is said, then the question.

    Args:
        layout: ``interleaved``: each picture after its own time. ``listed``: all times in one text
            before all pictures.
        end: Seconds the media lasts.
    """
    out: list[Part] = []
    if layout == "listed":
        out += [times_text(shown, end), *shown]
    else:
        out.append(_count(shown, end) + ", each after the time it comes on [minutes:seconds].")
        for one in shown:
            out += [one.label, one]
            if one.said:
                out.append(said_text(one))
    return [*out, prompt] if prompt else out


def times_text(shown: Sequence[Shown], end: float) -> str:
    """The times of all pictures, and all that is said, as one text."""
    times = " ".join(one.label for one in shown)
    text = f"{_count(shown, end)}. They come on at these times [minutes:seconds], in order: {times}"
    said = [said_text(one) for one in shown if one.said]
    return "\n".join([text, "What is said:", *said]) if said else text


def said_text(one: Shown) -> str:
    """What is said while a picture is on screen, each line with its time."""
    lines = ((time_label(line.start), " ".join(line.text.split())) for line in one.said)
    return "\n".join(f'[{start}] "{text}"' for start, text in lines)


def openai(parts: Sequence[Part], data: Data, form: Format, detail: Detail) -> dict[str, Any]:
    """``chat.completions`` of OpenAI and of the many servers that speak it."""
    content = [
        {"type": "text", "text": part}
        if isinstance(part, str)
        else {
            "type": "image_url",
            "image_url": {"url": f"data:image/{form};base64,{data(part)}", "detail": detail},
        }
        for part in parts
    ]
    return {"messages": [{"role": "user", "content": content}]}


def anthropic(parts: Sequence[Part], data: Data, form: Format) -> dict[str, Any]:
    """``messages`` of Anthropic."""
    content = [
        {"type": "text", "text": part}
        if isinstance(part, str)
        else {
            "type": "image",
            "source": {"type": "base64", "media_type": f"image/{form}", "data": data(part)},
        }
        for part in parts
    ]
    return {"messages": [{"role": "user", "content": content}]}


def gemini(parts: Sequence[Part], data: Data, form: Format) -> dict[str, Any]:
    """``generateContent`` of Gemini."""
    content = [
        {"text": part}
        if isinstance(part, str)
        else {"inline_data": {"mime_type": f"image/{form}", "data": data(part)}}
        for part in parts
    ]
    return {"contents": [{"role": "user", "parts": content}]}


def hf(parts: Sequence[Part]) -> dict[str, Any]:
    """Messages for ``processor.apply_chat_template``, pictures as files of the board."""
    content = [
        {"type": "text", "text": part}
        if isinstance(part, str)
        else {"type": "image", "path": part.file}
        for part in parts
    ]
    return {"messages": [{"role": "user", "content": content}]}


def text_bytes(request: dict[str, Any]) -> int:
    """Bytes of a request as it is written."""
    return len(json.dumps(request, ensure_ascii=False).encode())


def _count(shown: Sequence[Shown], end: float) -> str:
    noun = "picture" if len(shown) == 1 else "pictures"
    return f"{len(shown)} {noun} from a video of {time_label(end)}"
