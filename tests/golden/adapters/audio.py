"""Golden cases of the sound methods."""

from __future__ import annotations

import re

import torch
from torch import Tensor

from tokpipe.compress._adjacent import adjacent_cosine, metric_of
from tokpipe.compress._audio_guide import drop_rates
from tokpipe.compress._dpp import dpp_picks
from tokpipe.compress._neighbors import unit_rows
from tokpipe.compress.attention.omnizip import OmniZip
from tokpipe.compress.attention.sa_map import SaMap, attention_weights
from tokpipe.compress.attention.segmentwise import Segmentwise
from tokpipe.compress.attention.vispruner import least_repeated
from tokpipe.compress.query.speechprune import (
    SpeechPrune,
    attention_received,
    binarised,
    similarity,
)
from tokpipe.compress.similarity.a_tome_greedy import ATomeGreedy
from tokpipe.compress.similarity.a_tome_pairs import ATomePairs
from tokpipe.compress.similarity.a_tome_scan import ATomeScan
from tokpipe.compress.similarity.fastadasp import FastAdaSP
from tokpipe.compress.transformation.pool_1d import Pool1d
from tokpipe.compress.transformation.stack import Stack
from tokpipe.compress.transformation.windows import Windows
from tokpipe.protocols import Reducer
from tokpipe.tensors import Query, TokenBatch
from tokpipe.testing.golden import Adapter, Case, assert_index, assert_values

_ATOL, _RTOL = 1e-5, 1e-4


def sound(data: Tensor, rate: float = 25.0, **extras: Tensor) -> TokenBatch:
    """Tokens [N, D] in a row, ``rate`` a second, with extra columns."""
    at = torch.arange(data.shape[0]).double() / rate
    cell = torch.zeros(data.shape[0], 3, dtype=torch.int32)
    cell[:, 0] = torch.arange(data.shape[0])
    pts = torch.stack([at, at + 1 / rate], 1)
    return TokenBatch.build(data, at, pts=pts, cell=cell, modality=1).with_extras(None, **extras)


def close(found: Tensor, expected: Tensor, atol: float = _ATOL) -> None:
    assert_values(found, expected, atol=atol, rtol=_RTOL)


def fastadasp(case: Case) -> None:
    """Merged rows; the ratio is in the array's name, in tenths where it has no point."""
    hidden = case("hidden")
    extras = {"keys": case("keys")} if "keys" in case else {}
    if "weights" in case:
        extras["attention"] = case("weights")
    tokens = sound(hidden, 25.0, **extras)
    close(adjacent_cosine(metric_of(tokens, "joined")), case("cos"))
    checked = 0
    for name in case.arrays:
        kind, mark, number = name.rpartition("_r")
        if not mark:
            continue
        ratio = float(number) if "." in number else int(number) / 10
        if kind == "atome":
            rule: ATomeScan | FastAdaSP = ATomeScan(ratio=ratio)
        else:
            weights = {"merge_weighted": "attention", "merge_ave": "none", "ave": "none"}[kind]
            rule = FastAdaSP(ratio=ratio, weights=weights)  # type: ignore[arg-type]
        close(tokens.reduce(rule.decide(tokens, None)).data, case(name))
        checked += 1
    assert checked


def atome_greedy(case: Case) -> None:
    """Merged rows and the number of pairs for each ratio and threshold in the names."""
    hidden = case("hidden")
    keys = case("keys").reshape(hidden.shape[0], case.value("num_heads"), -1)
    tokens = sound(hidden, keys=keys)
    close(adjacent_cosine(metric_of(tokens, "mean")), case("sims"))
    names = [name for name in case.arrays if f"{name}_n" in case]
    assert names
    for name in names:
        ratio = name.startswith("ratio")
        value = float(name.removeprefix("ratio" if ratio else "thr"))
        rule = ATomeGreedy(ratio=value) if ratio else ATomeGreedy(threshold=value)
        made = tokens.reduce(rule.decide(tokens, None)).data
        assert len(hidden) - len(made) == case.value(f"{name}_n")
        close(made, case(name))


def _pooled_rows(attention: Tensor) -> Tensor:
    """[H, 2N, 2N] as the column ``attention_rows`` [N, 2, H, 2N]."""
    heads, size, _ = attention.shape
    return attention.permute(1, 0, 2).reshape(size // 2, 2, heads, size)


def _mask(kind: str, case: Case, clip: int, keep: float) -> Tensor:
    """What the repository's image pruners keep of a clip, bool of the padded length.

    They differ from ours for images: CDPruner has no query, VisPruner rounds, takes its
    duplicates in order of time, four at once, and counts the padded queries.
    """
    n = int(case("lengths")[clip])
    unit = unit_rows(case("features")[clip, :n])
    count = max(round(n * keep), 2)
    mask = torch.zeros(case("features").shape[1], dtype=torch.bool)
    if kind == "cdpruner":
        mask[dpp_picks(unit, torch.ones(n), count)] = True
        return mask
    received, _ = attention_weights(_pooled_rows(case("attn")[clip]))
    order = torch.argsort(received[:n], descending=True, stable=True)
    best = round(count / 2)
    rest = order[best:].sort().values
    mask[order[:best]] = True
    mask[rest[least_repeated(unit[rest], count - best, step=4)]] = True
    return mask


def samap_suite(case: Case) -> None:
    """The branches of the SA-MAP repository on two clips, the second padded."""
    lengths = case("lengths").tolist()
    checked = 0
    for name in case.arrays:
        kind, mark, rest = name.rpartition("_r")
        number, _, item = rest.partition("_")
        if not mark:
            continue
        if item == "mask":
            masks = [_mask(kind, case, clip, float(number)) for clip in range(len(lengths))]
            assert_index(torch.stack(masks), case(name))
            continue
        keep, clip = float(number), int(item.removeprefix("b"))
        n = lengths[clip]
        rows = _pooled_rows(case("attn")[clip][:, : 2 * n, : 2 * n])
        received, _ = attention_weights(rows)
        tokens = sound(case("features")[clip, :n], attention_rows=rows, attention=received)
        rules: dict[str, Reducer] = {
            "atome": ATomePairs(keep=keep),
            "fastadasp": FastAdaSP(weights="none"),
            "fastadasp_attn": FastAdaSP(),
            "samap": SaMap(threshold=case.value("samap_threshold"), keep=keep),
        }
        target = max(round(n * keep), 2) if kind.startswith("fastadasp") else None
        close(tokens.reduce(rules[kind].decide(tokens, target)).data, case(name), atol=1e-4)
        checked += 1
    assert checked


def _interleaved(case: Case) -> tuple[TokenBatch, Tensor]:
    """Sound and picture tokens in the order of the sequence, and their places in it."""
    ids = case("input_ids")
    place = torch.nonzero((ids == 2) | (ids == 3)).flatten()
    picture = ids[place] == 2
    _, rows, cols = case("grid_thw").tolist()
    number = picture.long().cumsum(0) - 1
    frame = number // (rows * cols // 4)
    # Only equal times matter: tokens of one frame share theirs.
    at = torch.where(picture, frame, (~picture).long().cumsum(0) + 10_000)
    score = torch.zeros(len(ids))
    score[ids == 3] = case("audio_score")
    tokens = TokenBatch.build(case("embeds")[place], at.double(), modality=1).with_columns(
        modality=torch.where(picture, 0, 1).to(torch.uint8)
    )
    return tokens.with_extras(attention=score[place]), place


def omnizip(case: Case) -> None:
    """Kept tokens, rewritten anchors, absorbed members and the rates of the groups."""
    tokens, place = _interleaved(case)
    audio_drop, video_drop, contextual, absorbed = case("params").tolist()
    rule = OmniZip(
        audio_drop=audio_drop, video_drop=video_drop, contextual=contextual,
        absorb=int(absorbed), groups="runs",
    )  # fmt: skip
    made = rule.decide(tokens, None)
    kept = torch.zeros(len(tokens), dtype=torch.bool)
    kept[made.anchor] = True
    sound = tokens.modality == 1
    whole = torch.ones_like(case("keep_mask"))
    whole[place] = kept
    assert_index(whole, case("keep_mask"))
    assert_index(kept[sound], case("audio_keep"))
    assert_index(kept[~sound], case("video_keep"))
    out = case("embeds")
    out[place[made.anchor]] = tokens.reduce(made).data
    close(out, case("out_embeds"))
    _, retention, sizes = rule.retention(tokens, kept)
    paired = ~retention.isnan() & (sizes > 0)
    close(retention[paired], case("group_audio_retention"))
    close((0.75 - 0.4 * retention[paired]).clamp(0.35, 0.75), case("group_video_drop_base"))
    drops = torch.tensor(drop_rates(retention, sizes, video_drop))
    close(drops[paired], case("group_video_drop"))
    number = sound.long().cumsum(0) - 1
    for anchor, *members in case("merge_plan").tolist():
        row = int(torch.nonzero(number[made.anchor].eq(anchor) & sound[made.anchor]))
        found = number[made.src[made.dst == row]].tolist()
        assert found == [anchor, *(m for m in members if m >= 0)]


def pool_stack_window(case: Case) -> None:
    """Averages, stacks and windows; sizes are in the names."""
    tokens = sound(case("x"))
    width = tokens.data.shape[1]
    checked = 0
    for name in case.arrays:
        if name == "x":
            continue
        numbers = [int(n) for n in re.findall(r"[0-9]+", name)]
        expected = case(name)
        if name.startswith("avg"):
            made = tokens.reduce(Pool1d(size=numbers[0]).decide(tokens, None)).data
        elif name.startswith("stack"):
            made = Stack(size=numbers[0]).project(tokens).data
        else:
            stride = numbers[1] if len(numbers) > 1 else None
            made = Windows(size=numbers[0], stride=stride).project(tokens).data
            made = made.reshape(-1, numbers[0], width)
        close(made, expected)
        checked += 1
    assert checked


def segmentwise_topk(case: Case) -> None:
    """Kept tokens; count and segments are in the names."""
    attention = case("attn")
    tokens = sound(torch.zeros(len(attention), 1), attention=attention)
    names = [name for name in case.arrays if name != "attn"]
    assert names
    for name in names:
        count, segments = (int(n) for n in re.findall(r"[0-9]+", name))
        rule = Segmentwise(segments=segments, compat="released")
        assert_index(rule.decide(tokens, count).anchor, case(name))


def speechprune(case: Case) -> None:
    """Both phases of the derived form, for each count in the names."""
    speech, query_columns = case("S"), {}
    for name, weight in (("queries", "WQ"), ("keys", "WK")):
        query_columns[name] = binarised(speech, case(weight))
    tokens = sound(speech, case.value("f"), **query_columns)
    query = Query(text="", pooled=case("T"))
    score = similarity(speech, query)
    close(score, case("token_score"))
    counts = [int(n.rpartition("_")[2]) for n in case.arrays if n.startswith("p1_idx_")]
    assert counts
    for count in counts:
        keep = count / len(speech)
        rule = SpeechPrune(keep=keep, compat="released")
        stretch, parts = rule.parts(tokens.at, score)
        close(torch.tensor(parts), case(f"p1_prob_{count}"))
        close(torch.zeros(len(parts)).index_add_(0, stretch, score), case(f"frame_score_{count}"))
        first = rule.decide(tokens, None, query).anchor
        assert_index(first, case(f"p1_idx_{count}"))
        # The stored parts are those before what a second can hold caps them.
        budgets = torch.tensor([int(count * part) for part in parts])
        assert_index(budgets, case(f"p1_budget_{count}"))
        held = torch.minimum(budgets, torch.bincount(stretch))
        assert_index(torch.bincount(stretch[first], minlength=len(parts)), held)
        received = attention_received(*(column[first] for column in query_columns.values()))
        close(received, case(f"received_attn_{count}"))
        both = SpeechPrune(keep=keep, attended=0.5, compat="released")
        made = both.decide(tokens, None, query).anchor
        assert_index(made, case(f"p2_idx_received_{count}"))


def samap_underflow(case: Case) -> None:
    """Fewer groups than asked for: ours are the released code's rows without the repeats."""
    clip = case.beside("samap_suite")
    data = clip("features")[0]
    tokens = sound(data, attention_rows=_pooled_rows(clip("attn")[0]))
    rule = SaMap(threshold=case.value("threshold"), keep=case.value("ratio"))
    made = tokens.reduce(rule.decide(tokens, None)).data
    released = case("out")
    assert len(released) == max(round(len(data) * rule.keep), 2)
    changed = (released[1:] != released[:-1]).any(1)
    distinct = released[torch.cat([torch.ones_like(changed[:1]), changed])]
    assert len(made) == len(distinct) == case.value("unique_rows")
    close(made, distinct, atol=1e-4)


ADAPTERS: dict[str, Adapter] = {
    "fastadasp": fastadasp,
    "atome_greedy": atome_greedy,
    "samap_suite": samap_suite,
    "samap_underflow": samap_underflow,
    "omnizip": omnizip,
    "pool_stack_window": pool_stack_window,
    "segmentwise_topk": segmentwise_topk,
    "speechprune": speechprune,
}
