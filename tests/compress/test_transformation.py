"""Pooling, transforms, two-rate methods and projectors: budgets, odd sizes, released forms."""

from __future__ import annotations

import doctest
import importlib
from typing import Any

import pytest
import torch

from tokpipe.compress._fit import expanded
from tokpipe.compress._grid_axes import bilinear, dct, floored, low_pass, runs
from tokpipe.compress._project import projected
from tokpipe.compress.transformation.bilinear import Bilinear
from tokpipe.compress.transformation.dynamic_vlm import DynamicVlm
from tokpipe.compress.transformation.fourier import Fourier
from tokpipe.compress.transformation.grid_pool import GridPool
from tokpipe.compress.transformation.llava_video import LlavaVideo
from tokpipe.compress.transformation.matryoshka import Matryoshka
from tokpipe.compress.transformation.max_pool import MaxPool
from tokpipe.compress.transformation.pixel_unshuffle import PixelUnshuffle
from tokpipe.compress.transformation.pool_2d import Pool2d
from tokpipe.compress.transformation.random import Random
from tokpipe.compress.transformation.slowfast_llava import SlowFastLlava
from tokpipe.compress.transformation.uniform_tokens import UniformTokens
from tokpipe.compress.transformation.video_chatgpt import VideoChatGpt
from tokpipe.errors import RecipeError
from tokpipe.maps import TokenMap
from tokpipe.recipe import load_recipe
from tokpipe.tensors import TokenBatch
from tokpipe.testing.suites import sample_tokens

_MODULES = (
    "bilinear", "dynamic_vlm", "fourier", "grid_pool", "llava_video", "matryoshka", "max_pool",
    "pixel_unshuffle", "pool_2d", "random", "slowfast_llava", "uniform_tokens", "video_chatgpt",
)  # fmt: skip
_RULES = (
    Bilinear(), DynamicVlm(), Fourier(), GridPool(), GridPool(frames=2), GridPool(steps=2),
    LlavaVideo(), Matryoshka(), Pool2d(), SlowFastLlava(), VideoChatGpt(),
)  # fmt: skip


def reduced(operator: Any, tokens: TokenBatch, budget: int | None = None) -> TokenBatch:
    return tokens.reduce(operator.decide(tokens, budget))


def shares(decision: TokenMap) -> torch.Tensor:
    total = torch.zeros(decision.num_sources)
    return total.index_add_(0, decision.src, decision.share)


@pytest.mark.parametrize("name", _MODULES)
def test_operator_example_runs(name: str) -> None:
    result = doctest.testmod(importlib.import_module(f"tokpipe.compress.transformation.{name}"))
    assert result.attempted and not result.failed


# --- what all of them hold to


@pytest.mark.parametrize("operator", _RULES, ids=lambda o: type(o).__name__)
@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 1, 7), (5, 1, 1), (3, 5, 1), (4, 3, 7)])
def test_every_shape_and_budget_gives_rows_within_it(
    operator: Any, shape: tuple[int, int, int]
) -> None:
    tokens = sample_tokens(*shape)
    for budget in (None, 1, 2, 3, 5, 11, len(tokens) - 1, len(tokens), len(tokens) + 3):
        if budget == 0:
            continue
        made = expanded(operator.decide(tokens, budget))
        assert len(made) >= 1
        assert budget is None or len(made) <= budget
        total = shares(made)
        assert (((total - 1).abs() < 1e-4) | (total == 0)).all()
        assert len(made) <= operator.out_count(len(tokens), budget)[0]


@pytest.mark.parametrize(
    "operator",
    [*_RULES[:6], LlavaVideo(), Matryoshka(), Pool2d(), SlowFastLlava(), VideoChatGpt()],
    ids=lambda o: type(o).__name__,
)  # fmt: skip
def test_a_constant_picture_stays_what_it_is(operator: Any) -> None:
    tokens = sample_tokens(6, 6, 8)
    tokens = tokens.with_columns(data=torch.full_like(tokens.data, 3.0))
    for budget in (None, 40):
        made = reduced(operator, tokens, budget).data
        torch.testing.assert_close(made, torch.full_like(made, 3.0), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "operator",
    [Bilinear(stride=2), DynamicVlm(tokens=4), Fourier(rows=2), LlavaVideo(stride=2),
     Matryoshka(scale=9), Pool2d(stride=2), SlowFastLlava(slow=1)],
    ids=lambda o: type(o).__name__,
)  # fmt: skip
def test_what_was_asked_for_holds_under_a_large_budget(operator: Any) -> None:
    tokens = sample_tokens(3, 6, 6)
    assert operator.drop and not type(operator)().drop
    assert len(operator.decide(tokens, 10_000)) == len(operator.decide(tokens, None)) < len(tokens)
    assert len(type(operator)().decide(tokens, 10_000)) == len(tokens)


def test_ragged_frames_are_refused() -> None:
    tokens = sample_tokens(2, 3, 3).take(torch.arange(17))
    for operator in _RULES:
        with pytest.raises(RecipeError, match="whole frames"):
            operator.decide(tokens, 4)


# --- matrices of an axis


def test_averages_of_runs_keep_the_short_rest_and_floors_drop_it() -> None:
    assert runs(5, 2).sum(1).tolist() == [1, 1, 1] and bool(runs(5, 2)[2, 4] == 1)
    assert floored(5, 2).shape == (2, 5) and not floored(5, 2)[:, 4].any()
    assert floored(3, 9).tolist() == [[pytest.approx(1 / 3)] * 3]


@pytest.mark.parametrize(("size", "count"), [(27, 14), (9, 3), (7, 7), (16, 5), (2, 1)])
def test_bilinear_matrix_is_the_interpolation_of_torch(size: int, count: int) -> None:
    line = torch.randn(1, 1, size, 3)
    expected = torch.nn.functional.interpolate(
        line, size=(count, 3), mode="bilinear", align_corners=False
    )
    torch.testing.assert_close((bilinear(size, count) @ line[0, 0])[None, None], expected)


def test_transform_is_orthonormal_and_low_pass_of_all_is_the_identity() -> None:
    torch.testing.assert_close(dct(9) @ dct(9).T, torch.eye(9).double())
    torch.testing.assert_close(low_pass(9, 9, scaled=True), torch.eye(9))


# --- single operators


def test_released_fourier_multiplies_a_constant() -> None:
    tokens = sample_tokens(1, 8, 8).with_columns(data=torch.ones(64, 8))
    made = reduced(Fourier(rows=4, cols=4, compat="released"), tokens).data
    torch.testing.assert_close(made, torch.full_like(made, 2.0))


def test_pool_2d_drops_the_border_and_its_mass() -> None:
    tokens = sample_tokens(1, 5, 5)
    made = reduced(Pool2d(), tokens)
    inner = tokens.mass.reshape(5, 5)[:4, :4].sum()
    assert len(made) == 4 and float(made.mass.sum()) == pytest.approx(float(inner))


def test_pool_2d_takes_the_smallest_stride_that_fits() -> None:
    tokens = sample_tokens(2, 12, 12)
    assert [len(Pool2d().decide(tokens, b)) for b in (288, 287, 72, 71, 32, 2, 1)] == [
        288, 72, 72, 32, 32, 2, 1,
    ]  # fmt: skip


def test_bilinear_leaves_small_frames_alone_up_to_the_cap() -> None:
    tokens = sample_tokens(1, 20, 30)
    assert len(Bilinear(most=500).decide(tokens, None)) == 600
    assert len(Bilinear(most=300).decide(tokens, None)) == 14 * 21


def test_matryoshka_takes_the_largest_nested_scale() -> None:
    tokens = sample_tokens(1, 24, 24, dim=2)
    assert [len(Matryoshka().decide(tokens, b)) for b in (None, 576, 575, 143, 35, 8, 1)] == [
        144, 576, 144, 36, 9, 1, 1,
    ]  # fmt: skip


def test_grid_pool_to_fewer_steps_is_adaptive_over_time() -> None:
    tokens = sample_tokens(5, 2, 2)
    made = reduced(GridPool(steps=2), tokens).data.reshape(2, 4, -1)
    cube = tokens.data.reshape(5, 4, -1)
    torch.testing.assert_close(made, torch.stack([cube[:3].mean(0), cube[2:].mean(0)]))
    assert len(GridPool(steps=9).decide(tokens, None)) == 20


def test_video_chatgpt_splits_every_token_between_its_two_rows() -> None:
    tokens = sample_tokens(3, 2, 2)
    made = VideoChatGpt().decide(tokens, None)
    assert len(made) == 7 and set(made.share.tolist()) == {0.5}
    padded = VideoChatGpt(compat="released").decide(tokens, None)
    rows = tokens.reduce(padded)
    assert len(padded) == 104 and not rows.data[3:100].any() and not rows.mass[3:100].any()


def test_slowfast_shares_the_budget_between_its_paths() -> None:
    tokens = sample_tokens(8, 8, 8)
    made = SlowFastLlava().decide(tokens, 256)
    # Half pays 8 frames of 4 x 4, the rest four slow frames of 32.
    assert len(made) == 256
    assert (made.anchor[:128] // 64).unique().tolist() == [0, 2, 4, 6]  # type: ignore[no-untyped-call]
    assert len(SlowFastLlava(slow=1).decide(tokens, 256)) == 32 + 128


def test_llava_video_rows_come_frame_after_frame() -> None:
    tokens = sample_tokens(5, 4, 4)
    made = expanded(LlavaVideo(every=2).decide(tokens, None))
    assert (made.anchor // 16).tolist() == [0] * 4 + [1] + [2] * 4 + [3] + [4] * 4
    smooth = expanded(LlavaVideo(every=2, mode="bilinear", stride=3).decide(tokens, None))
    assert (smooth.anchor // 16).bincount().tolist() == [4, 1, 4, 1, 4]


def test_uniform_tokens_are_evenly_spread_and_random_ones_follow_the_seed() -> None:
    tokens = sample_tokens(2, 5, 5)
    assert UniformTokens().decide(tokens, 5).anchor.tolist() == [5, 15, 25, 35, 45]
    assert len(UniformTokens(ratio=0.25).decide(tokens, None)) == 12
    first, again, other = (Random(seed=s).decide(tokens, 9).anchor.tolist() for s in (1, 1, 2))
    assert first == again != other and first == sorted(set(first))
    assert len(Random(ratio=0.1).decide(tokens, None)) == 5


# --- projectors


def test_max_pool_takes_windows_or_runs() -> None:
    tokens = sample_tokens(2, 3, 5)
    made = MaxPool().project(tokens)
    cube = tokens.data.reshape(2, 3, 5, -1)
    assert len(made) == 4
    assert torch.equal(made.data[0], cube[0, :2, :2].amax((0, 1)))
    assert float(made.mass[0]) == float(tokens.mass.reshape(2, 3, 5)[0, :2, :2].sum())
    run = MaxPool(run=2)
    made = run.project(tokens)
    # The third pair of a row of five reaches into the next row.
    assert len(made) == 14 and torch.equal(made.data[2], tokens.data[4:6].amax(0))
    assert run.receptive_field == (1, 1, 2)


def test_pixel_unshuffle_widens_and_keeps_the_places() -> None:
    tokens = sample_tokens(2, 4, 6)
    made = PixelUnshuffle().project(tokens)
    assert made.data.shape == (12, 32)
    assert float(made.mass.sum()) == pytest.approx(float(tokens.mass.sum()))
    assert made.extent[0].tolist() == [1, 2, 2]
    turned = PixelUnshuffle(order="v1").project(tokens)
    assert turned.cell[:4, 1:].tolist() == [[0, 0], [2, 0], [0, 2], [2, 2]]
    assert torch.equal(turned.sorted().data, made.sorted().data)
    with pytest.raises(RecipeError, match="multiples of 2"):
        PixelUnshuffle().project(sample_tokens(1, 3, 4))


def test_projectors_accept_no_tokens_and_half_precision() -> None:
    tokens = sample_tokens(1, 2, 2, dtype=torch.float16)
    for operator in (MaxPool(), PixelUnshuffle()):
        assert operator.project(tokens).data.dtype == torch.float16
        assert len(operator.project(tokens.take(torch.arange(0)))) == 0


def test_projected_checks_the_number_of_vectors() -> None:
    tokens = sample_tokens(1, 2, 2)
    with pytest.raises(ValueError, match="3 rows"):
        projected(tokens, torch.zeros(2, 5), TokenMap.keep(torch.arange(3), 4))


@pytest.mark.parametrize(
    "name", ["downsample", "pllava", "storm-mean", "llama-vid-content", "qwen-pairs"]
)
def test_presets_are_chains_of_the_grid_pool(name: str) -> None:
    assert [step.use for step in load_recipe(name).video][-1] == "grid-pool"
