"""The transcript of a storyboard: from the cache or a file, as WebVTT and beside the pictures."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tokpipe.cache.reader import open_cache
from tokpipe.errors import MediaError, MediaNotFound
from tokpipe.export import Written, exporter_from
from tokpipe.export._storyboard.transcript import Line, read_transcript, spans


@pytest.fixture(scope="session")
def boards(beside: Callable[[str], ModuleType]) -> Any:
    return beside("board_caches")


def export(cache: Path, folder: Path, to: str, **more: Any) -> Written:
    with open_cache(cache) as opened:
        made: Written = exporter_from(to, **more)[1].write(opened, folder)
    return made


VTT = """WEBVTT

NOTE made by hand

1
00:00:00.500 --> 00:00:02.000 align:start
<v Anna>Good &amp; early

00:13.400 --> 00:15.000
two
lines

01:00:00.000 --> 01:00:01.000
"""
SRT = """1
00:00:00,500 --> 00:00:02,000
Good & early

2
00:00:13,400 --> 00:00:15,000
two
lines
"""
JSONL = (
    '{"start": 0.5, "stop": 2, "text": "Good & early"}\n\n'
    '{"start": 13.4, "end": 15.0, "text": "two\\nlines"}\n'
)


@pytest.mark.parametrize(("name", "text"), [("a.vtt", VTT), ("a.srt", SRT), ("a.jsonl", JSONL)])
def test_transcript_of_a_file_is_told_with_the_pictures(
    boards: Any, tmp_path: Path, name: str, text: str
) -> None:
    board = boards.write_board(tmp_path / "c.tokpipe.safetensors", [1.0, 13.333333, 13.7])
    (tmp_path / name).write_text(text, encoding="utf-8")
    made = export(board, tmp_path / "out", "storyboard:api=openai", transcript=str(tmp_path / name))
    assert made.items["transcript lines"] == 2
    request = json.loads((tmp_path / "out" / "messages.openai.json").read_text("utf-8"))
    parts = request["messages"][0]["content"]
    said = [part["text"] for part in parts if part["type"] == "text"][1:]
    assert said == ["[00:01.0]", '[00:00.5] "Good & early"', "[00:13.3]",
                    '[00:13.4] "two lines"', "[00:13.7]"]  # fmt: skip
    rows = (tmp_path / "out" / "manifest.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(row)["transcript"] for row in rows] == [[0, 1], [1, 2], [2, 2]]
    lines = [Line(0.5, 2.0, "Good & early"), Line(13.4, 15.0, "two\nlines")]
    assert read_transcript(tmp_path / "out" / "transcript.vtt") == lines


def test_transcript_of_the_cache(boards: Any, tmp_path: Path) -> None:
    said = [(0.0, 1.0, "hello wörld"), (1.5, 2.0, ""), (2.0, 3.0, "a --> b\n\n<c>")]
    path = boards.write_board(tmp_path / "c.tokpipe.safetensors", [0.0, 2.0], said=said)
    export(path, tmp_path / "out", "storyboard:api=hf")
    assert read_transcript(tmp_path / "out" / "transcript.vtt") == [
        Line(0.0, 1.0, "hello wörld"), Line(2.0, 3.0, "a -> b\n<c>"),
    ]  # fmt: skip
    export(path, tmp_path / "none", "storyboard:api=hf,transcript=none")
    assert not (tmp_path / "none" / "transcript.vtt").exists()


@pytest.mark.parametrize(
    ("name", "text"),
    [("a.vtt", "WEBVTT\n"), ("a.srt", "no times"), ("a.jsonl", '{"start": 1, "text": "x"}'),
     ("a.jsonl", '{"start": 2, "stop": 1, "text": "x"}')],
)  # fmt: skip
def test_transcript_that_cannot_be_read_is_an_error(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(MediaError) as caught:
        read_transcript(tmp_path / name)
    assert caught.value.code == "export.transcript" and caught.value.hint
    with pytest.raises(MediaNotFound):
        read_transcript(tmp_path / "absent.vtt")


def test_spans_give_each_line_to_one_picture() -> None:
    lines = [Line(t, t + 1, "x") for t in (0.0, 1.0, 5.0, 5.5)]
    assert spans(lines, [1.0, 5.0]) == [(0, 2), (2, 4)]
    assert spans(lines, [1.0, 5.2, 9.0]) == [(0, 3), (3, 4), (4, 4)]
    assert spans([], [1.0]) == [(0, 0)] and spans(lines, []) == []
