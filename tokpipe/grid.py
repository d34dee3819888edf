"""Cell geometry: the grid of a picture, smaller regular grids, exact partitions of a frame.

Nothing here needs numpy or torch. Letters: rows x cols cells of a frame, n rectangles wanted.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

from tokpipe.budget import largest_remainder

#: Side of a cell in pixels of the resized frame.
CELL = 28
#: Cells on the long side unless asked otherwise.
DEFAULT_CELLS = 16


@dataclass(frozen=True, slots=True)
class Grid:
    """The cells of a frame and the size it is resized to.

    Attributes:
        rows, cols: Cells.
        aspect_error: (cols / rows) / (width / height) - 1; positive where the resized frame is
            wider than the picture.
    """

    rows: int
    cols: int
    aspect_error: float = 0.0

    def __post_init__(self) -> None:
        """Check that there is a cell."""
        if self.rows < 1 or self.cols < 1:
            raise ValueError(f"Grid: expected at least 1 x 1 cells, got {self.rows} x {self.cols}")

    @property
    def cells(self) -> int:
        """Cells of one frame, C."""
        return self.rows * self.cols

    @property
    def width(self) -> int:
        """Pixels across after resizing."""
        return self.cols * CELL

    @property
    def height(self) -> int:
        """Pixels down after resizing."""
        return self.rows * CELL


def cell_grid(
    width: int,
    height: int,
    pixel_aspect: Fraction | float = Fraction(1),
    cells: int = DEFAULT_CELLS,
) -> Grid:
    """Choose the grid of a picture: whole cells, aspect kept as near as they allow.

    Args:
        width: Pixels after rotation, at least 1.
        height: As ``width``.
        pixel_aspect: Width over height of a pixel, positive.
        cells: Most cells on the long side, at least 1.

    Returns:
        Long side min(cells, ceil(pixels / 28)); short side in proportion, rounded half up, at
        least 1. No side is enlarged beyond one cell: where rounding would, it is one cell less.

    Raises:
        ValueError: A size, aspect or count that is not positive.
    """
    wide, high = Fraction(width) * Fraction(pixel_aspect), Fraction(height)
    if wide <= 0 or high <= 0 or cells < 1:
        raise ValueError(
            f"cell_grid: expected positive sizes, got {width} x {height}, "
            f"pixel aspect {pixel_aspect}, {cells} cells"
        )
    long, short = max(wide, high), min(wide, high)
    long_cells = min(cells, math.ceil(long / CELL))
    short_cells = max(1, math.floor(long_cells * short / long + Fraction(1, 2)))
    short_cells = min(short_cells, math.floor(short / CELL) + 1)
    rows, cols = (short_cells, long_cells) if wide >= high else (long_cells, short_cells)
    return Grid(rows, cols, float(Fraction(cols, rows) / (wide / high) - 1))


def regular_shape(rows: int, cols: int, n: int) -> tuple[int, int]:
    """Find the largest a x b <= n with a <= rows and b <= cols.

    Ties go to the shape whose aspect is nearest to cols / rows (as a ratio), then to fewer rows.

    Raises:
        ValueError: ``n`` is below 1.
    """
    _check_count("regular_shape", rows, cols, n)

    def rank(a: int) -> tuple[int, Fraction, int]:
        b = min(cols, n // a)
        stretch = Fraction(b * rows, a * cols)
        return -a * b, max(stretch, 1 / stretch), a

    a = min(range(1, min(rows, n) + 1), key=rank)
    return a, min(cols, n // a)


def ragged_partition(rows: int, cols: int, n: int) -> list[tuple[int, int, int, int]]:
    """Tile a frame with exactly ``n`` rectangles of whole cells, as even and square as possible.

    The frame is cut into bands of rows, each band into pieces; the number of bands is the one
    with the smallest sum of squared squared diagonals, ties to fewer bands.

    Returns:
        (y, x, height, width) in cells, in raster order of the corners.

    Raises:
        ValueError: ``n`` is not within 1 .. rows * cols.
    """
    _check_count("ragged_partition", rows, cols, n)
    if n > rows * cols:
        raise ValueError(f"ragged_partition: {n} rectangles in {rows} x {cols} cells")
    options = (_bands(rows, cols, n, k) for k in range(-(-n // cols), min(rows, n) + 1))
    return min(options, key=lambda tiles: sum((h * h + w * w) ** 2 for _, _, h, w in tiles))


def _bands(rows: int, cols: int, n: int, k: int) -> list[tuple[int, int, int, int]]:
    edges = spans(rows, k)
    heights = [b - a for a, b in edges]
    # No band is left out: with n >= k the thinner ones have the larger remainders.
    pieces = largest_remainder(n, heights, caps=[cols] * k)
    return [
        (top, left, bottom - top, right - left)
        for (top, bottom), m in zip(edges, pieces, strict=True)
        for left, right in spans(cols, m)
    ]


def spans(size: int, parts: int) -> list[tuple[int, int]]:
    """Cut ``size`` into ``parts`` half-open runs with borders floor(i * size / parts)."""
    return [(i * size // parts, (i + 1) * size // parts) for i in range(parts)]


def _check_count(name: str, rows: int, cols: int, n: int) -> None:
    if rows < 1 or cols < 1 or n < 1:
        raise ValueError(f"{name}: expected positive counts, got {rows} x {cols} cells, n = {n}")
