"""Golden cases of similarity selection, clustering and graph methods."""

from __future__ import annotations

import torch
from torch import Tensor

from tokpipe.compress._components import connected
from tokpipe.compress._cosine import Cosines
from tokpipe.compress.attention.dart import Dart
from tokpipe.compress.attention.pact_euti import PactEuti
from tokpipe.compress.attention.prunesid import Prunesid, principal_groups
from tokpipe.compress.similarity.dpc_fixed_ratio import DpcFixedRatio
from tokpipe.compress.similarity.dpc_knn import DpcKnn
from tokpipe.compress.similarity.floc import Floc
from tokpipe.compress.similarity.gprune import Gprune
from tokpipe.compress.similarity.max_min import MaxMin
from tokpipe.compress.similarity.mustdrop import Mustdrop
from tokpipe.compress.similarity.pact_dbdpc import PactDbdpc
from tokpipe.compress.similarity.showui_graph import ShowuiGraph, links
from tokpipe.tensors import Query, TokenBatch, TokenMap
from tokpipe.testing.golden import (
    Adapter,
    Case,
    assert_index,
    assert_values,
    frame_tokens,
    group_of,
)


def _divprune(case: Case) -> None:
    tokens = frame_tokens(case("in_x"))
    found = MaxMin(ratio=case.value("par_ratio")).decide(tokens, None)
    assert_index(found.anchor, case("out_order"))
    assert_index(found.anchor.sort().values, case("out_kept"))
    assert found.score is not None
    if len(found) > 1:
        assert_values(found.score[-1:], case("out_min_dist"))


def _dpc_knn(case: Case) -> None:
    x = case("in_x")
    tokens = frame_tokens(x)
    count = case.value("par_clusters")
    found = DpcKnn(k=case.value("par_k"), clusters=count).decide(tokens, None)
    frame = torch.arange(x.shape[0])[:, None]
    assert_index(group_of(found).reshape(x.shape[:2]) - frame * count, case("out_cluster"))
    assert_values(tokens.reduce(found).data, case("out_tokens").flatten(0, 1), atol=1e-3, rtol=1e-3)


def _recycle(case: Case) -> None:
    tokens = frame_tokens(case("in_x"))
    found = DpcKnn(k="clusters", clusters=case.value("par_clusters")).decide(tokens, None)
    assert_values(tokens.reduce(found).data, case("out_tokens").flatten(0, 1), atol=1e-3, rtol=1e-3)


def _dpc_fixed_ratio(case: Case) -> None:
    tokens = frame_tokens(case("in_x"))
    operator = DpcFixedRatio(ratio=case.value("par_percentage"), scale=float(case.value("par_dc")))
    _assert_clusters(case, tokens, operator.decide(tokens, None))


def _pact_dbdpc(case: Case) -> None:
    data, keys = case("in_h"), case("in_keys")
    kept = data.shape[0]
    if "in_ph" in case:
        data = torch.cat([data, case("in_ph")])
        keys = torch.cat([keys, case("in_pk")])
    tokens = frame_tokens(data, keys=keys)
    if "in_ph" in case:
        tokens = tokens.with_extras(pruned=(torch.arange(len(data)) >= kept).float())
    operator = PactDbdpc(
        cutoff=case.value("par_cutoff"), scale=float(case.value("par_dc")),
        reach=case.value("par_coef_pruned", 1.5),
    )  # fmt: skip
    found = operator.decide(tokens, None)
    mask = torch.zeros(kept, dtype=torch.bool)
    mask[found.anchor] = True
    assert_index(mask, case("out_center_mask"))
    assert_index(found.anchor, case("out_centers"))
    _assert_clusters(case, tokens, found)


def _pact_euti(case: Case) -> None:
    queries, keys = (case(name).transpose(0, 1) for name in ("in_q", "in_k"))
    tokens = frame_tokens(case("in_hidden"), queries=queries, keys=keys)
    found = PactEuti(keep=case.value("par_keep")).decide(tokens, None)
    mask = torch.zeros(len(tokens), dtype=torch.bool)
    mask[found.anchor] = True
    assert_index(mask, case("out_mask"))
    assert_index(found.anchor, case("out_kept"))
    everything = PactEuti(keep=1.0).decide(tokens, None)
    assert everything.score is not None
    assert_values(everything.score, case("out_score"))


def _dart(case: Case) -> None:
    start, size = case.value("par_image_start"), case.value("par_image_len")
    hidden, keys = case("in_hidden"), case("in_keys").transpose(0, 1)
    image = slice(start, start + size)
    tokens = frame_tokens(hidden[image], keys=keys[image])
    text = torch.cat([hidden[start + size :], keys[start + size :].flatten(1)], 1)
    most = case.value("par_max_num_truncation")
    operator = Dart(
        pivots=case.value("par_pivot_image"), text_pivots=case.value("par_pivot_text"),
        ratio=case.value("par_reduction_ratio"), tokens=None if most < 0 else most,
        image_start=start, compat="released",
    )  # fmt: skip
    found = operator.decide(tokens, None, Query(text="", pooled=text[:1], tokens=text))
    assert_index(found.anchor + start, case("out_kept"))
    norm = keys.abs().sum((1, 2))
    own, words, order = operator.order(norm[None, image], norm[start + size :])
    place = torch.cat([own[0], words + size])[order[0]] + start
    assert_index(place, case("out_pivots_in_processing_order"))


def _gprune(case: Case) -> None:
    operator = Gprune(
        threshold=case.value("par_similarity"), temperature=case.value("par_temperature"),
        steps=case.value("par_iters"), keep=case.value("par_keep"),
    )  # fmt: skip
    grid = case.value("par_rows"), case.value("par_cols")
    for data, shape, name in ((case("in_x1"), None, "thumb"), (case("in_x2"), grid, "crops")):
        tokens = frame_tokens(data, shape)
        found = operator.decide(tokens, None)
        assert_index(found.anchor, case(f"out_keep_{name}"))
        score, degree = operator.flow(Cosines(data[None]))
        assert found.score is not None
        assert_values(score[0], case(f"out_score_{name}"), atol=1e-3, rtol=1e-3)
        assert_values(found.score, score[0, found.anchor])
        assert_index(degree[0], case(f"out_degree_{name}"))


def _prunesid(case: Case) -> None:
    hidden, groups = case("in_hidden"), case("out_groups")
    steps = hidden.shape[0]
    column = torch.cat([torch.zeros_like(groups[:, :1]), groups], 1)
    attention = case("in_attn_cls").transpose(1, 2)
    tokens = frame_tokens(hidden, attention=attention, groups=column)
    found = Prunesid(keep=case.value("par_T"), class_token=True).decide(tokens, None)
    place = found.anchor.reshape(steps, -1) % hidden.shape[1]
    assert_index(place, case("out_idx_with_cls"))
    # The released groups come from a random decomposition; the stored share says how near it is.
    exact = principal_groups(hidden[:, 1:], torch.full((steps,), case.value("par_T") // 4))
    agreement = (exact == groups).float().mean()
    assert_values(agreement, case("out_exact_svd_group_agreement").reshape(()))


def _mustdrop(case: Case) -> None:
    x = case("in_x")
    steps, size = x.shape[0], x.shape[1] - 1
    grid = frame_tokens(x[:, 1:])
    cell = torch.full((steps, size + 1, 3), -1, dtype=torch.int32)
    cell[:, 1:] = grid.cell.reshape(steps, size, 3)
    tokens = frame_tokens(x).with_columns(cell=cell.reshape(-1, 3))
    operator = Mustdrop(window=case.value("par_window"), threshold=case.value("par_threshold"))
    reduced = tokens.reduce(operator.decide(tokens, None))
    assert_values(reduced.data, case("out_tokens").flatten(0, 1))
    assert_values(reduced.mass, case("out_size").flatten())
    assert_index(reduced.mass.round().int(), case("out_size_i").flatten())
    assert len(reduced) == steps * case.value("out_n")


def _showui(case: Case) -> None:
    patches = case("in_patches")
    rows, cols = patches.shape[1:3]
    pixels = patches.reshape(rows * cols, -1)
    tokens = frame_tokens(pixels, (rows, cols), patch_pixels=pixels)
    for name in case.arrays:
        if name.startswith("out_assign_thr"):
            assigned = _root_ranks(tokens, float(name.removeprefix("out_assign_thr")))
            assert_index(assigned, case(name).flatten())
        elif name.startswith("out_retain_thr"):
            threshold, _, skip = name.removeprefix("out_retain_thr").partition("_skip")
            operator = ShowuiGraph(threshold=float(threshold), skip=float(skip))
            kept = torch.zeros(rows * cols, dtype=torch.bool)
            kept[operator.decide(tokens, None).anchor] = True
            assert_index(kept, case(name))


def _root_ranks(tokens: TokenBatch, threshold: float) -> Tensor:
    """The operator's components, named as the released code does: by rank of the root.

    The root that stays is that of the cell on the left or above, cell by cell in raster order.
    """
    left, right, length = links(tokens, tokens.extras["patch_pixels"])
    near = length < threshold
    label = connected(torch.arange(len(tokens)), left[near], right[near])
    root = torch.arange(len(tokens))
    for a, b in sorted(zip(left[near].tolist(), right[near].tolist(), strict=True)):
        root[root == root[b]] = root[a].item()
    ranks = torch.searchsorted(_distinct(root), root)
    pairs = set(zip(ranks.tolist(), label.tolist(), strict=True))
    assert len(pairs) == len(_distinct(root)) == len(_distinct(label))
    return ranks


def _distinct(label: Tensor) -> Tensor:
    return torch.tensor(sorted(set(label.tolist())))


def _floc(case: Case) -> None:
    tokens = frame_tokens(case("x"))
    found = Floc(chunk=case.meta["T"]).decide(tokens, case.meta["K"])
    assert_index(found.anchor, case("selected_order"))
    assert found.score is not None
    assert_values(found.score, case("gains"), atol=1e-4, rtol=0)


def _assert_clusters(case: Case, tokens: TokenBatch, found: TokenMap) -> None:
    """Centre of every token (-1 nobody's), means and sizes in the order of the centres."""
    group = group_of(found)
    label = torch.where(group >= 0, found.anchor[group.clamp(min=0)], -1)
    assert_index(label, case("out_labels"))
    reduced = tokens.reduce(found)
    assert_values(reduced.data, case("out_merged"), atol=1e-3, rtol=1e-3)
    assert_values(reduced.mass, case("out_weights"))


ADAPTERS: dict[str, Adapter] = {
    "dart": _dart,
    "divprune": _divprune,
    "dpc_fixed_ratio": _dpc_fixed_ratio,
    "dpc_knn": _dpc_knn,
    "floc": _floc,
    "gprune": _gprune,
    "mustdrop_spatial": _mustdrop,
    "pact_dbdpc": _pact_dbdpc,
    "pact_euti": _pact_euti,
    "prunesid": _prunesid,
    "showui_uigraph": _showui,
    "sparsevlm_recycle": _recycle,
}
