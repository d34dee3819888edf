"""Speed of clustering and searching many tokens on a device; the parts of ``gpu.py`` without media.

Run through ``gpu.py``. Also here: what its parts share, and how time, memory and idling are taken.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tokpipe.compress._faiss import _faiss, _index, _search, usable
from tokpipe.compress._neighbors import blocks, find_neighbors, top_neighbors
from tokpipe.device import decode_threads, inference
from tokpipe.recipe import build
from tokpipe.spec import StepSpec
from tokpipe.testing.golden import frame_tokens


@dataclass
class Setting:
    """What all parts share."""

    device: torch.device
    options: argparse.Namespace
    sizes: dict[str, Any]
    file: Path
    ceiling: dict[str, float] = field(default_factory=dict)

    @property
    def workers(self) -> int:
        """Decoders side by side."""
        return self.options.workers or decode_threads(torch.device("cuda"))


def wait(device: torch.device) -> None:
    """Let the device finish."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(work: Callable[[], Any], device: torch.device, repeat: int) -> float:
    """Median seconds of a call, the first not counted."""
    work()
    taken = []
    for _ in range(repeat):
        wait(device)
        began = time.perf_counter()
        work()
        wait(device)
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)


def memory_beyond(work: Callable[[], Any], device: torch.device) -> float | None:
    """MB the device holds at most during a call beyond what it held before; None off a GPU."""
    if device.type != "cuda":
        work()
        return None
    wait(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    work()
    wait(device)
    return (torch.cuda.max_memory_allocated(device) - before) / 2**20


def busy_share(work: Callable[[], Any], device: torch.device) -> float:
    """Share of a call's wall time in which at least one kernel runs (operators on the CPU)."""
    from torch.autograd.profiler_util import DeviceType  # type: ignore[attr-defined]
    from torch.profiler import ProfilerActivity, profile

    gpu = device.type == "cuda"
    kind = ProfilerActivity.CUDA if gpu else ProfilerActivity.CPU
    with profile(activities=[kind]) as watched:
        wait(device)
        began = time.perf_counter()
        work()
        wait(device)
        wall = time.perf_counter() - began
    wanted = DeviceType.CUDA if gpu else DeviceType.CPU
    events: list[Any] = list(watched.events() or [])
    spans = sorted(
        (e.time_range.start, e.time_range.end) for e in events if e.device_type == wanted
    )
    total, end = 0.0, 0.0
    for start, stop in spans:
        total += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return min(1.0, total / 1e6 / wall)


def rows(count: int, width: int, device: torch.device, seed: int = 0) -> Tensor:
    """Features float32 [N, D] of things seen often, with noise."""
    draw = torch.Generator(device).manual_seed(seed)
    kinds = torch.randn(max(16, count // 64), width, generator=draw, device=device)
    which = torch.randint(len(kinds), (count,), generator=draw, device=device)
    noise = torch.randn(count, width, generator=draw, device=device)
    return kinds[which].add_(noise, alpha=0.3)


def merge(setting: Setting) -> dict[str, Any]:
    """Temporal merge, then clusters of each frame: decided and applied."""
    cells, device = setting.sizes["cells"], setting.device
    steps = setting.sizes["rows"] // cells
    data = rows(steps * cells, setting.sizes["width"], torch.device("cpu"))
    tokens = frame_tokens(data.reshape(steps, cells, -1)).to(device)
    first: Any = build(StepSpec(use="dycoke", params={}))
    second: Any = build(StepSpec(use="dpc-knn", params={"scope": "frame"}))
    middle = tokens.reduce(first.decide(tokens, len(tokens) // 2))

    def work() -> None:
        once = tokens.reduce(first.decide(tokens, len(tokens) // 2))
        once.reduce(second.decide(once, len(tokens) // 8))

    seconds = timed(work, device, setting.sizes["repeat"])
    return {"seconds": seconds, "target": "<= 0.050", "tokens": len(tokens),
            "after_merge": len(middle), "memory_mb": memory_beyond(work, device)}  # fmt: skip


def product_pass(data: Tensor) -> None:
    """One blocked product of all rows with all rows, thrown away."""
    parts = list(blocks(len(data), len(data)))
    buffer = torch.empty(parts[0][1] - parts[0][0], len(data), device=data.device)
    for a, b in parts:
        torch.mm(data[a:b], data.T, out=buffer[: b - a])


def cluster(setting: Setting) -> dict[str, Any]:
    """Exact DPC-KNN over one cloud, in TF32 on a GPU."""
    device, out = setting.device, dict[str, Any]()
    operator: Any = build(StepSpec(use="dpc-knn", params={"scope": "video"}))
    for name, count in (("cloud", setting.sizes["cloud"]), ("all", setting.sizes["rows"])):
        data = rows(count, setting.sizes["width"], device)
        tokens = frame_tokens(data.cpu()[None]).to(device)

        def work(tokens: Any = tokens) -> None:
            with inference(tf32=True):
                operator.decide(tokens, len(tokens) // 16)

        def passes(data: Tensor = data) -> None:
            with inference(tf32=True):
                product_pass(data)
                product_pass(data)

        seconds = timed(work, device, setting.sizes["repeat"])
        alone = timed(passes, device, setting.sizes["repeat"])
        target = "<= 0.150 s" if name == "cloud" else "<= 3 x passes, <= 1024 MB"
        out[name] = {"tokens": count, "seconds": seconds, "two_passes": alone,
                     "ratio": seconds / alone, "memory_mb": memory_beyond(work, device),
                     "target": target}  # fmt: skip
    return out


def neighbours(setting: Setting) -> dict[str, Any]:
    """Exact nearest keys by torch and by a flat faiss index on the same device."""
    device, k, repeat = setting.device, 16, setting.sizes["repeat"]
    keys = rows(setting.sizes["rows"], setting.sizes["width"], device)
    asked = rows(setting.sizes["queries"], setting.sizes["width"], device, 1)
    ours = timed(lambda: top_neighbors(asked, keys, k, metric="dot"), device, repeat)
    out: dict[str, Any] = {"seconds": ours, "target": "<= 1.2 x faiss", "k": k,
                           "queries": len(asked), "keys": len(keys)}  # fmt: skip
    if not usable(device):
        return out | {"error": "no faiss for this device"}
    gpu = device.type == "cuda"
    index = _index(_faiss(), keys, "dot", None, gpu)
    search = timed(lambda: _search(index, asked, k, gpu), device, repeat)
    # With the index made each time, as a call that keeps nothing does.
    auto = timed(lambda: find_neighbors(asked, keys, k, metric="dot"), device, repeat)
    return out | {"faiss": search, "ratio": ours / search, "auto": auto}


PARTS = {"merge": merge, "cluster": cluster, "neighbours": neighbours}
