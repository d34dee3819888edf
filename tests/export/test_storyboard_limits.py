"""Limits of the APIs: fewer or smaller pictures with a note, or an error that names a parameter."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tokpipe.cache.reader import open_cache
from tokpipe.errors import RecipeError
from tokpipe.export import Written, exporter_from
from tokpipe.export._storyboard.limits import APIS, LIMITS, Wish, excess, first_look, most_frames
from tokpipe.export._storyboard.pictures import Look
from tokpipe.testing.media import VideoTrack, write_media

ANY, ONE = Wish(0, 0, only=False), Wish(0, 0, only=True)


@pytest.fixture(scope="session")
def boards(beside: Callable[[str], ModuleType]) -> Any:
    return beside("board_caches")


def export(cache: Path, folder: Path, to: str, **more: Any) -> Written:
    with open_cache(cache) as opened:
        made: Written = exporter_from(to, **more)[1].write(opened, folder)
    return made


def content(folder: Path, api: str) -> list[dict[str, Any]]:
    request = json.loads((folder / f"messages.{api}.json").read_text(encoding="utf-8"))
    found: list[dict[str, Any]] = request["messages"][0]["content"]
    return found


def pictures(folder: Path, api: str) -> int:
    return sum(part["type"].startswith("image") for part in content(folder, api))


def test_every_row_of_the_table_has_a_source_and_a_date() -> None:
    assert all(limits.source and limits.read for limits in LIMITS.values())
    assert all(not limits.images or limits.usual <= limits.images for limits in LIMITS.values())


@pytest.mark.parametrize(
    ("api", "there", "most"),
    [("openai", 700, 500), ("anthropic", 150, 100), ("gemini", 2000, 900), ("qwen", 500, 384),
     ("hf", 5000, 5000), ("anthropic", 99, 99)],
)  # fmt: skip
def test_what_every_model_takes_is_chosen(api: str, there: int, most: int) -> None:
    count, note = most_frames(api, there, ANY)
    assert count == most
    assert (f"{api}: {most} of {there} frames" in note) == (most < there)


def test_more_frames_come_where_they_are_asked_for_and_taken() -> None:
    assert most_frames("anthropic", 700, Wish(500, 0, only=True)) == (500, "")
    with pytest.raises(RecipeError, match="max_frames=601: anthropic takes 600") as caught:
        most_frames("anthropic", 700, Wish(601, 0, only=True))
    assert caught.value.code == "export.limit" and "max_frames=600" in str(caught.value.hint)
    count, note = most_frames("anthropic", 700, Wish(650, 0, only=False))
    assert count == 600 and "600 of 650" in note


def test_sides_follow_the_number_of_pictures() -> None:
    big = (4000, 3000)
    assert first_look({"anthropic": 5}, Look(), big, ONE).max_side == 1568
    assert first_look({"anthropic": 5}, Look(max_side=3000), big, Wish(0, 3000, True)).max_side == (
        3000
    )
    with pytest.raises(RecipeError, match="max_side=3000: anthropic takes 2000 pixels with 21"):
        first_look({"anthropic": 21}, Look(max_side=3000), big, Wish(0, 3000, only=True))
    small = first_look({"anthropic": 21}, Look(max_side=3000), (640, 480), Wish(0, 3000, only=True))
    assert small.size(640, 480) == (640, 480)
    together = dict.fromkeys(APIS, 21)
    assert first_look(together, Look(max_side=3000), big, Wish(0, 3000, False)).max_side == 2000
    assert first_look({"gemini": 5}, Look(), big, ONE).max_side == 0


def test_bytes_are_counted_as_base64_with_the_text() -> None:
    limits = LIMITS["anthropic"]
    fits = limits.request // 10 // 4 * 3
    assert excess("anthropic", [fits] * 10, 0) == 1
    assert excess("anthropic", [fits] * 10, 100_000) > 1
    assert excess("anthropic", [limits.image], 0) == pytest.approx(4 / 3, rel=1e-6)
    assert excess("hf", [10**9] * 9, 0) == 1


def test_a_long_board_keeps_all_its_frames_for_who_takes_them(boards: Any, tmp_path: Path) -> None:
    path = boards.write_board(tmp_path / "c.tokpipe.safetensors", [0.5 * i for i in range(130)])
    made = export(path, tmp_path / "out", "storyboard", prompt="x")
    assert made.items["frames"] == 130
    assert pictures(tmp_path / "out", "openai") == 130
    assert pictures(tmp_path / "out", "anthropic") == 100
    assert "anthropic: 100 of 130 frames" in " ".join(made.notes)
    alone = export(path, tmp_path / "one", "storyboard:api=anthropic", prompt="x")
    assert alone.items["frames"] == 100 == len(list((tmp_path / "one" / "frames").iterdir()))
    asked = export(path, tmp_path / "all", "storyboard:api=anthropic,max_frames=120", prompt="x")
    assert asked.items["frames"] == 120


@pytest.fixture
def tight(monkeypatch: pytest.MonkeyPatch) -> None:
    """A table with small figures: real requests would be large."""
    limits = replace(LIMITS["openai"], request=60_000, useful=0)
    monkeypatch.setitem(LIMITS, "openai", limits)


@pytest.mark.usefixtures("tight")
def test_too_many_bytes_make_fewer_pictures(boards: Any, tmp_path: Path) -> None:
    path = boards.write_board(
        tmp_path / "c.tokpipe.safetensors", [float(i) for i in range(12)], noise=True
    )
    made = export(path, tmp_path / "out", "storyboard:api=openai,quality=95", prompt="x")
    size = (tmp_path / "out" / "messages.openai.json").stat().st_size
    assert 30_000 < size <= 60_000
    count = pictures(tmp_path / "out", "openai")
    assert 1 <= count < 12 and made.items["frames"] == count
    assert f"openai: {count} of 12 frames" in " ".join(made.notes)
    assert len(list((tmp_path / "out" / "frames").iterdir())) == count
    both = "storyboard:api=openai,quality=95,max_frames=12,max_side=84"
    with pytest.raises(RecipeError, match="larger than") as caught:
        export(path, tmp_path / "no", both, prompt="x")
    assert "max_frames, max_side or quality" in str(caught.value.hint)


def test_too_many_bytes_make_smaller_pictures_first(
    tmp_path: Path, boards: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    film = tmp_path / "film.mp4"
    write_media(film, VideoTrack(size=(1280, 720), frames=4))
    path = boards.write_for(tmp_path / "f.tokpipe.safetensors", film, [0.0, 0.1])
    more = {"prompt": "x", "from_source": str(film)}
    export(path, tmp_path / "free", "storyboard:api=openai", **more)
    limit = int((tmp_path / "free" / "messages.openai.json").stat().st_size * 0.7)
    monkeypatch.setitem(LIMITS, "openai", replace(LIMITS["openai"], request=limit))
    made = export(path, tmp_path / "out", "storyboard:api=openai", **more)
    rows = [json.loads(r) for r in (tmp_path / "out/manifest.jsonl").read_text().splitlines()]
    assert len(rows) == 2 and 768 <= rows[0]["width"] < 1280
    assert f"{rows[0]['width']} instead of 1280 pixels" in " ".join(made.notes)
    assert (tmp_path / "out" / "messages.openai.json").stat().st_size <= limit


def test_unknown_values_are_errors() -> None:
    for wrong in ("api=claude", "quality=0", "max_frames=-1", "format=gif", "frames_layout=grid"):
        with pytest.raises(RecipeError):
            exporter_from(f"storyboard:{wrong}")
