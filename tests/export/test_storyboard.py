"""The storyboard: pictures, times, manifest, messages of three APIs, and what is said."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal

import numpy as np
import pytest
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from tokpipe.cache.reader import open_cache
from tokpipe.errors import CacheError, MediaError, MediaNotFound, TokpipeError
from tokpipe.export import Written, exporter_from
from tokpipe.export._storyboard.frames import board_frames
from tokpipe.export._storyboard.moments import fewer, moments_of, time_label, time_labels
from tokpipe.export._storyboard.pictures import Look
from tokpipe.run import compress_file
from tokpipe.testing.barcode import read_frame_number
from tokpipe.testing.media import VideoTrack, write_media

TIMES = [1.0, 13.333333, 13.7]
#: Seconds of the frames of the film, at uneven distances.
FILM = [
    Fraction(int(step), 25)
    for step in np.cumsum([0, *np.random.default_rng(0).choice([1, 3], 199)])
]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _Text(_Strict):
    type: Literal["text"]
    text: Annotated[str, Field(min_length=1)]


class _Url(_Strict):
    url: Annotated[str, Field(pattern=r"^data:image/(jpeg|png|webp);base64,[A-Za-z0-9+/]+=*$")]
    detail: Literal["auto", "low", "high"]


class _ImageUrl(_Strict):
    type: Literal["image_url"]
    image_url: _Url


class _OpenAI(_Strict):
    role: Literal["user"]
    content: list[Annotated[_Text | _ImageUrl, Field(discriminator="type")]]


class _Source(_Strict):
    type: Literal["base64"]
    media_type: Literal["image/jpeg", "image/png", "image/webp"]
    data: Annotated[str, Field(pattern=r"^[A-Za-z0-9+/]+=*$")]


class _ImageBlock(_Strict):
    type: Literal["image"]
    source: _Source


class _Anthropic(_Strict):
    role: Literal["user"]
    content: list[Annotated[_Text | _ImageBlock, Field(discriminator="type")]]


class _Blob(_Strict):
    mime_type: Literal["image/jpeg", "image/png", "image/webp"]
    data: Annotated[str, Field(pattern=r"^[A-Za-z0-9+/]+=*$")]


class _TextPart(_Strict):
    text: Annotated[str, Field(min_length=1)]


class _DataPart(_Strict):
    inline_data: _Blob


class _Gemini(_Strict):
    role: Literal["user"]
    parts: list[_TextPart | _DataPart]


CONTRACTS: dict[str, tuple[str, TypeAdapter[Any]]] = {
    "openai": ("messages", TypeAdapter(list[_OpenAI])),
    "anthropic": ("messages", TypeAdapter(list[_Anthropic])),
    "gemini": ("contents", TypeAdapter(list[_Gemini])),
}


def parts_of(api: str, folder: Path) -> list[str | bytes]:
    """Texts and picture bytes of a message, once it is as its API has it."""
    request = json.loads((folder / f"messages.{api}.json").read_text(encoding="utf-8"))
    name, contract = CONTRACTS[api]
    (message,) = contract.validate_python(request.pop(name))
    assert not request
    out: list[str | bytes] = []
    for part in message.content if api != "gemini" else message.parts:
        if isinstance(part, _ImageUrl):
            data = part.image_url.url.partition(",")[2]
        elif isinstance(part, _ImageBlock):
            data = part.source.data
        elif isinstance(part, _DataPart):
            data = part.inline_data.data
        else:
            out.append(part.text)
            continue
        out.append(base64.b64decode(data, validate=True))
    return out


def manifest(folder: Path) -> list[dict[str, Any]]:
    text = (folder / "manifest.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def export(cache: Path, folder: Path, to: str = "storyboard", **more: Any) -> Written:
    with open_cache(cache) as opened:
        made: Written = exporter_from(to, **more)[1].write(opened, folder)
    return made


@pytest.fixture(scope="session")
def boards(beside: Callable[[str], ModuleType]) -> Any:
    return beside("board_caches")


@pytest.fixture
def board(boards: Any, tmp_path: Path) -> Path:
    """Pictures at 1.0, 13.333333 and 13.7 s of 20 s."""
    path: Path = boards.write_board(tmp_path / "c.tokpipe.safetensors", TIMES, duration=20.0)
    return path


def test_manifest_has_the_times_of_the_cache_and_what_each_picture_stands_for(
    board: Path, boards: Any, tmp_path: Path
) -> None:
    export(board, tmp_path / "out")
    rows = manifest(tmp_path / "out")
    assert [row["pts"] for row in rows] == TIMES
    assert [row["duration"] for row in rows] == pytest.approx([12.333333, 0.366667, 6.3])
    size = boards.COLS * boards.CELL, boards.ROWS * boards.CELL
    for number, row in enumerate(rows):
        with Image.open(tmp_path / "out" / row["file"]) as image:
            assert image.size == (row["width"], row["height"]) == size
            colour = np.asarray(image.convert("RGB")).mean((0, 1))
        assert np.abs(colour - boards.colour_of(number)).max() < 3
        assert row["share"] == {"own": 1.0, "earlier": 0.0, "later": 0.0, "unknown": 0.0}
        assert (row["quality"], row["from"], row["transcript"]) == (90, "cache", None)
        assert row["score"] == pytest.approx(1 / (1 + number))


@pytest.mark.parametrize("api", CONTRACTS)
@pytest.mark.parametrize("form", ["jpeg", "webp", "png"])
def test_message_is_as_the_api_has_it_and_holds_the_files(
    board: Path, tmp_path: Path, api: str, form: str
) -> None:
    made = export(board, tmp_path / "out", f"storyboard:api={api},format={form}", prompt="What?")
    head, *middle, last = parts_of(api, tmp_path / "out")
    files = [(tmp_path / "out" / row["file"]).read_bytes() for row in manifest(tmp_path / "out")]
    assert isinstance(head, str) and head.startswith("3 pictures from a video of 00:20.0")
    assert middle == ["[00:01.0]", files[0], "[00:13.3]", files[1], "[00:13.7]", files[2]]
    assert last == "What?"
    text = (tmp_path / "out" / f"messages.{api}.json").read_text(encoding="utf-8")
    assert text.count(f"image/{form}") == 3
    assert made.items["frames"] == 3 and made.items["messages"] == 1


def test_listed_layout_has_all_times_before_all_pictures(board: Path, tmp_path: Path) -> None:
    export(board, tmp_path / "out", "storyboard:api=openai,frames_layout=listed", prompt="What?")
    head, *pictures, last = parts_of("openai", tmp_path / "out")
    assert isinstance(head, str) and "[00:01.0] [00:13.3] [00:13.7]" in head
    assert all(isinstance(part, bytes) for part in pictures) and len(pictures) == 3
    assert last == "What?"


def test_all_apis_at_once_and_the_same_bytes_again(board: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        made = export(board, tmp_path / name, prompt="What?")
    names = {path.name for path in (tmp_path / "one").iterdir()}
    assert names == {"frames", "manifest.jsonl"} | {
        f"messages.{api}.json" for api in (*CONTRACTS, "qwen", "qwen_processor", "hf", "hf_video")
    }
    assert made.items["messages"] == 7
    for path in (tmp_path / "one").rglob("*"):
        if path.is_file():
            twin = tmp_path / "two" / path.relative_to(tmp_path / "one")
            assert path.read_bytes() == twin.read_bytes()


def test_no_prompt_and_no_transcript_are_said(board: Path, tmp_path: Path) -> None:
    made = export(board, tmp_path / "out", "storyboard:api=gemini")
    assert "no prompt" in " ".join(made.notes) and "no transcript" in " ".join(made.notes)
    assert not (tmp_path / "out" / "transcript.vtt").exists()
    assert isinstance(parts_of("gemini", tmp_path / "out")[-1], bytes)
    quiet = export(board, tmp_path / "none", "storyboard:api=gemini,transcript=none", prompt="x")
    assert quiet.notes == ()


def test_pictures_that_look_like_the_one_before_are_not_repeated(
    boards: Any, tmp_path: Path
) -> None:
    path = boards.write_board(
        tmp_path / "c.tokpipe.safetensors", [0.0, 1.0, 2.0, 3.0], numbers=[5, 5, 6, 5]
    )
    export(path, tmp_path / "out")
    rows = manifest(tmp_path / "out")
    assert [(row["pts"], row["duration"]) for row in rows] == [(0.0, 2.0), (2.0, 1.0), (3.0, 1.0)]
    assert sum(row["tokens"] for row in rows) == 24
    export(path, tmp_path / "all", "storyboard:repeats=true")
    assert [row["pts"] for row in manifest(tmp_path / "all")] == [0.0, 1.0, 2.0, 3.0]


def test_fewer_frames_are_spread_evenly_and_the_first_in_rank_of_each_part(
    boards: Any, tmp_path: Path
) -> None:
    ranks = [7, 6, 5, 4, 0, 1, 2, 3]
    path = boards.write_board(tmp_path / "c.tokpipe.safetensors", list(range(8)), ranks=ranks)
    with open_cache(path) as cache:
        moments = moments_of(cache)
        kept = fewer(moments, 4)
        assert [m.pts for m in kept] == [1.0, 3.0, 4.0, 6.0]
        assert [m.stop for m in kept] == [3.0, 4.0, 6.0, 8.0]
        assert fewer(moments, 0) == fewer(moments, 8) == moments
        assert [f.pts for f in board_frames(cache, max_frames=1)] == [4.0]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "00:00.0"), (13.333, "00:13.3"), (59.96, "01:00.0"), (3733.3, "1:02:13.3"),
     (-1.5, "-00:01.5"), (-0.04, "00:00.0"), (-3733.3, "-1:02:13.3")],
)  # fmt: skip
def test_times_as_text(seconds: float, text: str) -> None:
    assert time_label(seconds) == text


def test_times_that_are_close_get_more_decimals() -> None:
    assert time_labels([13.33, 13.34]) == ["[00:13.33]", "[00:13.34]"]
    assert time_labels([]) == []


def test_pictures_microseconds_apart_have_files_of_their_own(boards: Any, tmp_path: Path) -> None:
    """Three colours within 10 us and one later: four files, in the order of time."""
    path = boards.write_board(tmp_path / "c.tokpipe.safetensors", [1.0, 1.000001, 1.000002, 2.0])
    export(path, tmp_path / "out")
    files = [line["file"] for line in manifest(tmp_path / "out")]
    assert len(set(files)) == 4 and files == sorted(files)
    assert files[0] == "frames/000001.00000.jpg" and files[3] == "frames/000002.00000.jpg"
    colours = []
    for file in files:
        with Image.open(tmp_path / "out" / file) as image:
            colours.append(np.asarray(image).mean((0, 1)))
    for number, colour in enumerate(colours):
        assert np.abs(colour - boards.colour_of(number)).max() < 4


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two hundred numbered frames at uneven times."""
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    write_media(path, VideoTrack(size=(320, 240), gop=20, pts=FILM))
    return path


def test_pictures_of_the_source_are_those_of_the_cache_at_full_resolution(
    film: Path, tmp_path: Path
) -> None:
    made = compress_file(film, tmp_path / "c.tokpipe.safetensors", budget="video=600,audio=0")
    path = Path(made.output)
    more = {"from_source": str(film)}
    export(path, tmp_path / "out", "storyboard:api=openai,repeats=true", **more)
    rows = manifest(tmp_path / "out")
    with open_cache(path) as cache:
        at = np.unique(cache.column("video.at"))
    assert [row["pts"] for row in rows] == at.tolist()
    for row in rows:
        assert (row["width"], row["height"], row["from"]) == (320, 240, "source")
        with Image.open(tmp_path / "out" / row["file"]) as image:
            number = read_frame_number(np.asarray(image.convert("RGB")))
        assert float(FILM[number]) == pytest.approx(row["pts"], abs=1e-9)


def test_features_need_the_source(film: Path, boards: Any, tmp_path: Path) -> None:
    at = [float(FILM[number]) for number in (3, 77, 150)]
    path = boards.write_for(tmp_path / "f.tokpipe.safetensors", film, at)
    with pytest.raises(CacheError, match="a feature cache holds no pictures") as caught:
        export(path, tmp_path / "no")
    assert caught.value.code == "export.domain" and "--from-source film.mp4" in str(
        caught.value.hint
    )
    export(path, tmp_path / "out", "storyboard:api=anthropic", from_source=str(film))
    rows = manifest(tmp_path / "out")
    assert [row["pts"] for row in rows] == at
    for row, number in zip(rows, (3, 77, 150), strict=True):
        with Image.open(tmp_path / "out" / row["file"]) as image:
            assert read_frame_number(np.asarray(image.convert("RGB"))) == number


def test_times_between_two_frames_are_one_picture(film: Path, boards: Any, tmp_path: Path) -> None:
    near = float(FILM[10]) + 0.01
    path = boards.write_for(tmp_path / "f.tokpipe.safetensors", film, [near, near + 0.01, 9.0])
    export(path, tmp_path / "out", "storyboard:api=openai", from_source=str(film.parent))
    first, second = manifest(tmp_path / "out")
    assert first["pts"] == float(FILM[10]) and first["tokens"] == 4
    assert first["pts"] + first["duration"] == pytest.approx(9.0, abs=1e-6)
    assert second["pts"] <= 9.0


def test_another_source_is_refused(film: Path, boards: Any, tmp_path: Path, samples: Path) -> None:
    path = boards.write_for(tmp_path / "f.tokpipe.safetensors", film, [0.0])
    with pytest.raises(MediaError, match="is not the file this cache was made from") as caught:
        export(path, tmp_path / "out", from_source=str(samples / "vfr.mp4"))
    assert caught.value.code == "export.source" and "film.mp4" in str(caught.value.hint)
    with pytest.raises(MediaNotFound):
        export(path, tmp_path / "out2", from_source=str(tmp_path / "absent.mp4"))


def test_sound_alone_has_no_storyboard(samples: Path, tmp_path: Path) -> None:
    made = compress_file(samples / "lecture.mp4", tmp_path / "c.tokpipe.safetensors",
                         budget="video=0,audio=32")  # fmt: skip
    with pytest.raises(TokpipeError) as caught:
        export(Path(made.output), tmp_path / "out")
    assert caught.value.code == "cache.stream"


def test_look_makes_smaller_and_never_larger() -> None:
    pixels = np.zeros((90, 160, 3), dtype=np.uint8)
    for side, size in ((0, (160, 90)), (80, (80, 45)), (500, (160, 90))):
        with Image.open(io.BytesIO(Look("png", max_side=side).encode(pixels))) as image:
            assert image.size == size == Look(max_side=side).size(160, 90)


def test_talk_is_its_eight_slides(media: Path, tmp_path: Path) -> None:
    """The title and a picture for each change of slide, in messages of three APIs."""
    made = compress_file(media / "v2d__test_video.mp4", tmp_path / "c.tokpipe.safetensors",
                         budget=2048)  # fmt: skip
    changes = json.loads((media / "annotations.json").read_text())["v2d__test_video.mp4"]
    export(Path(made.output), tmp_path / "out", prompt="What is the talk about?")
    times = [row["pts"] for row in manifest(tmp_path / "out")]
    assert len(times) <= 12
    for change in (0.0, *changes["slide_changes_s"]):
        assert min(abs(time - change) for time in times) <= 1.0
    for api in CONTRACTS:
        pictures = [p for p in parts_of(api, tmp_path / "out") if isinstance(p, bytes)]
        assert len(pictures) == len(times)
