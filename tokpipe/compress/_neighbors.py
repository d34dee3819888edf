"""Exact nearest neighbours and distances, block by block, in bounded memory.

Blocks of rows depend on sizes alone, so results are repeatable. Letters: N M rows, D width.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

#: Most elements of one block of a pairwise matrix (32 MB in float32).
BLOCK = 1 << 23
#: Up to this width distances are taken from differences: exact zeros for equal rows.
_DIRECT_WIDTH = 32


def blocks(n: int, width: int) -> Iterator[tuple[int, int]]:
    """Half-open row ranges covering ``n`` so that rows x width stays within ``BLOCK``."""
    step = max(1, BLOCK // max(1, width))
    for start in range(0, n, step):
        yield start, min(n, start + step)


def unit_rows(data: Tensor) -> Tensor:
    """Rows [N, D] divided by their length, float32; zero or non-finite rows become zero."""
    data = data.float()
    unit = data / torch.linalg.vector_norm(data, dim=1, keepdim=True).clamp(min=1e-12)
    return torch.where(unit.isfinite().all(1, keepdim=True), unit, torch.zeros_like(unit))


def most_similar(
    queries: Tensor, keys: Tensor, *, without: int | None = None
) -> tuple[Tensor, Tensor]:
    """Find the largest dot product of each query and where it is.

    Args:
        queries: float32 [N, D].
        keys: float32 [M, D], M >= 1.
        without: A key that must not be chosen.

    Returns:
        (value float32 [N], index int64 [N]); ties go to the lower index.
    """
    values, indices = [], []
    for a, b in blocks(queries.shape[0], keys.shape[0]):
        product = queries[a:b] @ keys.T
        if without is not None:
            product[:, without] = -torch.inf
        best = product.max(1)
        values.append(best.values)
        indices.append(best.indices)
        # Let go before the next block is made, or two are held at once.
        del product
    return torch.cat(values), torch.cat(indices)


def distances(left: Tensor, right: Tensor) -> Tensor:
    """Euclidean distances [N, M] of float32 rows; exact for narrow rows, expanded for wide ones."""
    if left.shape[1] <= _DIRECT_WIDTH:
        mode = "donot_use_mm_for_euclid_dist"
    else:
        mode = "use_mm_for_euclid_dist"
    return torch.cdist(left, right, compute_mode=mode)
