"""Graph merging and memory banks: what the stored cases and the suite do not cover."""

from __future__ import annotations

import pytest
import torch

from tokpipe.compress import _components
from tokpipe.compress._components import alike_frames, connected
from tokpipe.compress._fit import fit_budget
from tokpipe.compress._quadtree import levels
from tokpipe.compress.similarity.hermes_eco import HermesEco
from tokpipe.compress.similarity.moviechat import MovieChat
from tokpipe.compress.similarity.scissor import Scissor
from tokpipe.compress.similarity.sttm import Sttm
from tokpipe.errors import RecipeError
from tokpipe.tensors import TokenBatch
from tokpipe.testing.golden import frame_tokens


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def chain(count: int) -> torch.Tensor:
    """Unit vectors on an arc, each alike to its neighbours alone, in mixed order."""
    angle = torch.arange(count).double() * 0.02
    rows = torch.stack([angle.cos(), angle.sin()], 1).float()
    return rows[torch.randperm(count, generator=torch.Generator().manual_seed(1))]


@pytest.mark.parametrize("entries", [1 << 21, 500])
def test_long_chains_are_one_component(entries: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_components, "_ENTRIES", entries)
    data = torch.cat([chain(150), -chain(150)])
    found = alike_frames(data[None], 0.9997)
    assert found.root.shape[0] == 2
    assert found.group.bincount().tolist() == [150, 150]


def test_blocks_do_not_change_components(monkeypatch: pytest.MonkeyPatch) -> None:
    data = random(4, 60, 3)
    whole = alike_frames(data, 0.97)
    monkeypatch.setattr(_components, "_ENTRIES", 200)
    parts = alike_frames(data, 0.97)
    assert torch.equal(whole.group, parts.group) and torch.equal(whole.root, parts.root)


def test_connected_is_the_whole_closure() -> None:
    label = torch.arange(8)
    found = connected(label, torch.tensor([7, 5, 3, 6]), torch.tensor([5, 3, 1, 2]))
    assert found.tolist() == [0, 1, 2, 1, 4, 1, 2, 1]


def test_scissor_weights_and_shares_are_whole() -> None:
    tokens = frame_tokens(random(4, 12, 3))
    found = Scissor(threshold=0.8).decide(tokens, None)
    weight = torch.zeros(len(found)).index_add_(0, found.dst, found.weight)
    share = torch.zeros(48).index_add_(0, found.src, found.share)
    torch.testing.assert_close(weight, torch.ones(len(found)))
    torch.testing.assert_close(share, torch.ones(48))


def test_scissor_takes_frames_of_any_size_and_order() -> None:
    data, at = random(30, 4), torch.randint(0, 5, (30,), generator=torch.manual_seed(3)).double()
    mixed = TokenBatch.build(data, at)
    order = torch.argsort(at, stable=True)
    first = mixed.take(order).reduce(Scissor(threshold=0.7).decide(mixed.take(order), None))
    second = mixed.reduce(Scissor(threshold=0.7).decide(mixed, None))
    assert len(first) == len(second)
    total = [rows.data.sum(0) for rows in (first, second)]
    torch.testing.assert_close(total[0], total[1])


def test_a_lone_token_stays_itself() -> None:
    tokens = frame_tokens(torch.eye(5))
    assert torch.equal(tokens.reduce(Scissor().decide(tokens, None)).data, torch.eye(5))


def test_levels_end_at_a_side_of_two() -> None:
    assert levels(13, 13) == [(13, 13), (7, 7), (4, 4), (2, 2)]
    assert levels(6, 10) == [(6, 10), (3, 5), (2, 3)]
    assert levels(1, 7) == [(1, 7)]


def test_sttm_border_cells_need_not_resemble_the_corner() -> None:
    data = torch.zeros(1, 49, 2)
    data[..., 0] = 1
    data[0, 0] = torch.tensor([0.0, 1.0])
    tokens = frame_tokens(data, (7, 7))
    paper, released = (
        len(Sttm(root=1, compat=form).decide(tokens, None)) for form in ("paper", "released")
    )
    # 4 x 4 cells above 7 x 7 tokens; the corner's own cell is one token alone.
    assert paper == 16
    assert released == 16 + 3 + 3


def test_sttm_joins_whole_chains_over_time() -> None:
    data = random(1, 64, 6).repeat(6, 1, 1)
    tokens = frame_tokens(data, (8, 8))
    spatial = Sttm(temporal=None).decide(tokens.take(slice(0, 64)), None)
    found = Sttm(temporal=0.999).decide(tokens, None)
    assert len(found) == len(spatial)
    assert tokens.reduce(found).mass.sum() == 6 * 64


@pytest.mark.parametrize("grid", [(1, 1), (1, 5), (2, 3), (5, 9)])
@pytest.mark.parametrize("weighted", [False, True])
def test_sttm_on_any_grid(grid: tuple[int, int], weighted: bool) -> None:
    tokens = frame_tokens(random(3, grid[0] * grid[1], 4), grid)
    found = Sttm(threshold=0.2, temporal=0.2, root=0, weighted=weighted).decide(tokens, None)
    weight = torch.zeros(len(found)).index_add_(0, found.dst, found.weight)
    torch.testing.assert_close(weight, torch.ones(len(found)))


def test_sttm_needs_whole_frames() -> None:
    tokens = frame_tokens(random(3, 16, 4))
    with pytest.raises(RecipeError):
        Sttm().decide(tokens.take(torch.arange(40)), None)


def test_moviechat_merges_the_most_alike_neighbours() -> None:
    frames = torch.tensor([[1.0, 0], [0, 3], [0, 3], [1, 0]])[:, None].repeat(1, 2, 1)
    tokens = frame_tokens(frames)
    found = MovieChat(merged=3).decide(tokens, None)
    assert found.dst[::2].tolist() == [0, 2, 2, 4]


def test_moviechat_forgets_what_leaves_the_short_memory() -> None:
    tokens = frame_tokens(random(10, 3, 4))
    found = MovieChat(fragment=5, short_memory=3, merged=1).decide(tokens, None)
    assert len(found) == 6
    assert sorted(set((found.src // 3).tolist())) == [2, 3, 4, 7, 8, 9]


@pytest.mark.parametrize("frames", [1, 2, 5, 9, 20])
@pytest.mark.parametrize("operator", [MovieChat(fragment=4), HermesEco(), HermesEco(online=False)])
def test_banks_use_the_whole_frames_of_a_budget(
    operator: MovieChat | HermesEco, frames: int
) -> None:
    tokens = frame_tokens(random(17, 6, 4))
    for spare in (0, 3):
        assert len(operator.decide(tokens, 6 * frames + spare)) == 6 * min(17, frames)
        assert len(fit_budget(operator, tokens, 6 * frames + spare)) == min(102, 6 * frames + spare)


@pytest.mark.parametrize("operator", [MovieChat(fragment=4), MovieChat(fragment=4, capacity=3),
                                      HermesEco(capacity=5), HermesEco(online=False)])  # fmt: skip
@pytest.mark.parametrize("budget", [None, 4, 21, 60])
@pytest.mark.parametrize("step", [1, 3, 20])
def test_banks_stream_as_they_decide(
    operator: MovieChat | HermesEco, budget: int | None, step: int
) -> None:
    tokens = frame_tokens(random(19, 6, 4))
    state, carried, done = operator.start(budget, 19), None, []
    for a in range(0, 19, step):
        new = tokens.take(slice(a * 6, (a + step) * 6))
        state, made = operator.push(state, carried, new)  # type: ignore[arg-type]
        both = new if carried is None else TokenBatch.cat([carried, new])
        rows, settled = both.reduce(made), state.settled
        assert settled is not None
        done.append(rows.take(settled))
        carried = rows.take(~settled)
    assert carried is not None
    done.append(carried.reduce(operator.finish(state, carried)))  # type: ignore[arg-type]
    found = TokenBatch.cat([part for part in done if len(part)])
    whole = tokens.reduce(operator.decide(tokens, budget))
    torch.testing.assert_close(found.data, whole.data)
    assert torch.equal(found.mass, whole.mass) and torch.equal(found.cell, whole.cell)


def test_moviechat_hands_on_what_is_final() -> None:
    operator = MovieChat(fragment=4)
    state = operator.start(None, None)
    state, _ = operator.push(state, None, frame_tokens(random(6, 3, 4)))
    assert state.settled is not None and state.settled.tolist() == [True] * 6 + [False] * 6


def test_hermes_weights_by_mass() -> None:
    tokens = frame_tokens(torch.tensor([[[1.0, 0.0]], [[4.0, 0.0]], [[0.0, 1.0]]]))
    tokens = tokens.with_columns(mass=torch.tensor([2.0, 1.0, 1.0]))
    rows = tokens.reduce(HermesEco(capacity=2).decide(tokens, None))
    torch.testing.assert_close(rows.data, torch.tensor([[2.0, 0.0], [0.0, 1.0]]))
    assert rows.mass.tolist() == [3.0, 1.0]
