"""Temporal drop and merge on video."""

from __future__ import annotations

import torch
from torch import Tensor

from tokpipe.compress.similarity.dtd_feature import DtdFeature
from tokpipe.compress.similarity.dtd_pixel import DtdPixel
from tokpipe.compress.similarity.dycoke import DyCoke
from tokpipe.compress.similarity.framefusion import FrameFusion, prune_ratio
from tokpipe.compress.similarity.longvu_frames import LongvuFrames
from tokpipe.compress.similarity.longvu_stc import LongvuStc
from tokpipe.compress.similarity.rlt import Rlt
from tokpipe.compress.similarity.stc_pruner import StcPruner
from tokpipe.compress.similarity.vidcom2 import VidCom2
from tokpipe.tensors import TokenBatch
from tokpipe.testing.golden import Adapter, Case, assert_index, assert_values, frame_tokens

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def patches(frames: Tensor, tubelet: int, side: int) -> TokenBatch:
    """Tokens of frames [T, 3, H, W] with the column ``patch_pixels``, data empty."""
    total, colours, height, width = frames.shape
    grid = (total // tubelet, height // side, width // side)
    cut = frames.reshape(grid[0], tubelet, colours, grid[1], side, grid[2], side)
    flat = cut.permute(0, 3, 5, 1, 2, 4, 6).reshape(grid[0], grid[1] * grid[2], -1)
    data = torch.zeros(*flat.shape[:2], 1)
    return frame_tokens(data, grid[1:], patch_pixels=flat)


def dycoke(case: Case) -> None:
    x, meta = case("x"), case.meta
    tokens = frame_tokens(x)
    if "merging_ratio" in meta:
        operator = DyCoke(merging_ratio=meta["merging_ratio"], compat="released")
    else:
        operator = DyCoke(merging_ratio=meta["prune_ratio"])
    decision = operator.decide(tokens, None)
    assert_index(decision.anchor, case("kept_index_in_output_order"))
    if "kept_index_sorted" in case:
        assert_index(decision.anchor.sort().values, case("kept_index_sorted"))
    assert_values(tokens.reduce(decision).data, case("out"), rtol=1e-4)


def dtd_feature(case: Case) -> None:
    meta = case.meta
    if meta["absolute"]:
        operator = DtdFeature(threshold=meta["threshold"])
    else:
        operator = DtdFeature(relative=meta["threshold"])
    tokens = frame_tokens(case("x"), (meta["h"], meta["w"]))
    assert_index(operator.decide(tokens, None).anchor, case("kept_index"))


def dtd_pixel(case: Case) -> None:
    meta = case.meta
    named = case.value("frames_in", "self")
    stored = case if named == "self" else case.beside(named)
    tubelet = meta["frames"] // meta["grid_t"]
    tokens = patches(stored("frames_uint8").float() / 255, tubelet, meta["patch_px"])
    if meta["absolute"]:
        operator = DtdPixel(threshold=meta["threshold"], tubelet=tubelet)
    else:
        operator = DtdPixel(relative=meta["threshold"], tubelet=tubelet)
    assert_index(operator.decide(tokens, None).anchor, case("kept_index"))


def rlt(case: Case) -> None:
    meta = case.meta
    frames = case("frames_uint8").float()
    if meta["imagenet_normalised"]:
        mean, std = (torch.tensor(v)[:, None, None] for v in (_MEAN, _STD))
        frames = (frames / 255 - mean) / std
    tokens = patches(frames, meta["tubelet"], meta["patch"])
    operator = Rlt(threshold=meta["threshold"], tubelet=meta["tubelet"])
    decision = operator.decide(tokens, None)
    mask = torch.zeros(len(tokens), dtype=torch.bool)
    mask[decision.anchor] = True
    assert_index(mask.reshape(meta["grid"]), case("keep_mask_thw"))
    made = tokens.reduce(decision)
    place = made.cell[:, 1] * meta["grid"][2] + made.cell[:, 2]
    assert_index(made.mass[torch.argsort(place, stable=True)], case("run_lengths_hwt_order"))


def longvu_frames(case: Case) -> None:
    meta = case.meta
    tokens = frame_tokens(case("x"))
    operator = LongvuFrames(threshold=meta["threshold"], window=meta["window"])
    anchor = operator.decide(tokens, None).anchor
    assert_index(anchor[:: meta["N"]] // meta["N"], case("kept_frames"))


def longvu_stc(case: Case) -> None:
    meta = case.meta
    tokens = frame_tokens(case("x"))
    operator = LongvuStc(
        threshold=meta["drop_threshold"], chunk=meta["chunk"], max_tokens=meta["max_visual_len"]
    )
    assert_index(operator.decide(tokens, None).anchor, case("kept_index_in_output_order"))


def framefusion(case: Case) -> None:
    meta = case.meta
    if "cases" in meta:
        found = [prune_ratio(gone, cost, meta["num_layers"]) for gone, cost in meta["cases"]]
        assert_values(torch.tensor(found, dtype=torch.float64), case("ratio"), rtol=1e-4)
        return
    tokens = frame_tokens(case("x"), (meta["h"], meta["w"]))
    outputs = [("kept_visual_index", "out_visual")]
    if "rounds" in meta:
        outputs = [(f"kept{i}", f"out{i}") for i in range(meta["rounds"])]
    gone, before = [], len(tokens)
    for i, (kept, out) in enumerate(outputs):
        operator = FrameFusion(
            threshold=meta["similarity_lower_bound"], cost=meta["cost"],
            stop_below=meta["ratio_lower_bound"], layers=meta["num_layers"], rounds=i + 1,
        )  # fmt: skip
        decision = operator.decide(tokens, None)
        assert_index(decision.anchor, case(kept))
        assert_values(tokens.reduce(decision).data, case(out), rtol=1e-4)
        gone.append(1 - len(decision) / before)
        before = len(decision)
    if meta.get("sparsity"):
        # What merging to a count removes is not listed: nothing follows it.
        listed = torch.tensor(meta["sparsity"])
        assert_values(torch.tensor(gone[: len(listed)]), listed, atol=1e-6, rtol=0)


def vidcom2(case: Case) -> None:
    meta, x = case.meta, case("x")
    operator = VidCom2(
        ratio=meta["base_scale"], temperature=meta.get("temperature", 0.01),
        channel_ratio=meta.get("channel_ratio", 0.5),
    )  # fmt: skip
    tokens = frame_tokens(x, (meta["h"], meta["w"]))
    decision = operator.decide(tokens, None)
    counts = torch.bincount(decision.anchor // x.shape[1], minlength=len(x))
    assert_index(counts, case("keep_counts"))
    if "channels_sorted" not in case:
        return
    found = operator.standing(tokens)
    assert_index(found.channels, case("channels_sorted"))
    assert_values(found.video.reshape(x.shape[:2]), case("video_score"), atol=1e-4, rtol=0)
    assert_values(found.frame.reshape(x.shape[:2]), case("frame_score"), atol=1e-4, rtol=0)
    assert_values(found.scales, case("frame_scales"), atol=1e-4, rtol=0)
    assert_index(decision.anchor, case("kept_index"))
    assert_values(tokens.reduce(decision).data, case("out"), rtol=1e-4)


def stc_pruner(case: Case) -> None:
    meta = case.meta
    operator = StcPruner(
        per_frame=meta["token_per_frame"], chunk=meta["frames_per_chunk"],
        channel_ratio=meta["channel_ratio"], compat="released",
    )  # fmt: skip
    tokens = frame_tokens(case("x"), (meta["h"], meta["w"]))
    assert_index(operator.decide(tokens, None).anchor, case("kept_index"))


ADAPTERS: dict[str, Adapter] = {
    "dycoke": dycoke,
    "dtd__feature": dtd_feature,
    "dtd__pixel": dtd_pixel,
    "rlt": rlt,
    "longvu__frames": longvu_frames,
    "longvu__stc": longvu_stc,
    "framefusion": framefusion,
    "vidcom2": vidcom2,
    "stc_pruner": stc_pruner,
}
