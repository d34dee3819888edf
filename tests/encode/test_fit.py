"""Resizing off the CPU stays near Pillow, which towers were trained with."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tokpipe.encode._fit import Filter, Frame, constant, placed, resized, resized_by_torch

SIZES = [(112, 112), (168, 168), (250, 450), (63, 112), (180, 150), (150, 321)]


def noise(*, extremes: bool) -> Tensor:
    """Two pictures [2, 180, 321, 3] on which filters overshoot more than on any photograph."""
    draw = torch.Generator().manual_seed(7)
    made = torch.randint(0, 2 if extremes else 256, (2, 180, 321, 3), generator=draw)
    return (made * (255 if extremes else 1)).to(torch.uint8)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("how", ["bilinear", "bicubic"])
@pytest.mark.parametrize("extremes", [False, True])
def test_resizing_by_torch_is_within_two_levels_of_pillow(
    extremes: bool, how: Filter, size: tuple[int, int]
) -> None:
    pixels = noise(extremes=extremes)
    apart = (resized_by_torch(pixels, *size, how).int() - resized(pixels, *size, how).int()).abs()
    assert int(apart.max()) <= 2
    assert float((apart > 0).float().mean()) < 0.1


@pytest.mark.gpu
@pytest.mark.parametrize("how", ["bilinear", "bicubic"])
def test_gpu_resizes_within_two_levels_of_pillow(how: Filter) -> None:
    pixels = noise(extremes=False)
    there = resized(pixels.to("cuda"), 112, 200, how).cpu().int()
    assert int((there - resized(pixels, 112, 200, how).int()).abs().max()) <= 2


def test_padding_shows_the_fill_and_constants_stay_whole() -> None:
    pixels = torch.full((1, 2, 3, 3), 9, dtype=torch.uint8)
    for _ in range(2):
        made = placed(pixels, Frame(1, 0, 2, 3), (4, 3), (1, 2, 3))
        assert made[0, 0, 0].tolist() == [1, 2, 3] and made[0, 1, 0].tolist() == [9, 9, 9]
        made.zero_()
    device = torch.device("cpu")
    assert constant((1, 2, 3), torch.uint8, device) is constant((1, 2, 3), torch.uint8, device)
