"""``tokpipe export``: outputs, refusals, two-line errors, exit codes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

END = ".tokpipe.safetensors"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, clip_source: Path) -> Path:
    """A cache of the clip."""
    from tokpipe.run import Options, compress_file

    folder = tmp_path_factory.mktemp("made")
    clip = Path(shutil.copy(clip_source, folder / "clip.mp4"))
    compress_file(clip, budget=150, options=Options(keep_bank=False))
    return folder / f"clip{END}"


@pytest.fixture
def cache(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(made, tmp_path / f"clip{END}"))


def test_list_names_every_consumer_with_what_it_takes(run: Any, events: Any) -> None:
    result = run("export", "--list")
    assert result.exit_code == 0
    names = [line.split()[0] for line in result.stdout.splitlines()[1:]]
    assert names == sorted(names) and {"npz", "storyboard", "vllm", "webdataset"} <= set(names)
    *consumers, _ = events(run("export", "--list", "--json"))
    assert [c["name"] for c in consumers] == names
    assert all(c["takes"] and c["domains"] and c["accepts"] and c["loses"] for c in consumers)


def test_list_of_one_tells_its_parameters(run: Any) -> None:
    result = run("export", "--list", "--to", "npy")
    assert result.exit_code == 0 and "frames" in result.stdout


def test_one_output_a_cache_beside_it(run: Any, cache: Path, events: Any) -> None:
    item, summary = events(run("export", cache, "--to", "npz", "--json"))
    output = cache.with_name("clip.npz")
    assert (item["event"], item["status"], item["output"]) == ("item", "done", str(output))
    assert item["tokens"] == 150 and item["bytes"] == output.stat().st_size
    assert summary["done"] == 1
    with np.load(output) as arrays:
        assert len(arrays["video.at"]) + len(arrays["audio.at"]) == 150


def test_again_is_skipped_and_another_needs_force(run: Any, cache: Path, events: Any) -> None:
    output = cache.with_name("clip.npz")
    run("export", cache, "--to", "npz")
    again = run("export", cache, "--to", "npz", "--json")
    assert again.exit_code == 0 and events(again)[0]["status"] == "skipped"
    output.write_bytes(b"mine")
    refused = run("export", cache, "--to", "npz")
    assert refused.exit_code == 1 and output.read_bytes() == b"mine"
    assert "--force" in refused.stderr
    assert run("export", cache, "--to", "npz", "--force").exit_code == 0
    assert output.read_bytes() != b"mine"


def test_force_replaces_no_foreign_folder(run: Any, cache: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "letter.txt").write_text("dear")
    result = run("export", cache, "--to", "webdataset", "-o", mine, "--force")
    assert result.exit_code == 1 and (mine / "letter.txt").read_text() == "dear"
    assert "that no export made" in result.stderr


def test_force_replaces_a_folder_of_an_export(run: Any, cache: Path, tmp_path: Path) -> None:
    out = tmp_path / "shards"
    assert run("export", cache, "--to", "webdataset", "-o", out).exit_code == 0
    assert run("export", cache, "--to", "webdataset", "-o", out).stdout.endswith("already there\n")
    other = ("export", cache, "--to", "webdataset:dtype=float32", "-o", out)
    assert run(*other).exit_code == 1
    assert run(*other, "--force").exit_code == 0
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_a_broken_cache_fails_alone(run: Any, cache: Path, tmp_path: Path, events: Any) -> None:
    (tmp_path / f"broken{END}").write_bytes(cache.read_bytes()[:500])
    for to in ("npz", "webdataset"):
        result = run("export", tmp_path, "--to", to, "-o", tmp_path / f"out-{to}", "--json")
        *items, summary = events(result)
        assert result.exit_code == 1 and (summary["done"], summary["failed"]) == (1, 1)
        failed = next(i for i in items if i["status"] == "failed")
        assert failed["inputs"] == [str(tmp_path / f"broken{END}")]
        assert failed["error"]["code"].startswith("cache")


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ([], 2, "no --to"),
        (["--to", "npzz"], 2, "did you mean `npz`"),
        (["--to", "npz:nothing=1"], 2, "no parameter `nothing`"),
        (["--to", "npz", "--model", "x"], 2, "takes no --model"),
        (["--to", "webdataset"], 2, "name it with -o"),
        (["--to", "transformers"], 2, "your own process"),
    ],
)
def test_wrong_lines_are_two_lines(
    run: Any, cache: Path, two_lines: Any, words: list[str], code: int, said: str
) -> None:
    result = run("export", cache, *words)
    assert result.exit_code == code
    assert said in " ".join(two_lines(result))


def test_missing_cache(run: Any, tmp_path: Path) -> None:
    assert run("export", tmp_path / f"no{END}", "--to", "npz").exit_code == 2


def test_folder_holds_what_made_it(run: Any, cache: Path, tmp_path: Path) -> None:
    out = tmp_path / "shards"
    run("export", cache, "--to", "webdataset", "-o", out)
    mark = json.loads((out / ".tokpipe-export.json").read_text())
    assert mark["made_of"]["to"] == "webdataset" and mark["files"]


def test_items_of_a_dataset(run: Any, cache: Path, tmp_path: Path, events: Any) -> None:
    packed, out = tmp_path / "packed", tmp_path / "out"
    folder = tmp_path / "caches"
    folder.mkdir()
    for name in ("a", "b"):
        shutil.copy(cache, folder / f"{name}{END}")
    assert run("dataset", "pack", folder, packed, "--key", "name").exit_code == 0
    assert "written into a dataset" in run("export", packed, "--to", "npz").stderr
    items = events(run("export", packed, "--to", "npz", "-o", out, "--json"))[:-1]
    assert [Path(i["output"]).name for i in items] == ["a.npz", "b.npz"]
    *_, item, _ = events(run("export", packed, "--to", "webdataset", "-o", out / "w", "--json"))
    assert item["status"] == "done" and item["tokens"] == 300


@pytest.mark.parametrize("to", ["npz", "pt"])
def test_a_cache_is_never_its_own_output(run: Any, cache: Path, to: str) -> None:
    before = cache.read_bytes()
    assert run("export", cache, "--to", to, "-o", cache, "--force").exit_code == 1
    assert cache.read_bytes() == before


@pytest.mark.parametrize(
    ("lacks", "to"),
    [("audio", "npy:stream=audio"), ("video", "npy"), ("video", 'jsonl:answer="y",prompt="q"')],
)
def test_a_cache_the_consumer_cannot_take_fails_alone(
    run: Any, cache: Path, tmp_path: Path, events: Any, clip_source: Path, lacks: str, to: str
) -> None:
    from tokpipe.run import Options, compress_file

    odd = tmp_path / f"odd{END}"
    options = Options(**{f"{lacks}_stream": "none"})  # type: ignore[arg-type]
    compress_file(clip_source, odd, budget=20, options=options)
    result = run("export", tmp_path, "--to", to, "-o", tmp_path / "o", "--json")
    *items, summary = events(result)
    assert result.exit_code == 1
    assert (summary["done"] + summary["warned"], summary["failed"]) == (1, 1)
    assert next(i for i in items if i["status"] == "failed")["inputs"] == [str(odd)]


def test_a_folder_of_one_cache_makes_a_folder(run: Any, cache: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run("export", cache.parent, "--to", "npz", "-o", out).exit_code == 0
    assert [p.name for p in out.iterdir()] == ["clip.npz"]


def test_force_makes_no_folder_of_a_file(run: Any, cache: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine.mp4"
    mine.write_bytes(b"mine")
    result = run("export", cache, "--to", "storyboard:api=hf", "-o", mine, "--force")
    assert result.exit_code == 1 and mine.read_bytes() == b"mine"


def test_source_media_for_a_form_of_many_caches(
    run: Any, cache: Path, tmp_path: Path, clip: Path
) -> None:
    to = ("--to", "jsonl:answer=y", "--prompt", "q", "-o", tmp_path / "set")
    assert run("export", cache, *to, "--from-source", tmp_path / "nothing").exit_code == 1
    assert run("export", cache, *to, "--from-source", clip.parent).exit_code == 0


def test_media_are_sent_to_compress(run: Any, clip: Path, two_lines: Any) -> None:
    result = run("export", clip, "--to", "npz")
    assert "tokpipe compress" in " ".join(two_lines(result))
