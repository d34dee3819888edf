"""Methods that cut a video into segments or events and cluster inside them."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from tokpipe.compress._fit import expanded
from tokpipe.compress._segment import adjacent_cosine, refine_labels, runs, static_windows
from tokpipe.compress._windows import best_places
from tokpipe.compress.attention.fastvid import FastVid
from tokpipe.compress.attention.holitom import HoliTom, still_throughout
from tokpipe.compress.attention.streamingtom import StreamingTom
from tokpipe.compress.similarity.chat_univi import ChatUniVi
from tokpipe.compress.similarity.prunevid import PruneVid
from tokpipe.compress.transformation.metok_events import MetokEvents
from tokpipe.tensors import TokenMap
from tokpipe.testing.golden import (
    Adapter,
    Case,
    assert_index,
    assert_values,
    frame_tokens,
    group_of,
)


def rows_over_time(decision: TokenMap, size: int) -> Tensor:
    """First and last frame int64 [K, 2] of the sources of each row, ``size`` tokens a frame."""
    frame = decision.src // size
    first = torch.full((len(decision),), decision.num_sources).scatter_reduce(
        0, decision.dst, frame, "amin"
    )
    last = torch.full((len(decision),), -1).scatter_reduce(0, decision.dst, frame, "amax")
    return torch.stack([first, last], 1)


def of_segments(frames: Tensor, segments: list[tuple[int, int]]) -> Tensor:
    """How many of ``frames`` fall into each segment."""
    return torch.tensor([int(((frames >= a) & (frames < b)).sum()) for a, b in segments])


def assert_averages(decision: TokenMap, out: Tensor, data: Tensor) -> None:
    """Each row is an average of input tokens."""
    total = torch.zeros(len(decision)).index_add_(0, decision.dst, decision.weight)
    assert_values(total, torch.ones(len(decision)), atol=1e-4, rtol=0)
    assert bool((decision.weight >= 0).all())
    average = torch.zeros_like(out)
    average.index_add_(0, decision.dst, data[decision.src] * decision.weight[:, None])
    assert_values(out, average, atol=1e-4, rtol=0)


def prunevid_labels(case: Case) -> None:
    for labels, refined, lengths in zip(
        case("labels").tolist(), case("refined"), case("segment_lengths_padded"), strict=True
    ):
        found = refine_labels(labels)
        assert_index(found, refined)
        assert_index([b - a for a, b in runs(found)], lengths[lengths > 0])


def prunevid(case: Case) -> None:
    if "labels" in case:
        return prunevid_labels(case)
    meta, data = case.meta, case("x")
    rule = PruneVid(
        segments=meta["temporal_segment_ratio"], ratio=meta["cluster_ratio"], tau=meta["tau"],
        k=meta["k"],
    )  # fmt: skip
    tokens = frame_tokens(data)
    decision = rule.decide(tokens, None)
    out = tokens.reduce(decision).data
    raw = rule.frame_labels(data)
    refined = refine_labels(raw)
    windows = runs(refined)
    span = rows_over_time(decision, data.shape[1])
    still = span[:, 1] > span[:, 0]
    if "warning" in meta:
        # All frames are the same: where they are cut is arbitrary.
        assert sum(b - a for a, b in windows) == len(data) and bool(still.all())
        assert_averages(decision, out, tokens.data)
        return None
    assert_index(raw, case("frame_cluster_raw"))
    assert_index(refined, case("frame_cluster_refined"))
    assert_index([b - a for a, b in windows], case("window_sizes"))
    assert_index(of_segments(span[still, 0], windows), case("static_sizes"))
    assert_index(of_segments(span[~still, 0], windows), case("dynamic_sizes"))
    assert_values(out, case("out"), rtol=1e-4)
    return None


def holitom_windows(case: Case) -> None:
    meta = case.meta
    for i in range(sum(name.startswith("sim") for name in case.arrays)):
        windows, saved = static_windows(case(f"sim{i}") > meta["tau"], meta["max_window"])
        found = torch.tensor([[a, b - 1] for a, b in windows])
        assert_index(found, case(f"windows{i}"))
        assert saved == case.value(f"reduced{i}")


def holitom(case: Case) -> None:
    if "x" not in case:
        return holitom_windows(case)
    meta, data = case.meta, case("x")
    rule = HoliTom(
        ratio=meta["retain_ratio"], tau=meta["tau"], contextual=meta["D_contextual"],
        beta=meta["beta"], k=meta["K"], longest=meta["max_window"],
    )  # fmt: skip
    similarity = adjacent_cosine(data)
    assert_values(similarity, case("adjacent_sim"), rtol=1e-4)
    alike = similarity > meta["tau"]
    windows, saved = static_windows(alike, meta["max_window"])
    found = torch.tensor([[a, b - 1] for a, b in windows])
    assert_index(found, case("windows_inclusive"))
    assert saved == case.value("total_reduced")
    assert_index(still_throughout(alike, windows).sum(1), case("static_positions_per_window"))
    tokens = frame_tokens(data, attention=case("attn"))
    decision = rule.decide(tokens, None)
    frame = decision.anchor // data.shape[1]
    assert_index(of_segments(frame, windows), case("tokens_per_window"))
    assert_values(tokens.reduce(decision).data, case("out"), rtol=1e-4)
    return None


def fastvid(case: Case) -> None:
    meta, data = case.meta, case("x")
    steps, size, _ = data.shape
    rule = FastVid(
        ratio=meta["retention_ratio"], segments=meta["dyseg_c"], tau=meta["dyseg_tau"],
        context=meta["stprune_d"], every=meta["dtm_p"], beta=meta["dtm_beta"],
    )  # fmt: skip
    embedding, attention = case("frame_global"), case("frame_attn")
    segments = rule.cut(embedding)
    assert_index([b - a for a, b in segments], case("segment_sizes"))
    salient, dense = rule.row_counts(steps, size, segments, None)
    anchors = torch.zeros(steps, dtype=torch.int64)
    anchors[rule.anchor_frames(segments)] = torch.tensor(dense)
    assert_index(anchors, case("context_per_frame"))
    top = best_places(attention, torch.tensor(salient))
    assert_index(torch.nonzero(top)[:, 1].reshape(steps, -1), case("salient_index").sort(1).values)
    score = rule.density(data, ~top).exp()
    assert_values(
        score[~top].reshape(steps, -1), case("density_score_nonsalient"), atol=1e-4, rtol=0
    )
    tokens = frame_tokens(
        data, attention=attention, frame_embedding=embedding[:, None].expand(-1, size, -1)
    )
    decision = rule.decide(tokens, None)
    assert_index(decision.anchor, case("kept_index"))
    assert_values(tokens.reduce(decision).data, case("out"), rtol=1e-4)


def streamingtom(case: Case) -> None:
    meta, data = case.meta, case("x")
    rule = StreamingTom(
        tokens=meta["retain_tokens"], tau=meta["similarity_threshold"], k=meta["k"],
        beta=meta["beta"], compat="released",
    )  # fmt: skip
    static = rule.static(data, None)
    split = rule.split(static, torch.full((len(data),), meta["retain_tokens"]))
    found = torch.stack([static.sum(1), *split], 1)
    assert_index(found, case("static_count_staticbudget_dynbudget"))
    tokens = frame_tokens(data, attention=case("attn"))
    decision = rule.decide(tokens, None)
    place, out = case("kept_position"), case("out")
    assert len(decision) == place.numel()
    if meta.get("noise_stable"):
        assert_index(decision.anchor.reshape(place.shape) % data.shape[1], place)
        assert_values(tokens.reduce(decision).data.reshape(out.shape), out, rtol=1e-4)


def chat_univi(case: Case) -> None:
    meta, data = case.meta, case("x")
    steps, size, _ = data.shape
    tokens, counts = frame_tokens(data), tuple(meta["spatial_counts"])
    rule = ChatUniVi(levels=counts, rate=meta["temporal_rate"])
    labels = rule.event_labels(data, math.ceil(steps * meta["temporal_rate"]))
    assert_index(labels, case("event_label_per_frame"))
    assert_values(
        tokens.reduce(expanded(rule.decide(tokens, None))).data, case("out_video"), rtol=1e-4
    )
    images = expanded(replace(rule, scope="frame").decide(tokens, None))
    out = case("image_mode_tokens")
    assert_values(tokens.reduce(images).data.reshape(out.shape), out, rtol=1e-4)
    first = expanded(replace(rule, scope="frame", levels=counts[:1]).decide(tokens, None))
    assert_index(group_of(first).reshape(steps, size) % counts[0], case("dpc_label_stage0"))


def metok_events(case: Case) -> None:
    meta, data = case.meta, case("x")
    score = case("frame_text_sim")
    rule = MetokEvents(
        cuts=meta["k_cuts"], events=meta["top_events"], frames=meta["top_frames"],
        key=tuple(meta["strides_key"]), other=tuple(meta["strides_other"]), score="column",
    )  # fmt: skip
    segments = rule.cut(data.mean(1))
    assert_index(torch.tensor([[a, b - 1] for a, b in segments]), case("segments_inclusive"))
    assert_index(rule.key_events(segments, score), case("top_events"))
    assert_index(rule.strides(segments, score), case("stride_per_frame"))
    tokens = frame_tokens(data, (meta["h"], meta["w"]))
    tokens = tokens.with_columns(score=score.repeat_interleave(data.shape[1]))
    decision = expanded(rule.decide(tokens, None))
    frame = decision.anchor // data.shape[1]
    assert_index(torch.bincount(frame, minlength=len(data)), case("tokens_per_frame"))
    assert_values(tokens.reduce(decision).data, case("out"), rtol=1e-4)


ADAPTERS: dict[str, Adapter] = {
    "prunevid": prunevid,
    "holitom": holitom,
    "fastvid": fastvid,
    "streamingtom_ctr": streamingtom,
    "chatunivi": chat_univi,
    "metok_events": metok_events,
}
