"""Golden cases of the image methods that score tokens by attention."""

from __future__ import annotations

import torch
from torch import Tensor

from tokpipe.compress._tiles import crops_of
from tokpipe.compress.attention.ast_topk import AstTopK
from tokpipe.compress.attention.ficoco_v import FiCoCoV
from tokpipe.compress.attention.globalcom2 import GlobalCom2, crop_scales
from tokpipe.compress.attention.hiprune import HiPrune
from tokpipe.compress.attention.hired import HiRed
from tokpipe.compress.attention.illava import ILlava
from tokpipe.compress.attention.prumerge import PruMerge
from tokpipe.compress.attention.top_k import TopK
from tokpipe.compress.attention.visionzip import VisionZip
from tokpipe.compress.attention.vispruner import VisPruner
from tokpipe.compress.attention.vscan import VScan
from tokpipe.tensors import TokenBatch
from tokpipe.testing.golden import Adapter, Case, assert_index, assert_values, frame_tokens

#: Tolerance where many tokens are summed, and where the reference was rounded to float16.
_SUMMED, _HALF = 1e-3, 2e-3


def heads_last(attention: Tensor) -> Tensor:
    """[B, H, N] as [B, N, H]."""
    return attention.transpose(1, 2)


def mask_of(index: Tensor, shape: torch.Size) -> Tensor:
    mask = torch.zeros(shape.numel(), dtype=torch.bool)
    mask[index] = True
    return mask.reshape(shape)


def fastervlm(case: Case) -> None:
    """Kept tokens of each image in raster order."""
    tokens = frame_tokens(case("in_x"), attention=heads_last(case("in_attn_cls")))
    made = TopK(by="attention", scope="frame", keep=case.value("par_T")).decide(tokens, None)
    expected = case("out_mask")
    assert_index(mask_of(made.anchor, expected.shape), expected)
    assert_index(made.anchor.reshape(case("out_kept").shape) % expected.shape[1], case("out_kept"))
    assert_values(tokens.reduce(made).data.reshape(case("out_tokens").shape), case("out_tokens"))


def fastv(case: Case) -> None:
    """Kept positions of the whole prompt: all text and the best image tokens."""
    start, size = case.value("par_sys_length"), case.value("par_image_len")
    attention = case("in_attn_last")[0, :, 0]
    seen = attention[:, start : start + size].T
    tokens = frame_tokens(torch.zeros(size, 1)).with_extras(prompt_attention=seen)
    made = TopK(by="prompt_attention", keep=case.value("par_keep")).decide(tokens, None)
    position = torch.arange(attention.shape[1])
    text = position[(position < start) | (position >= start + size)]
    assert_index(torch.cat([text, made.anchor + start]).sort().values, case("out_keep"))


def visionzip(case: Case) -> None:
    """Rows of each image; dominant places by falling attention, the class token first."""
    hidden = case("in_hidden")
    tokens = frame_tokens(hidden, attention=heads_last(case("in_attn_cls")), keys=case("in_metric"))
    dominant, contextual = case.value("par_dominant"), case.value("par_contextual")
    rule = VisionZip(dominant=dominant, contextual=contextual, class_token=True, compat="released")
    made = rule.decide(tokens, None)
    expected = case("out_tokens")
    assert_values(tokens.reduce(made).data.reshape(expected.shape), expected)
    assert made.score is not None
    place = made.anchor.reshape(expected.shape[:2]) % hidden.shape[1]
    score = made.score.reshape(expected.shape[:2]).clone()
    score[:, 0] = torch.inf
    order = torch.argsort(score[:, : dominant + 1], descending=True, stable=True)
    assert_index(place.gather(1, order), case("out_dominant_idx_unsorted"))


def vispruner(case: Case) -> None:
    """The set of kept tokens of each image."""
    tokens = frame_tokens(case("in_x"), attention=heads_last(case("in_attn_cls")))
    rule = VisPruner(keep=case.value("par_T"), important=float(case.value("par_important_ratio")))
    made = rule.decide(tokens, None)
    expected = case("out_mask")
    assert_index(mask_of(made.anchor, expected.shape), expected)
    assert_index(made.anchor.reshape(case("out_kept").shape) % expected.shape[1], case("out_kept"))


def vscan(case: Case) -> None:
    """Kept places and merged rows of each image, in raster order."""
    tokens = frame_tokens(
        case("in_x"), attention=case("in_deep"), attention_shallow=case("in_shallow")
    )
    rule = VScan(
        keep=case.value("par_T"), window=case.value("par_window"),
        global_ratio=case.value("par_global_ratio"), compat="released",
    )  # fmt: skip
    made = rule.decide(tokens, None)
    mask, kept = case("out_mask"), case("out_kept")
    assert_index(mask_of(made.anchor, mask.shape), mask)
    assert_index(made.anchor.reshape(kept.shape) % mask.shape[1], kept)
    assert_values(tokens.reduce(made).data.reshape(case("out_tokens").shape), case("out_tokens"))


def hiprune(case: Case) -> None:
    """The set of kept tokens of each image."""
    deep, grid = case("in_deep"), case.value("par_grid")
    tokens = frame_tokens(
        torch.zeros(*deep.shape, 1), (grid, grid), received=deep, received_middle=case("in_mid")
    )
    rule = HiPrune(keep=case.value("par_T"), alpha=case.value("par_alpha"), compat="released")
    made = rule.decide(tokens, None)
    mask = mask_of(made.anchor, deep.shape)
    assert_index(mask, case("out_mask"))
    assert_index(mask.sum(1), case("out_n_kept"))


def tiles(parts: int, size: int, dim: int = 1) -> TokenBatch:
    """One picture: ``parts`` square tiles of ``size`` tokens, the whole first."""
    tokens = frame_tokens(torch.zeros(parts, size, dim))
    tile = torch.arange(parts).repeat_interleave(size).int()
    cell = tokens.cell.clone()
    cell[:, 0] = 0
    at = torch.zeros(parts * size).double()
    return tokens.with_columns(tile=tile, cell=cell, at=at)


def hired(case: Case) -> None:
    """The set of kept tokens of each partition, and its size."""
    top = case("in_bottom")
    parts, _, size = top.shape
    late, early = (heads_last(case(k)).reshape(parts * size, -1) for k in ("in_bottom", "in_top"))
    tokens = tiles(parts, size).with_extras(attention=late, attention_shallow=early)
    rule = HiRed(
        ratio=case.value("par_rate"), alpha=case.value("par_alpha"),
        columns=case.value("par_grid_w"), compat="released",
    )  # fmt: skip
    mask = mask_of(rule.decide(tokens, None).anchor, torch.Size((parts, size)))
    assert_index(mask, case("out_mask"))
    assert_index(mask.sum(1), case("out_per_partition"))


def pictured(case: Case, rows: int, cols: int) -> Tensor:
    """Mask [rows, cols] of the stitched picture: where there is picture, not padding."""
    wide, high = case.value("par_orig_w"), case.value("par_orig_h")
    mask = torch.ones(rows, cols, dtype=torch.bool)
    if wide / high > cols / rows:
        edge = (rows - int(high * (cols / wide))) // 2
        mask[:edge] = mask[rows - edge :] = False
    else:
        edge = (cols - int(wide * (rows / high))) // 2
        mask[:, :edge] = mask[:, cols - edge :] = False
    return mask


def globalcom2(case: Case) -> None:
    """Kept thumbnail tokens, scales, and the emitted crop sequence with its newlines rebuilt."""
    crops, cols, rows = case("in_crops"), case.value("par_grid_w"), case.value("par_grid_h")
    count, size, dim = crops.shape
    side = int(size**0.5)
    tokens = tiles(count + 1, size, dim).with_columns(
        data=torch.cat([torch.zeros(size, dim), crops.reshape(-1, dim)])
    )
    seen = torch.cat([case("in_thumb_attn"), case("in_crop_attn").flatten()])
    shown = pictured(case, rows * side, cols * side)
    shown = shown.reshape(rows, side, cols, side).permute(0, 2, 1, 3).reshape(-1)
    live = torch.nonzero(torch.cat([torch.ones(size, dtype=torch.bool), shown])).flatten()
    tokens = tokens.with_extras(attention=seen).take(live)
    ratio, heat = case.value("par_retention"), case.value("par_temperature")
    made = GlobalCom2(ratio=ratio, temperature=heat, columns=cols).decide(tokens, None)
    scales = crop_scales(tokens.extras["attention"], crops_of(tokens, cols), ratio, heat)
    assert_values(torch.tensor(scales), case("out_scales"))
    reduced = tokens.reduce(made)
    whole = reduced.tile == 0
    assert_index(made.anchor[whole], case("out_thumb_idx"))
    part = reduced.take(~whole)
    line = (part.tile.long() - 1) // cols * side + part.cell[:, 1]
    sequence, newline = [], []
    for y in range(rows * side):
        row = part.data[line == y]
        sequence += [row, torch.full((1, dim), -7.0)]
        newline += [False] * len(row) + [True]
    assert_index(torch.tensor(newline), case("out_seq_is_newline"))
    expected = case("out_seq_tokens_fp16")
    assert_values(torch.cat(sequence), expected, atol=_HALF, rtol=_HALF)


def _prumerge(case: Case, spatial: bool) -> None:
    """Kept tokens by falling attention and all rows, the last one for the rest."""
    x, q, k = case("in_x"), case("in_q"), case("in_k")
    seen = torch.einsum("bd,bnd->bn", q[:, 0], k) * k.shape[2] ** -0.5
    seen = torch.softmax(seen, 1)[:, 1:]
    assert_values(seen, case("out_cls_attn"))
    tokens = frame_tokens(x, attention=seen, keys=k[:, 1:])
    rule = PruMerge(
        ratio=None if case.value("par_adaptive") else case.value("par_ratio"),
        neighbours=case.value("par_k_neighbors"), spatial=spatial, compat="released",
    )  # fmt: skip
    made = rule.decide(tokens, None)
    expected, top = case("out_tokens"), case("out_topk")
    place = made.anchor.reshape(expected.shape[:2]) % x.shape[1]
    assert case.value("out_n_top") == top.shape[1]
    assert_index(place[:, : top.shape[1]], top)
    found = tokens.reduce(made).data.reshape(expected.shape)
    assert_values(found, expected, atol=_SUMMED, rtol=_SUMMED)


def prumerge(case: Case) -> None:
    _prumerge(case, spatial=False)


def prumerge_plus(case: Case) -> None:
    _prumerge(case, spatial=True)


def illava(case: Case) -> None:
    """Merged tokens, lowest first, and all rows in raster order."""
    x, attention = case("in_x"), case("in_attn")
    received = attention.mean(1).mean(1)
    tokens = frame_tokens(x, received=received)
    made = ILlava(r=case.value("par_r")).decide(tokens, None)
    expected, lowest = case("out_tokens"), case("out_lowest_idx")
    found = tokens.reduce(made).data.reshape(expected.shape)
    assert_values(found, expected, atol=_HALF, rtol=_HALF)
    for image in range(x.shape[0]):
        rows = torch.nonzero(torch.bincount(made.dst) > 1).flatten()
        member = made.src[made.dst == rows[image]]
        order = torch.argsort(received[image][member % x.shape[1]])
        assert_index(member[order] % x.shape[1], lowest[image])


def ficoco_v(case: Case) -> None:
    """Merged, remaining and receiving tokens of the first layer; rows and their sizes."""
    side = int((case("in_x").shape[1] - 1) ** 0.5)
    tokens = frame_tokens(case("in_x"))
    place = torch.arange(side * side)
    cell = torch.full_like(tokens.cell, -1)
    cell[1:] = torch.stack([torch.zeros_like(place), place // side, place % side], 1).int()
    tokens = tokens.with_columns(cell=cell).with_extras(queries=case("in_q"), keys=case("in_k"))
    rule = FiCoCoV(
        r=case.value("par_r"), beta=case.value("par_beta"), quantile=case.value("par_quantile"),
        window=case.value("par_window"), class_token=True, compat="released",
    )  # fmt: skip
    made = rule.decide(tokens, None)
    remain, merged, targets = case("out_remain_idx"), case("out_merged_idx"), case("out_targets")
    assert_index(made.anchor, remain)
    row = torch.where(targets < len(remain), targets, targets - len(merged)).long()
    assert case.value("out_n_targets") == targets.shape[1]
    for source, into in zip(merged.tolist(), row, strict=True):
        assert_index(made.dst[made.src == source].sort().values, into.sort().values)
    reduced = tokens.reduce(made)
    assert_values(reduced.data, case("out_tokens")[0])
    assert_values(reduced.mass, case("out_size")[0, :, 0])


def ast_topk(case: Case) -> None:
    """Kept patches for each ratio named, by falling attention, and what is gathered with them."""
    x, heads = case("x"), case.value("num_heads")
    clips, size, dim = x.shape
    mixed = x @ case("qkv_w").T + case("qkv_b")
    q, k, v = mixed.reshape(clips, size, 3, heads, dim // heads).permute(2, 0, 3, 1, 4)
    attention = torch.softmax(q @ k.transpose(2, 3) * (dim // heads) ** -0.5, 3)
    attended = (attention @ v).transpose(1, 2).reshape(x.shape) @ case("proj_w").T + case("proj_b")
    names = [name for name in case.arrays if name.startswith("topk_kr")]
    assert names
    for name in names:
        ratio = name.removeprefix("topk_kr")
        for clip in range(clips):
            tokens = frame_tokens(x[clip], modality=1, attention=attention[clip, :, 0].T)
            made = AstTopK(ratio=float(ratio), special=2).decide(tokens, None)
            assert_index(made.anchor[2:] - 2, case(name)[clip])
            assert_index(made.anchor[:2], torch.arange(2))
            kept = tokens.reduce(made).data
            assert_values(kept, case(f"kept_kr{ratio}")[clip], atol=1e-5, rtol=1e-4)
        whole = case(f"out_kr{ratio}")
        if whole.numel():
            assert_values(attended, whole, atol=1e-5, rtol=1e-4)


ADAPTERS: dict[str, Adapter] = {
    "fastervlm": fastervlm,
    "fastv": fastv,
    "visionzip": visionzip,
    "vispruner": vispruner,
    "vscan": vscan,
    "hiprune": hiprune,
    "hired": hired,
    "globalcom2": globalcom2,
    "prumerge": prumerge,
    "prumerge_plus": prumerge_plus,
    "illava": illava,
    "ficoco_v": ficoco_v,
    "ast_topk_prune": ast_topk,
}
