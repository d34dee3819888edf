"""Twenty small caches of several lengths, half of them with sound; loose, and packed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tokpipe.cache.pack import pack
from tokpipe.testing.caches import write_features

END = ".tokpipe.safetensors"
COUNT = 20


@pytest.fixture(scope="module")
def caches(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("caches")
    for seed in range(COUNT):
        write_features(
            folder / f"c{seed:02}{END}", seed=seed, video=24 + 12 * (seed % 3),
            audio=12 if seed % 2 else 0,
        )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def packed(caches: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("packed") / "ds"
    assert pack(caches, root, key="name", shard_size=60_000).shards > 2
    return root


@pytest.fixture(params=["loose", "packed"])
def data(request: pytest.FixtureRequest, caches: Path, packed: Path) -> Path:
    return caches if request.param == "loose" else packed
