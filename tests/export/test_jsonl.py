"""Training sets in jsonl: rows as the three trainers read them, their files, and refusals."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tokpipe.errors import CacheError, MediaError, MediaNotFound, RecipeError, TokpipeError
from tokpipe.export import Written, exporter_from
from tokpipe.run import compress_file

ASKED = {"prompt": "What is shown?"}
SUFFIX = ".tokpipe.safetensors"


@pytest.fixture(scope="session")
def boards(beside: Callable[[str], ModuleType]) -> Any:
    return beside("board_caches")


@pytest.fixture
def caches(boards: Any, tmp_path: Path) -> list[Path]:
    """Two caches, of three and of two pictures; the second has a transcript with a tag in it."""
    said = [(0.5, 1.0, "an <image> of <b>")]
    return [
        boards.write_board(tmp_path / f"a.b{SUFFIX}", [1.0, 13.333333, 13.7], duration=20.0),
        boards.write_board(tmp_path / f"second{SUFFIX}", [0.0, 2.0], said=said, numbers=[3, 4]),
    ]


def write(caches: list[Path], folder: Path, to: str = "jsonl", **more: Any) -> Written:
    made: Written = exporter_from(to, **more)[1].write_all(caches, folder)
    return made


def rows(folder: Path) -> list[dict[str, Any]]:
    text = (folder / "data.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize("style", ["llama-factory", "ms-swift"])
def test_tags_are_as_many_as_pictures_each_after_its_time(
    caches: list[Path], tmp_path: Path, style: str
) -> None:
    made = write(caches, tmp_path / "out", f"jsonl:style={style},answer=Colours.", **ASKED)
    first, second = rows(tmp_path / "out")
    user, assistant = first["messages"]
    assert assistant == {"role": "assistant", "content": "Colours."}
    head, *lines = user["content"].split("\n")
    assert head.startswith("3 pictures from a video of 00:20.0")
    assert lines == ["[00:01.0]<image>", "[00:13.3]<image>", "[00:13.7]<image>", "What is shown?"]
    assert '[00:00.5] "an (image) of <b>"' in second["messages"][0]["content"]
    for row in (first, second):
        assert row["messages"][0]["content"].count("<image>") == len(row["images"])
        assert len(row["times"]) == len(row["images"])
        assert all((tmp_path / "out" / name).is_file() for name in row["images"])
    assert first["times"] == [1.0, 13.333333, 13.7]
    assert made.items == {"rows": 2, "caches": 2, "pictures": 5}
    assert (tmp_path / "out" / "dataset_info.json").exists() == (style == "llama-factory")


def test_llama_factory_finds_columns_and_roles(caches: list[Path], tmp_path: Path) -> None:
    write(caches, tmp_path / "out", "jsonl:answer=Colours.,name=mine,media=videos", **ASKED)
    info = json.loads((tmp_path / "out" / "dataset_info.json").read_text())
    assert list(info) == ["mine"]
    entry = info["mine"]
    assert (tmp_path / "out" / entry["file_name"]).is_file()
    assert entry["formatting"] == "sharegpt"
    for row in rows(tmp_path / "out"):
        assert set(entry["columns"].values()) <= row.keys()
        tags = entry["tags"]
        roles = [message[tags["role_tag"]] for message in row[entry["columns"]["messages"]]]
        assert roles == [tags["user_tag"], tags["assistant_tag"]]


@pytest.mark.parametrize("doubled", [True, False])
def test_lists_of_frames_are_doubled_and_have_their_times_in_text(
    caches: list[Path], tmp_path: Path, doubled: bool
) -> None:
    to = f"jsonl:style=ms-swift,media=videos,answer=Colours.,doubled={str(doubled).lower()}"
    made = write(caches, tmp_path / "out", to, **ASKED)
    first, second = rows(tmp_path / "out")
    (video,) = first["videos"]
    assert len(video) == (6 if doubled else 3) and "images" not in first
    if doubled:
        assert video[::2] == video[1::2]
    content = first["messages"][0]["content"]
    assert content.count("<video>") == 1 == second["messages"][0]["content"].count("<video>")
    assert "[00:01.0] [00:13.3] [00:13.7]" in content
    assert all((tmp_path / "out" / name).is_file() for name in video)
    assert "evenly spaced" in " ".join(made.notes)


def test_trl_has_parts_in_place_of_tags(caches: list[Path], tmp_path: Path) -> None:
    write(caches, tmp_path / "out", "jsonl:style=trl,answer=Colours.", **ASKED)
    for row in rows(tmp_path / "out"):
        user, assistant = row["messages"]
        assert assistant["content"] == [{"type": "text", "text": "Colours."}]
        kinds = [part["type"] for part in user["content"]]
        assert kinds.count("image") == len(row["images"])
        before = [user["content"][i - 1]["text"] for i, k in enumerate(kinds) if k == "image"]
        assert all(text.startswith("[00:") for text in before)
        assert user["content"][-1] == {"type": "text", "text": "What is shown?"}
    with pytest.raises(RecipeError, match="images only"):
        exporter_from("jsonl:style=trl,media=videos")


@pytest.mark.parametrize("to", ["llama-factory", "ms-swift", "trl", "llama-factory,media=videos"])
def test_datasets_reads_what_was_written(
    caches: list[Path], tmp_path: Path, to: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = pytest.importorskip("datasets")
    write(caches, tmp_path / "out", f"jsonl:style={to},answer=Colours.", **ASKED)
    monkeypatch.chdir(tmp_path / "out")
    read = datasets.load_dataset(
        "json", data_files="data.jsonl", split="train", cache_dir=str(tmp_path / "hf")
    )
    wanted = rows(tmp_path / "out")
    assert read.to_list() == wanted
    if "videos" not in to:
        seen = read.cast_column("images", datasets.List(datasets.Image()))
        assert [len(row["images"]) for row in seen] == [3, 2]
        assert seen[0]["images"][0].size == (84, 56)


def test_pairs_of_a_file_go_to_their_caches(caches: list[Path], tmp_path: Path) -> None:
    pairs = tmp_path / "pairs.jsonl"
    asked = [("a.b", "q1", "a1"), ("a_b", "q2", "a2"), ("nobody", "q3", "a3"), ("a.b", "q4", "a4")]
    lines = [json.dumps({"key": k, "question": q, "answer": a}) for k, q, a in asked]
    pairs.write_text("\n".join(lines), encoding="utf-8")
    made = write(caches, tmp_path / "out", pairs=str(pairs))
    found = rows(tmp_path / "out")
    said = {(r["id"], r["messages"][0]["content"].split("\n")[-1], r["messages"][1]["content"])
            for r in found}  # fmt: skip
    assert said == {("a_b", "q1", "a1"), ("a_b", "q4", "a4")}
    assert made.items == {"rows": 2, "caches": 1, "pictures": 3}
    notes = " ".join(made.notes)
    assert "1 caches have no pair and are left out: second" in notes
    assert "2 keys of the pairs name no cache: a_b, nobody" in notes
    assert not (tmp_path / "out" / "images" / "second").exists()


def test_names_that_look_alike_are_two_caches(boards: Any, tmp_path: Path) -> None:
    """A dot and a line under are the same in an id, not in a key."""
    paths = [
        boards.write_board(tmp_path / f"{name}{SUFFIX}", [0.0]) for name in ("talk_v2", "talk.v2")
    ]
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text(
        "".join(
            json.dumps({"key": key, "question": "q", "answer": key}) + "\n"
            for key in ("talk_v2", "talk.v2")
        )
    )
    write(paths, tmp_path / "out", pairs=str(pairs))
    answers = [row["messages"][1]["content"] for row in rows(tmp_path / "out")]
    assert answers == ["talk_v2", "talk.v2"]


def test_a_key_of_two_caches_is_an_error(caches: list[Path], tmp_path: Path) -> None:
    """Both were made from board.mp4; of one alone that name would do."""
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text('{"key": "board.mp4", "question": "q", "answer": "a"}\n')
    with pytest.raises(MediaError, match=r"`board.mp4` of the pairs names 2 caches") as caught:
        write(caches, tmp_path / "out", pairs=str(pairs))
    assert caught.value.code == "export.pairs" and caught.value.hint
    assert str(caches[0]) in str(caught.value) and not (tmp_path / "out").exists()
    write(caches[:1], tmp_path / "one", pairs=str(pairs))
    assert [row["id"] for row in rows(tmp_path / "one")] == ["a_b"]


@pytest.mark.parametrize(
    "more",
    [{}, {"prompt": "What?"}, {"prompt": "an <image>?", "answer": "x"},
     {"prompt": "What?", "answer": "x", "pairs": "y.jsonl"}],
)  # fmt: skip
def test_nothing_to_train_on_is_refused(
    caches: list[Path], tmp_path: Path, more: dict[str, str]
) -> None:
    with pytest.raises(RecipeError) as caught:
        write(caches, tmp_path / "out", **more)
    assert caught.value.code == "export.pairs" and caught.value.hint


@pytest.mark.parametrize(
    "line",
    ["{", "[]", '{"key": "a"}', '{"key": "a", "question": "q", "answer": ""}',
     '{"key": "a", "question": "<video>", "answer": "x"}'],
)  # fmt: skip
def test_pairs_that_cannot_be_read_are_named(caches: list[Path], tmp_path: Path, line: str) -> None:
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text('{"key": "a_b", "question": "q", "answer": "a"}\n' + line + "\n")
    with pytest.raises(MediaError, match="line 2") as caught:
        write(caches, tmp_path / "out", pairs=str(pairs))
    assert caught.value.code == "export.pairs"
    with pytest.raises(MediaNotFound):
        write(caches, tmp_path / "out", pairs=str(tmp_path / "absent.jsonl"))


def test_keys_of_nothing_are_an_error(caches: list[Path], tmp_path: Path) -> None:
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text('{"key": "nobody", "question": "q", "answer": "a"}\n')
    with pytest.raises(MediaError, match="names one of the caches") as caught:
        write(caches, tmp_path / "out", pairs=str(pairs))
    assert "`a.b`" in str(caught.value.hint)


def test_fewer_and_full_pictures_of_a_folder_of_media(samples: Path, tmp_path: Path) -> None:
    paths = [
        Path(compress_file(samples / f"{name}.mp4", tmp_path / f"{name}{SUFFIX}",
                           budget="video=600,audio=0").output)
        for name in ("screen", "vfr")
    ]  # fmt: skip
    more = {**ASKED, "answer": "x", "from_source": str(samples)}
    write(paths, tmp_path / "out", "jsonl:max_frames=2,max_side=200", **more)
    from PIL import Image

    for row in rows(tmp_path / "out"):
        assert 1 <= len(row["images"]) <= 2
        for name in row["images"]:
            with Image.open(tmp_path / "out" / name) as image:
                assert max(image.size) == 200


def test_features_without_their_media_are_refused(
    boards: Any, samples: Path, tmp_path: Path
) -> None:
    path = boards.write_for(tmp_path / f"f{SUFFIX}", samples / "vfr.mp4", [0.0])
    with pytest.raises(CacheError) as caught:
        write([path], tmp_path / "out", "jsonl:answer=x", **ASKED)
    assert caught.value.code == "export.domain" and caught.value.where == str(path)
    with pytest.raises(TokpipeError):
        write([path], tmp_path / "no", "jsonl:answer=x", from_source=str(tmp_path), **ASKED)
    write([path], tmp_path / "yes", "jsonl:answer=x", from_source=str(samples / "vfr.mp4"), **ASKED)
    assert len(rows(tmp_path / "yes")[0]["images"]) == 1
