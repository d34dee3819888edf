"""Adapters of graph merging and memory banks."""

from __future__ import annotations

import torch

from tokpipe.compress._components import group_means
from tokpipe.compress._quadtree import levels
from tokpipe.compress.similarity.hermes_eco import HermesEco
from tokpipe.compress.similarity.moviechat import MovieChat
from tokpipe.compress.similarity.scissor import Scissor
from tokpipe.compress.similarity.sttm import Sttm
from tokpipe.tensors import TokenBatch, TokenMap
from tokpipe.testing.golden import Adapter, Case, assert_index, assert_values, frame_tokens


def scissor(case: Case) -> None:
    x = case("x")
    operator, tokens = Scissor(threshold=case.meta["tau"]), frame_tokens(x)
    first = operator.within_frames(tokens)
    assert_index(torch.bincount(first.root // x.shape[1], minlength=len(x)),
                 case("stage1_counts_exact"))  # fmt: skip
    means = group_means(tokens.data, first.group, len(first.root))
    assert_values(means, case("stage1_exact"), rtol=1e-4)
    assert_values(tokens.reduce(operator.decide(tokens, None)).data, case("out_exact"), rtol=1e-4)


def boxes(nodes: TokenMap, tokens: TokenBatch) -> torch.Tensor:
    """(t, y0, x0, y1, x1) int64 [K] of rows that each stand for a box of one frame."""
    cell, rows = tokens.cell[nodes.src].long(), len(nodes)
    low = torch.full((rows, 3), 1 << 40).scatter_reduce(
        0, nodes.dst[:, None].expand(-1, 3), cell, "amin"
    )
    high = torch.zeros(rows, 3, dtype=torch.int64).scatter_reduce(
        0, nodes.dst[:, None].expand(-1, 3), cell + 1, "amax"
    )
    return torch.cat([low, high[:, 1:]], 1)


def sttm(case: Case) -> None:
    meta = case.meta
    tokens = frame_tokens(case("x"), (meta["h"], meta["w"]))
    limit = meta["temporal_thresh"]
    count = len(levels(meta["h"], meta["w"]))
    common = {
        "threshold": meta["threshold"], "weighted": meta.get("weighted_avg", False),
        "root": meta["root_level"] % count, "compat": "released",
    }  # fmt: skip
    spatial = Sttm(temporal=None, **common).decide(tokens, None)
    whole = Sttm(temporal=None if limit < 0 else limit, **common).decide(tokens, None)
    patches = torch.bincount(whole.dst, minlength=len(whole))
    box = boxes(spatial, tokens)
    node = {int(a): k for k, a in enumerate(spatial.anchor)}
    if "spatial_tyxyx" not in case:
        # Identical frames: which of the equal nodes leads is open, how many there are is not.
        assert_index(patches, case("num_patches"))
        return
    assert_index(box, case("spatial_tyxyx"))
    reduced = tokens.reduce(spatial).data
    assert_values(reduced, case("spatial_out"), rtol=1e-4)
    assert_index(patches, case("num_patches"))
    assert_index(box[[node[int(a)] for a in whole.anchor]], case("tyxyx"))
    assert_values(tokens.reduce(whole).data, case("out"), rtol=1e-4)


def moviechat(case: Case) -> None:
    meta, x = case.meta, case("x")
    tokens = frame_tokens(x)
    if "long_memory" in case:
        operator = MovieChat(
            fragment=meta["fragment"], short_memory=meta["short_memory_length"],
            merged=meta["short_memory_merge"],
        )  # fmt: skip
        found = tokens.reduce(operator.decide(tokens, None)).data
        assert_values(found.reshape(-1, *x.shape[1:]), case("long_memory"), rtol=1e-4)
        return
    length = meta["long_memory_length"]
    # Both stored forms have the first merge look at the first pairs only.
    banks = {
        "out_intended": MovieChat(fragment=1, capacity=length, short_first=True),
        "out_official": MovieChat(fragment=1, capacity=length, compat="released"),
    }
    for name, bank in banks.items():
        found = tokens.reduce(bank.decide(tokens, None)).data
        assert_values(found.reshape(-1, *x.shape[1:]), case(name), rtol=1e-4)


def hermes_eco(case: Case) -> None:
    meta, x = case.meta, case("x")
    tokens = frame_tokens(x)
    online = "capacity" in meta
    capacity = meta["capacity"] if online else meta["return_size"]
    operator = HermesEco(capacity=capacity, online=online)
    found = tokens.reduce(operator.decide(tokens, None))
    assert_values(found.data.reshape(-1, *x.shape[1:]), case("memory"), rtol=1e-4)
    assert_values(found.mass.reshape(-1, x.shape[1]), case("sizes"), rtol=1e-4)


ADAPTERS: dict[str, Adapter] = {
    "hermes_eco": hermes_eco,
    "moviechat": moviechat,
    "scissor": scissor,
    "sttm": sttm,
}
