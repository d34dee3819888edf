"""Cell geometry, regular shapes, exact partitions."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokpipe.grid import CELL, Grid, cell_grid, ragged_partition, regular_shape, spans


@pytest.mark.parametrize(
    ("width", "height", "aspect", "cells", "rows", "cols"),
    [
        (1920, 1080, 1, 16, 9, 16),
        (1080, 1920, 1, 16, 16, 9),
        (640, 480, 1, 16, 12, 16),
        (448, 252, 1, 16, 9, 16),
        (720, 576, Fraction(16, 15), 16, 12, 16),
        (100, 100, 1, 16, 4, 4),
        (28, 28, 1, 16, 1, 1),
        (29, 28, 1, 16, 2, 2),
        (331, 449, 1, 17, 17, 12),
        (1, 1, 1, 16, 1, 1),
        (2000, 10, 1, 16, 1, 16),
        (1920, 1080, 1, 64, 36, 64),
        (3200, 300, 1, 16, 2, 16),
    ],
)
def test_cell_grid_of_known_pictures(
    width: int, height: int, aspect: Fraction, cells: int, rows: int, cols: int
) -> None:
    grid = cell_grid(width, height, aspect, cells)
    assert (grid.rows, grid.cols) == (rows, cols)
    assert (grid.width, grid.height) == (cols * CELL, rows * CELL)


def test_cell_grid_records_the_aspect_error() -> None:
    assert cell_grid(1920, 1080).aspect_error == 0
    assert cell_grid(1000, 500, cells=5).aspect_error == pytest.approx(5 / 3 / 2 - 1)


@given(st.integers(1, 8000), st.integers(1, 8000), st.integers(1, 64))
def test_cell_grid_never_enlarges_beyond_one_cell(width: int, height: int, cells: int) -> None:
    grid = cell_grid(width, height, cells=cells)
    assert max(grid.rows, grid.cols) <= cells
    assert grid.width <= width + CELL and grid.height <= height + CELL
    turned = cell_grid(height, width, cells=cells)
    assert (turned.rows, turned.cols) == (grid.cols, grid.rows)


@pytest.mark.parametrize("size", [(0, 5, 16), (5, 0, 16), (5, 5, 0)])
def test_cell_grid_refuses_nothing(size: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="positive"):
        cell_grid(size[0], size[1], cells=size[2])
    with pytest.raises(ValueError, match="at least"):
        Grid(0, 3)


@given(st.integers(1, 20), st.integers(1, 20), st.integers(1, 420))
def test_regular_shape_is_the_largest(rows: int, cols: int, n: int) -> None:
    a, b = regular_shape(rows, cols, n)
    fits = [
        (y, x) for y in range(1, rows + 1) for x in range(1, cols + 1) if y * x <= n
    ]  # fmt: skip
    best = max(y * x for y, x in fits)
    assert (a, b) in fits and a * b == best

    def stretch(y: int, x: int) -> Fraction:
        ratio = Fraction(x * rows, y * cols)
        return max(ratio, 1 / ratio)

    assert stretch(a, b) == min(stretch(y, x) for y, x in fits if y * x == best)


@pytest.mark.parametrize(
    ("n", "shape"), [(144, (9, 16)), (143, (9, 15)), (40, (5, 8)), (1, (1, 1))]
)
def test_regular_shape_of_a_wide_frame(n: int, shape: tuple[int, int]) -> None:
    assert regular_shape(9, 16, n) == shape


@given(st.integers(1, 16), st.integers(1, 16), st.data())
def test_ragged_partition_tiles_the_frame(rows: int, cols: int, data: st.DataObject) -> None:
    n = data.draw(st.integers(1, rows * cols))
    tiles = ragged_partition(rows, cols, n)
    assert len(tiles) == n and tiles == sorted(tiles)
    seen = [[0] * cols for _ in range(rows)]
    for y, x, h, w in tiles:
        for row in range(y, y + h):
            for col in range(x, x + w):
                seen[row][col] += 1
    assert all(count == 1 for line in seen for count in line)


def test_ragged_partition_is_even_and_near_square() -> None:
    tiles = ragged_partition(9, 16, 40)
    assert max(h * w for _, _, h, w in tiles) <= 6
    assert max(max(h, w) / min(h, w) for _, _, h, w in tiles) <= 3
    assert ragged_partition(4, 4, 4) == [(0, 0, 2, 2), (0, 2, 2, 2), (2, 0, 2, 2), (2, 2, 2, 2)]


@pytest.mark.parametrize("n", [0, 7])
def test_ragged_partition_refuses_impossible_counts(n: int) -> None:
    with pytest.raises(ValueError, match="ragged_partition"):
        ragged_partition(2, 3, n)


@given(st.integers(1, 50), st.integers(1, 50))
def test_spans_are_contiguous_and_even(size: int, parts: int) -> None:
    runs = spans(size, parts)
    assert runs[0][0] == 0 and runs[-1][1] == size
    assert all(a[1] == b[0] for a, b in pairwise(runs))
    assert max(b - a for a, b in runs) - min(b - a for a, b in runs) <= 1
