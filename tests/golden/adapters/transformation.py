"""Pooling, transforms and two-rate methods against their authors' code."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor

from tokpipe.compress._grid_axes import dct
from tokpipe.compress.transformation.bilinear import Bilinear
from tokpipe.compress.transformation.dynamic_vlm import DynamicVlm
from tokpipe.compress.transformation.fourier import Fourier
from tokpipe.compress.transformation.grid_pool import GridPool
from tokpipe.compress.transformation.matryoshka import Matryoshka
from tokpipe.compress.transformation.max_pool import MaxPool
from tokpipe.compress.transformation.pixel_unshuffle import PixelUnshuffle
from tokpipe.compress.transformation.pool_2d import Pool2d
from tokpipe.compress.transformation.slowfast_llava import SlowFastLlava, slow_frames
from tokpipe.compress.transformation.video_chatgpt import VideoChatGpt
from tokpipe.tensors import TokenBatch
from tokpipe.testing.golden import Adapter, Case, assert_values, frame_tokens


def reduced(operator: Any, tokens: TokenBatch, shape: torch.Size) -> Tensor:
    """What the operator makes of the tokens, in the stored shape."""
    return tokens.reduce(operator.decide(tokens, None)).data.reshape(shape)


def adaptive_avg_pool(case: Case) -> None:
    for name in case.arrays:
        if found := re.fullmatch(r"out_x(\d+)_to_(\d+)", name):
            expected, side = case(name), int(found[2])
            tokens = frame_tokens(case(f"in_x{found[1]}"))
            assert_values(reduced(GridPool(rows=side, cols=side), tokens, expected.shape), expected)


def fourier_dct(case: Case) -> None:
    rows, cols = case.value("par_grid_h"), case.value("par_grid_w")
    a, b = case.value("par_reserve_h"), case.value("par_reserve_w")
    x, expected = case("in_x"), case("out_tokens")
    tokens = frame_tokens(x, (rows, cols))
    released = reduced(Fourier(rows=a, cols=b, compat="released"), tokens, expected.shape)
    assert_values(released, expected, atol=1e-3, rtol=1e-3)
    scaled = reduced(Fourier(rows=a, cols=b), tokens, expected.shape)
    assert_values(scaled * (rows * cols / (a * b)) ** 0.5, expected, atol=1e-3, rtol=1e-3)
    grid = x.double().reshape(x.shape[0], rows, cols, -1)
    spectrum = torch.einsum("ay,bx,nyxc->ncab", dct(rows), dct(cols), grid)
    assert_values(spectrum, case("out_dct_coeffs"), atol=1e-3, rtol=1e-3)


def matryoshka(case: Case) -> None:
    for name in case.arrays:
        if found := re.fullmatch(r"out_scale(\d+)", name):
            expected, tokens = case(name), frame_tokens(case("in_x"))
            made = reduced(Matryoshka(scale=int(found[1])), tokens, expected.shape)
            assert_values(made, expected)


def pooled_2d(mode: str, stride: int, tokens: TokenBatch, expected: Tensor) -> None:
    if mode == "max":
        made = MaxPool(rows=stride, cols=stride).project(tokens).data.reshape(expected.shape)
    elif mode == "bilinear":
        made = reduced(Bilinear(stride=stride), tokens, expected.shape)
    else:
        made = reduced(Pool2d(stride=stride), tokens, expected.shape)
    assert_values(made, expected, rtol=1e-4)


def pool2d(case: Case) -> None:
    side = case.value("par_grid")
    tokens = frame_tokens(case("in_x"), (side, side))
    for name in case.arrays:
        if found := re.fullmatch(r"out_(average|max|bilinear)_s(\d+)", name):
            pooled_2d(found[1], int(found[2]), tokens, case(name))


def llavanext_pool2d(case: Case) -> None:
    meta = case.meta
    tokens = frame_tokens(case("x"), (meta["h"], meta["w"]))
    for name in case.arrays:
        if found := re.fullmatch(r"(average|max|bilinear)(?:_s(\d+))?", name):
            pooled_2d(found[1], int(found[2] or meta["stride"]), tokens, case(name))


def pixel_unshuffle(case: Case) -> None:
    side = round(1 / case.value("par_scale"))
    for name in case.arrays:
        if found := re.fullmatch(r"out_(v1|v2)(_\w+)?", name):
            x, expected = case("in_x" + (found[2] or "")), case(name)
            tokens = frame_tokens(x.flatten(1, 2), (x.shape[1], x.shape[2]))
            order: Any = found[1]
            made = PixelUnshuffle(side=side, order=order).project(tokens)
            assert_values(made.data.reshape(expected.shape), expected, atol=0, rtol=0)


def pllava(case: Case) -> None:
    meta = case.meta
    tokens = frame_tokens(case("x"), (meta["h"], meta["w"]))
    for steps, rows, cols in meta["shapes"]:
        expected = case(f"out_{steps}_{rows}_{cols}")
        operator = GridPool(steps=steps, rows=rows, cols=cols)
        assert_values(reduced(operator, tokens, expected.shape), expected, rtol=1e-4)


def dynamicvlm(case: Case) -> None:
    meta, expected = case.meta, case("out")
    tokens = frame_tokens(case("x"), (meta["h"], meta["w"]))
    operator = DynamicVlm(cap=meta["max_video_tokens"], tokens=meta["out_token_num"])
    assert_values(reduced(operator, tokens, expected.shape), expected, rtol=1e-4)


def videochatgpt(case: Case) -> None:
    meta, expected = case.meta, case("out")
    tokens = frame_tokens(case("x").half())
    released = reduced(VideoChatGpt(compat="released"), tokens, expected.shape)
    assert_values(released, expected, atol=1e-3, rtol=1e-3)
    steps = meta["T"]
    rows = tokens.reduce(VideoChatGpt().decide(tokens, None)).data
    places = expected[max(steps, meta["temporal_slots"]) :]
    assert_values(rows, torch.cat([expected[:steps], places]), atol=1e-3, rtol=1e-3)


def slow_path(mode: str, slow: int, tokens: TokenBatch) -> Tensor:
    """The slow rows: of the operator, or of the projector where they are maxima."""
    if mode not in ("spatial_1d_max_pool", "spatial_2d_max_pool"):
        aggregate: Any = mode
        rows = SlowFastLlava(aggregate=aggregate).slow_rows(tokens, slow)
        return tokens.reduce(rows).data
    steps = int(tokens.cell[:, 0].max()) + 1
    chosen = tokens.take(torch.isin(tokens.cell[:, 0], slow_frames(steps, slow)))
    return MaxPool(run=2 if "1d" in mode else None).project(chosen).data


def slowfast(case: Case) -> None:
    meta = case.meta
    tokens = frame_tokens(case("x"), (meta["h"], meta["w"]))
    pattern = r"slowfast__slow_(\d+)frms_(\w+)__fast_(\d+)x(\d+)"
    for name in case.arrays:
        expected = case(name) if name not in ("meta", "x") else torch.empty(0)
        if found := re.fullmatch(pattern, name):
            slow, mode = int(found[1]), found[2]
            average: Any = mode.replace("max", "avg")
            operator = SlowFastLlava(
                slow=slow, aggregate=average, rows=int(found[3]), cols=int(found[4])
            )
            made = tokens.reduce(operator.decide(tokens, None)).data
            first = slow_path(mode, slow, tokens)
            assert_values(torch.cat([first, made[len(first) :]]), expected, rtol=1e-4)
            if mode == average:
                assert_values(made, expected, rtol=1e-4)
        elif name.startswith("agg_"):
            assert_values(
                slow_path(name.removeprefix("agg_"), meta["T"], tokens), expected, rtol=1e-4
            )


ADAPTERS: dict[str, Adapter] = {
    "adaptive_avg_pool": adaptive_avg_pool,
    "fourier_dct": fourier_dct,
    "matryoshka": matryoshka,
    "pool2d": pool2d,
    "llavanext_pool2d": llavanext_pool2d,
    "pixel_unshuffle": pixel_unshuffle,
    "pllava": pllava,
    "dynamicvlm": dynamicvlm,
    "videochatgpt": videochatgpt,
    "slowfast": slowfast,
}
