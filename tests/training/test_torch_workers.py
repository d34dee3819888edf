"""``tokpipe.torch`` in loaders: workers, handing features over, and the collators."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from tokpipe.cache._mapping import Buffers, Rows
from tokpipe.errors import CacheCorrupt, CacheError
from tokpipe.testing.caches import write_features
from tokpipe.torch import (
    PackCollator,
    PadCollator,
    PromptDataset,
    Sample,
    TokenCacheDataset,
    TrainerCollator,
)

END = ".tokpipe.safetensors"
COUNT = 20
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")


def index_of(sample: Sample) -> int:
    """For workers: functions must be importable where they are spawned."""
    return sample.index


# Workers.


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_workers_read_what_the_parent_reads(data: Path, context: str) -> None:
    found = TokenCacheDataset(data)
    expected = [found[n] for n in range(COUNT)]  # files are open before workers start
    loader = DataLoader(found, batch_size=4, num_workers=2, collate_fn=list,
                        multiprocessing_context=context)  # fmt: skip
    got = [sample for batch in loader for sample in batch]
    assert [s.key for s in got] == found.keys
    for one, two in zip(got, expected, strict=True):
        assert all(torch.equal(one[s].tokens, two[s].tokens) for s in two.streams)


def test_pickles_hold_no_files(data: Path) -> None:
    found = TokenCacheDataset(data, budget=7)
    first = found[0]
    copy: TokenCacheDataset = pickle.loads(pickle.dumps(found))
    assert torch.equal(copy[0]["video"].tokens, first["video"].tokens)


class Noisy(PromptDataset):
    """Changes features on their way, where torch does not see it."""

    def __getitems__(self, numbers: Any) -> list[dict[str, Any]]:
        found = super().__getitems__(numbers)
        for prompt in found:
            prompt["sample"]["video"].tokens.numpy()[:] = 7
        return found


class Doubling(TrainerCollator):
    """Changes features in place."""

    def __call__(self, prompts: Any) -> dict[str, Any]:
        for prompt in prompts:
            prompt["sample"]["video"].tokens.mul_(2)
        return super().__call__(prompts)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("change", ["none", "numpy", "torch", "dtype", "budget"])
def test_rows_come_as_they_were_in_the_worker(data: Path, workers: int, change: str) -> None:
    """Bytes stay where they lie only if nothing was done to them."""
    options: dict[str, Any] = {"dtype": {"dtype": torch.float32}, "budget": {"budget": 9}}
    caches = TokenCacheDataset(data, **options.get(change, {}))
    kind = Noisy if change == "numpy" else PromptDataset
    prompts = kind([{"key": key, "input_ids": [1, 9, 2]} for key in caches.keys], caches)
    made = Doubling if change == "torch" else TrainerCollator
    collate = made(placeholder=9, pad=0, stream="video", rows=True)
    loader = DataLoader(prompts, batch_size=3, num_workers=workers, collate_fn=collate)
    for _ in range(2):
        rows = [row for batch in loader for row in batch["cache_rows"]]
        for number, row in enumerate(rows):
            expected = caches[number]["video"].tokens
            if change == "numpy":
                expected = torch.full_like(expected, 7)
            assert torch.equal(row, expected * 2 if change == "torch" else expected)
            row.zero_()  # belongs to this process alone


def test_what_is_done_to_ids_in_a_worker_arrives(data: Path) -> None:
    caches = TokenCacheDataset(data)
    prompts = PromptDataset([{"key": k, "input_ids": [1, 9, 2]} for k in caches.keys], caches)
    plain = TrainerCollator(placeholder=9, pad=0, stream="video", rows=True)
    for collate, change in ((plain, 0), (Marking(plain, True), 1), (Marking(plain, False), 1)):
        batch = next(iter(DataLoader(prompts, 4, num_workers=1, collate_fn=collate)))
        expected = plain([prompts[n] for n in range(4)])
        assert type(batch) is dict and set(expected) <= set(batch)
        assert torch.equal(batch["input_ids"], expected["input_ids"] + change)
        assert torch.equal(batch["labels"], expected["labels"])
        assert batch.get("more") == ("kept" if change else None)


class Marking:
    """A collator around another one, that changes ids in place or not."""

    def __init__(self, inner: TrainerCollator, in_place: bool) -> None:
        self.inner, self.in_place = inner, in_place

    def __call__(self, prompts: Any) -> dict[str, Any]:
        batch = self.inner(prompts)
        if self.in_place:
            batch["input_ids"] += 1
        else:
            batch["input_ids"] = batch["input_ids"] + 1
        batch["more"] = "kept"
        return batch


def test_memory_is_used_again_only_when_nothing_refers_to_it() -> None:
    buffers = Buffers()
    kept, places = [], set()
    for number in range(300):
        tensor = buffers.take(1000 + number % 7)
        tensor.fill_(number % 251)
        places.add(tensor.data_ptr())
        if number % 5 == 0:
            # A part, as numbers of another kind, in numpy: each keeps the memory.
            kept.append((number % 251, tensor[64:128].view(torch.int32)[3:].numpy()[::2]))
        del tensor
    assert len(places) <= 70
    for value, array in kept:
        assert (array.copy().view(np.uint8) == value).all()
    assert len(buffers.take(10_000_000)) == 10_000_000 and len(buffers.take(0)) == 0


def test_samples_outlive_later_reads(data: Path) -> None:
    found = TokenCacheDataset(data)
    kept = [found[n]["video"].tokens[2:4] for n in range(COUNT)]
    for _ in range(3):
        for number in range(COUNT):
            found[number]
    assert all(torch.equal(part, found[n]["video"].tokens[2:4]) for n, part in enumerate(kept))


def test_rows_of_a_file_that_is_gone_are_an_error(tmp_path: Path) -> None:
    path = write_features(tmp_path / f"a{END}")
    source = TokenCacheDataset(path)[0]["video"].source
    assert source is not None
    sent = pickle.dumps(Rows([torch.zeros(1)], [source]))
    path.write_bytes(path.read_bytes()[:4096])
    with pytest.raises(CacheCorrupt, match="became shorter"):
        pickle.loads(sent)
    moved = write_features(tmp_path / f"b{END}")
    source = source._replace(path=str(moved))
    sent = pickle.dumps(Rows([torch.zeros(1)], [source]))
    moved.unlink()
    with pytest.raises(CacheError, match="cannot open"):
        pickle.loads(sent)


def test_features_that_lie_askew_are_copied(caches: Path, tmp_path: Path) -> None:
    """Another program may save a cache without alignment."""
    path = caches / f"c01{END}"
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + length].rstrip() + b" "
    header += b" " * (1 - len(header) % 2)
    other = tmp_path / f"c01{END}"
    other.write_bytes(len(header).to_bytes(8, "little") + header + data[8 + length :])
    one, two = TokenCacheDataset(path)[0], TokenCacheDataset(other)[0]
    for stream in ("video", "audio"):
        assert torch.equal(one[stream].tokens, two[stream].tokens)
        assert torch.equal(one[stream].at, two[stream].at)


def test_transforms_make_the_item(data: Path) -> None:
    found = TokenCacheDataset(data, transform=index_of)
    assert [found[n] for n in range(3)] == [0, 1, 2] == found.__getitems__([0, 1, 2])


# Batches.


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("workers", [0, 1])
def test_padded_batches(data: Path, side: Any, workers: int) -> None:
    found = TokenCacheDataset(data)
    collate = PadCollator(side=side, multiple=8)
    loader = DataLoader(found, batch_size=6, num_workers=workers, collate_fn=collate)
    batch = next(iter(loader))
    assert batch["keys"] == found.keys[:6] and batch["index"].tolist() == list(range(6))
    for stream, room in (("video", 48), ("audio", 16)):
        assert batch[f"{stream}.tokens"].shape[:2] == (6, room)
        for number in range(6):
            rows = found[number].streams.get(stream)
            count = 0 if rows is None else len(rows)
            mask = batch[f"{stream}.mask"][number]
            assert int(batch[f"{stream}.length"][number]) == count == int(mask.sum())
            assert bool(mask[:count].all() if side == "right" else mask[room - count :].all())
            if rows is not None:
                assert torch.equal(batch[f"{stream}.tokens"][number][mask], rows.tokens)
                assert torch.equal(batch[f"{stream}.at"][number][mask], rows.at)
            assert not batch[f"{stream}.tokens"][number][~mask].any()


def test_packed_batches(data: Path) -> None:
    found = TokenCacheDataset(data)
    batch = PackCollator()([found[n] for n in range(5)])
    for stream in ("video", "audio"):
        edges = batch[f"{stream}.cu_seqlens"]
        assert edges.dtype == torch.int32 and len(edges) == 6 and edges[0] == 0
        assert batch[f"{stream}.max_seqlen"] == int(edges.diff().max())
        for number in range(5):
            part = batch[f"{stream}.tokens"][edges[number] : edges[number + 1]]
            rows = found[number].streams.get(stream)
            assert torch.equal(part, rows.tokens) if rows is not None else len(part) == 0


def test_batches_of_unlike_items_are_refused(caches: Path, tmp_path: Path) -> None:
    other = TokenCacheDataset(write_features(tmp_path / f"a{END}", width=16))
    for collate in (PadCollator(), PackCollator()):
        with pytest.raises(CacheError, match="`tokens` of one batch is"):
            collate([TokenCacheDataset(caches)[0], other[0]])
        with pytest.raises(CacheError, match="nothing in the batch"):
            collate([None])
        with pytest.raises(CacheError, match="instead of samples"):
            collate([3])  # type: ignore[list-item]
    with pytest.raises(CacheError, match="cannot pad"):
        PadCollator(side="middle")  # type: ignore[arg-type]
