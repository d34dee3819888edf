"""Near-duplicates: copies of a clip are found at another size and quality, other clips are not."""

from __future__ import annotations

import json
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tokpipe.batch import dedup
from tokpipe.batch._pooled import pooled_segments
from tokpipe.batch.dedup import find_caches, find_duplicates, write_report
from tokpipe.cache import CacheWriter, open_cache
from tokpipe.errors import CacheError
from tokpipe.run import Options, compress_file
from tokpipe.testing.media import AudioTrack, VideoTrack, write_media

END = ".tokpipe.safetensors"
Draw = Callable[[int, float], NDArray[np.uint8]]


def scenes(seed: int, size: tuple[int, int]) -> Draw:
    """Three scenes of two seconds, each of coloured boxes, one of which moves."""
    width, height = size

    def draw(_number: int, time: float) -> NDArray[np.uint8]:
        some = np.random.default_rng((seed, min(2, int(time / 2))))
        picture = np.empty((height, width, 3), dtype=np.uint8)
        picture[:] = some.integers(30, 220, 3)
        for i in range(9):
            y, x, h, w = some.uniform(0, 0.7, 4)
            x += 0.05 * (time % 2) if i == 8 else 0
            a, b = round(y * height), round(x * width)
            high, wide = round((0.1 + h / 2) * height), round((0.1 + w / 2) * width)
            picture[a : a + high, b : b + wide] = some.integers(0, 256, 3)
        return picture

    return draw


def melody(seed: int) -> NDArray[np.float32]:
    """Six seconds of tones, a new one every 200 ms."""
    some = np.random.default_rng(seed)
    pitch = np.repeat(some.uniform(150, 4000, 30), 3200)
    loud = np.repeat(some.uniform(0.02, 0.5, 30), 3200)
    return (loud * np.sin(2 * np.pi * np.cumsum(pitch) / 16000)).astype(np.float32)


@pytest.fixture(scope="module")
def signal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Caches of a clip, of a small rough copy of it, of two other clips, and of black."""
    folder = tmp_path_factory.mktemp("signal")
    made = {
        "a": (1, (448, 252), "20", 0.8), "a_copy": (1, (288, 162), "33", 0.3),
        "b": (2, (448, 252), "20", 0.8), "c": (3, (320, 240), "20", 0.8),
    }  # fmt: skip
    for name, (seed, size, crf, volume) in made.items():
        picture = VideoTrack(
            frames=48, fps=Fraction(8), size=size, draw=scenes(seed, size), options={"crf": crf}
        )
        sound = AudioTrack(samples=volume * melody(seed))
        write_media(folder / f"{name}.mp4", picture, sound)
    for name in ("dark", "darker"):
        black = np.full((108, 192, 3), 20 if name == "dark" else 16, dtype=np.uint8)
        write_media(
            folder / f"{name}.mp4",
            VideoTrack(frames=8, fps=Fraction(8), draw=lambda n, t: black),  # noqa: B023
        )
    for path in sorted(folder.glob("*.mp4")):
        compress_file(path, budget=1500, options=Options(keep_bank=False))
    return folder


def features(
    path: Path, vectors: Any, spans: Any = None, *, weights: str = "sha256:ab", mass: Any = None
) -> Path:
    """A feature cache of one row a segment, or of two, the first mass 1 and the second 3."""
    rows = np.asarray(vectors, dtype=np.float32)
    n = len(rows)
    at = np.arange(n, dtype=np.float64)
    weight = np.ones(n, np.float32) if mass is None else np.asarray(mass, np.float32)
    columns: dict[str, NDArray[Any]] = {
        "tokens": rows, "at": at, "pts": np.stack([at, at + 1], 1),
        "frame": np.stack([at, at], 1).astype(np.int64),
        "cell": np.zeros((n, 3), np.int32), "extent": np.ones((n, 3), np.int32),
        "tile": np.zeros(n, np.int32), "mass": weight, "kind": np.zeros(n, np.uint8),
        "score": np.full(n, np.nan, np.float32),
        "rank": np.arange(n),
    }  # fmt: skip
    ends = np.asarray([[i, i + 1] for i in range(n)] if spans is None else spans)
    columns["segment"] = np.repeat(np.arange(len(ends)), np.diff(ends)[:, 0]).astype(np.int32)
    total = float(weight.sum())
    metadata: dict[str, object] = {
        "tokpipe.writer": "0.1.0", "tokpipe.domain": "feature", "tokpipe.layout": "ragged",
        "tokpipe.source": {"name": "a.mp4", "size": 1, "duration": float(n)},
        "tokpipe.recipe": {}, "tokpipe.recipe_sha256": "0" * 64,
        "tokpipe.counts": {"video": {"source": total, "dropped": 0}},
        "tokpipe.encoder.video": {"name": "tower", "params": {"model": "x"}, "weights": weights},
    }  # fmt: skip
    with CacheWriter(path) as writer:
        writer.append("video", columns)
        writer.set("segment.pts", ends.astype(np.float64))
        writer.set("segment.rows", np.concatenate([ends, np.zeros_like(ends)], 1).astype(np.int64))
        return writer.finish(metadata)


def named(found: dedup.Duplicates) -> list[tuple[str, ...]]:
    """Caches of each group, the representative's first, with the second each segment begins."""
    return [
        tuple(f"{s.cache.name.removesuffix(END)}@{s.start:.0f}"
              for s in (g.representative, *(c for c, _ in g.copies)))
        for g in found.groups
    ]  # fmt: skip


@pytest.mark.parametrize("backend", ["torch", "faiss"])
def test_a_small_rough_copy_is_found_and_nothing_else(signal: Path, backend: Any) -> None:
    if backend == "faiss":
        pytest.importorskip("faiss")
    found = find_duplicates(find_caches([signal]), backend=backend)
    assert named(found) == [("a@0", "a_copy@0"), ("a@2", "a_copy@2"), ("a@4", "a_copy@4")]
    assert all(value >= 0.95 for g in found.groups for _, value in g.copies)
    assert found.encoders == {"pixels": (6, 12)}
    # Black shows nothing to tell it by, whatever its level.
    assert found.flat == 2 and not found.problems and not found.absent
    assert found.seconds == pytest.approx(24, abs=0.5)


def test_other_clips_are_far_from_alike(signal: Path) -> None:
    vectors = []
    for path in find_caches([signal]):
        with open_cache(path) as cache:
            pooled = pooled_segments(cache, "video")
        assert pooled is not None
        if len(pooled.vectors):
            vectors.append(pooled.vectors)
    a, copy, b, c = vectors
    assert (np.diag(a @ copy.T) > 0.95).all()
    for one, other in ((a, b), (a, c), (b, c), (copy, c)):
        assert (one @ other.T).max() < 0.8
    assert np.linalg.norm(a, axis=1) == pytest.approx(1, abs=1e-5)


def test_sound_is_compared_by_its_course(signal: Path) -> None:
    found = find_duplicates(find_caches([signal]), stream="audio")
    assert [{s[0].cache.name for s in g.copies} for g in found.groups] == [{"a_copy" + END}] * 3
    assert {p.name for p in found.absent} == {"dark" + END, "darker" + END}


def test_a_copy_is_alike_to_what_stands_for_it(tmp_path: Path) -> None:
    # A chain: each is 15 degrees from the one before, and the threshold is 20.
    angle = np.radians([0, 15, 30, 45, 120, 120])
    path = features(tmp_path / f"a{END}", np.stack([np.cos(angle), np.sin(angle)], 1))
    found = find_duplicates([path], float(np.cos(np.radians(20))))
    assert named(found) == [("a@0", "a@1"), ("a@2", "a@3"), ("a@4", "a@5")]
    assert found.groups[0].copies[0][1] == pytest.approx(np.cos(np.radians(15)), abs=1e-5)
    assert named(find_duplicates([path], 1.0)) == [("a@4", "a@5")]


def test_features_are_averaged_by_mass(tmp_path: Path) -> None:
    rows = [[1, 0], [0, 1], [1, 3], [3, 1]]
    path = features(tmp_path / f"a{END}", rows, [[0, 2], [2, 3], [3, 4]], mass=[1, 3, 1, 1])
    found = find_duplicates([path], 0.999)
    assert named(found) == [("a@0", "a@2")]
    assert found.segments == 3


def test_blocks_do_not_change_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    some = np.random.default_rng(0)
    centres = some.normal(size=(12, 16))
    rows = centres[some.integers(0, 12, 90)] + 0.15 * some.normal(size=(90, 16))
    paths = [features(tmp_path / f"{i}{END}", rows[i * 30 : i * 30 + 30]) for i in range(3)]
    whole = find_duplicates(paths, 0.97)
    monkeypatch.setattr(dedup, "_BLOCK", 7)
    assert named(find_duplicates(paths, 0.97)) == named(whole)
    # The rule, one by one.
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    leaders: dict[int, list[int]] = {}
    for i in range(90):
        near = [(unit[i] @ unit[j], -j) for j in leaders]
        if near and max(near)[0] >= 0.97:
            leaders[-max(near)[1]].append(i)
        else:
            leaders[i] = []

    def name(i: int) -> str:
        return f"{i // 30}@{i % 30}"

    expected = [(name(i), *map(name, m)) for i, m in leaders.items() if m]
    assert named(whole) == expected and len(expected) > 8


def test_caches_of_other_weights_are_not_compared(tmp_path: Path) -> None:
    one = [features(tmp_path / f"{n}{END}", [[1, 0, 0]]) for n in "ab"]
    other = features(tmp_path / f"c{END}", [[1, 0, 0]], weights="sha256:cd")
    wide = features(tmp_path / f"d{END}", [[1, 0, 0, 0]])
    found = find_duplicates([*one, other, wide])
    assert named(found) == [("a@0", "b@0")]
    assert sorted(found.encoders.values()) == [(1, 1), (1, 1), (2, 2)]
    assert all(name.startswith("tower:x (") for name in found.encoders)


def test_short_segments_are_left_out(tmp_path: Path) -> None:
    path = features(tmp_path / f"a{END}", [[1, 0]] * 3, [[0, 1], [1, 2], [2, 3]])
    assert find_duplicates([path], min_seconds=1.5).short == 3
    assert named(find_duplicates([path], min_seconds=1.0)) == [("a@0", "a@1", "a@2")]


def test_what_cannot_be_read_is_reported_and_the_rest_done(tmp_path: Path) -> None:
    good = [features(tmp_path / f"{n}{END}", [[1, 0]]) for n in "ab"]
    bad = tmp_path / f"bad{END}"
    bad.write_bytes(b"no cache")
    told: list[tuple[str, bool]] = []
    found = find_duplicates(
        [good[0], bad, tmp_path / "gone", tmp_path, good[1]],
        seen=lambda path, problem: told.append((path.name, problem is None)),
    )
    assert named(found) == [("a@0", "b@0")]
    assert [p for p, _ in found.problems] == [bad, tmp_path / "gone", tmp_path]
    assert all(isinstance(error, CacheError) for _, error in found.problems)
    assert [name for name, fine in told if fine] == [g.name for g in good]


def test_caches_are_found_in_folders(tmp_path: Path) -> None:
    for name in ("b/c", "b/a", "z", ".hidden/x"):
        path = tmp_path / (name + END)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"")
    (tmp_path / "z.mp4").write_bytes(b"")
    found = find_caches([tmp_path / f"z{END}", tmp_path, tmp_path / "gone"])
    assert [p.relative_to(tmp_path).as_posix() for p in found] == [
        f"z{END}", f"b/a{END}", f"b/c{END}", "gone",
    ]  # fmt: skip


def test_the_report_has_a_line_a_group(tmp_path: Path) -> None:
    paths = [features(tmp_path / f"{n}{END}", [[1, 0], [0, 1]]) for n in "ab"]
    write_report(find_duplicates(paths), tmp_path / "report.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "report.jsonl").read_text().splitlines()]
    assert [line["representative"]["start"] for line in lines] == [0, 1]
    assert lines[0]["copies"] == [
        {"cache": str(paths[1]), "start": 0.0, "stop": 1.0, "similarity": 1.0}
    ]
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("threshold", [0.0, 1.1, float("nan")])
def test_a_wrong_threshold_is_named(threshold: float) -> None:
    with pytest.raises(ValueError, match="threshold: expected above 0 to 1"):
        find_duplicates([], threshold)


def test_no_caches_give_no_groups() -> None:
    found = find_duplicates([], device=torch.device("cpu"))
    assert not found.groups and not found.segments
