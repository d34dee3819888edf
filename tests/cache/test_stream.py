"""Streams over ranks and workers: every item once, the same order again, resumed to the item."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from tokpipe.cache._walk import Part, part_of, taken, whole_order
from tokpipe.cache.dataset import CacheDataset, open_dataset
from tokpipe.cache.pack import pack
from tokpipe.cache.samples import Sample
from tokpipe.cache.stream import TokenCacheStream
from tokpipe.errors import CacheError
from tokpipe.testing.caches import write_features

END = ".tokpipe.safetensors"
COUNT = 23
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")


@pytest.fixture(scope="module")
def caches(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("caches")
    for seed in range(COUNT):
        write_features(folder / f"c{seed:02}{END}", seed=seed, video=12)
    return folder


@pytest.fixture(scope="module", params=["one shard", "many shards", "loose"])
def data(
    request: pytest.FixtureRequest, caches: Path, tmp_path_factory: pytest.TempPathFactory
) -> CacheDataset:
    if request.param == "loose":
        return open_dataset(caches)
    root = tmp_path_factory.mktemp("packed")
    made = pack(caches, root, shard_size=10**9 if request.param == "one shard" else 30_000)
    assert made.shards == 1 if request.param == "one shard" else made.shards > 5
    return open_dataset(root)


def numbers(samples: list[Sample]) -> list[int]:
    return [sample.index for sample in samples]


def flat(batches: Any) -> list[int]:
    return [n for batch in batches for n in batch]


def loader(stream: TokenCacheStream, workers: int, size: int = 3, **more: Any) -> DataLoader[Any]:
    return DataLoader(
        stream, batch_size=size, num_workers=workers, collate_fn=numbers, **more
    )  # fmt: skip


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("workers", [0, 1, 2])
def test_no_item_is_missing_or_twice(data: CacheDataset, world: int, workers: int) -> None:
    got = []
    for rank in range(world):
        stream = TokenCacheStream(data, rank=rank, world_size=world, seed=4, buffer=5)
        mine = flat(loader(stream, workers))
        assert len(mine) == len(stream)
        got += mine
    assert sorted(got) == list(range(COUNT))


@pytest.mark.parametrize(("even", "each"), [("drop", 7), ("repeat", 8), ("no", None)])
def test_even_ranks(data: CacheDataset, even: Any, each: int | None) -> None:
    parts = [
        flat(loader(TokenCacheStream(data, rank=r, world_size=3, even=even), 0)) for r in range(3)
    ]
    lengths = [len(p) for p in parts]
    assert lengths == ([each] * 3 if each else [7, 8, 8])
    assert lengths == [
        len(TokenCacheStream(data, rank=r, world_size=3, even=even)) for r in range(3)
    ]
    seen = flat(parts)
    assert len(set(seen)) == {"drop": 21, "repeat": COUNT, "no": COUNT}[even]
    assert len(seen) == len(set(seen)) + (1 if even == "repeat" else 0)


def test_the_order_follows_from_seed_and_epoch(data: CacheDataset) -> None:
    def order(seed: int = 0, epoch: int = 0, **more: Any) -> list[int]:
        stream = TokenCacheStream(data, seed=seed, buffer=6, **more)
        stream.set_epoch(epoch)
        return flat(loader(stream, 0))

    assert order() == order() != order(epoch=1) != order(seed=1)
    assert order(epoch=1) == order(epoch=1)
    assert order(shuffle=False) == list(range(COUNT)) != order()


def test_ranks_take_parts_of_one_order(data: CacheDataset) -> None:
    whole = TokenCacheStream(data, seed=2).items()
    parts = [TokenCacheStream(data, seed=2, rank=r, world_size=3).items() for r in range(3)]
    assert [n for part in parts for n in part] == whole


@given(
    sizes=st.lists(st.integers(1, 9), max_size=8), world=st.integers(1, 5),
    workers=st.integers(1, 4), seed=st.integers(0, 9), shuffle=st.booleans(),
    buffer=st.integers(1, 20),
)  # fmt: skip
def test_parts_cover_any_dataset(
    sizes: list[int], world: int, workers: int, seed: int, shuffle: bool, buffer: int
) -> None:
    groups = np.cumsum([0, *sizes])
    order = whole_order(groups, shuffle=shuffle, seed=seed, epoch=1, buffer=buffer)
    parts = [
        part_of(order, Part(r, world, w, workers)) for r in range(world) for w in range(workers)
    ]
    assert np.array_equal(np.concatenate(parts), order)
    assert sorted(order.tolist()) == list(range(int(groups[-1])))
    lengths = [len(part) for part in parts]
    assert max(lengths) - min(lengths) <= 2


def test_items_move_about_by_the_buffer() -> None:
    groups = np.array([0, 1000])
    order = whole_order(groups, shuffle=True, seed=0, epoch=0, buffer=50)
    moved = np.abs(order - np.arange(1000))
    assert 10 < moved.mean() < 30 and moved.max() <= 50
    shards = whole_order(np.arange(0, 1001, 10), shuffle=True, seed=0, epoch=0, buffer=1)
    assert (np.diff(shards.reshape(100, 10), axis=1) == 1).all()
    assert not np.array_equal(shards[::10], np.arange(0, 1000, 10))


def test_epochs_reach_workers_that_live_on(data: CacheDataset) -> None:
    stream = TokenCacheStream(data, seed=3, buffer=6)
    batches = loader(stream, 2, persistent_workers=True)
    orders = []
    for epoch in (0, 1, 0):
        stream.set_epoch(epoch)
        orders.append(flat(batches))
    assert orders[0] == orders[2] != orders[1] and sorted(orders[1]) == list(range(COUNT))
    del batches


# Resume.


@pytest.mark.parametrize("stop", [0, 1, 7, COUNT])
def test_resume_in_the_process_that_iterates(data: CacheDataset, stop: int) -> None:
    stream = TokenCacheStream(data, seed=1)
    stream.set_epoch(2)
    whole = numbers(list(stream))
    some: Iterator[Sample] = iter(stream)
    first = [next(some).index for _ in range(stop)]
    state = json.loads(json.dumps(stream.state_dict())) if stop else stream.state_after(0, 1)
    again = TokenCacheStream(data, seed=1)
    again.load_state_dict(state)
    assert again.epoch == 2 and again.state_dict() == state
    assert first + numbers(list(again)) == whole
    assert numbers(list(again)) == whole  # the epoch after begins at its beginning


@pytest.mark.parametrize("workers", [0, 1, 2, 3])
@pytest.mark.parametrize("drop_last", [False, True])
def test_resume_of_a_plain_loader(data: CacheDataset, workers: int, drop_last: bool) -> None:
    def made(state: Any = None) -> tuple[TokenCacheStream, DataLoader[Any]]:
        stream = TokenCacheStream(data, seed=1)
        if state is not None:
            stream.load_state_dict(state)
        return stream, loader(stream, workers, drop_last=drop_last)

    stream, batches = made()
    whole = list(batches)
    for stop in (0, 1, 2, 5, len(whole) - 1, len(whole)):
        state = stream.state_after(stop, 3, workers, drop_last)
        assert list(made(state)[1]) == whole[stop:]


@pytest.mark.filterwarnings("ignore:'set_vital':UserWarning")
@pytest.mark.parametrize("workers", [0, 2])
def test_resume_of_a_stateful_loader(data: CacheDataset, workers: int) -> None:
    stateful = pytest.importorskip(
        "torchdata.stateful_dataloader", reason="torchdata is not installed"
    )

    def made() -> Any:
        stream = TokenCacheStream(data, seed=1)
        return stateful.StatefulDataLoader(
            stream, batch_size=3, num_workers=workers, collate_fn=numbers
        )

    whole = list(made())
    for stop in (1, 4):
        batches = made()
        some = iter(batches)
        first = [next(some) for _ in range(stop)]
        state = batches.state_dict()
        again = made()
        again.load_state_dict(state)
        assert first + list(again) == whole
        del some, batches


def test_taking_turns() -> None:
    assert taken([10, 10], 0, 3) == ([0, 0], 0)
    assert taken([10, 10], 3, 3) == ([6, 3], 1)
    assert taken([3, 10], 4, 3) == ([3, 9], 0)
    assert taken([10, 3], 4, 3) == ([9, 3], 1)
    assert taken([4, 4], 9, 3) == ([4, 4], 0)
    assert taken([4, 4], 9, 3, drop_last=True) == ([3, 3], 0)


def test_states_of_other_runs_are_refused(data: CacheDataset) -> None:
    state = TokenCacheStream(data, seed=1, rank=0, world_size=2).state_dict()
    for options, name in (
        ({"seed": 2, "rank": 0, "world_size": 2}, "seed"),
        ({"seed": 1, "rank": 1, "world_size": 2}, "rank"),
        ({"seed": 1, "rank": 0, "world_size": 3}, "world"),
        ({"seed": 1, "rank": 0, "world_size": 2, "buffer": 9}, "buffer"),
        ({"seed": 1, "rank": 0, "world_size": 2, "shuffle": False}, "shuffle"),
    ):
        with pytest.raises(CacheError, match=f"another {name}"):
            TokenCacheStream(data, **options).load_state_dict(state)  # type: ignore[arg-type]
    stream = TokenCacheStream(data, seed=1, rank=0, world_size=2)
    stream.load_state_dict(state)
    with pytest.raises(CacheError, match="1 workers, here are 2"):
        list(loader(stream, 2))


def test_skipped_items_do_not_tell_batches(data: CacheDataset) -> None:
    stream = TokenCacheStream(data, on_error="skip")
    with pytest.raises(CacheError, match="batches do not tell"):
        stream.state_after(2, 3)


@pytest.mark.parametrize(
    "options", [{"rank": 2, "world_size": 2}, {"rank": -1, "world_size": 1}, {"buffer": 0},
                {"even": "maybe"}, {"world_size": 0, "rank": 0}]
)  # fmt: skip
def test_parts_that_cannot_be(data: CacheDataset, options: Any) -> None:
    with pytest.raises(ValueError, match=r"part|buffer"):
        TokenCacheStream(data, **options)


def test_a_process_group_says_the_rank(data: CacheDataset, tmp_path: Path) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1
    )
    try:
        stream = TokenCacheStream(data)
        assert (stream.rank, stream.world_size) == (0, 1)
    finally:
        torch.distributed.destroy_process_group()
    assert "rank 1 of 3" in repr(TokenCacheStream(data, rank=1, world_size=3))
