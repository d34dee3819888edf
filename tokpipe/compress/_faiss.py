"""Nearest neighbours by a flat faiss index: on the GPU where the rows are there, else on the CPU.

The one file that imports faiss. Letters: N queries, M keys, D width, k neighbours.
"""

from __future__ import annotations

import importlib
import warnings
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from tokpipe.compress._neighbors import (
    BLOCK,
    Metric,
    by_distance,
    centre_of,
    check_neighbors,
    in_order,
    ready_rows,
)
from tokpipe.errors import MissingExtra

#: Scratch memory of a GPU search in bytes; faiss takes more by itself.
_SCRATCH = 256 << 20
#: Most neighbours a GPU index gives.
MOST_ON_GPU = 2048


def usable(device: torch.device) -> bool:
    """Whether faiss is installed and works on rows of this device, without importing it."""
    if device.type not in ("cpu", "cuda") or find_spec("faiss") is None:
        return False
    return device.type == "cpu" or _on_gpu(device)


@cache
def _faiss() -> Any:
    """The module.

    Raises:
        MissingExtra: It is not installed.
    """
    with warnings.catch_warnings():
        # Its SWIG types have no __module__; newer Pythons say so on import.
        warnings.filterwarnings("ignore", message=".*[Ss]wig.*", category=DeprecationWarning)
        try:
            return importlib.import_module("faiss")
        except ImportError as error:
            raise MissingExtra(
                "nearest neighbours by faiss need the package `faiss`",
                hint="pip install 'tokpipe[faiss]', or take the backend torch",
            ) from error


def _on_gpu(device: torch.device) -> bool:
    faiss = _faiss()
    return hasattr(faiss, "StandardGpuResources") and faiss.get_num_gpus() > (device.index or 0)


@cache
def _resources(device: int) -> Any:
    """Scratch memory and streams of one GPU, kept: making them takes longer than a search."""
    del device
    importlib.import_module("faiss.contrib.torch_utils")
    found = _faiss().StandardGpuResources()
    found.setTempMemory(_SCRATCH)
    return found


def faiss_neighbors(
    queries: Tensor, keys: Tensor, k: int, *, metric: Metric = "cosine", exclude_self: bool = False
) -> tuple[Tensor, Tensor]:
    """What ``_neighbors.top_neighbors`` finds, by a flat index over a float32 copy of the keys.

    Of equal values at the k-th place any may be taken; equal values that are taken come by rising
    index. On a CUDA device without a faiss that knows it, the search runs on the CPU.

    Args:
        queries: float [N, D], finite.
        keys: float [M, D], finite, on the same device.
        k: Neighbours of each query, 1 .. M (M - 1 with ``exclude_self``); at most 2048 on a GPU.
        metric: ``cosine``, ``dot`` or ``euclidean``.
        exclude_self: Query i is key i, and is not its own neighbour.

    Returns:
        (values float32 [N, k], index int64 [N, k]) on the device of the queries, nearest first.

    Raises:
        MissingExtra: faiss is not installed.
        ValueError: As ``top_neighbors``, or k is above what a GPU index gives.
    """
    check_neighbors(queries, keys, k, metric, exclude_self)
    faiss, device = _faiss(), queries.device
    on_gpu = device.type == "cuda" and _on_gpu(device)
    most = k + exclude_self
    if on_gpu and most > MOST_ON_GPU:
        raise ValueError(f"k: a GPU index gives at most {MOST_ON_GPU} neighbours, got {most}")
    centre = centre_of(keys) if metric == "euclidean" else None
    index = _index(faiss, keys, metric, centre, on_gpu)
    value = torch.empty((len(queries), k), device=device)
    where = torch.empty((len(queries), k), dtype=torch.int64, device=device)
    step = max(1, BLOCK // 4 // max(1, queries.shape[1], most))
    for a in range(0, len(queries), step):
        left = ready_rows(queries[a : a + step], metric, centre)
        near, found = _search(index, left, most, on_gpu)
        if exclude_self:
            near, found = _without_self(near.to(device), found.to(device), a)
        value[a : a + step], where[a : a + step] = near, found
    if metric == "euclidean":
        return by_distance(queries, keys, where)
    return in_order(value, where)


def _index(faiss: Any, keys: Tensor, metric: Metric, centre: Tensor | None, on_gpu: bool) -> Any:
    """A flat index that holds the keys, added block by block."""
    width = keys.shape[1]
    flat = "FlatL2" if metric == "euclidean" else "FlatIP"
    if on_gpu:
        config = faiss.GpuIndexFlatConfig()
        config.device = keys.device.index or 0
        index = getattr(faiss, f"GpuIndex{flat}")(_resources(config.device), width, config)
    else:
        index = getattr(faiss, f"Index{flat}")(width)
    step = max(1, BLOCK // max(1, width))
    for a in range(0, len(keys), step):
        rows = ready_rows(keys[a : a + step], metric, centre).contiguous()
        index.add(rows if on_gpu else rows.cpu().numpy())
    return index


def _search(index: Any, left: Tensor, k: int, on_gpu: bool) -> tuple[Tensor, Tensor]:
    if on_gpu:
        near, found = index.search(left.contiguous(), k)
        return near, found
    near, found = index.search(left.contiguous().cpu().numpy(), k)
    return torch.from_numpy(near), torch.from_numpy(found)


def _without_self(near: Tensor, found: Tensor, a: int) -> tuple[Tensor, Tensor]:
    """Drop row i from the neighbours [R, k + 1] of query i, else the last of them."""
    own = found == torch.arange(a, a + found.shape[0], device=found.device)[:, None]
    order = torch.argsort(own.byte(), dim=1, stable=True)[:, :-1]
    return near.gather(1, order), found.gather(1, order)
