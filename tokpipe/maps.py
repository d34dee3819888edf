"""How tokens are reduced: a sparse linear map, or one small matrix per axis of a grid.

Letters: N source tokens, K rows kept, M map entries, D width, T Y X axes of a grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tokpipe.checks import check
from tokpipe.spec import KIND_KEPT, KIND_MERGED, KIND_POOLED


def check_tensor(
    owner: object, name: str, value: Tensor, dtype: torch.dtype, shape: Sequence[int]
) -> None:
    """Raise ValueError with both dtypes and shapes when ``value`` is not as declared."""
    if value.dtype != dtype or tuple(value.shape) != tuple(shape):
        raise ValueError(
            f"{type(owner).__name__}.{name}: expected {dtype} {list(shape)}, "
            f"got {value.dtype} {list(value.shape)}"
        )


def counted(index: Tensor, size: int, live: Tensor | None = None) -> Tensor:
    """How often each number below ``size`` stands in ``index``, int64 [size].

    What ``torch.bincount`` gives, which on a GPU makes the processor wait for it.

    Args:
        index: int64 [M], 0 .. size - 1.
        size: Length of the result.
        live: bool [M], which of them count; all by default.
    """
    ones = torch.ones_like(index) if live is None else live.long()
    return torch.zeros(size, dtype=torch.int64, device=index.device).index_add_(0, index, ones)


def _refuse_range(
    num_sources: int, rows: int, entries: bool, placed: bool, holds: Sequence[bool]
) -> None:
    """Raise ValueError for the first column of a map that is out of range."""
    columns = [("src", num_sources, "sources"), ("dst", rows, "rows")] if entries else []
    columns += [("anchor", num_sources, "sources")] if placed else []
    name, count, what = columns[list(holds).index(False)]
    raise ValueError(f"TokenMap.{name}: out of range for {count} {what}")


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class TokenMap:
    """A sparse linear K x N map: which sources make which kept row.

    ``weight`` makes the data (final coefficients; never normalised again), ``share`` says who
    stands for whom (a source's shares sum to 1, or to 0 where it is dropped), ``anchor`` is the
    source whose place the row takes. An entry may have weight 0 (a dropped repeat its keeper
    stands for) or share 0.

    Attributes:
        src, dst: int64 [M].
        weight, share: float32 [M].
        anchor: int64 [K], -1 none.
        num_sources: N.
        score: float32 [K] the method's score of each row, NaN none.
        kind: uint8 [K] as the ``kind`` column, or None: kept where one source made the data.
    """

    src: Tensor
    dst: Tensor
    weight: Tensor
    share: Tensor
    anchor: Tensor
    num_sources: int
    score: Tensor | None = None
    kind: Tensor | None = None

    def __post_init__(self) -> None:
        """Check shapes and ranges."""
        m, k = self.src.shape[0], self.anchor.shape[0]
        for name, dtype in (("src", torch.int64), ("dst", torch.int64)):
            check_tensor(self, name, getattr(self, name), dtype, (m,))
        for name in ("weight", "share"):
            check_tensor(self, name, getattr(self, name), torch.float32, (m,))
        check_tensor(self, "anchor", self.anchor, torch.int64, (k,))
        if self.score is not None:
            check_tensor(self, "score", self.score, torch.float32, (k,))
        if self.kind is not None:
            check_tensor(self, "kind", self.kind, torch.uint8, (k,))
        n, holds = self.num_sources, []
        for name, least, count in (("src", 0, n), ("dst", 0, k), ("anchor", -1, n)):
            value: Tensor = getattr(self, name)
            if value.shape[0]:
                low, high = torch.aminmax(value)
                holds.append((low >= least) & (high < count))
        if holds:
            check(torch.stack(holds), partial(_refuse_range, n, k, bool(m), bool(k)))

    @classmethod
    def _checked(cls, **columns: Any) -> TokenMap:
        """A map of parts that are known to fit: nothing is read back from the device."""
        made = object.__new__(cls)
        for column in fields(cls):
            object.__setattr__(made, column.name, columns.get(column.name))
        return made

    def _with(self, **columns: Any) -> TokenMap:
        """A copy with some columns replaced by ones that are known to fit."""
        return TokenMap._checked(**{f.name: getattr(self, f.name) for f in fields(self)} | columns)

    def __len__(self) -> int:
        """Return K."""
        return int(self.anchor.shape[0])

    def __repr__(self) -> str:
        """Show K, N and M."""
        return f"TokenMap({len(self)} of {self.num_sources}, {self.src.shape[0]} entries)"

    @staticmethod
    def keep(index: Tensor, num_sources: int, *, score: Tensor | None = None) -> TokenMap:
        """Keep the sources ``index`` int64 [K], in that order; the others are dropped."""
        index = index.to(torch.int64)
        ones = torch.ones(index.shape[0], dtype=torch.float32, device=index.device)
        dst = torch.arange(index.shape[0], device=index.device)
        return TokenMap(src=index, dst=dst, weight=ones, share=ones, anchor=index,
                        num_sources=num_sources, score=score)  # fmt: skip

    @staticmethod
    def identity(num_sources: int, device: torch.device | str = "cpu") -> TokenMap:
        """Keep everything as it is."""
        index = torch.arange(num_sources, device=device)
        ones = torch.ones(num_sources, dtype=torch.float32, device=device)
        return TokenMap._checked(src=index, dst=index, weight=ones, share=ones, anchor=index,
                                 num_sources=num_sources)  # fmt: skip

    @staticmethod
    def mean(
        group: Tensor, num_groups: int, *, anchor: Tensor | None = None, whole: bool = False
    ) -> TokenMap:
        """Average each group.

        Args:
            group: int64 [N], the row each source goes to, -1 dropped.
            num_groups: K.
            anchor: int64 [K]; default the first source of each group.
            whole: No source is dropped; saves waiting for the device to count them.
        """
        return TokenMap._grouped(group, num_groups, None, anchor, whole)

    @staticmethod
    def mass_mean(
        group: Tensor, num_groups: int, mass: Tensor, *, anchor: Tensor | None = None
    ) -> TokenMap:
        """Average each group weighted by ``mass`` float32 [N] (ToMe's sizes)."""
        return TokenMap._grouped(group, num_groups, mass, anchor)

    @staticmethod
    def keep_first(group: Tensor, num_groups: int) -> TokenMap:
        """The first source of each group is kept as it is and stands for the whole group."""
        base = TokenMap._grouped(group, num_groups, None, None)
        weight = (base.src == base.anchor[base.dst]).to(torch.float32)
        return base._with(weight=weight)

    @staticmethod
    def _grouped(
        group: Tensor,
        num_groups: int,
        mass: Tensor | None,
        anchor: Tensor | None,
        whole: bool = False,
    ) -> TokenMap:
        n = group.shape[0]
        every = torch.arange(n, device=group.device)
        src = every if whole else torch.nonzero(group >= 0).flatten()
        dst = group[src].to(torch.int64)
        raw = torch.ones(src.shape[0], device=group.device) if mass is None else mass[src].float()
        total = torch.zeros(num_groups, device=group.device).index_add_(0, dst, raw)
        # A group that weighs nothing is averaged plainly.
        empty = total == 0
        raw = torch.where(empty[dst], 1.0, raw)
        if mass is not None:
            held = torch.zeros_like(total).index_add_(0, dst, torch.ones_like(raw))
            total = torch.where(empty, held, total)
        if anchor is None:
            anchor = torch.full((num_groups,), n, dtype=torch.int64, device=group.device)
            anchor = anchor.scatter_reduce(0, dst, src, "amin")
            anchor = torch.where(anchor == n, -1, anchor)
        share = torch.ones(src.shape[0], dtype=torch.float32, device=group.device)
        return TokenMap(src=src, dst=dst, weight=raw / total[dst], share=share,
                        anchor=anchor, num_sources=n)  # fmt: skip

    @property
    def gathers(self) -> bool:
        """Every row is made from exactly one source with weight 1."""
        live = self.weight != 0
        held = counted(self.dst, len(self), live)
        return bool((held == 1).all() & ((self.weight == 1) | ~live).all())

    def kinds(self) -> Tensor:
        """``kind`` uint8 [K]; where it is None, kept or merged by the number of sources."""
        if self.kind is not None:
            return self.kind
        merged = counted(self.dst, len(self), self.weight != 0) > 1
        return torch.where(merged, KIND_MERGED, KIND_KEPT).to(torch.uint8)

    @property
    def is_identity(self) -> bool:
        """Every source is kept as it is, in its own order, under its own kind."""
        n = self.num_sources
        if self.kind is not None or not len(self) == n == self.src.shape[0]:
            return False
        order = torch.arange(n, device=self.src.device)
        same = [(t == order).all() for t in (self.src, self.dst, self.anchor)]
        same += [(t == 1).all() for t in (self.weight, self.share)]
        return bool(torch.stack(same).all())

    def then(self, after: TokenMap) -> TokenMap:
        """Compose: ``a.then(b)`` applied once equals ``a`` then ``b``.

        Weights and shares multiply along each path and are summed over parallel paths; anchors
        follow ``after``. Raises ValueError when ``after`` does not take this map's rows.
        """
        if after.num_sources != len(self):
            raise ValueError(f"cannot compose: {len(self)} rows into a map of {after.num_sources}")
        order = torch.argsort(self.dst, stable=True)
        counts = counted(self.dst, len(self))
        starts = torch.cumsum(counts, 0) - counts
        reps = counts[after.src]
        entry = torch.repeat_interleave(torch.arange(after.src.shape[0], device=reps.device), reps)
        offset = torch.arange(entry.shape[0], device=reps.device)
        offset = offset - torch.repeat_interleave(torch.cumsum(reps, 0) - reps, reps)
        inner = order[starts[after.src[entry]] + offset]
        key = after.dst[entry] * self.num_sources + self.src[inner]
        uniq, inverse = torch.unique(key, return_inverse=True)
        weight = torch.zeros(uniq.shape[0], dtype=torch.float64, device=key.device)
        share = torch.zeros_like(weight)
        weight.index_add_(0, inverse, (self.weight[inner] * after.weight[entry]).double())
        share.index_add_(0, inverse, (self.share[inner] * after.share[entry]).double())
        none = torch.full_like(after.anchor, -1)
        anchor = torch.where(after.anchor >= 0, self.anchor[after.anchor.clamp(min=0)], none) \
            if len(self) else none  # fmt: skip
        return TokenMap._checked(
            src=uniq % max(1, self.num_sources), dst=uniq // max(1, self.num_sources),
            weight=weight.float(), share=share.float(), anchor=anchor,
            num_sources=self.num_sources,
            score=self._score_after(after), kind=self._kind_after(after),
        )  # fmt: skip

    def _score_after(self, after: TokenMap) -> Tensor | None:
        """Scores of a composition: those of ``after``, else of the row whose place is taken."""
        if after.score is not None or self.score is None:
            return after.score
        place = self.score[after.anchor.clamp(min=0)] if len(self) else after.anchor.float()
        return torch.where(after.anchor >= 0, place, torch.nan)

    def _kind_after(self, after: TokenMap) -> Tensor | None:
        """Kinds of a composition: those of ``after``, else merged or as the row taken."""
        if after.kind is not None or self.kind is None or not len(self):
            return after.kind
        merged = counted(after.dst, len(after), after.weight != 0) > 1
        place = self.kind[after.anchor.clamp(min=0)]
        return torch.where(merged | (after.anchor < 0), KIND_MERGED, place.long()).to(torch.uint8)

    def unmerge(self, data: Tensor) -> Tensor:
        """Copy rows [K, D] back to their sources [N, D] along the largest share; dropped get 0."""
        best = torch.full((self.num_sources,), -1.0, device=data.device)
        best = best.scatter_reduce(0, self.src, self.share, "amax")
        entry = torch.nonzero((self.share == best[self.src]) & (self.share > 0)).flatten()
        # The lowest entry wins; scatter_reduce is repeatable where plain assignment is not.
        first = torch.full((self.num_sources,), self.src.shape[0], device=data.device)
        first = first.scatter_reduce(0, self.src[entry], entry, "amin")
        owner = torch.full((self.num_sources,), -1, dtype=torch.int64, device=data.device)
        has = first < self.src.shape[0]
        owner[has] = self.dst[first[has]]
        out = data.new_zeros((self.num_sources, *data.shape[1:]))
        out[owner >= 0] = data[owner[owner >= 0]]
        return out

    def to(self, device: torch.device | str) -> TokenMap:
        """Move every tensor to ``device``."""
        columns = {f.name: getattr(self, f.name) for f in fields(self)}
        moved = {k: v.to(device) for k, v in columns.items() if isinstance(v, Tensor)}
        return self._with(**moved)


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class GridMap:
    """One small matrix per axis, for pooling, resizing and transforms of a dense grid.

    Row ``(i, j, k)`` of the result is the sum over sources of ``t[i, .] * y[j, .] * x[k, .]``.
    Sources are in raster order (t, y, x), all of them present. Shares are the absolute weights
    normalised per source, so mass is conserved wherever a source has any weight.

    Attributes:
        t, y, x: float32 [out, in].
    """

    t: Tensor
    y: Tensor
    x: Tensor

    def __post_init__(self) -> None:
        """Check that the three are float32 matrices."""
        for name in ("t", "y", "x"):
            value: Tensor = getattr(self, name)
            if value.ndim != 2:
                raise ValueError(f"GridMap.{name}: expected [out, in], got {list(value.shape)}")
            check_tensor(self, name, value, torch.float32, value.shape)

    def __len__(self) -> int:
        """Return K."""
        return int(self.t.shape[0] * self.y.shape[0] * self.x.shape[0])

    def __repr__(self) -> str:
        """Show the grid before and after."""
        axes = [getattr(self, name).shape for name in ("t", "y", "x")]
        return (
            f"GridMap({'x'.join(str(a[1]) for a in axes)} to {'x'.join(str(a[0]) for a in axes)})"
        )

    @property
    def num_sources(self) -> int:
        """N."""
        return int(self.t.shape[1] * self.y.shape[1] * self.x.shape[1])

    @staticmethod
    def average(size_in: int, size_out: int) -> Tensor:
        """Matrix [out, in] of adaptive average pooling: bins floor(i n/m) to ceil((i+1) n/m)."""
        matrix = torch.zeros(size_out, size_in)
        for i in range(size_out):
            a, b = i * size_in // size_out, -(-(i + 1) * size_in // size_out)
            matrix[i, a:b] = 1 / (b - a)
        return matrix

    def apply(self, data: Tensor) -> Tensor:
        """Make rows [K, D] from tokens [N, D]; float32 sums, dtype kept."""
        cube = data.float().reshape(self.t.shape[1], self.y.shape[1], self.x.shape[1], -1)
        # Axis by axis, those left as they are skipped: pooling space costs nothing in time.
        for axis, matrix in enumerate((self.t, self.y, self.x)):
            if not _is_eye(matrix):
                shape = cube.shape
                stack = cube.reshape(-1, shape[axis], shape[axis + 1 :].numel())
                cube = matrix @ stack
                cube = cube.reshape(*shape[:axis], matrix.shape[0], *shape[axis + 1 :])
        return cube.reshape(len(self), data.shape[1]).to(data.dtype)

    @property
    def sparse(self) -> bool:
        """Few sources make each row, so that its TokenMap is the faster way to apply it."""
        entries = 1
        for matrix in (self.t, self.y, self.x):
            entries *= int(torch.count_nonzero(matrix))
        return entries <= 4 * self.num_sources

    def expand(self) -> TokenMap:
        """The same reduction as a TokenMap (kind pooled; anchor: the source of largest weight)."""
        weight = torch.ones(1, device=self.t.device)
        share = torch.ones_like(weight)
        src = dst = torch.zeros(1, dtype=torch.int64, device=self.t.device)
        anchor = src
        for matrix in (self.t, self.y, self.x):
            rows, cols = torch.nonzero(matrix, as_tuple=True)
            part = matrix.abs() / matrix.abs().sum(0).clamp(min=1e-30)
            dst = (dst[:, None] * matrix.shape[0] + rows).flatten()
            src = (src[:, None] * matrix.shape[1] + cols).flatten()
            weight = (weight[:, None] * matrix[rows, cols]).flatten()
            share = (share[:, None] * part[rows, cols]).flatten()
            anchor = (anchor[:, None] * matrix.shape[1] + matrix.abs().argmax(1)).flatten()
        kind = torch.full((len(self),), KIND_POOLED, dtype=torch.uint8, device=weight.device)
        return TokenMap._checked(src=src, dst=dst, weight=weight, share=share, anchor=anchor,
                                 num_sources=self.num_sources, kind=kind)  # fmt: skip


def _is_eye(matrix: Tensor) -> bool:
    rows, cols = matrix.shape
    return rows == cols and torch.equal(matrix, torch.eye(rows, device=matrix.device))
