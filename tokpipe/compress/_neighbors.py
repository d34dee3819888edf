"""Exact nearest neighbours, block by block, in bounded memory.

Blocks of rows depend on sizes alone, so results are repeatable. Rows that are not float32 are
brought to it block by block. Letters: G groups, N M R rows, D width.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

#: Elements of one block of a pairwise matrix (32 MB in float32).
BLOCK = 1 << 23


def blocks(n: int, width: int) -> Iterator[tuple[int, int]]:
    """Half-open row ranges covering ``n``: so many rows of ``width`` elements as exceed ``BLOCK``.

    The C library gives so large a block back when it is let go; a little less, and it would keep
    it, and then another for every new size.
    """
    step = 1 + BLOCK // max(1, width)
    for start in range(0, n, step):
        yield start, min(n, start + step)


def unit_rows(data: Tensor) -> Tensor:
    """Rows [N, D] divided by their length, float32; zero or non-finite rows become zero."""
    data = data.float()
    length: Tensor = torch.linalg.vector_norm(data, dim=1, keepdim=True)
    unit = data / length.clamp(min=1e-12)
    # A row has such a value exactly where its length has: one look at [N] instead of [N, D].
    return unit.masked_fill_(~length.isfinite(), 0.0)


def row_lengths(data: Tensor) -> Tensor:
    """Length float32 [..., N] of each row of ``data`` float [..., N, D]."""
    if data.dtype == torch.float32:
        length: Tensor = torch.linalg.vector_norm(data, dim=-1)
        return length
    rows = data.reshape(-1, data.shape[-1])
    out = torch.empty(rows.shape[0], device=data.device)
    for a, b in blocks(rows.shape[0], rows.shape[1]):
        out[a:b] = torch.linalg.vector_norm(rows[a:b].float(), dim=1)
    return out.reshape(data.shape[:-1])


def inverse_lengths(data: Tensor) -> Tensor:
    """One over the length of each row, float32 [..., N]; 0 for zero or non-finite rows."""
    length = row_lengths(data)
    usable = length.isfinite() & (length > 0)
    return torch.where(usable, 1 / length.clamp(min=1e-12), 0.0)


def products(left: Tensor, right: Tensor) -> Tensor:
    """Dot products float32 [G, R, M] of rows float32 [G, R, D] with float [G, M, D]."""
    count, width = right.shape[1], right.shape[0] * right.shape[2]
    if right.dtype == torch.float32 or count * width <= BLOCK:
        return left @ right.float().mT
    out = torch.empty((*left.shape[:2], count), device=left.device)
    step = max(1, BLOCK // 4 // max(1, width))
    for a in range(0, count, step):
        out[..., a : a + step] = left @ right[:, a : a + step].float().mT
    return out


def most_alike(data: Tensor, queries: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
    """Find the row of highest cosine with each of some rows, tile by tile.

    Args:
        data: float [N, D]; a zero row has cosine 0 with everything.
        queries: int64 [R] rows that look for one.
        keys: int64 [M] rows that may be found, M >= 1.

    Returns:
        (cosine float32 [R], index int64 [R] into ``keys``); ties go to the lower index.
    """
    value = torch.full((queries.shape[0],), -torch.inf, device=data.device)
    index = torch.zeros_like(queries)
    side = max(1, BLOCK // 4 // max(1, data.shape[1]))
    for a in range(0, queries.shape[0], side):
        left = unit_rows(data[queries[a : a + side]])
        here = slice(a, a + left.shape[0])
        for c in range(0, keys.shape[0], side):
            best = (left @ unit_rows(data[keys[c : c + side]]).T).max(1)
            better = best.values > value[here]
            value[here] = torch.where(better, best.values, value[here])
            index[here] = torch.where(better, best.indices + c, index[here])
    return value, index


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
