"""One way in for readers: a cache file, or a dataset of them."""

from __future__ import annotations

import os
from pathlib import Path

from tokpipe.cache.dataset import CacheDataset, open_dataset
from tokpipe.cache.reader import TokenCache, open_cache


def load(path: str | os.PathLike[str]) -> TokenCache | CacheDataset:
    """Open a token cache, or a dataset of caches.

    Args:
        path: A cache file; a packed dataset; or a folder with caches at any depth.

    Returns:
        The open cache; or the dataset, whose ``open(number or key)`` gives an open cache.

    Raises:
        CacheError: There is nothing to read, or it breaks the format.
    """
    return open_dataset(path) if Path(path).is_dir() else open_cache(path)
