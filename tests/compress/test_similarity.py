"""Selection, clustering and graph methods: budgets, options and sizes that goldens do not show."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tokpipe.compress import _cover, _farthest
from tokpipe.compress._cosine import Cosines, nearest_of, nearest_other
from tokpipe.compress.attention.dart import Dart
from tokpipe.compress.attention.pact import Pact
from tokpipe.compress.attention.prunesid import Prunesid
from tokpipe.compress.similarity.dpc_knn import DpcKnn
from tokpipe.compress.similarity.evtp_ivs import EvtpIvs
from tokpipe.compress.similarity.floc import Floc, facilities
from tokpipe.compress.similarity.gprune import Gprune
from tokpipe.compress.similarity.max_min import MaxMin
from tokpipe.compress.similarity.mustdrop import Mustdrop
from tokpipe.compress.similarity.pact_dbdpc import PactDbdpc
from tokpipe.compress.similarity.showui_graph import ShowuiGraph
from tokpipe.compress.similarity.vqtoken_kmeans import VqtokenKmeans
from tokpipe.errors import RecipeError
from tokpipe.frames import each_frame
from tokpipe.tensors import Query, TokenBatch
from tokpipe.testing.golden import frame_tokens, group_of
from tokpipe.testing.suites import sample_tokens


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def ragged(sizes: tuple[int, ...], dim: int = 6) -> TokenBatch:
    """Frames of different sizes, one row each."""
    at = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    x = torch.cat([torch.arange(s) for s in sizes])
    cell = torch.stack([at, torch.zeros_like(at), x], 1).int()
    return TokenBatch.build(draw(len(at), dim), at.double(), cell=cell)


def test_blocks_give_what_kept_cosines_give() -> None:
    data = draw(2, 30, 5)
    data[0, 3] = 0
    kept, made = Cosines(data), Cosines(data, pairs=0)
    member = torch.zeros(2, 30, dtype=torch.bool)
    member[:, ::4] = True
    assert kept.dense is not None and made.dense is None
    torch.testing.assert_close(nearest_other(kept), nearest_other(made))
    assert torch.equal(nearest_of(kept, member)[1], nearest_of(made, member)[1])
    first, second = (_cover.cover(c, 0.5, 2.0) for c in (kept, made))
    assert torch.equal(first.centre, second.centre) and torch.equal(first.label, second.label)
    torch.testing.assert_close(Gprune().flow(kept), Gprune().flow(made))


def test_one_large_frame_is_covered_without_rows_of_covered_tokens() -> None:
    data = draw(1, 60, 4)
    first, second = (_cover.cover(Cosines(data, pairs=p), 0.3, 2.0) for p in (0, 10**6))
    assert torch.equal(first.centre, second.centre)


def test_pooled_farthest_first_makes_the_same_picks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_farthest, "_POOL", 16)
    monkeypatch.setattr(_farthest, "_WAIT", 5)
    data, place = draw(1, 300, 6), torch.rand(1, 300, 2)
    for where in (None, place):
        few, many = (
            _farthest.farthest_first(Cosines(data, pairs=p), 120, place=where) for p in (0, 10**6)
        )
        assert torch.equal(few[0], many[0])
        torch.testing.assert_close(few[1], many[1])


def test_facility_location_is_the_naive_greedy() -> None:
    data = draw(1, 50, 5)
    unit = data[0] / data[0].norm(dim=1, keepdim=True)
    picks: list[int] = []
    cosines, reached = (unit @ unit.T).double(), torch.zeros(50).double()
    for _ in range(12):
        gain = (cosines - reached).clamp(min=0).sum(1)
        gain[picks] = -1
        picks.append(int((gain >= gain.max() - 1e-6).byte().argmax()))
        reached = torch.maximum(reached, cosines[picks[-1]])
    for pairs in (0, 10**6):
        assert facilities(Cosines(data, pairs=pairs), 12)[0].tolist() == picks


def test_lazy_facility_location_is_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tokpipe.compress.similarity.floc._FEW", 0)
    monkeypatch.setattr("tokpipe.compress.similarity.floc._BATCH", 4)
    data = draw(1, 80, 5)
    exact = facilities(Cosines(data), 30)[0]
    assert torch.equal(facilities(Cosines(data, pairs=0), 30)[0], exact)


def test_floc_shares_the_budget_over_chunks() -> None:
    tokens = frame_tokens(draw(6, 10, 4))
    found = Floc(chunk=4).decide(tokens, 9)
    assert [(found.anchor < 40).sum().item(), len(found)] == [6, 9]
    assert len(Floc(chunk=4).decide(tokens, None)) == 40 // 8 + 20 // 8


@pytest.mark.parametrize(
    "operator", [MaxMin(), EvtpIvs(), Gprune(), PactDbdpc(), Dart(), DpcKnn(), Mustdrop()]
)
def test_frames_of_different_size_are_decided_alone(operator: MaxMin) -> None:
    tokens = ragged((9, 4, 9, 1))
    both = tokens.reduce(operator.decide(tokens, 12))
    at = 0
    for size, share in ((9, 5), (4, 2), (9, 5), (1, 0)):
        frame = tokens.take(slice(at, at + size))
        mine = both.take(both.at == frame.at[0])
        assert len(mine) == share
        if share:
            alone = frame.reduce(operator.decide(frame, share))
            torch.testing.assert_close(mine.data, alone.data)
        at += size


def test_density_cover_with_a_budget_widens_the_cutoff() -> None:
    data = draw(40, 3)
    tokens = frame_tokens(data)
    cosines = Cosines(data[None]).part(0, 40)[0]
    apart = []
    for budget in (11, 30):
        found = PactDbdpc().decide(tokens, budget)
        assert len(found) == budget and (group_of(found) >= 0).all()
        assert found.anchor.tolist() == sorted(found.anchor.tolist())
        assert torch.equal(group_of(found), cosines[:, found.anchor].argmax(1))
        between = 1 - cosines[found.anchor][:, found.anchor]
        apart.append(between.fill_diagonal_(9).min())
    assert apart[0] > 2 * apart[1]


def test_pruned_tokens_join_only_what_is_near() -> None:
    angle = torch.tensor([0.0, 0.1, 1.5, 0.7, 3.0])
    data = torch.stack([angle.cos(), angle.sin()], 1)
    tokens = frame_tokens(data).with_extras(pruned=torch.tensor([0.0, 0, 0, 1, 1]))
    found = PactDbdpc(cutoff=0.2).decide(tokens, None)
    assert found.anchor.tolist() == [1, 2] and group_of(found).tolist() == [0, 0, 1, 0, -1]
    assert len(PactDbdpc().decide(tokens, 4)) == 3
    gone = tokens.with_extras(pruned=torch.ones(5))
    assert len(PactDbdpc().decide(gone, 2)) == 2


def test_pact_keeps_more_tokens_where_the_budget_asks_for_more() -> None:
    tokens = frame_tokens(draw(20, 4), queries=draw(20, 2, 3, seed=1), keys=draw(20, 2, 3, seed=2))
    assert len(Pact(keep=0.2).decide(tokens, 15)) == 15
    assert len(Pact(keep=0.2, cutoff=0.0).decide(tokens, None)) == 4
    with pytest.raises(RecipeError, match="queries"):
        Pact().decide(frame_tokens(draw(4, 2)), 2)


def test_dart_meets_any_budget() -> None:
    tokens = frame_tokens(draw(30, 4))
    query = Query(text="", pooled=draw(1, 4), tokens=draw(6, 4, seed=3))
    for budget in range(1, 30):
        assert len(Dart().decide(tokens, budget, query)) == budget
    # Pivots and an equal part per pivot: 4 + 8 * (16 // 8).
    assert len(Dart(tokens=16).decide(tokens, None, query)) == 20
    with pytest.raises(RecipeError, match="width"):
        Dart().decide(tokens, 5, replace(query, tokens=draw(6, 3)))


def test_dart_orders_pivots_by_norm_unless_released() -> None:
    norm, text = torch.arange(20.0)[None], torch.tensor([1.0, 9.0])
    own, words, order = Dart(pivots=3, text_pivots=1).order(norm, text)
    assert own.tolist() == [[19, 18, 17]] and words.tolist() == [1]
    assert order.tolist() == [[0, 1, 2, 3]]
    released = Dart(pivots=3, text_pivots=1, image_start=0, compat="released")
    # A set of 4 small integers is walked by their value modulo 8: 17, 18, 19, 21.
    assert released.order(norm, text)[2].tolist() == [[2, 1, 0, 3]]


def test_spatial_weight_spreads_picks() -> None:
    """Equal tokens are covered by place alone."""
    tokens = frame_tokens(torch.ones(25, 3), (5, 5))
    picks = EvtpIvs().decide(tokens, 4).anchor
    assert set(picks.tolist()) == {0, 4, 20, 24}


def test_prunesid_takes_groups_from_a_column() -> None:
    data, attention = draw(12, 6), torch.arange(12.0) / 12 + 0.1
    tokens = frame_tokens(data, attention=attention, groups=torch.arange(12) // 6)
    found = Prunesid().decide(tokens, 6)
    assert ((found.anchor // 6).diff() >= 0).all() and len(set(found.anchor.tolist())) == 6
    led = Prunesid(class_token=True).decide(tokens, 6)
    assert led.anchor[0] == 0 and len(set(led.anchor.tolist())) == 6
    assert Prunesid(class_token=True).decide(tokens, 1).anchor.tolist() == [0]


def test_mustdrop_merges_the_most_alike_windows_first() -> None:
    data = draw(36, 8)
    grid = data.reshape(6, 6, 8)
    grid[:3, 3:] = grid[0, 3]
    tokens = frame_tokens(data, (6, 6))
    merged = Mustdrop().decide(tokens, 28)
    assert torch.bincount(merged.dst, minlength=28)[0] == 9
    part = Mustdrop().decide(tokens, 31)
    assert len(part) == 31 and torch.bincount(part.dst).max() == 6
    assert len(Mustdrop().decide(tokens, 4)) == 4
    # Windows of 4 x 4 and their borders leave 4, of 6 x 6 one.
    assert len(Mustdrop().decide(tokens, 1)) == 1
    alike = Mustdrop(threshold=0.99).decide(tokens, None)
    assert len(alike) == 28


def test_tokens_without_a_cell_stay_and_come_first() -> None:
    tokens = frame_tokens(torch.ones(10, 4), (2, 5))
    cell = tokens.cell.clone()
    cell[4] = -1
    found = Mustdrop(window=2).decide(tokens.with_columns(cell=cell), None)
    assert found.anchor[0] == 4 and torch.bincount(found.dst)[0] == 1


def test_showui_adds_the_shortest_links_where_components_are_many() -> None:
    pixels = torch.tensor([0.0, 0.1, 5.0, 5.2, 9.0, 20.0])[:, None]
    tokens = frame_tokens(pixels, (1, 6), patch_pixels=pixels)
    assert ShowuiGraph().decide(tokens, None).anchor.tolist() == [0, 2, 4, 5]
    assert ShowuiGraph().decide(tokens, 3).anchor.tolist() == [0, 2, 5]
    assert ShowuiGraph(threshold=0.0).decide(tokens, 2).anchor.tolist() == [0, 5]
    assert len(ShowuiGraph().decide(tokens, 5)) == 5


def test_showui_links_nothing_over_borders() -> None:
    pixels = torch.zeros(8, 1)
    tokens = frame_tokens(pixels, (2, 4), patch_pixels=pixels)
    apart = tokens.with_columns(tile=torch.tensor([0, 0, 0, 0, 1, 1, 1, 1]).int())
    assert ShowuiGraph(skip=0.99).decide(tokens, None).anchor.tolist() == [0]
    assert ShowuiGraph(skip=0.99).decide(apart, None).anchor.tolist() == [0, 4]


def test_kmeans_finds_directions() -> None:
    centre = torch.eye(4, 16)[torch.arange(40) % 4]
    tokens = frame_tokens(centre * (1 + torch.arange(40.0)[:, None]) + 0.01 * draw(40, 16))
    label = group_of(VqtokenKmeans(clusters=4).decide(tokens, None))
    assert torch.unique(torch.stack([label, torch.arange(40) % 4]), dim=1).shape[1] == 4


def test_neighbours_follow_the_clusters() -> None:
    tokens = frame_tokens(draw(20, 4))
    same = DpcKnn(k=6).decide(tokens, 6)
    assert torch.equal(DpcKnn(k="clusters").decide(tokens, 6).dst, same.dst)


@pytest.mark.parametrize("budget", [None, 1, 2, 9, 40, 61, 88, 90])
def test_dpc_knn_of_frames_side_by_side_is_that_of_each(budget: int | None) -> None:
    tokens = sample_tokens(frames=5, rows=4, cols=5)
    # Frames of several sizes, their tokens in any order.
    order = torch.randperm(100, generator=torch.Generator().manual_seed(3))
    tokens = tokens.take(order[order % 10 != 7])
    rule = DpcKnn(clusters=6)
    found = rule.decide(tokens, budget)
    expected = each_frame(tokens, budget, rule.decide)
    assert torch.equal(found.anchor, expected.anchor)
    assert torch.equal(found.dst[found.src.argsort()], expected.dst[expected.src.argsort()])
    both = (f.score if f.score is not None else torch.zeros(0) for f in (found, expected))
    torch.testing.assert_close(*both, equal_nan=True, rtol=1e-4, atol=1e-4)
