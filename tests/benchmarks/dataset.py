"""Reading datasets: a trainer's loader, one item of ten thousand, one picture of an item.

    python tests/benchmarks/dataset.py [--out FILE] [--items 10000] [--rounds 31] [--folder DIR]

Everything is warm: bytes come from the system's cache. *Looked at* means that every byte was also
used once, by both sides. ``--folder`` needs room for the items (1 MB each) and two gigabytes more;
what is written there is removed at the end.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from tokpipe.cache._item import Want, read_rows
from tokpipe.cache.dataset_info import DatasetInfo
from tokpipe.cache.index_table import read_facts
from tokpipe.cache.pack import pack
from tokpipe.cache.shards import ShardWriter
from tokpipe.evaluate.conditions import conditions
from tokpipe.testing.caches import write_features
from tokpipe.torch import PromptDataset, TokenCacheDataset, TrainerCollator, open_dataset

VERSION = 1
END = ".tokpipe.safetensors"
PLACEHOLDER = 63
_BLOCK = 1 << 20


def training_set(folder: Path, count: int = 200) -> Path:
    """A dataset of items of 2,000 tokens of 1152 numbers, 4.8 MB each."""
    caches = folder / "caches"
    caches.mkdir()
    for seed in range(count):
        write_features(caches / f"i{seed:03}{END}", seed=seed, video=2000, width=1152, steps=40)
    pack(caches, folder / "training")
    for path in caches.iterdir():
        path.unlink()
    return folder / "training"


def large_set(folder: Path, count: int, kinds: int = 40) -> Path:
    """A dataset of so many items of 1.07 MB; the contents of 40 repeat, their keys do not."""
    root = folder / "large"
    made = []
    for seed in range(kinds):
        path = write_features(folder / f"k{END}", seed=seed, video=450, width=1152, steps=9)
        made.append((path.read_bytes(), read_facts(path)))
    with ShardWriter(root, durability="fast") as writer:
        for number in range(count):
            data, facts = made[number % kinds]
            writer.append(f"k{number:06}", data, facts)
    DatasetInfo(key="column").write(root)
    return root


def total(data: bytes | memoryview) -> int:
    """Look at every byte once."""
    words = np.frombuffer(data, dtype=np.uint8)[: len(data) // 8 * 8].view(np.int64)
    return int(words.max())


def sequential(shards: list[Path], look: bool) -> None:
    """Read files from front to back, a mebibyte at a time."""
    for shard in shards:
        with shard.open("rb", buffering=0) as file:
            while block := file.read(_BLOCK):
                if look:
                    total(block)


def epoch(loader: DataLoader[Any], look: bool) -> None:
    """Take every batch of a loader, as a Trainer does."""
    for batch in loader:
        for rows in batch["cache_rows"]:
            if look:
                total(look_at(rows))


def measure_loader(root: Path, rounds: int) -> dict[str, Any]:
    """Speed of a Trainer's loader with two workers, in units of reading the same files."""
    shards = sorted((root / "shards").glob("*.tar"))
    size = sum(shard.stat().st_size for shard in shards)
    caches = TokenCacheDataset(root)
    prompts = [{"key": key, "input_ids": [1, PLACEHOLDER, 5, 2]} for key in caches.keys]
    collate = TrainerCollator(placeholder=PLACEHOLDER, pad=0, rows=True)

    def loader(workers: int) -> DataLoader[Any]:
        return DataLoader(
            PromptDataset(prompts, caches), batch_size=8, shuffle=True, num_workers=workers,
            persistent_workers=workers > 0, collate_fn=collate,
        )  # fmt: skip

    loaders = {workers: loader(workers) for workers in (0, 2)}
    ways: dict[str, Callable[[], None]] = {}
    for look, name in ((False, ""), (True, "_looked_at")):
        ways[f"sequential{name}"] = partial(sequential, shards, look)
        for workers, made in loaders.items():
            ways[f"workers_{workers}{name}"] = partial(epoch, made, look)
    for way in ways.values():
        way()
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            began = time.perf_counter()
            way()
            times[name].append(time.perf_counter() - began)
    ratios = {
        name: statistics.median(
            a / b for a, b in zip(times["sequential" + _tail(name)], times[name], strict=True)
        )
        for name in ways
        if not name.startswith("sequential")
    }
    return {
        "items": len(caches), "bytes": size, "rounds": rounds,
        "gb_per_s": {n: round(size / statistics.median(t) / 1e9, 3) for n, t in times.items()},
        "best_gb_per_s": {n: round(size / min(t) / 1e9, 3) for n, t in times.items()},
        "ratio": {name: round(value, 3) for name, value in ratios.items()},
        "best_ratio": {
            name: round(min(times["sequential" + _tail(name)]) / min(times[name]), 3)
            for name in ratios
        },
    }  # fmt: skip


def _tail(name: str) -> str:
    return "_looked_at" if name.endswith("_looked_at") else ""


def measure_access(root: Path, reads: int) -> dict[str, Any]:
    """One item at random, in units of a bare ``pread`` of the bytes of another one."""
    caches = TokenCacheDataset(root)
    data, drawn = caches.data, random.Random(0)
    files = {path: os.open(path, os.O_RDONLY) for path in set(data.shards)}
    places = [data.place(number) for number in range(len(data))]
    for path in files:
        sequential([Path(path)], look=False)

    def bare(number: int) -> None:
        place = places[number]
        os.pread(files[place.path], place.size, place.offset)

    def bare_looked_at(number: int) -> int:
        place = places[number]
        return total(os.pread(files[place.path], place.size, place.offset))

    def item_looked_at(number: int) -> int:
        return total(look_at(caches[number]["video"].tokens))

    ways: dict[str, Callable[[int], object]] = {
        "pread": bare, "item": caches.__getitem__, "pread_looked_at": bare_looked_at,
        "item_looked_at": item_looked_at,
    }  # fmt: skip
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(reads):
        for name, way in ways.items():
            number = drawn.randrange(len(places))
            began = time.perf_counter()
            way(number)
            times[name].append(1e6 * (time.perf_counter() - began))
    for descriptor in files.values():
        os.close(descriptor)
    median = {name: statistics.median(values) for name, values in times.items()}
    return {
        "items": len(places), "item_bytes": places[0].size, "reads": reads,
        "us": {
            name: {"p50": round(median[name], 1), "p90": round(_at(values, 0.9), 1)}
            for name, values in times.items()
        },
        "ratio_p50": round(median["item"] / median["pread"], 3),
        "ratio_p50_looked_at": round(median["item_looked_at"] / median["pread_looked_at"], 3),
    }  # fmt: skip


def _at(values: list[float], share: float) -> float:
    return sorted(values)[int(share * len(values))]


def look_at(rows: torch.Tensor) -> memoryview:
    """The bytes of some features."""
    return rows.view(torch.int16).numpy().data.cast("B")


def measure_slice(root: Path) -> dict[str, Any]:
    """Bytes read for one picture of an item of 2,000 tokens."""
    data = open_dataset(root)
    place, read = data.place(0), []

    def counted(descriptor: int, length: int, offset: int) -> bytes:
        read.append(len(found := os.pread(descriptor, length, offset)))
        return found

    rows = read_rows(place, Want(start=10.0, stop=10.5), counted)["video"].columns["tokens"]
    return {
        "item_bytes": place.size, "item_tokens": int(data.rows("video")[0]),
        "slice_tokens": len(rows), "slice_bytes": rows.nbytes, "read_bytes": sum(read),
        "reads": len(read), "share": round(sum(read) / place.size, 4),
    }  # fmt: skip


def aims_met(found: dict[str, Any]) -> Iterator[str]:
    """What was aimed at, and if it is met."""
    loader, access, part = found["loader"], found["random_access"], found["slice"]
    ratio = loader["ratio"]["workers_2"]
    yield _aim(ratio >= 0.8, f"loader: {ratio} of sequential reading, at least 0.8")
    yield _aim(access["ratio_p50"] <= 2, f"one item: {access['ratio_p50']} preads, at most 2")
    yield _aim(part["share"] < 0.1, f"one picture: {part['share']} of the item, below 0.1")


def _aim(met: bool, text: str) -> str:
    return f"{'met' if met else 'NOT met':8}{text}"


def main() -> None:
    """Measure and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--items", type=int, default=10_000)
    parser.add_argument("--reads", type=int, default=4000)
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--folder", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=asked.folder) as name:
        folder = Path(name)
        training = training_set(folder)
        loader = measure_loader(training, asked.rounds)
        part = measure_slice(training)
        longer = measure_access(training, asked.reads)
        access = measure_access(large_set(folder, asked.items), asked.reads)
    told = conditions()
    told["versions"] = {name: version(name) for name in _NAMED}
    found: dict[str, Any] = {
        "version": VERSION, "conditions": told, "loader": loader, "random_access": access,
        "random_access_long_items": longer, "slice": part,
    }  # fmt: skip
    text = json.dumps(found, indent=1)
    if asked.out is not None:
        asked.out.write_text(text + "\n", encoding="utf-8")
    print(text)
    print("\n".join(aims_met(found)))


_NAMED = ("tokpipe", "torch", "numpy", "transformers", "pyarrow")

if __name__ == "__main__":
    main()
