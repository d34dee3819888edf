"""open_cache: slices, budgets, columns, expectations, and how little is read."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tokpipe.cache import CacheWriter, open_cache
from tokpipe.errors import BudgetError, CacheError

Make = Callable[..., Any]


@pytest.fixture
def path(tmp_path: Path, write_feature: Make) -> Path:
    found: Path = write_feature(tmp_path / "a.tokpipe.safetensors")
    return found


def test_tokens_come_with_every_column(path: Path, make_rows: Make) -> None:
    rows = make_rows("video", [0.5 * (i // 2) for i in range(10)])
    with open_cache(path) as cache:
        part = cache.tokens()["video"]
    for name in ("tokens", "at", "pts", "frame", "extent", "tile", "mass", "kind", "score"):
        np.testing.assert_array_equal(getattr(part, name), rows[name])
    assert part.extras["members"].tolist() == list(range(20))
    np.testing.assert_array_equal(part.extras["deepstack_1"], rows["tokens"] * 2)


@pytest.mark.parametrize(
    ("start", "stop", "video", "audio"),
    [(None, None, 10, 6), (0.5, 1.5, 4, 2), (0.5, 0.5, 0, 0), (5, 2, 0, 0), (-9, 0.1, 2, 1)],
)
def test_tokens_slice_is_half_open(
    path: Path, start: float | None, stop: float | None, video: int, audio: int
) -> None:
    with open_cache(path) as cache:
        parts = cache.tokens(start, stop)
    assert [len(parts["video"]), len(parts["audio"])] == [video, audio]


@pytest.mark.parametrize("budget", [1, 6, 7, 16, 99])
def test_tokens_budget_is_joint_over_streams(path: Path, budget: int) -> None:
    with open_cache(path) as cache:
        parts = cache.tokens(budget=budget)
    ranks = np.concatenate([p.rank for p in parts.values()])
    assert sorted(ranks.tolist()) == list(range(min(budget, 16)))


def test_tokens_budget_keeps_the_members_of_its_rows(path: Path) -> None:
    with open_cache(path) as cache:
        part = cache.tokens(0.5, None, stream="video", budget=8)["video"]
    assert part.rows.tolist() == [8, 9]
    assert part.extras["members"].tolist() == [16, 17, 18, 19]
    assert part.extras["members_offsets"].tolist() == [0, 2, 4]


def test_tokens_refuses_a_budget_of_nothing(path: Path) -> None:
    with open_cache(path) as cache, pytest.raises(BudgetError):
        cache.tokens(budget=0)


def test_cache_describes_itself(path: Path) -> None:
    with open_cache(path) as cache:
        assert cache.info["name"] == "vörträg.mp4"
        assert (cache.duration, cache.domain, cache.layout) == (9.5, "feature", "ragged")
        assert cache.segments.tolist() == [[0.0, 1.0], [1.0, 9.5]]
        assert cache.provenance["recipe"] == {"steps": ["pixels"]}
        assert cache.num_tokens() == 16
        assert not [n for n in cache.names if n.startswith("pad.")]


def test_column_reads_ranges_and_maps_whole_tensors(path: Path) -> None:
    with open_cache(path) as cache:
        whole = cache.column("video.at")
        np.testing.assert_array_equal(whole[2:5], cache.column("video.at", 2, 5))
        assert not whole.flags.writeable
        with pytest.raises(CacheError, match="nothing"):
            cache.column("video.nothing")
    assert whole[-1] == 2.0, "a mapped column outlives the file"
    with pytest.raises(CacheError, match="closed"):
        cache.tokens()


def test_expect_refuses_another_encoder(path: Path) -> None:
    open_cache(path, expect={"tokpipe.encoder.video": {"weights": "sha256:ab"}}).close()
    for expect in ({"tokpipe.encoder.video": {"weights": "sha256:cd"}},
                   {"tokpipe.recipe_sha256": "1" * 64}, {"tokpipe.absent": {"x": 1}}):  # fmt: skip
        with pytest.raises(CacheError) as caught:
            open_cache(path, expect=expect)
        assert caught.value.code == "cache.mismatch"


def test_slice_reads_only_what_it_needs(
    tmp_path: Path, make_rows: Make, make_metadata: Make
) -> None:
    count, width = 4000, 64
    rows = make_rows("video", [0.01 * i for i in range(count)], width=1)
    rows["tokens"] = np.zeros((count, width), dtype=np.float16)
    with CacheWriter(tmp_path / "a.safetensors", durability="fast") as writer:
        writer.append("video", {**rows, "rank": np.arange(count)})
        path = writer.finish(make_metadata("feature", video=count))
    asked: list[tuple[int, int]] = []

    def pread(descriptor: int, length: int, offset: int) -> bytes:
        asked.append((offset, length))
        return os.pread(descriptor, length, offset)

    with open_cache(path, pread=pread) as cache:
        opened = sum(length for _, length in asked)
        asked.clear()
        part = cache.tokens(10.0, 10.5)["video"]
    assert len(part) == 50
    row_bytes = width * 2 + 8 + 16 + 16 + 12 + 12 + 5 * 4 + 1
    searches = 2 * 8 * (count.bit_length() + 1)
    assert sum(length for _, length in asked) <= 50 * row_bytes + 50 * 4 + searches
    assert opened <= (1 << 16) + count * 12, "opening reads the head, `at` and `mass`"


def test_sparse_budget_does_not_read_the_rows_between(
    tmp_path: Path, make_rows: Make, make_metadata: Make
) -> None:
    count, width = 1000, 512
    rows = make_rows("video", [0.01 * i for i in range(count)], width=1)
    rows["tokens"] = np.repeat(np.arange(count, dtype=np.float32)[:, None], width, 1)
    rank = np.roll(np.arange(count), -1)  # ranks 0 and 999 lie at both ends
    with CacheWriter(tmp_path / "a.safetensors", durability="fast") as writer:
        writer.append("video", {**rows, "rank": np.where(rank == 1, 1, rank)})
        path = writer.finish(make_metadata("feature", video=count))
    asked: list[int] = []

    def pread(descriptor: int, length: int, offset: int) -> bytes:
        asked.append(length)
        return os.pread(descriptor, length, offset)

    with open_cache(path, pread=pread) as cache:
        asked.clear()
        part = cache.tokens(budget=2)["video"]
    assert part.tokens[:, 0].tolist() == [0.0, 999.0]
    assert sum(asked) < 100_000, "the tokens alone are a million bytes"


def test_slice_becomes_a_token_batch(path: Path) -> None:
    torch = pytest.importorskip("torch")
    with open_cache(path) as cache:
        part = cache.tokens(0.5, 1.5)["audio"]
        batch = part.to_tokens()
        video = cache.tokens()["video"].to_tokens()
    assert batch.data.dtype == torch.float16
    np.testing.assert_array_equal(batch.data.numpy(), part.tokens)
    assert batch.at.tolist() == part.at.tolist()
    assert batch.modality.tolist() == [1, 1]
    assert set(video.extras) == {"rank", "deepstack_1"}
    assert video.rules == {"rank": "drop", "deepstack_1": "linear"}


def test_reader_works_without_torch(path: Path) -> None:
    code = (
        "import sys\n"
        "for name in ('torch', 'av', 'PIL', 'safetensors'): sys.modules[name] = None\n"
        "from tokpipe.cache import open_cache\n"
        "from tokpipe.cache.verify import verify\n"
        "cache = open_cache(sys.argv[1])\n"
        "print(len(cache.tokens()['video']), verify(sys.argv[1], deep=True).ok)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)],
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        check=False,
    )  # fmt: skip
    assert done.stdout.split() == ["10", "True"], done.stderr


@pytest.mark.parametrize("kind", ["missing", "folder", "empty", "text", "pipe", "null"])
def test_open_refuses_what_is_no_cache(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "null":
        path = Path("a\0b")
    elif kind != "missing":
        path.write_bytes(b"" if kind == "empty" else b"plain text, longer than eight bytes")
    with pytest.raises(CacheError):
        open_cache(path)
