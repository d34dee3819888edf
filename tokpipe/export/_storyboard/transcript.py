"""What is said, with its times: from a cache's text rows or a user's file, and as WebVTT."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from tokpipe.errors import MediaError, MediaNotFound

if TYPE_CHECKING:
    from tokpipe.cache.reader import TokenCache

_TIME = r"(?:(\d+):)?(\d{1,2}):(\d{2})[.,](\d{1,3})"
_CUE = re.compile(rf"\s*{_TIME}\s*-->\s*{_TIME}")
_TAG = re.compile(r"</?[a-zA-Z0-9][^<>]*>")
#: Value of ``transcript`` that leaves it out.
NONE = "none"


@dataclass(frozen=True, slots=True)
class Line:
    """Something said in [start, stop) seconds of the media."""

    start: float
    stop: float
    text: str


def transcript_of(cache: TokenCache, path: str = "") -> list[Line]:
    """The transcript, by rising start.

    Args:
        path: A ``.vtt``, ``.srt`` or ``.jsonl`` file (``start``, ``stop`` or ``end``, ``text`` a
            line); empty: the cache's own; ``none``: none.

    Raises:
        MediaError: The file cannot be read as what its name says.
    """
    if path == NONE:
        return []
    lines = read_transcript(Path(path)) if path else _own(cache)
    return sorted((line for line in lines if line.text), key=lambda line: line.start)


def read_transcript(path: Path) -> list[Line]:
    """The lines of a transcript file.

    Raises:
        MediaError: No line can be read, or one of a ``.jsonl`` is not as it should be.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise MediaNotFound(
            f"the transcript `{path}` cannot be read: {error}", hint="give a text file in UTF-8"
        ) from error
    if path.suffix.lower() == ".jsonl":
        return [_row(path, n, row) for n, row in enumerate(text.splitlines(), 1) if row.strip()]
    lines = list(_cues(text))
    if not lines:
        raise MediaError(
            f"`{path}` holds no line of a transcript",
            hint="give a .vtt, .srt, or .jsonl file with start, stop and text in each line",
            code="export.transcript",
        )
    return lines


def write_vtt(lines: Sequence[Line], path: Path) -> None:
    """Write WebVTT."""
    blocks = ["WEBVTT\n"]
    for line in lines:
        # A blank line would end the cue, an arrow would be read as its times.
        text = re.sub(r"\n\s*\n+", "\n", line.text.strip()).replace("-->", "->")
        escaped = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        blocks.append(f"{_clock(line.start)} --> {_clock(line.stop)}\n{escaped}\n")
    path.write_text("\n".join(blocks), encoding="utf-8")


def spans(lines: Sequence[Line], starts: Sequence[float]) -> list[tuple[int, int]]:
    """Rows [a, b) of the transcript that begin while each picture is on screen.

    Args:
        lines: By rising start.
        starts: Seconds at which pictures come on, rising; what is said before goes to the first.
    """
    edges = [0]
    for start in starts[1:]:
        at = edges[-1]
        while at < len(lines) and lines[at].start < start:
            at += 1
        edges.append(at)
    edges.append(len(lines))
    return list(pairwise(edges)) if starts else []


def _own(cache: TokenCache) -> list[Line]:
    if "text.offsets" not in cache.names:
        return []
    data = bytes(cache.column("text.utf8"))
    offsets, pts = cache.column("text.offsets").tolist(), cache.column("text.pts").tolist()
    pieces = [data[a:b].decode("utf-8", "replace") for a, b in pairwise(offsets)]
    return [Line(a, b, text.strip()) for (a, b), text in zip(pts, pieces, strict=True)]


def _cues(text: str) -> Iterator[Line]:
    """Cues of WebVTT or SubRip: a line of times, then text until a blank line."""
    rows = iter(text.splitlines())
    for row in rows:
        found = _CUE.match(row)
        if not found:
            continue
        said = []
        for more in rows:
            if not more.strip():
                break
            said.append(_TAG.sub("", more).strip())
        plain = "\n".join(said).replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
        parts = found.groups()
        yield Line(_seconds(parts[:4]), _seconds(parts[4:]), plain.replace("&nbsp;", " ").strip())


def _seconds(parts: Sequence[str | None]) -> float:
    hours, minutes, seconds, fraction = parts
    part = int((fraction or "0").ljust(3, "0"))
    return int(hours or 0) * 3600 + int(minutes or 0) * 60 + int(seconds or 0) + part / 1000


def _row(path: Path, number: int, row: str) -> Line:
    with suppress(ValueError, KeyError, TypeError, AttributeError):
        found = json.loads(row)
        start = float(found["start"])
        stop = float(found["stop"] if "stop" in found else found["end"])
        if start <= stop:
            return Line(start, stop, str(found["text"]).strip())
    raise MediaError(
        f"line {number} of `{path}` has no `start`, `stop` and `text`",
        hint='write {"start": 1.5, "stop": 3.0, "text": "what is said"}', code="export.transcript",
    )  # fmt: skip


def _clock(seconds: float) -> str:
    whole, part = divmod(round(max(seconds, 0.0) * 1000), 1000)
    minutes, second = divmod(whole, 60)
    return f"{minutes // 60:02}:{minutes % 60:02}:{second:02}.{part:03}"
