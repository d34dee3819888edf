"""Methods that choose by attention: budgets, frames and tiles, paper against released form."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tokpipe.compress._absorb import nearest_others, owners
from tokpipe.compress._neighbors import unit_rows
from tokpipe.compress._tiles import crops_of
from tokpipe.compress.attention.ast_topk import AstTopK
from tokpipe.compress.attention.ficoco_v import FiCoCoV
from tokpipe.compress.attention.globalcom2 import GlobalCom2
from tokpipe.compress.attention.hiprune import HiPrune
from tokpipe.compress.attention.hired import HiRed
from tokpipe.compress.attention.illava import ILlava
from tokpipe.compress.attention.prumerge import PruMerge
from tokpipe.compress.attention.top_k import TopK
from tokpipe.compress.attention.visionzip import VisionZip
from tokpipe.compress.attention.vispruner import VisPruner, least_repeated
from tokpipe.compress.attention.vscan import VScan
from tokpipe.errors import RecipeError
from tokpipe.tensors import TokenBatch, TokenMap
from tokpipe.testing.golden import frame_tokens


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def seen_tokens(frames: int, rows: int, cols: int, dim: int = 6) -> TokenBatch:
    """Random tokens with every attention column."""
    size = rows * cols
    names = ("attention", "attention_shallow", "received", "received_middle")
    columns = {name: draw(frames * size, seed=i) for i, name in enumerate(names)}
    columns["keys"] = draw(frames * size, 4, seed=8) - 0.5
    columns["queries"] = draw(frames * size, 4, seed=7) - 0.5
    tokens = frame_tokens(draw(frames, size, dim, seed=9) - 0.5, (rows, cols))
    return replace(tokens, extras=columns)


def tiled(crops: int, side: int, **extras: Tensor) -> TokenBatch:
    """One picture of a whole and ``crops`` square tiles."""
    tokens = frame_tokens(draw(crops + 1, side * side, 4))
    cell = tokens.cell.clone()
    cell[:, 0] = 0
    tile = torch.arange(crops + 1).repeat_interleave(side * side).int()
    columns = {name: value.flatten() for name, value in extras.items()}
    at = torch.zeros(len(tokens)).double()
    return replace(tokens, cell=cell, tile=tile, at=at, extras=columns)


def distinct(index: Tensor) -> int:
    return len(set(index.tolist()))


def shares(decision: TokenMap) -> Tensor:
    return torch.zeros(decision.num_sources).index_add_(0, decision.src, decision.share)


def test_top_k_of_each_frame_shares_the_budget() -> None:
    value = torch.tensor([9.0, 8.0, 7.0, 6.0, 1.0, 2.0])
    at = torch.tensor([0.0, 0.0, 0.0, 0.0, 1.0, 1.0]).double()
    tokens = TokenBatch.build(torch.zeros(6, 1), at, score=value)
    assert TopK(scope="frame").decide(tokens, 3).anchor.tolist() == [0, 1, 5]
    assert TopK(scope="video").decide(tokens, 3).anchor.tolist() == [0, 1, 2]
    assert TopK(scope="frame", keep=1).decide(tokens, None).anchor.tolist() == [0, 5]
    mixed = tokens.take(torch.tensor([4, 0, 5, 1, 2, 3]))
    assert TopK(scope="frame").decide(mixed, 3).anchor.tolist() == [1, 2, 3]


def test_top_k_averages_heads() -> None:
    heads = torch.tensor([[1.0, 0.0], [0.4, 0.4], [0.9, 0.9]])
    tokens = TokenBatch.build(torch.zeros(3, 1), torch.zeros(3).double())
    tokens = tokens.with_extras(attention=heads)
    made = TopK(by="attention").decide(tokens, 2)
    assert made.anchor.tolist() == [0, 2]
    assert made.score is not None and made.score.tolist() == pytest.approx([0.5, 0.9])


def test_owners_and_neighbours_equal_the_plain_form() -> None:
    data = draw(40, 5) - 0.5
    unit = data / data.norm(dim=1, keepdim=True)
    kept, rest = torch.arange(0, 40, 4), torch.arange(1, 40, 4)
    expected = (unit[rest] @ unit[kept].T).argmax(1)
    assert torch.equal(owners(data, kept, rest), expected)
    row, near = nearest_others(unit, kept, 6)
    alike = unit[kept] @ unit.T
    alike[torch.arange(10), kept] = -2
    best = alike.argsort(1, descending=True)[:, :6].sort(1).values
    assert torch.equal(near.reshape(10, 6), best)
    assert torch.equal(row, torch.arange(10).repeat_interleave(6))


def test_equal_neighbours_go_by_index() -> None:
    _, near = nearest_others(torch.ones(6, 2), torch.tensor([1, 4]), 3)
    assert near.tolist() == [0, 2, 3, 0, 1, 2]


def test_visionzip_rows_are_means_or_sums() -> None:
    data = torch.tensor([[0.0, 9.0], [2.0, 0.0], [4.0, 0.0], [6.0, 0.0]])
    tokens = TokenBatch.build(data, torch.zeros(4).double())
    tokens = tokens.with_extras(attention=torch.tensor([1.0, 0.1, 0.1, 0.1]), keys=data)
    paper = VisionZip(dominant=1, contextual=1)
    released = VisionZip(dominant=1, contextual=1, compat="released")
    assert tokens.reduce(paper.decide(tokens, None)).data.tolist() == [[0, 9], [4, 0]]
    assert tokens.reduce(released.decide(tokens, None)).data.tolist() == [[0, 9], [7, 0]]
    assert shares(released.decide(tokens, None)).tolist() == [1, 1, 1, 1]


def test_visionzip_splits_a_budget_and_keeps_the_class_token() -> None:
    tokens = seen_tokens(1, 9, 9)
    made = VisionZip().decide(tokens, 64)
    assert len(made) == 64 and int((made.kinds() == 1).sum()) <= 10
    attention = tokens.extras["attention"]
    top = attention.argsort(descending=True)[:54].sort().values
    assert torch.equal(made.anchor[:54], top)
    for budget in (1, 2, 5):
        assert VisionZip(class_token=True).decide(tokens, budget).anchor[0] == 0


def test_visionzip_with_few_left_makes_all_of_them_targets() -> None:
    tokens = seen_tokens(1, 2, 5)
    made = VisionZip(dominant=8, contextual=10).decide(tokens, None)
    assert len(made) == 10


def naive_dedup(unit: Tensor, count: int) -> list[int]:
    left = list(range(unit.shape[0]))
    while len(left) > count:
        even, odd = left[::2], left[1::2]
        best = [max(float(unit[a] @ unit[b]) for b in odd) for a in even]
        order = sorted(range(len(even)), key=lambda i: -best[i])
        gone = min(8, len(left) - count, len(even))
        left = [even[i] for i in order[gone:]] + odd
    return left


@pytest.mark.parametrize(("n", "count"), [(31, 6), (30, 1), (9, 8)])
def test_vispruner_rounds_equal_the_plain_form(n: int, count: int) -> None:
    unit = torch.nn.functional.normalize(draw(n, 6) - 0.5, dim=1)
    assert least_repeated(unit, count, 8).tolist() == naive_dedup(unit, count)


def test_vispruner_without_a_table_of_similarities() -> None:
    data = draw(2900, 3) - 0.5
    unit = unit_rows(data)
    order = (unit[::2] @ unit[1::2].T).amax(1).argsort(descending=True, stable=True)
    expected = torch.cat([2 * order[8:], torch.arange(1, 2900, 2)])
    assert torch.equal(least_repeated(data, 2892, 8), expected)


def test_vispruner_takes_an_odd_frame() -> None:
    tokens = seen_tokens(1, 27, 27)
    made = VisPruner().decide(tokens, 64)
    assert distinct(made.anchor) == 64
    best = tokens.extras["attention"].argsort(descending=True)[:32]
    assert torch.isin(best, made.anchor).all()


def test_vscan_spends_what_windows_cannot_share() -> None:
    tokens = seen_tokens(2, 24, 24)
    paper = VScan().decide(tokens, 200)
    released = VScan(compat="released").decide(tokens, 200)
    assert len(paper) == 200 and len(released) == 196
    assert torch.equal(paper.anchor, paper.anchor.sort().values)


def test_vscan_takes_windows_at_the_border() -> None:
    tokens = seen_tokens(1, 7, 7)
    made = VScan(window=6, global_ratio=0.0).decide(tokens, 4)
    place = tokens.cell[made.anchor, 1:] // 6
    assert sorted(place.tolist()) == [[0, 0], [0, 1], [1, 0], [1, 1]]


def test_hiprune_neighbours_end_with_the_row() -> None:
    tokens = seen_tokens(1, 4, 4)
    middle = torch.zeros(16)
    middle[4] = 1
    tokens = tokens.with_extras(received_middle=middle, received=torch.zeros(16))
    paper = HiPrune(keep=4, alpha=1.0).decide(tokens, None)
    assert paper.anchor.tolist() == [0, 4, 5, 8]
    released = HiPrune(keep=5, alpha=1.0, compat="released").decide(tokens, None)
    assert released.anchor.tolist() == [0, 3, 4, 5, 8]


def test_hiprune_keeps_anchors_before_neighbours() -> None:
    tokens = seen_tokens(1, 6, 6)
    made = HiPrune(alpha=1.0).decide(tokens, 3)
    assert int(tokens.extras["received_middle"].argmax()) in made.anchor.tolist()
    assert len(made) == 3


def test_hired_votes_of_a_crop_are_its_quarter() -> None:
    seen = torch.full((5, 16), 0.1)
    early = torch.zeros(5, 16)
    early[0] = torch.tensor([[1.0, 1.0, 0, 0]] * 4).flatten()
    tokens = tiled(4, 4, attention=seen, attention_shallow=early)
    made = HiRed(alpha=0.5).decide(tokens, 24)
    assert torch.bincount(tokens.tile[made.anchor]).tolist() == [12, 6, 0, 6]
    released = HiRed(alpha=0.5, compat="released").decide(tokens, 24)
    assert torch.bincount(tokens.tile[released.anchor]).tolist() == [12, 3, 3, 3, 3]


@pytest.mark.parametrize("budget", [1, 3, 40, 79])
@pytest.mark.parametrize("rule", [HiRed(), HiRed(alpha=1.0), HiRed(alpha=0.0), GlobalCom2()])
def test_tiles_meet_the_budget(rule: HiRed | GlobalCom2, budget: int) -> None:
    tokens = tiled(4, 4, attention=draw(5, 16), attention_shallow=draw(5, 16, seed=1))
    made = rule.decide(tokens, budget)
    assert len(made) == distinct(made.anchor) == budget


def test_one_tile_is_top_k() -> None:
    tokens = seen_tokens(1, 4, 5)
    best = tokens.extras["attention"].argsort(descending=True)[:7]
    assert torch.equal(HiRed().decide(tokens, 7).anchor, best.sort().values)
    assert torch.equal(GlobalCom2().decide(tokens, 7).anchor, best)


def test_globalcom2_favours_what_the_whole_attends_to() -> None:
    seen = torch.full((5, 16), 0.1)
    seen[0, [10, 11, 14, 15]] = 4.0
    tokens = tiled(4, 4, attention=seen)
    made = GlobalCom2(temperature=1.0).decide(tokens, 40)
    counts = torch.bincount(tokens.tile[made.anchor], minlength=5).tolist()
    assert counts[4] > max(counts[1:4]) and sum(counts) == 40
    assert set(made.anchor[:4].tolist()) == {10, 11, 14, 15}
    rows = made.anchor[tokens.tile[made.anchor] > 0]
    tile, cell = tokens.tile[rows].long() - 1, tokens.cell[rows].long()
    place = (tile // 2 * 4 + cell[:, 1]) * 8 + tile % 2 * 4 + cell[:, 2]
    assert torch.equal(place, place.sort().values)


def test_crops_are_laid_out_as_square_as_they_can() -> None:
    found = [crops_of(tiled(n, 4), None) for n in (0, 1, 2, 3, 4, 6)]
    assert [(c.rows, c.cols) for c in found] == [(1, 1), (1, 1), (1, 2), (1, 3), (2, 2), (2, 3)]
    assert crops_of(tiled(3, 6), 1).region().bincount().tolist() == [12, 12, 12]


def test_prumerge_rows_are_averages_or_barely_move() -> None:
    data = torch.tensor([[1.0, 0.0], [3.0, 0.0], [0.0, 8.0]])
    tokens = TokenBatch.build(data, torch.zeros(3).double())
    tokens = tokens.with_extras(attention=torch.tensor([0.3, 0.1, 0.2]), keys=data)
    paper = PruMerge(neighbours=1).decide(tokens, 2)
    assert paper.anchor.tolist() == [0, 2]
    torch.testing.assert_close(tokens.reduce(paper).data, torch.tensor([[1.5, 0.0], [1.0, 16 / 3]]))
    released = PruMerge(ratio=0.34, neighbours=1, compat="released").decide(tokens, None)
    torch.testing.assert_close(tokens.reduce(released).data, torch.tensor([[1.3, 0.0], [0.3, 1.6]]))
    assert shares(paper).tolist() == pytest.approx([1, 1, 1])


def test_prumerge_outliers_are_of_the_frame() -> None:
    attention = torch.full((2, 20), 0.01)
    attention[0, :3] = 1.0
    tokens = frame_tokens(draw(2, 20, 4), attention=attention, keys=draw(2, 20, 4, seed=2))
    rows = torch.bincount(PruMerge().decide(tokens, None).anchor // 20).tolist()
    assert rows == [4, 1]
    released = PruMerge(compat="released").decide(tokens, None)
    assert torch.bincount(released.anchor // 20).tolist() == [2, 2]


def test_prumerge_plus_halves_the_budget() -> None:
    tokens = seen_tokens(1, 8, 8)
    made = PruMerge(spatial=True).decide(tokens, 21)
    assert len(made) == distinct(made.anchor) == 21
    even = made.anchor[10:20]
    assert torch.equal(even, even.sort().values) and int(even.diff().max()) <= 10
    assert shares(made).tolist() == pytest.approx([1.0] * 64)


def test_prumerge_plus_by_ratio_repeats_only_as_released() -> None:
    tokens = seen_tokens(1, 24, 24)
    paper = PruMerge(spatial=True, ratio=0.125).decide(tokens, None)
    assert distinct(paper.anchor) == len(paper) <= 145
    released = PruMerge(spatial=True, ratio=0.125, compat="released").decide(tokens, None)
    assert len(released) == 145 > distinct(released.anchor)


def test_illava_weighs_the_least_attended_most() -> None:
    data = torch.tensor([[6.0], [0.0], [3.0], [1.0]])
    tokens = TokenBatch.build(data, torch.zeros(4).double())
    tokens = tokens.with_extras(received=torch.tensor([0.1, 0.4, 0.2, 0.3]))
    reduced = tokens.reduce(ILlava().decide(tokens, 2))
    assert reduced.data.flatten().tolist() == pytest.approx([0.0, (18 + 6 + 1) / 6])
    assert reduced.mass.tolist() == [1, 3]


def test_ficoco_gives_to_those_that_stay() -> None:
    tokens = seen_tokens(1, 5, 5)
    made = FiCoCoV(r=8).decide(tokens, None)
    assert len(made) == 17 and torch.equal(made.anchor, made.anchor.sort().values)
    assert shares(made).tolist() == pytest.approx([1.0] * 25)
    totals = torch.zeros(17).index_add_(0, made.dst, made.weight)
    torch.testing.assert_close(totals, torch.ones(17))


def test_ficoco_class_token_stays_as_it_is() -> None:
    tokens = seen_tokens(2, 1, 17)
    made = FiCoCoV(r=6, class_token=True).decide(tokens, None)
    first = made.anchor % 17 == 0
    assert torch.nonzero(first).flatten().tolist() == [0, 11]
    reduced = tokens.reduce(made)
    assert torch.equal(reduced.data[first], tokens.data[::17])
    only = FiCoCoV(class_token=True).decide(tokens, 2)
    assert only.anchor.tolist() == [0, 17]


def test_ficoco_heads_are_averaged() -> None:
    tokens = seen_tokens(1, 4, 4)
    heads = tokens.with_extras(
        queries=tokens.extras["queries"].reshape(16, 2, 2),
        keys=tokens.extras["keys"].reshape(16, 2, 2),
    )
    flat = tokens.with_extras(keys=tokens.extras["keys"] / 2)
    one, two = (FiCoCoV(r=5).decide(t, None) for t in (heads, flat))
    assert torch.equal(one.src, two.src) and torch.equal(one.dst, two.dst)
    torch.testing.assert_close(one.weight, two.weight)


def test_ast_keeps_special_tokens_first() -> None:
    tokens = frame_tokens(draw(10, 3), modality=1, attention=draw(10, 4))
    made = AstTopK(ratio=0.3, special=2).decide(tokens, None)
    assert made.anchor[:2].tolist() == [0, 1] and len(made) == 5
    assert made.score is not None and bool((made.score[2:].diff() <= 0).all())
    assert AstTopK(special=2).decide(tokens, 1).anchor.tolist() == [0]


@pytest.mark.parametrize(
    "rule",
    [VisionZip(), VisPruner(), VScan(), HiPrune(), HiRed(), GlobalCom2(), PruMerge(), ILlava(),
     FiCoCoV(), AstTopK(), TopK(by="attention")],
    ids=lambda rule: type(rule).__name__,
)  # fmt: skip
def test_a_missing_column_is_named(rule: TopK) -> None:
    tokens = frame_tokens(draw(9, 4))
    with pytest.raises(RecipeError, match=rule.needs[0]) as error:
        rule.decide(tokens, 4)
    assert error.value.code == "recipe.needs"


@pytest.mark.parametrize(
    "rule", [VisionZip(), VisPruner(), VScan(), HiPrune(), PruMerge(), ILlava(), FiCoCoV()],
    ids=lambda rule: type(rule).__name__,
)  # fmt: skip
def test_frames_of_different_size_share_the_budget(rule: VisionZip) -> None:
    tokens = seen_tokens(3, 4, 5).take(torch.arange(51))
    made = rule.decide(tokens, 17)
    assert torch.bincount(made.anchor // 20).tolist() == [7, 7, 3]
