"""Pictures of different length in one tensor: where their rows lie, and maps over all of them.

Letters: T pictures, M rows of all of them, N rows of the longest, K rows kept, p protected rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from tokpipe.checks import check
from tokpipe.errors import RecipeError
from tokpipe.maps import TokenMap, counted


@dataclass(frozen=True)
class Layout:
    """Rows [M, ...] of T pictures, one picture after the other.

    Attributes:
        counts: Rows of each picture.
        device: Where they are.
    """

    counts: tuple[int, ...]
    device: torch.device = field(compare=False)

    @property
    def equal(self) -> bool:
        """All pictures have the same number of rows."""
        return len(set(self.counts)) <= 1

    @property
    def shape(self) -> tuple[int, int]:
        """T and N."""
        return len(self.counts), max(self.counts, default=0)

    @cached_property
    def _sizes(self) -> Tensor:
        return torch.tensor(self.counts, device=self.device)

    @cached_property
    def picture(self) -> Tensor:
        """int64 [M] the picture of each row."""
        return self._repeated(torch.arange(len(self.counts), device=self.device), 0)

    def _repeated(self, values: Tensor, less: int) -> Tensor:
        """Values [T] for each row, ``less`` of every picture's rows left out; no host sync."""
        total = sum(self.counts) - less * len(self.counts)
        return values.repeat_interleave(self._sizes - less, output_size=total)

    @cached_property
    def _slot(self) -> Tensor:
        """int64 [M] place of each row among T x N."""
        starts = self._sizes.cumsum(0) - self._sizes
        local = torch.arange(sum(self.counts), device=self.device) - starts[self.picture]
        return self.picture * self.shape[1] + local

    def padded(self, rows: Tensor, *, fill: float = 0.0) -> Tensor:
        """Rows [M, ...] as [T, N, ...], ``fill`` behind the shorter pictures."""
        if self.equal:
            return rows.reshape(*self.shape, *rows.shape[1:])
        count, longest = self.shape
        out = rows.new_full((count * longest, *rows.shape[1:]), fill)
        out[self._slot] = rows
        return out.reshape(count, longest, *rows.shape[1:])

    def packed(self, padded: Tensor) -> Tensor:
        """Rows [M, ...] of [T, N, ...]."""
        flat = padded.flatten(0, 1)
        return flat if self.equal else flat[self._slot]

    def before(self, first: int) -> Tensor:
        """int64 [T x first] the first rows of every picture."""
        starts = self._sizes.cumsum(0) - self._sizes
        return (starts[:, None] + torch.arange(first, device=self.device)).flatten()

    def after(self, first: int) -> Tensor | slice:
        """int64 rows of all pictures but the ``first`` of each; a slice where these are none."""
        if not first:
            return slice(None)
        skipped = torch.arange(1, len(self.counts) + 1, device=self.device) * first
        found = self._repeated(skipped, first)
        return found + torch.arange(found.shape[0], device=self.device)


def joined(
    maps: Sequence[TokenMap], sizes: Sequence[int], protected: int, rule: str,
    known: list[int] | None = None,
) -> tuple[TokenMap, list[int]]:  # fmt: skip
    """One map of maps over pictures (or of one over them all), rows picture after picture.

    Args:
        maps: One for each picture, or a single one over all pictures.
        sizes: Sources of each picture.
        protected: The first so many sources of a picture must stay rows of their own; they are
            put first.
        rule: Who decided.
        known: Rows of each picture, where that follows from sizes alone: then nothing waits for
            the device.

    Returns:
        The map and the rows of each picture.

    Raises:
        RecipeError: The rule gave up a protected row.
    """
    one = maps[0] if len(maps) == 1 else _chained(maps)
    layout = Layout(tuple(sizes), one.src.device)
    picture = layout.picture
    # A row without a place goes where its sources are.
    row = torch.zeros_like(one.anchor).scatter_reduce(0, one.dst, picture[one.src], "amax")
    row = torch.where(one.anchor >= 0, picture[one.anchor.clamp(min=0)], row)
    first = layout.before(protected).reshape(len(sizes), protected)
    held = (one.anchor[:, None] == first[row]).any(1) if protected else row < 0
    order = torch.argsort(row * 2 + (~held).long(), stable=True)

    def refuse(_found: Sequence[bool]) -> None:
        raise RecipeError(
            f"`{rule}` gave up class tokens inside the tower",
            hint="turn off its `class_token`, so that it sees patches only",
        )

    check((held.sum() == protected * len(sizes))[None], refuse)
    if known is not None and sum(known) == len(one):
        found = known
    else:
        found = counted(row, len(sizes)).tolist()
    back = torch.empty_like(order)
    back[order] = torch.arange(len(one), device=order.device)
    made = replace(
        one, dst=back[one.dst], anchor=one.anchor[order],
        score=None if one.score is None else one.score[order],
        kind=None if one.kind is None else one.kind[order],
    )  # fmt: skip
    return made, found


def _chained(maps: Sequence[TokenMap]) -> TokenMap:
    """Maps of pictures end to end; scores and kinds, which the rows do not need, are left out."""
    sources = rows = 0
    src, dst, anchor = [], [], []
    for one in maps:
        src.append(one.src + sources)
        dst.append(one.dst + rows)
        anchor.append(torch.where(one.anchor >= 0, one.anchor + sources, -1))
        sources, rows = sources + one.num_sources, rows + len(one)
    return TokenMap(
        src=torch.cat(src), dst=torch.cat(dst), anchor=torch.cat(anchor), num_sources=sources,
        weight=torch.cat([one.weight for one in maps]),
        share=torch.cat([one.share for one in maps]),
    )  # fmt: skip


def split_maps(
    total: TokenMap, counts: Sequence[int], sources: int, *, skip: int
) -> list[TokenMap]:
    """The map of each picture, without its first ``skip`` sources and rows, which are the same.

    Args:
        total: Rows picture after picture.
        counts: Rows of each picture.
        sources: Sources of each picture.
        skip: Protected rows of each picture.
    """
    layout = Layout(tuple(counts), total.src.device)
    local = torch.arange(len(total), device=total.src.device)
    local = local - layout.before(1)[layout.picture] if len(total) else local
    order = torch.argsort(total.dst, stable=True)
    order = order[local[total.dst[order]] >= skip]
    dst = total.dst[order]
    picture = layout.picture[dst]
    entries = counted(picture, len(counts)).tolist()
    base, place = picture * sources + skip, local[dst] - skip
    columns = (total.src[order] - base, place, total.weight[order], total.share[order])
    parts = zip(*(torch.split(column, entries) for column in columns), strict=True)
    rows = zip(parts, torch.split(total.anchor, list(counts)), strict=True)
    out = []
    for i, ((src, row, weight, share), anchor) in enumerate(rows):
        held = anchor[skip:]
        held = torch.where(held >= 0, held - i * sources - skip, -1)
        out.append(TokenMap(src=src, dst=row, weight=weight, share=share, anchor=held,
                            num_sources=sources - skip))  # fmt: skip
    return out
