"""``tokpipe.torch``: items by number and in streams, batches, and a Trainer without a tower."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from tokpipe.cache import open_cache
from tokpipe.cache._item import Place, Want, read_rows
from tokpipe.cache.pack import pack
from tokpipe.errors import BudgetError, CacheCorrupt, CacheError, CacheVersion, StreamMissing
from tokpipe.testing.caches import write_features
from tokpipe.torch import (
    PackCollator,
    PadCollator,
    Sample,
    TokenCacheDataset,
    TokenCacheStream,
    open_dataset,
)

END = ".tokpipe.safetensors"
COUNT = 20
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")


def index_of(sample: Sample) -> int:
    """For workers: functions must be importable where they are spawned."""
    return sample.index


def indices(samples: list[Sample | None]) -> list[int]:
    return [-1 if s is None else s.index for s in samples]


# By number and key.


def test_items_hold_what_the_caches_hold(data: Path, caches: Path) -> None:
    found = TokenCacheDataset(data, columns=("at", "rank", "cell", "pts"))
    assert len(found) == COUNT
    for key in found.keys:
        sample = found[key]
        with open_cache(caches / f"{key}{END}") as cache:
            assert set(sample.streams) == set(cache.streams)
            for stream, rows in cache.tokens().items():
                mine = sample[stream]
                assert torch.equal(mine.tokens, torch.from_numpy(rows.tokens.copy()))
                assert np.array_equal(mine.at, rows.at) and len(mine) == len(rows)
                for name in ("rank", "cell", "pts"):
                    assert np.array_equal(mine.columns[name], getattr(rows, name))


def test_numbers_count_from_both_ends(data: Path) -> None:
    found = TokenCacheDataset(data)
    assert found[-1].key == found[COUNT - 1].key == found.keys[-1]
    assert found[found.keys[3]].index == 3 == found.number(3 - COUNT)
    with pytest.raises(IndexError, match="item 20 of a dataset of 20"):
        found[COUNT]
    with pytest.raises(KeyError, match="no item `x`"):
        found["x"]
    # Iterating by number ends, as with any sequence.
    assert [sample.index for sample in iter(found)] == list(range(COUNT))


@pytest.mark.parametrize("span", [(0.5, 1.5), (None, 0.5), (1.0, None), (7.0, None), (0.6, 0.7)])
@pytest.mark.parametrize("budget", [None, 10, 1000])
def test_slices_and_budgets(
    data: Path, caches: Path, span: tuple[float | None, float | None], budget: int | None
) -> None:
    found = TokenCacheDataset(data, start=span[0], stop=span[1], budget=budget)
    lengths = found.lengths("video"), found.lengths("audio"), found.lengths()
    for number in (0, 1, 5):
        sample = found[number]
        with open_cache(caches / f"{sample.key}{END}") as cache:
            rows = cache.tokens(*span, budget=budget)
        for stream, expected in rows.items():
            assert np.array_equal(sample[stream].tokens, expected.tokens)
            assert np.array_equal(sample[stream].at, expected.at)
        counts = [len(rows[s]) if s in rows else 0 for s in ("video", "audio")]
        assert [lengths[0][number], lengths[1][number]] == counts
        assert lengths[2][number] == sum(counts)
        again = TokenCacheDataset(data).read(number, *span, budget)
        assert torch.equal(again["video"].tokens, sample["video"].tokens)


@pytest.mark.parametrize("budget", [5, 20, 30, 59])
def test_a_budget_is_that_many_tokens(data: Path, budget: int) -> None:
    found = TokenCacheDataset(data, budget=budget)
    for number in range(6):
        assert sum(map(len, found[number].streams.values())) == found.lengths()[number]
    assert found.lengths().max() == min(budget, 60)
    video = TokenCacheDataset(data, budget=budget, streams=["video"])
    assert [len(video[n]["video"]) for n in range(6)] == video.lengths()[:6].tolist()


def test_lengths_read_no_features(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = TokenCacheDataset(packed)
    (packed / "shards").rename(packed / "away")
    try:
        expected = [24 + 12 * (n % 3) + 12 * (n % 2) for n in range(COUNT)]
        assert dict(zip(found.keys, found.lengths(), strict=True)) == {
            f"c{n:02}": length for n, length in enumerate(expected)
        }  # fmt: skip
        assert TokenCacheDataset(packed, budget=9).lengths().tolist() == [9] * COUNT
    finally:
        (packed / "away").rename(packed / "shards")


def test_streams_and_dtypes(data: Path) -> None:
    found = TokenCacheDataset(data, streams="audio", dtype=torch.bfloat16, columns=())
    sample = found["c01"]
    assert list(sample.streams) == ["audio"] and sample.tokens.dtype == torch.bfloat16
    assert sample["audio"].columns == {}
    assert found["c00"].streams == {}
    assert TokenCacheDataset(data)["c00"].tokens.dtype == torch.float16
    with pytest.raises(CacheError, match="2 streams"):
        _ = TokenCacheDataset(data)["c01"].tokens


def test_bfloat16_comes_as_it_is(tmp_path: Path) -> None:
    path = write_features(tmp_path / f"a{END}", dtype="BF16")
    with open_cache(path) as cache:
        wide = torch.from_numpy(cache.tokens()["video"].tokens)
    for options in ({}, {"start": 0.0}, {"budget": 48}):
        tokens = TokenCacheDataset(path, **options)[0].tokens
        assert tokens.dtype == torch.bfloat16 and torch.equal(tokens.float(), wide)


def test_samples_may_be_written_to(data: Path) -> None:
    found = TokenCacheDataset(data)
    found[0]["video"].tokens.zero_()
    found.read(0, 0.0, 1.0)["video"].tokens.zero_()
    assert found[0]["video"].tokens.any()


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"budget": 0}, BudgetError, "at least 1"),
        ({"streams": ["text"]}, CacheError, "unknown streams"),
        ({"streams": []}, CacheError, "unknown streams"),
        ({"columns": ["tokns"]}, CacheError, "no column `tokns`"),
        ({"verify": "never"}, CacheError, "verify='never' is no choice"),
        ({"on_error": "foo"}, CacheError, "on_error='foo' is no choice"),
    ],
)
def test_options_that_cannot_be(data: Path, options: Any, error: Any, text: str) -> None:
    with pytest.raises(error, match=text):
        TokenCacheDataset(data, **options)
    with pytest.raises(error, match=text):
        TokenCacheStream(data, **options)


def test_a_wrong_choice_names_the_right_ones(data: Path) -> None:
    wrong: Any = {"on_error": "foo"}
    with pytest.raises(CacheError) as refused:
        TokenCacheDataset(data, **wrong)
    assert refused.value.hint == "one of: raise, skip"


# Items without a stream.


@pytest.fixture
def uneven(tmp_path: Path) -> Path:
    """Items a and b have sound alone, c has pictures alone."""
    write_features(tmp_path / f"a{END}", seed=1, video=0, audio=6, dtype="BF16")
    write_features(tmp_path / f"b{END}", seed=2, video=0, audio=12, dtype="BF16")
    write_features(tmp_path / f"c{END}", seed=3, video=24, dtype="BF16")
    return tmp_path


def test_a_stream_that_is_not_there_is_named(uneven: Path) -> None:
    sample = TokenCacheDataset(uneven)["a"]
    with pytest.raises(StreamMissing, match="item `a` has no video, it holds: audio") as missing:
        _ = sample["video"]
    assert isinstance(missing.value, KeyError) and "in sample.streams" in (missing.value.hint or "")
    with pytest.raises(StreamMissing, match="item `a` has none of the streams"):
        _ = TokenCacheDataset(uneven, streams="video")["a"].tokens


def test_every_batch_has_the_same_tensors(uneven: Path) -> None:
    columns = ("at", "pts", "cell", "kind", "rank")
    for options in ({}, {"dtype": torch.float32}, {"budget": 5}):
        found = TokenCacheDataset(uneven, columns=columns, **options)
        for collate in (PadCollator(multiple=4), PackCollator()):
            both, one, other = (collate([found[k] for k in keys]) for keys in ("ac", "ab", "c"))
            for batch in (one, other):
                assert list(batch) == list(both)
                for name in set(both) - {"keys", "video.max_seqlen", "audio.max_seqlen"}:
                    assert batch[name].dtype == both[name].dtype, name
                    rest = 2 if isinstance(collate, PadCollator) else 1
                    assert batch[name].shape[rest:] == both[name].shape[rest:], name
        padded = PadCollator()([found["a"], found["b"]])
        assert padded["video.tokens"].shape == (2, 0, 8) and padded["video.mask"].shape == (2, 0)
        assert padded["video.length"].tolist() == [0, 0]
        packed = PackCollator()([found["a"], found["b"]])
        assert packed["video.tokens"].shape == (0, 8) and packed["video.max_seqlen"] == 0
        assert packed["video.cu_seqlens"].tolist() == [0, 0, 0]
    loader = DataLoader(TokenCacheDataset(uneven), num_workers=1, collate_fn=PadCollator())
    assert len({tuple(batch) for batch in loader}) == 1


def test_columns_that_only_the_signal_has(uneven: Path) -> None:
    found = TokenCacheDataset(uneven, columns=("at", "atlas_box", "clip_offset", "deepstack_1"))
    assert list(found["a"].absent["video"].columns) == ["at"]
    # Pictures of two widths have no shape that a batch without any could show.
    (uneven / "wide").mkdir()
    write_features(uneven / "wide" / f"d{END}", seed=4, width=16, audio=6, dtype="BF16")
    mixed = TokenCacheDataset(open_dataset(uneven, mixed=True))
    assert mixed["a"].absent == {}


def test_samples_are_shown_by_their_shapes(uneven: Path) -> None:
    sample = TokenCacheDataset(uneven, columns=("at", "rank"))["c"]
    assert repr(sample) == "Sample('c', 2, video [24, 8] bfloat16)"
    assert repr(sample["video"]) == "Tokens([24, 8] bfloat16, at, rank)"


def test_a_slice_reads_a_small_part(tmp_path: Path) -> None:
    path = write_features(tmp_path / f"a{END}", video=2000, width=1152, steps=40)
    pack(tmp_path, tmp_path / "ds", key="name")
    place, total = open_dataset(tmp_path / "ds").place(0), 0

    def counted(descriptor: int, length: int, offset: int) -> bytes:
        import os

        nonlocal total
        found = os.pread(descriptor, length, offset)
        total += len(found)
        return found

    rows = read_rows(place, Want(start=3.0, stop=3.5), counted)
    assert len(rows["video"].columns["tokens"]) == 50
    assert total < 0.1 * path.stat().st_size
    assert rows["video"].columns["at"].tolist() == [3.0] * 50


# What cannot be read.


@pytest.fixture
def broken(caches: Path, tmp_path: Path) -> Path:
    """Loose caches, one of them cut short after it was listed."""
    for path in sorted(caches.glob(f"*{END}"))[:6]:
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def test_a_broken_item_is_an_error_with_its_name(broken: Path) -> None:
    found = TokenCacheDataset(broken)
    path = broken / f"c02{END}"
    data = path.read_bytes()
    for bad, error, code in (
        (data[:-40], CacheCorrupt, "cache.size"), (b"", CacheCorrupt, "cache.size"),
        (data[:8] + b"x" * 40 + data[48:], CacheCorrupt, "cache.header"),
        (data.replace(b'"tokpipe.format":"1.0"', b'"tokpipe.format":"9.0"'), CacheVersion, ""),
        (data.replace(b"F64", b"F32"), CacheCorrupt, "cache.header"),
    ):  # fmt: skip
        path.write_bytes(bad)
        with pytest.raises(error, match="item `c02` cannot be read") as caught:
            found[2]
        assert caught.value.where == str(path) and (not code or caught.value.code == code)
    path.unlink()
    with pytest.raises(CacheError, match="item `c02`"):
        found[2]
    assert found[1].key == "c01"


def test_times_out_of_order_are_seen(broken: Path) -> None:
    path = broken / f"c00{END}"
    data = path.read_bytes()
    at = np.repeat(np.arange(6) * 0.5, 4).tobytes()
    assert data.count(at) == 1
    path.write_bytes(data.replace(at, np.frombuffer(at)[::-1].tobytes()))
    with pytest.raises(CacheCorrupt, match="not monotone"):
        TokenCacheDataset(broken)["c00"]


def test_first_touch_compares_digests(broken: Path) -> None:
    path = broken / f"c02{END}"
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    assert TokenCacheDataset(broken)["c02"].key == "c02"
    with pytest.raises(CacheCorrupt, match=r"item `c02` .*digest") as caught:
        TokenCacheDataset(broken, verify="first-touch")["c02"]
    assert caught.value.code == "cache.digest"


@pytest.mark.parametrize("workers", [0, 2])
def test_skipping_leaves_out_and_counts(broken: Path, workers: int) -> None:
    (broken / f"c02{END}").write_bytes(b"nothing")
    found = TokenCacheDataset(broken, on_error="skip")
    loader = DataLoader(found, batch_size=3, num_workers=workers, collate_fn=PadCollator())
    assert [batch["keys"] for batch in loader] == [["c00", "c01"], ["c03", "c04", "c05"]]
    assert found.skipped == 1 and found[2] is None
    stream = TokenCacheStream(broken, shuffle=False, on_error="skip")
    loader = DataLoader(stream, batch_size=2, num_workers=workers, collate_fn=indices)
    assert sorted(n for batch in loader for n in batch) == [0, 1, 3, 4, 5]
    assert stream.skipped == 1
    with pytest.raises(CacheError, match="item `c02`"):
        list(DataLoader(TokenCacheDataset(broken), num_workers=workers, collate_fn=indices))


def test_a_cache_unreadable_from_the_start_is_an_item(broken: Path) -> None:
    (broken / f"c02{END}").write_bytes(b"nothing")
    found = TokenCacheDataset(broken)
    assert len(found) == 6 and found.lengths()[2] == 0
    with pytest.raises(CacheCorrupt, match="item `c02`"):
        found[2]


def test_an_item_of_a_huge_claim_is_refused(tmp_path: Path) -> None:
    path = tmp_path / f"a{END}"
    path.write_bytes(b"\xff" * 7 + b"\x00" + b"{}")
    with pytest.raises(CacheCorrupt):
        read_rows(Place(str(path), 0, 10), Want())
