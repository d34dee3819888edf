"""Query-aware frame selection against its authors' code."""

from __future__ import annotations

import re

import torch
from torch import Tensor

from tokpipe.sample.aks import Aks
from tokpipe.sample.bolt import Bolt
from tokpipe.sample.q_frame import QFrame
from tokpipe.sample.vilamp import Vilamp, fill_gaps
from tokpipe.tensors import Query, TokenBatch
from tokpipe.testing.golden import Adapter, Case, assert_index, frame_tokens


def scored(score: Tensor) -> TokenBatch:
    """Frames of one token with these scores."""
    tokens = frame_tokens(torch.zeros(score.shape[0], 1, 1))
    return tokens.with_columns(score=score.float())


def aks(case: Case) -> None:
    meta, score = case.meta, case("score")
    count = meta["max_num_frames"]
    operator = Aks(
        frames=count, gap=meta["t1"], spread=float(meta["t2"]), depth=meta["all_depth"],
        score="column", compat="released",
    )  # fmt: skip
    segments = [(stop - start, depth) for start, stop, depth in operator.segments(score, count)]
    assert_index(torch.tensor(segments).reshape(-1, 2), case("segments_len_depth"))
    assert_index(operator.choose(score, count), case("selected"))
    assert_index(operator.decide(scored(score), None).anchor, case("selected"))


def bolt(case: Case) -> None:
    score = case("score")
    for name in case.arrays:
        if found := re.fullmatch(r"n(\d+)_(?:nopower|p(\d+))", name):
            count, power = int(found[1]), float(found[2]) if found[2] else None
            operator = Bolt(frames=count, power=power, score="column", compat="released")
            assert_index(operator.draw(score, count), case(name))
            kept = operator.decide(scored(score), None).anchor
            assert_index(kept, torch.tensor(sorted(set(case(name).tolist()))))


def qframe(case: Case) -> None:
    meta = case.meta
    operator = QFrame(tau=meta["tau"], high=meta["high"], mid=meta["mid"], low=meta["low"])
    assert_index(operator.ranking(case("logits"), case("uniform")), case("ranking"))


def vilamp_dks(case: Case) -> None:
    meta = case.meta
    if "max" in meta:
        for i, count in enumerate(meta["max"]):
            assert_index(fill_gaps(case(f"in{i}").bool(), count), case(f"out{i}"))
        return
    count = meta["max_frame_num"]
    embedding, pooled = case("frame_emb"), case("query_emb")[None]
    operator = Vilamp(
        frames=count, likeness=meta["f2f_thrd"], least=float(meta["f2t_thrd"]), score="query"
    )
    query = Query(text="", pooled=pooled)
    tokens = frame_tokens(embedding[:, None])
    assert_index(operator.decide(tokens, None, query).anchor, case("selected"))
    score = torch.nn.functional.cosine_similarity(embedding, pooled)
    keys = operator.key_frames(score, embedding, count)
    assert_index(torch.nonzero(keys).flatten(), case("greedy_only_own_restatement"))


ADAPTERS: dict[str, Adapter] = {
    "aks": aks,
    "bolt": bolt,
    "qframe": qframe,
    "vilamp_dks": vilamp_dks,
}
