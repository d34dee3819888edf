"""Exact nearest neighbours, block by block, in bounded memory.

Blocks of rows depend on sizes alone, so results are repeatable. Rows that are not float32 are
brought to it block by block. Letters: G groups, N M R rows, D width, k neighbours.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor

#: Elements of one block of a pairwise matrix (32 MB in float32).
BLOCK = 1 << 23
#: The same where launching work costs more than memory (256 MB).
WIDE_BLOCK = 1 << 26
#: Columns whose largest value is looked at first, so that few are ranked one by one.
_SPAN = 32
#: Bits that hold a row's number beside its value; it counts down, so that lower ones rank first.
_LOW = 0xFFFFFFFF

#: Pairs from which faiss searches as fast or faster on a processor (4096 rows among themselves).
_LARGE = 1 << 24

Metric = Literal["cosine", "dot", "euclidean"]
Backend = Literal["auto", "torch", "faiss"]


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


def most_similar(queries: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
    """Find the largest dot product of each query and where it is.

    Args:
        queries: float32 [N, D].
        keys: float32 [M, D], M >= 1.

    Returns:
        (value float32 [N], index int64 [N]); ties go to the lower index.
    """
    values, indices = [], []
    for a, b in blocks(queries.shape[0], keys.shape[0]):
        product = queries[a:b] @ keys.T
        best = product.max(1)
        values.append(best.values)
        indices.append(best.indices)
        # Let go before the next block is made, or two are held at once.
        del product
    return torch.cat(values), torch.cat(indices)


def top_neighbors(
    queries: Tensor, keys: Tensor, k: int, *, metric: Metric = "cosine", exclude_self: bool = False
) -> tuple[Tensor, Tensor]:
    """Find the k nearest keys of every query, exactly, in bounded memory.

    Nothing of N x M is ever held, and nothing waits for the device.

    Args:
        queries: float [N, D], finite.
        keys: float [M, D], finite, on the same device.
        k: Neighbours of each query, 1 .. M (M - 1 with ``exclude_self``).
        metric: ``cosine`` (a zero row has 0 with everything), ``dot``, or ``euclidean``.
        exclude_self: Query i is key i, and is not its own neighbour.

    Returns:
        (values float32 [N, k], index int64 [N, k]), the nearest first: falling products, or
        rising distances; of equal values the lower index comes first.

    Raises:
        ValueError: Shapes do not fit, k is out of range, or there is no such metric.
    """
    check_neighbors(queries, keys, k, metric, exclude_self)
    centre = centre_of(keys) if metric == "euclidean" else None
    n, m, width = queries.shape[0], keys.shape[0], max(1, keys.shape[1])
    block = BLOCK if queries.device.type == "cpu" else WIDE_BLOCK
    side = min(m, max(1, block // 4 // width))
    rows = max(1, min(block // side, block // width))
    ranked = torch.empty((n, k), dtype=torch.int64, device=queries.device)
    for a in range(0, n, rows):
        left = ready_rows(queries[a : a + rows], metric, centre)
        best = ranked[a : a + rows, :0]
        for c in range(0, m, side):
            right = ready_rows(keys[c : c + side], metric, centre)
            near = left @ right.T
            if metric == "euclidean":
                near.mul_(2).sub_(torch.linalg.vecdot(right, right))
            if exclude_self:
                _bar_self(near, a, c)
            best = torch.cat([best, _ranked(near, min(k, near.shape[1]), c)], 1)
            best = best.topk(min(k, best.shape[1]), dim=1).values
            del near, right
        ranked[a : a + rows] = best
    value, index = _unpacked(ranked)
    return by_distance(queries, keys, index) if metric == "euclidean" else (value, index)


def find_neighbors(
    queries: Tensor,
    keys: Tensor,
    k: int,
    *,
    metric: Metric = "cosine",
    exclude_self: bool = False,
    backend: Backend = "auto",
) -> tuple[Tensor, Tensor]:
    """Find the k nearest keys of every query by :func:`top_neighbors` or by a flat faiss index.

    Args:
        queries, keys, k, metric, exclude_self: As in :func:`top_neighbors`.
        backend: ``torch``; ``faiss`` (equal values at the k-th place are then taken at will); or
            ``auto``: faiss for large banks where it is installed.

    Raises:
        MissingExtra: faiss is asked for and not installed.
        ValueError: As in :func:`top_neighbors`, or there is no such backend.
    """
    if backend not in ("auto", "torch", "faiss"):
        raise ValueError(f"backend: expected auto, torch or faiss, got {backend!r}")
    if backend != "torch":
        from tokpipe.compress._faiss import MOST_ON_GPU, faiss_neighbors, usable

        large = len(queries) * len(keys) >= _LARGE and k < MOST_ON_GPU
        if backend == "faiss" or (large and usable(queries.device)):
            return faiss_neighbors(queries, keys, k, metric=metric, exclude_self=exclude_self)
    return top_neighbors(queries, keys, k, metric=metric, exclude_self=exclude_self)


def check_neighbors(queries: Tensor, keys: Tensor, k: int, metric: str, exclude_self: bool) -> None:
    """Raise ValueError unless the arguments of :func:`top_neighbors` fit each other."""
    if metric not in ("cosine", "dot", "euclidean"):
        raise ValueError(f"metric: expected cosine, dot or euclidean, got {metric!r}")
    if queries.ndim != 2 or keys.ndim != 2 or queries.shape[1] != keys.shape[1]:
        raise ValueError(
            f"expected queries [N, D] and keys [M, D], got {list(queries.shape)} and "
            f"{list(keys.shape)}"
        )
    if exclude_self and len(queries) > len(keys):
        raise ValueError(f"exclude_self: {len(queries)} queries are not among {len(keys)} keys")
    most = len(keys) - exclude_self
    if not 1 <= k <= most:
        raise ValueError(f"k: expected 1 to {most}, got {k}")


def centre_of(keys: Tensor) -> Tensor:
    """Near the mean float32 [D] of rows [M, D]: distances lose less when taken from there.

    It is a multiple of the rows' own spread, rounded to a power of two, so that what is exact
    without it (whole numbers, say) stays so, and equal distances equal.
    """
    first = keys[0].double()
    total, square = torch.zeros_like(first), torch.zeros_like(first)
    for a, b in blocks(keys.shape[0], keys.shape[1]):
        moved = keys[a:b].float() - first.float()
        total += moved.sum(0).double()
        square += moved.square_().sum(0).double()
    mean, square = total / keys.shape[0], square / keys.shape[0]
    spread = (square - mean.square()).clamp(min=0).sqrt()
    step = torch.exp2(torch.log2(spread).ceil())
    return torch.where(spread > 0, ((first + mean) / step).round() * step, first).float()


def ready_rows(rows: Tensor, metric: Metric, centre: Tensor | None) -> Tensor:
    """Rows float32 [R, D] whose products (or distances) the metric compares."""
    if metric == "cosine":
        return unit_rows(rows)
    return rows.float() if centre is None else rows.float() - centre


def by_distance(queries: Tensor, keys: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """Distances float32 [N, k] of chosen keys int64 [N, k] from differences, in rising order."""
    n, k = index.shape
    value = torch.empty((n, k), device=queries.device)
    step = max(1, BLOCK // 4 // max(1, k * queries.shape[1]))
    for a in range(0, n, step):
        apart = keys[index[a : a + step]].float() - queries[a : a + step, None].float()
        value[a : a + step] = torch.linalg.vector_norm(apart, dim=2)
    less, index = in_order(-value, index)
    return -less, index


def in_order(value: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """Sort float32 [N, k] by falling value, equal ones by rising index int64 [N, k]."""
    return _unpacked(_packed(value, index).sort(1, descending=True).values)


def _bar_self(near: Tensor, a: int, c: int) -> None:
    """Rule out the diagonal in a block that begins at row ``a`` and column ``c``."""
    low, high = max(a, c), min(a + near.shape[0], c + near.shape[1])
    if low < high:
        near[low - a : high - a, low - c : high - c].fill_diagonal_(-torch.inf)


def _ranked(near: Tensor, k: int, offset: int) -> Tensor:
    """The k best of each row of float32 [R, C] as ``_packed`` int64 [R, k], best first.

    The k best lie in the k spans whose largest values are best, by the same rule for equals: so
    all columns are read once and only k spans are ranked.
    """
    rows, columns = near.shape
    if k == 1:
        value, index = near.max(1)
        return _packed(value, index + offset)[:, None]
    spans = columns // _SPAN
    at = torch.arange(columns, device=near.device)
    if spans <= 2 * k:
        return _packed(near, at + offset).topk(k, dim=1).values
    highest = near[:, : spans * _SPAN].reshape(rows, spans, _SPAN).amax(2)
    span = _unpacked(_packed(highest, at[:spans]).topk(k, dim=1).values)[1]
    some = (span[:, :, None] * _SPAN + at[:_SPAN]).flatten(1)
    some = torch.cat([some, at[spans * _SPAN :].expand(rows, -1)], 1)
    return _packed(near.gather(1, some), some + offset).topk(k, dim=1).values


def _packed(value: Tensor, index: Tensor) -> Tensor:
    """One int64 that orders as (value rising, index falling), for float32 and int64 below 2^32."""
    bits = (value + 0.0).view(torch.int32)  # -0.0 becomes 0.0
    bits = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return (bits.long() << 32) | (_LOW - index)


def _unpacked(packed: Tensor) -> tuple[Tensor, Tensor]:
    """Values float32 and numbers int64 of ``_packed``."""
    bits = (packed >> 32).int()
    bits = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return bits.view(torch.float32), _LOW - (packed & _LOW)
