"""Parity with the results of the methods' released code (goldens: inputs and outputs only)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tokpipe.compress.similarity.dpc_knn import DpcKnn
from tokpipe.compress.similarity.max_min import MaxMin
from tokpipe.compress.similarity.tome import ToMe
from tokpipe.compress.transformation.grid_pool import GridPool
from tokpipe.tensors import GridMap, TokenBatch, TokenMap

_TESTS = Path(__file__).parents[1]
_SHARED = os.environ.get("TOKPIPE_TEST_GOLDENS", str(_TESTS.parents[1] / "shared" / "goldens"))


class Golden:
    """One stored case; ``in_x`` etc. by name."""

    def __init__(self, name: str) -> None:
        """Load from the repository, else from the shared folder, else skip."""
        paths = [_TESTS / "golden" / name, Path(_SHARED) / name]
        path = next((p for p in paths if p.exists()), None)
        if path is None:
            pytest.skip(f"golden {name} is not here; set TOKPIPE_TEST_GOLDENS")
        self.arrays: dict[str, Any] = dict(np.load(path))

    def __call__(self, name: str) -> Tensor:
        """An array as a tensor."""
        return torch.from_numpy(self.arrays[name])

    def value(self, name: str, default: float = 0) -> Any:
        """A scalar parameter."""
        return self.arrays[name].item() if name in self.arrays else default


def batch(data: Tensor) -> TokenBatch:
    return TokenBatch.build(data, torch.zeros(len(data)).double())


def group_of(decision: TokenMap) -> list[int]:
    group = torch.full((decision.num_sources,), -1, dtype=torch.int64)
    group[decision.src] = decision.dst
    return group.tolist()


@pytest.mark.parametrize(
    "case", ["cls", "cls_distill", "kth4", "odd_N_rmax", "plain", "sizes"]
)  # fmt: skip
def test_tome_equals_released_code(case: str) -> None:
    golden = Golden(f"image/tome__{case}.npz")
    rule = ToMe(
        every=golden.value("par_k", 2),
        class_token=bool(golden.value("par_class_token")),
        distill_token=bool(golden.value("par_distill_token")),
    )
    expected = golden("out_x")
    for item in range(expected.shape[0]):
        tokens = batch(golden("in_x")[item]).with_extras(keys=golden("in_metric")[item])
        if "in_size" in golden.arrays:
            tokens = tokens.with_columns(mass=golden("in_size")[item, :, 0])
        decision = rule.decide(tokens, expected.shape[1])
        reduced = tokens.reduce(decision)
        torch.testing.assert_close(reduced.data, expected[item], rtol=2e-4, atol=2e-4)
        if "out_group" in golden.arrays:
            assert group_of(decision) == golden("out_group")[item].tolist()
            torch.testing.assert_close(reduced.mass, golden("out_size")[item, :, 0])


@pytest.mark.parametrize("case", ["cls", "odd_N_rmax", "plain", "sizes"])
def test_tome_unmerge_equals_released_code(case: str) -> None:
    """Not for the distillation case: there the released unmerge forgets its own output order."""
    golden = Golden(f"image/tome__{case}.npz")
    tokens = batch(golden("in_x")[0]).with_extras(keys=golden("in_metric")[0])
    if "in_size" in golden.arrays:
        tokens = tokens.with_columns(mass=golden("in_size")[0, :, 0])
    rule = ToMe(class_token=bool(golden.value("par_class_token")))
    decision = rule.decide(tokens, golden("out_x").shape[1])
    back = decision.unmerge(tokens.reduce(decision).data)
    torch.testing.assert_close(back, golden("out_unmerged")[0], rtol=2e-4, atol=2e-4)


def test_tome_schedule_composes() -> None:
    golden = Golden("image/tome__schedule6.npz")
    source = tokens = batch(golden("in_x")[0])
    total = TokenMap.identity(len(tokens))
    for r in golden("par_r_list").tolist():
        decision = ToMe(r=r).decide(tokens, None)
        tokens, total = tokens.reduce(decision), total.then(decision)
    for data in (tokens.data, source.reduce(total).data):
        torch.testing.assert_close(data, golden("out_x")[0], rtol=2e-4, atol=2e-4)
    assert group_of(total) == golden("out_group")[0].tolist()
    torch.testing.assert_close(tokens.mass, golden("out_size")[0, :, 0])


@pytest.mark.parametrize("case", ["256_c64_k5", "81_c3_k3"])
def test_dpc_knn_equals_released_code(case: str) -> None:
    golden = Golden(f"image/dpc_knn__{case}.npz")
    tokens = batch(golden("in_x")[0])
    decision = DpcKnn(k=golden.value("par_k")).decide(tokens, golden.value("par_clusters"))
    assert group_of(decision) == golden("out_cluster")[0].tolist()
    reduced = tokens.reduce(decision).data
    torch.testing.assert_close(reduced, golden("out_tokens")[0], rtol=1e-3, atol=1e-3)


def test_dpc_knn_recycles_like_sparsevlm() -> None:
    golden = Golden("image/sparsevlm_recycle__60_to_7.npz")
    tokens = batch(golden("in_x")[0])
    reduced = tokens.reduce(DpcKnn(k=7).decide(tokens, 7)).data
    torch.testing.assert_close(reduced, golden("out_tokens")[0], rtol=1e-3, atol=1e-3)


def test_dpc_knn_labels_frames_and_events_like_chat_univi() -> None:
    golden = Golden("video/chatunivi__t24_n49.npz")
    frames = golden("x")
    for frame, expected in zip(frames, golden("dpc_label_stage0").tolist(), strict=True):
        assert group_of(DpcKnn().decide(batch(frame), 20)) == expected
    events = DpcKnn().decide(batch(frames.mean(1)), 6)
    assert group_of(events) == golden("event_label_per_frame").tolist()


@pytest.mark.parametrize("case", ["576_ratio0.098", "81_one"])
def test_max_min_picks_in_the_released_order(case: str) -> None:
    golden = Golden(f"image/divprune__{case}.npz")
    decision = MaxMin(ratio=golden.value("par_ratio")).decide(batch(golden("in_x")), None)
    assert decision.anchor.tolist() == golden("out_order").tolist()
    assert decision.score is not None
    if len(decision) > 1:
        assert float(decision.score[-1]) == pytest.approx(golden.value("out_min_dist"), abs=2e-4)


def pooled(data: Tensor, sizes: tuple[int, int, int], rule: GridPool) -> Tensor:
    """Data [T * H * W, D] in raster order reduced by ``rule``."""
    t, y, x = (m.flatten() for m in torch.meshgrid(*map(torch.arange, sizes), indexing="ij"))
    cell = torch.stack([t, y, x], 1).int()
    tokens = TokenBatch.build(data, t.double(), cell=cell)
    return tokens.reduce(rule.decide(tokens, None)).data


@pytest.mark.parametrize(
    "name", ["adaptive_avg_pool__mobilevlm_deco_honeybee", "matryoshka__24x24"]
)
def test_grid_pool_equals_adaptive_average(name: str) -> None:
    golden = Golden(f"image/{name}.npz")
    outputs = [key for key in golden.arrays if key.startswith("out_")]
    assert outputs
    for key in outputs:
        expected = golden(key).reshape(-1, golden(key).shape[-1])
        side = round(len(expected) ** 0.5)
        source = golden(key.replace("out", "in").partition("_to_")[0] if "_to_" in key else "in_x")
        size = round(source.shape[1] ** 0.5)
        made = pooled(source[0], (1, size, size), GridPool(rows=side, cols=side))
        torch.testing.assert_close(made, expected, rtol=2e-4, atol=2e-4)


def test_grid_map_equals_adaptive_average_in_time() -> None:
    golden = Golden("video/pllava__adaptive3d.npz")
    data = golden("x").reshape(-1, 12)
    for t, y, x in ((4, 3, 3), (8, 4, 5)):
        axes = (GridMap.average(10, t), GridMap.average(6, y), GridMap.average(6, x))
        made = GridMap(t=axes[0], y=axes[1], x=axes[2]).apply(data)
        torch.testing.assert_close(made, golden(f"out_{t}_{y}_{x}"), rtol=2e-4, atol=2e-4)
