"""Text richness is what its definition says, tile by tile."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from tokpipe.encode._text import text_richness


def slow(rgb: NDArray[np.uint8]) -> float:
    """The definition, one tile of 28 x 28 after the other."""
    red, green, blue = (rgb[..., c].astype(int) for c in range(3))
    grey = ((77 * red >> 1) + 75 * green + (29 * blue >> 1)) >> 7
    rows, cols = grey.shape[0] // 28, grey.shape[1] // 28
    found = 0
    for y in range(rows):
        for x in range(cols):
            tile = grey[28 * y : 28 * y + 28, 28 * x : 28 * x + 28]
            edges = (np.abs(np.diff(tile, axis=1)) >= 40).mean()
            common = int(np.bincount(tile.ravel() >> 3).argmax()) * 8 + 4
            found += bool(edges >= 0.03 and (np.abs(tile - common) <= 12).mean() >= 0.5)
    return found / (rows * cols) if rows and cols else 0.0


def page(seed: int, height: int = 252, width: int = 448) -> NDArray[np.uint8]:
    """Dark strokes on paper, denser to the right, and noise at the bottom."""
    draw = np.random.default_rng(seed)
    out = np.full((height, width, 3), 235, dtype=np.uint8)
    ink = draw.random((height, width)) < np.linspace(0, 0.5, width)
    out[ink] = draw.integers(0, 256, 3)
    low = 3 * height // 4
    out[low:] = draw.integers(0, 256, (height - low, width, 3))
    return out


@pytest.mark.parametrize("size", [(252, 448), (448, 252), (28, 28), (100, 61), (27, 448), (28, 20)])
def test_richness_is_its_definition(size: tuple[int, int]) -> None:
    for seed in range(4):
        picture = page(seed, *size)
        assert text_richness(picture) == slow(picture)
    assert text_richness(np.zeros((*size, 3), np.uint8)) == 0


def test_a_page_is_richer_than_noise() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (252, 448, 3), dtype=np.uint8)
    assert text_richness(noise) == 0 < 0.2 < text_richness(page(1)) < 0.9
