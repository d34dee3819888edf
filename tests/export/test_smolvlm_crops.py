"""The shape of crops, from how many there are and how large the picture was."""

from __future__ import annotations

from itertools import product
from math import ceil
from typing import Any

import pytest

from tokpipe.export._models.family import Given
from tokpipe.export._models.smolvlm import Idefics3

idefics3: Any = pytest.importorskip("transformers.models.idefics3.image_processing_idefics3")


def cut(height: int, width: int, side: int, most: int) -> tuple[int, int]:
    """Rows and columns as the processor cuts: resized twice, each time to whole pixels."""
    high, wide = idefics3._resize_output_size_rescale_to_max_len(height, width, max_len=most)
    high, wide = idefics3._resize_output_size_scale_below_upper_bound(
        high, wide, max_len=idefics3.MAX_IMAGE_SIZE
    )
    shape = wide / high
    if wide >= high:
        wide = ceil(wide / side) * side
        high = ceil(int(wide / shape) / side) * side
    else:
        high = ceil(high / side) * side
        wide = ceil(int(high * shape) / side) * side
    return (high // side, wide // side) if max(high, wide) > side else (0, 0)


@pytest.mark.parametrize(("side", "most"), [(364, 1456), (512, 2048), (384, 1536), (32, 96)])
def test_shape_is_the_processors(side: int, most: int) -> None:
    family = object.__new__(Idefics3)
    sizes = [*range(24, 400, 23), 720, 1080]
    for height, width in product(sizes, sizes):
        rows, cols = cut(height, width, side, most)
        given = Given(media={}, size=(height, width))
        assert family._shape(given, rows * cols) == (rows, cols), (height, width)
