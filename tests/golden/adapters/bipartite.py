"""Bipartite matching: ToMe and the methods built on it."""

from __future__ import annotations

import torch
from torch import Tensor

from tokpipe.compress.similarity.dymu import DyMU
from tokpipe.compress.similarity.folder import Folder
from tokpipe.compress.similarity.hermes_setr import HermesSeTR
from tokpipe.compress.similarity.pumer import PuMer
from tokpipe.compress.similarity.tome import ToMe
from tokpipe.compress.similarity.tosa import ToSA
from tokpipe.maps import TokenMap
from tokpipe.recipe import build
from tokpipe.spec import StepSpec
from tokpipe.tensors import TokenBatch
from tokpipe.testing.golden import Case, assert_index, assert_values, frame_tokens, group_of

#: Tokens merged away in each of AuroraCap's layers: stands only in the table of cases.
AURORA_SCHEDULE = (6, 5, 4)


def frames_in(case: Case, name: str, **extras: str) -> TokenBatch:
    """Images [B, N, D] as frames; extras by the name of their arrays."""
    columns = {key: case(array).flatten(0, 1) for key, array in extras.items()}
    return frame_tokens(case(name)).with_extras({}, **columns)


def split(rows: Tensor, frames: int) -> Tensor:
    """Rows [B * K, ...] of frames that all kept K, as [B, K, ...]."""
    return rows.reshape(frames, -1, *rows.shape[1:])


def groups(decision: TokenMap, frames: int) -> Tensor:
    """Row of each token within its frame, [B, N], where all frames keep the same number."""
    kept = len(decision) // frames
    return group_of(decision).reshape(frames, -1) % kept


def tome(case: Case) -> None:
    tokens = frames_in(case, "in_x")
    frames = case("in_x").shape[0]
    if "in_metric" in case:
        tokens = tokens.with_extras(keys=case("in_metric").flatten(0, 1))
    if "in_size" in case:
        tokens = tokens.with_columns(mass=case("in_size").flatten())
    if "par_k" in case:
        tome_kth(case, tokens)
        return
    schedule = case("par_r_list").tolist() if "par_r_list" in case else [case.value("par_r")]
    rule = ToMe(
        schedule=tuple(schedule),
        class_token=bool(case.value("par_class_token", False)),
        distill_token=bool(case.value("par_distill_token", False)),
    )
    decision = rule.decide(tokens, None)
    reduced = tokens.reduce(decision)
    assert_values(split(reduced.data, frames), case("out_x"))
    assert_values(split(reduced.mass[:, None], frames), case("out_size"))
    assert_index(groups(decision, frames), case("out_group"))
    if "out_n_per_step" in case and case("out_n_per_step").numel() == 1:
        assert len(decision) // frames == int(case("out_n_per_step")[0])
    if "out_unmerged" in case:
        rows = split(reduced.data, frames)
        if rule.distill_token:
            rows = rows[:, misread(rows.shape[1], case("in_x").shape[1])]
        back = decision.unmerge(rows.flatten(0, 1))
        assert_values(split(back, frames), case("out_unmerged"))
    if "out_x_plainmean" in case:
        plain = build(StepSpec(use="tome", params={
            "schedule": tuple(schedule), "class_token": rule.class_token,
            "distill_token": rule.distill_token, "weighting": "plain"}))  # fmt: skip
        assert_values(
            split(tokens.reduce(plain.decide(tokens, None)).data, frames), case("out_x_plainmean")
        )
    one_by_one(rule, tokens, frames, reduced)


def misread(rows: int, size: int) -> Tensor:
    """The row that the released unmerging takes for each of ``rows`` rows of ``size`` tokens.

    With a distillation token it forgets its own order: the first destination stands second, but
    is looked for after all unmerged tokens.
    """
    unmerged = rows - size // 2
    head = torch.tensor([0, unmerged, *range(1, unmerged)])
    return torch.cat([head, torch.arange(unmerged + 1, rows)])


def one_by_one(rule: ToMe, tokens: TokenBatch, frames: int, together: TokenBatch) -> None:
    """Round after round and frame after frame makes the same as all at once."""
    size, made = len(tokens) // frames, []
    for start in range(0, len(tokens), size):
        frame, total = tokens.take(slice(start, start + size)), TokenMap.identity(size)
        rest = frame
        for r in rule.schedule:
            step = ToMe(r=r, class_token=rule.class_token, distill_token=rule.distill_token)
            decision = step.decide(rest, None)
            rest, total = rest.reduce(decision), total.then(decision)
        made.append(frame.reduce(total))
    assert_values(TokenBatch.cat(made).data, together.data)


def tome_kth(case: Case, tokens: TokenBatch) -> None:
    """Every k-th token receives all the others."""
    count = case("out_x").shape[0] * case("out_x").shape[1]
    decision = ToMe(every=case.value("par_k"), weighting="plain").decide(tokens, count)
    assert_values(split(tokens.reduce(decision).data, case("in_x").shape[0]), case("out_x"))


def tome_video(case: Case) -> None:
    tokens, meta = frame_tokens(case("x")), case.meta
    if "prune_ratio" in meta:
        keep = 1 - meta["prune_ratio"]
        within = tokens.reduce(ToMe(keep=keep).decide(tokens, None)).data
        assert_values(split(within, meta["T"]), case("out_per_frame"), rtol=1e-4)
        across = ToMe(keep=keep, scope="video").decide(tokens, None)
        reduced = tokens.reduce(across)
        assert_values(reduced.data, case("out_per_video"), rtol=1e-4)
        assert_index(across.anchor, case("per_video_index"))
        return
    cls = "r" not in meta
    rule = ToMe(schedule=AURORA_SCHEDULE, class_token=True) if cls else ToMe(r=meta["r"])
    reduced = tokens.reduce(rule.decide(tokens, None))
    frames = case("x").shape[0]
    assert_values(split(reduced.data, frames), case("out"), rtol=1e-4)
    assert_values(split(reduced.mass[:, None], frames), case("size"), rtol=1e-4)


def videochatflash(case: Case) -> None:
    data, meta = case("x"), case.meta
    rule = ToMe(
        scope="video", clip=meta["local_num_frames"], head_width=meta["D"] // meta["heads"],
        keep=meta["target_tokens_per_clip"] / (meta["local_num_frames"] * data.shape[1]),
    )  # fmt: skip
    tokens = frame_tokens(data)
    reduced = tokens.reduce(rule.decide(tokens, None))
    assert_values(split(reduced.data, case("out").shape[0]), case("out"), rtol=1e-4)


def longvlm(case: Case) -> None:
    meta, tokens = case.meta, frame_tokens(case("x"))
    # What the case calls clips is the number of frames in one.
    rule = ToMe(
        scope="video", clip=meta["clips"], head_width=meta["D"] // meta["head"],
        schedule=tuple(meta["r_merge_list"]),
    )  # fmt: skip
    assert_values(tokens.reduce(rule.decide(tokens, None)).data, case("out"), rtol=1e-4)


def aim(case: Case) -> None:
    meta, tokens = case.meta, frame_tokens(case("x"))
    for name, count in (("out_round1", 1), ("out", len(meta["rounds"]))):
        rule = ToMe(schedule=tuple(meta["rounds"][:count]), weighting="plain")
        reduced = tokens.reduce(rule.decide(tokens, None))
        assert_values(split(reduced.data, meta["T"]), case(name), rtol=1e-4)
    quarter = ToMe(keep=0.25, weighting="plain").decide(tokens, None)
    assert_values(split(tokens.reduce(quarter).data, meta["T"]), case("out"), rtol=1e-4)


def fastast_tome(case: Case) -> None:
    tokens = frame_tokens(case("x"), modality=1, keys=case("metric"))
    outputs = [name.removesuffix("_x") for name in case.arrays if name.endswith("_x")]
    for name in outputs:
        if name.startswith("second"):
            continue
        reduced = assert_round(case, tokens, name)
        if "second_metric" in case and len(case("second_metric")) == len(reduced):
            second = reduced.with_extras(keys=case("second_metric"))
            for after in (n for n in outputs if n.startswith("second")):
                assert_round(case, second, after)


def assert_round(case: Case, tokens: TokenBatch, name: str) -> TokenBatch:
    """One round of the r in the array's name makes the stored tokens and sizes."""
    r = int(name.rpartition("r")[2])
    rule = ToMe(r=r, class_token=True, distill_token=True, scope="video")
    reduced = tokens.reduce(rule.decide(tokens, None))
    assert_values(reduced.data, case(f"{name}_x"), atol=1e-5, rtol=1e-4)
    assert_values(reduced.mass, case(f"{name}_size"), atol=1e-5, rtol=1e-4)
    return reduced


def dymu(case: Case) -> None:
    tokens = frames_in(case, "in_x", keys="in_metric")
    if "out_pos_tracking" in case:
        dymu_batch(case, tokens)
        return
    frames = case("in_x").shape[0]
    decision = DyMU(threshold=case.value("par_threshold")).decide(tokens, None)
    reduced = tokens.reduce(decision)
    assert_values(split(reduced.data, frames), case("out_tokens"))
    assert_values(split(reduced.mass[:, None], frames), case("out_size"))
    assert_index(groups(decision, frames), case("out_group"))
    back = decision.unmerge(reduced.data)
    assert_values(split(back, frames), case("out_virtual_unmerged"))


def dymu_batch(case: Case, tokens: TokenBatch) -> None:
    """Rows are matched by the tokens they hold: the released order is that of an unstable sort."""
    if case.value("out_batch_threshold") == -1:
        rule = DyMU(threshold=case.value("par_threshold"), compat="released")
    else:
        rule = DyMU(r=case.value("par_r"), compat="released")
    decision = rule.decide(tokens, None)
    reduced = tokens.reduce(decision)
    frames, size = case("in_x").shape[:2]
    members = torch.zeros(len(decision), frames * size)
    members[decision.dst, decision.src] = 1
    frame = decision.anchor // size
    valid_rows = torch.bincount(frame, minlength=frames)
    assert_index(valid_rows, case("out_n_valid"))
    padding = torch.arange(int(valid_rows.max())) >= valid_rows[:, None]
    assert_index(padding, case("out_padding"))
    learned = case.value("out_batch_threshold")
    if learned != -1:
        lower, upper = (DyMU(threshold=learned + by).decide(tokens, None) for by in (-2e-4, 2e-4))
        assert len(lower) <= len(decision) <= len(upper)
        assert len(lower) < len(upper)
    for t in range(frames):
        valid = case("out_padding")[t] == 0
        expected = case("out_pos_tracking")[t][valid]
        mine = members[frame == t][:, t * size : (t + 1) * size]
        order = (mine @ expected.T).argmax(0)
        assert_values(mine[order], expected)
        assert_values(reduced.data[frame == t][order], case("out_tokens")[t][valid])
        assert_values(reduced.mass[frame == t][order], case("out_size")[t][valid].flatten())


def tosa(case: Case) -> None:
    tokens = frames_in(case, "in_x", keys="in_metric", spatial="in_spatial")
    tokens = tokens.with_extras(rules={"spatial": "linear"})
    frames = case("in_x").shape[0]
    decision = ToSA(r=case.value("par_r"), alpha=case.value("par_alpha")).decide(tokens, None)
    reduced = tokens.reduce(decision)
    assert_values(split(reduced.data, frames), case("out_tokens"))
    assert_values(split(reduced.mass[:, None], frames), case("out_size"))
    assert_values(split(reduced.extras["spatial"], frames), case("out_spatial"))
    assert_index(groups(decision, frames), case("out_group"))


def folder(case: Case) -> None:
    tokens, frames = frames_in(case, "in_x"), case("in_x").shape[0]
    params = {"r": case.value("par_r"), "class_token": bool(case.value("par_class_token"))}
    decision = Folder(**params, compat="released").decide(tokens, None)
    reduced = tokens.reduce(decision)
    assert_values(split(reduced.data, frames), case("out_tokens"))
    assert_values(split(reduced.mass[:, None], frames), case("out_size"))
    assert_index(split(reduced.mass, frames).round().int(), case("out_size_i"))
    # The metric is the same means before the rows are rescaled.
    scale = tokens.with_columns(data=torch.ones(len(tokens), 1)).reduce(decision).data
    assert_values(split(reduced.data / scale, frames), case("out_metric"))
    if params["class_token"] or 2 * params["r"] < case("in_x").shape[1]:
        # Elsewhere the released code ends a fold one pair early: other rounds, other rows.
        plain = tokens.reduce(Folder(**params).decide(tokens, None))
        assert_values(split(plain.data, frames), case("out_metric"))


def pumer(case: Case) -> None:
    frames, r = case("in_x").shape[0], case.value("par_r")
    if "in_metric" in case:
        tokens = frames_in(case, "in_x", keys="in_metric", attention="in_attn")
        rule = PuMer(r=r, class_token=True)
    else:
        tokens = frames_in(case, "in_x", attention="in_attn")
        rule = PuMer(r=r, match="attention")
    reduced = tokens.reduce(rule.decide(tokens, None))
    assert_values(split(reduced.data, frames), case("out_tokens"))


def hermes_semantics(case: Case) -> None:
    data = case("x")
    tokens = frame_tokens(data)
    rule = HermesSeTR(k=case.meta["k"], compat="released")
    reduced = tokens.reduce(rule.decide(tokens, None))
    assert_values(split(reduced.data, case("out").shape[0]), case("out"), rtol=1e-4)


ADAPTERS = {
    "tome": tome,
    "tome:video": tome_video,
    "videochatflash": videochatflash,
    "longvlm": longvlm,
    "aim": aim,
    "fastast_tome": fastast_tome,
    "dymu": dymu,
    "tosa": tosa,
    "folder": folder,
    "pumer": pumer,
    "hermes_semantics": hermes_semantics,
}
