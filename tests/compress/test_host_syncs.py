"""Rules do not wait for the device once a frame: more frames or blocks, as many transfers.

What a GPU would have to be waited for is counted on any machine: numbers, lists and arrays read
from tensors, and operations whose result's size depends on values.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from tokpipe import registry
from tokpipe.compress import _cluster, _large_cluster, _neighbors
from tokpipe.compress._cluster import density_peaks
from tokpipe.compress._fit import expanded
from tokpipe.compress._neighbors import most_alike, top_neighbors
from tokpipe.testing.suites import ReducerSuite, reducer_names

#: Operations that a CUDA device must finish before the processor goes on.
_WAITING = {
    "aten::_local_scalar_dense", "aten::nonzero", "aten::equal", "aten::masked_select",
    "aten::bincount", "aten::_unique2", "aten::unique_dim", "aten::unique_consecutive",
}  # fmt: skip
_INDEXING = {"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"}

#: Rules whose transfers do not grow with the frames.
FREE = (
    "a-tome-greedy", "a-tome-pairs", "adjacent-merge", "affinity-pooling", "ast-topk",
    "bilinear", "cdpruner", "chat-univi", "dart", "dpc-fixed-ratio", "dpc-knn", "dtd-feature",
    "dtd-pixel", "dymu", "dynamic-vlm", "dyntok", "evtp-ivs", "fastadasp", "folder", "fourier",
    "framefusion", "gprune", "grid-pool", "hermes-eco", "hermes-setr", "holitom", "illava",
    "llava-video", "longvu-frames", "longvu-stc", "matryoshka", "max-min", "metok-events",
    "mustdrop", "omnizip", "pact", "pact-euti", "pool-1d", "pool-2d", "prunevid", "pumer",
    "random", "rlt", "sa-map", "scene-middle", "segmentwise", "silence-gate", "slowfast-llava",
    "speechprune", "stc-pruner", "streamingtom", "sttm", "text-score", "tome", "top-k", "tosa",
    "trim", "uniform", "uniform-tokens", "vidcom2", "video-chatgpt", "visionzip", "vispruner",
)  # fmt: skip
#: Those that grow, and why.
GROWING = {
    "a-tome-scan": "halves the range of a threshold until the count fits",
    "aks": "splits the video in two until a part stands out",
    "bolt": "takes frames until the budget is met",
    "dycoke": "follows dropped tokens to their keepers until none is left",
    "fastvid": "clusters each segment by itself; segments have different sizes",
    "ficoco-v": "each frame keeps its own number of links",
    "floc": "greedy: the next pick depends on the last one's gain",
    "globalcom2": "each frame's tiles are read by themselves",
    "hiprune": "neighbours that fall outside the frame are left out, frame by frame",
    "hired": "each frame's tiles are read by themselves",
    "mob": "each frame proposes its own number of picks",
    "moviechat": "merges until the memory fits",
    "pact-dbdpc": "covers the densest tokens until all are covered",
    "prumerge": "each frame keeps its own number of tokens (outliers)",
    "prunesid": "fills groups until none is short",
    "q-frame": "each chosen frame is pooled on a grid of its own",
    "scissor": "joins components until none changes",
    "showui-graph": "joins components of each frame and bisects its threshold",
    "vilamp": "greedy: a frame hides those like it",
    "vqtoken-kmeans": "goes on until no label changes",
    "vscan": "each frame merges its own rest",
}


class _Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts operations that wait for the device."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func._schema.name
        waits = name in _WAITING
        if name in _INDEXING:
            waits = any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1])
        if name == "aten::repeat_interleave":
            waits = (kwargs or {}).get("output_size") is None
        self.found[name] += waits
        return func(*args, **(kwargs or {}))


class _Calls(TorchFunctionMode):
    """Counts whole tensors read back, which no operation shows on a processor."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        self.found[name] += name in ("tolist", "numpy", "cpu")
        return func(*args, **(kwargs or {}))


def transfers(work: Callable[[], object]) -> Counter[str]:
    """How often the device is waited for, by what."""
    with torch.no_grad(), _Calls() as calls, _Operations() as operations:
        work()
    both: Counter[str] = calls.found + operations.found
    return both


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def of_rule(name: str, frames: int, budget: int | None) -> Counter[str]:
    """Transfers of one decision on so many frames of 20 tokens."""
    suite = ReducerSuite()
    operator: Any = suite.make(name)
    tokens, query = suite.tokens(operator, frames=frames), suite.query(operator)
    return transfers(lambda: expanded(operator.decide(tokens, budget, query)))


def test_transfers_are_seen() -> None:
    values, rows = draw(6), torch.tensor([1, 2])
    works: tuple[Callable[[], object], ...] = (
        values[0].item, lambda: bool((values > 0).any()), lambda: float(values.sum()),
        lambda: int(rows.max()), values.tolist, values.numpy, lambda: values[values > 0],
        lambda: torch.nonzero(values), lambda: torch.equal(values, values),
        lambda: torch.repeat_interleave(values[:2], rows), lambda: torch.bincount(rows),
        lambda: torch.unique(rows), lambda: [v for v in values if v > 9],
    )  # fmt: skip
    assert all(transfers(work) for work in works)
    quiet = transfers(lambda: torch.where(values > 0, values, 0.0).index_select(0, rows).topk(1))
    assert not quiet


@pytest.mark.parametrize("budget", [None, 5])
@pytest.mark.parametrize("name", FREE)
def test_transfers_do_not_grow_with_frames(name: str, budget: int | None) -> None:
    few, many = (of_rule(name, t, None if budget is None else budget * t) for t in (6, 18))
    assert sum(many.values()) <= sum(few.values()), many - few


def test_every_rule_is_listed() -> None:
    listed = [*FREE, *GROWING]
    assert len(set(listed)) == len(listed)
    assert set(listed) == set(reducer_names())
    assert all(registry.lookup(name).kind == "reducer" for name in listed)


def test_exact_density_peaks_wait_for_no_tile(monkeypatch: pytest.MonkeyPatch) -> None:
    data = draw(300, 40)
    monkeypatch.setattr(_cluster, "BLOCK", 600)
    for side in (150, 16):
        monkeypatch.setattr(_large_cluster, "_SIDE", side)
        assert not transfers(lambda: density_peaks(data, 9, 5))


def test_neighbours_wait_for_no_block(monkeypatch: pytest.MonkeyPatch) -> None:
    data, some = draw(300, 40), torch.arange(0, 300, 3)
    for block in (1 << 20, 600):
        monkeypatch.setattr(_neighbors, "BLOCK", block)
        assert not transfers(lambda: most_alike(data, some, some))
        assert not transfers(lambda: top_neighbors(data, data, 4, exclude_self=True))
        assert not transfers(lambda: top_neighbors(data, data, 4, metric="euclidean"))
