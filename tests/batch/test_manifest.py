"""What is an input, in which order, and where each result goes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tokpipe.batch import Entry, assign_outputs, expand
from tokpipe.errors import MediaNotFound, UnsupportedMedia

END = ".tokpipe.safetensors"


def make(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def found(*inputs: Path) -> list[str]:
    return [e.source.name for e in expand(inputs).entries]


def test_expand_takes_media_of_a_folder_sorted_at_any_depth(tmp_path: Path) -> None:
    make(tmp_path, "b.mp4", "a/z.MKV", "a/y.wav", "c.mp3")
    assert [str(e.relative) for e in expand([tmp_path]).entries] == [
        "a/y.wav",
        "a/z.MKV",
        "b.mp4",
        "c.mp3",
    ]


def test_expand_passes_over_hidden_caches_and_other_files(tmp_path: Path) -> None:
    make(tmp_path, ".b.mp4", ".git/a.mp4", f"a{END}", "a.txt", "a.mp4")
    assert found(tmp_path) == ["a.mp4"]


def test_expand_takes_a_named_file_of_any_suffix(tmp_path: Path) -> None:
    make(tmp_path, "clip.bin", ".hidden.mp4")
    assert found(tmp_path / "clip.bin", tmp_path / ".hidden.mp4") == ["clip.bin", ".hidden.mp4"]


def test_expand_leaves_out_a_named_cache(tmp_path: Path) -> None:
    make(tmp_path, f"a{END}")
    assert expand([tmp_path / f"a{END}"]).ignored == [tmp_path / f"a{END}"]


def test_expand_takes_each_file_once(tmp_path: Path) -> None:
    make(tmp_path, "a.mp4")
    assert found(tmp_path / "a.mp4", tmp_path, tmp_path / "." / "a.mp4") == ["a.mp4"]


def test_expand_ends_where_links_go_in_a_circle(tmp_path: Path) -> None:
    make(tmp_path, "x/a.mp4")
    (tmp_path / "x" / "again").symlink_to(tmp_path)
    (tmp_path / "x" / "self").symlink_to(tmp_path / "x")
    assert found(tmp_path) == ["a.mp4"]


def test_expand_reports_what_is_missing(tmp_path: Path) -> None:
    make(tmp_path, "a.mp4")
    manifest = expand([tmp_path / "no.mp4", tmp_path / "a.mp4"])
    assert [e.source.name for e in manifest.entries] == ["a.mp4"]
    assert isinstance(manifest.problems[0][1], MediaNotFound)


def test_expand_reports_a_dangling_link_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").symlink_to(tmp_path / "gone.mp4")
    assert [p.name for p, _ in expand([tmp_path]).problems] == ["a.mp4"]


def test_expand_does_not_wait_for_a_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.mp4")
    assert isinstance(expand([tmp_path / "a.mp4"]).problems[0][1], UnsupportedMedia)


def entry(source: str, relative: str = "", *, named: bool = True) -> Entry:
    return Entry(Path(source), Path(relative or Path(source).name), named)


def test_outputs_lie_beside_their_inputs() -> None:
    made = assign_outputs([entry("/m/a.b.mp4"), entry("/n/c")])
    assert made == [Path(f"/m/a.b{END}"), Path(f"/n/c{END}")]


def test_one_named_file_goes_to_the_named_output(tmp_path: Path) -> None:
    assert assign_outputs([entry("/m/a.mp4")], tmp_path / "out.safetensors") == [
        tmp_path / "out.safetensors"
    ]


def test_one_named_file_goes_into_a_folder(tmp_path: Path) -> None:
    assert assign_outputs([entry("/m/a.mp4")], tmp_path) == [tmp_path / f"a{END}"]
    assert assign_outputs([entry("/m/a.mp4")], f"{tmp_path}/new/") == [tmp_path / "new" / f"a{END}"]


def test_outputs_mirror_the_tree() -> None:
    made = assign_outputs([entry("/m/x/a.mp4", "x/a.mp4", named=False)], "/out")
    assert made == [Path(f"/out/x/a{END}")]


def test_outputs_that_collide_keep_their_suffix() -> None:
    made = assign_outputs([entry("/m/a.mp4"), entry("/m/a.mkv"), entry("/m/b.mkv")])
    assert [p.name for p in made] == [f"a.mp4{END}", f"a.mkv{END}", f"b{END}"]


def test_outputs_stay_apart_when_the_longer_name_collides_too() -> None:
    made = assign_outputs([entry("/m/a.mp4"), entry("/m/a.mkv"), entry("/m/a.mp4.mov")])
    assert [p.name for p in made] == [f"a.mp4{END}", f"a.mkv{END}", f"a.mp4.mov{END}"]


def test_outputs_of_like_names_in_two_folders_keep_the_folders() -> None:
    made = assign_outputs([entry("/m/x/a.mp4"), entry("/m/y/a.mp4")], "/out")
    assert [str(p) for p in made] == [f"/out/x/a.mp4{END}", f"/out/y/a.mp4{END}"]


def test_outputs_of_several_inputs_need_a_folder(tmp_path: Path) -> None:
    make(tmp_path, "file")
    with pytest.raises(FileExistsError, match="is a file"):
        assign_outputs([entry("/m/a.mp4"), entry("/m/b.mp4")], tmp_path / "file")
