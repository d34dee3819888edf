"""Frames of one size side by side, and the rows decided in them put together again.

Letters: N tokens, T frames of a stack, C tokens of a frame, R rows of a frame (at most).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import accumulate

import torch
from torch import Tensor

from tokpipe.budget import largest_remainder
from tokpipe.frames import allocate_frames, frames_of, one_item
from tokpipe.tensors import TokenBatch, TokenMap

#: Most elements of the data of a stack of several frames (128 MB in float32).
_ELEMENTS = 1 << 25


@dataclass(frozen=True, slots=True)
class Stack:
    """Frames of one size.

    Attributes:
        index: int64 [T, C] their tokens.
        frame: int64 [T] rank of each frame in the batch.
        quota: int64 [T] rows each may have, None without a budget.
        run: First token, where the tokens are a run; None where they are scattered.
    """

    index: Tensor
    frame: Tensor
    quota: Tensor | None
    run: int | None

    def of(self, value: Tensor) -> Tensor:
        """The column ``value`` [N, ...] as [T, C, ...]; a view where the tokens are a run."""
        steps, size = self.index.shape
        if self.run is None:
            return value[self.index]
        return value[self.run : self.run + steps * size].reshape(steps, size, *value.shape[1:])

    @property
    def most(self) -> int:
        """Largest quota, C without a budget."""
        return self.index.shape[1] if self.quota is None else int(self.quota.max())

    def own(self) -> Tensor:
        """Places 0 .. C - 1 of every frame, int64 [T, C]."""
        size = self.index.shape[1]
        return torch.arange(size, device=self.index.device).expand(self.index.shape[0], size)

    def within(self, rows: int) -> Tensor:
        """Mask [T, rows] of the rows within the quota."""
        steps, device = self.index.shape[0], self.index.device
        if self.quota is None:
            return torch.ones(steps, rows, dtype=torch.bool, device=device)
        return torch.arange(rows, device=device)[None] < self.quota[:, None]


def stacks(tokens: TokenBatch, budget: int | None, scope: str, pairs: int) -> Iterator[Stack]:
    """Frames by size, in time order; scope ``video`` makes one frame of everything.

    Args:
        tokens: N tokens.
        budget: Rows in all, shared in proportion to the frames' tokens by largest remainder.
            Frames that get none are left out.
        scope: ``frame`` or ``video``.
        pairs: Most pairs of tokens in one stack of several frames.
    """
    n, device = len(tokens), tokens.data.device
    if n == 0:
        return
    if scope == "video" or one_item(tokens):
        quota = None if budget is None else torch.tensor([min(budget, n)], device=device)
        if budget != 0:
            zero = torch.zeros(1, dtype=torch.int64, device=device)
            yield Stack(torch.arange(n, device=device)[None], zero, quota, 0)
        return
    found = frames_of(tokens)
    counts = found.counts.tolist()
    shares = None if budget is None else largest_remainder(min(budget, n), counts, caps=counts)
    ordered = not bool((found.index.diff() < 0).any())
    order = torch.argsort(found.index, stable=True)
    starts = [0]
    for count in counts:
        starts.append(starts[-1] + count)
    for size in sorted(set(counts)):
        same = [t for t, c in enumerate(counts) if c == size and (shares is None or shares[t])]
        step = max(1, min(pairs // (size * size), _ELEMENTS // (size * tokens.data.shape[1])))
        for part in (same[i : i + step] for i in range(0, len(same), step)):
            first = torch.tensor([starts[t] for t in part], device=device)
            place = first[:, None] + torch.arange(size, device=device)
            whole = ordered and part[-1] - part[0] + 1 == len(part)
            quota = None if shares is None else torch.tensor([shares[t] for t in part],
                                                             device=device)  # fmt: skip
            frame = torch.tensor(part, device=device)
            yield Stack(order[place], frame, quota, starts[part[0]] if whole else None)


@dataclass(frozen=True, slots=True)
class Part:
    """Frames of one size that may have the same number of rows.

    Attributes:
        index: int64 [T, C] their tokens.
        base: int64 [T] number of each frame's first row, rows coming frame after frame.
        count: Rows of each.
    """

    index: Tensor
    base: Tensor
    count: int

    def stacks(self, width: int) -> Iterator[tuple[int, int]]:
        """Ranges of frames whose data of ``width`` columns are worked on together."""
        steps, size = self.index.shape
        step = max(1, _ELEMENTS // max(1, size * width))
        for a in range(0, steps, step):
            yield a, min(steps, a + step)


def equal_parts(tokens: TokenBatch, budget: int | None, own: Callable[[int], int]) -> list[Part]:
    """Frames by size and number of rows, shared out as ``frames.each_frame`` does.

    Args:
        tokens: N tokens of several frames.
        budget: Rows in all; frames that get none are left out.
        own: Rows of a frame of so many tokens without a budget.
    """
    found, device = frames_of(tokens), tokens.data.device
    counts = found.counts.tolist()
    if budget is None:
        quota = [own(count) for count in counts]
    else:
        quota = allocate_frames(counts, min(budget, len(tokens)))
    order = torch.argsort(found.index, stable=True)
    first, base = [0, *accumulate(counts)], [0, *accumulate(quota)]
    same: dict[tuple[int, int], list[int]] = {}
    for t, (size, rows) in enumerate(zip(counts, quota, strict=True)):
        if rows:
            same.setdefault((size, rows), []).append(t)
    parts = []
    for (size, rows), frames in same.items():
        start = torch.tensor([[first[t], base[t]] for t in frames], device=device)
        place = start[:, :1] + torch.arange(size, device=device)
        parts.append(Part(order[place], start[:, 1], rows))
    return parts


@dataclass(slots=True)
class Rows:
    """Collects the rows of stacks and makes one map of them, frame after frame."""

    num_sources: int
    device: torch.device
    _frame: list[Tensor] = field(default_factory=list)
    _anchor: list[Tensor] = field(default_factory=list)
    _score: list[Tensor] = field(default_factory=list)
    _source: list[Tensor] = field(default_factory=list)
    _row: list[Tensor] = field(default_factory=list)
    _count: int = 0

    def add(
        self, stack: Stack, anchor: Tensor, valid: Tensor, *,
        score: Tensor | None = None, group: Tensor | None = None,
    ) -> None:  # fmt: skip
        """Take the rows of one stack.

        Args:
            stack: Its frames.
            anchor: int64 [T, R] place of each row, counted within its frame, in row order.
            valid: bool [T, R] which of them are rows.
            score: float32 [T, R].
            group: int64 [T, C] the row (0 .. R - 1, a valid one) each token joins, -1 none; None
                where each row is its anchor alone.
        """
        row = torch.full(valid.shape, -1, dtype=torch.int64, device=self.device)
        row[valid] = torch.arange(int(valid.sum()), device=self.device) + self._count
        self._count += int(valid.sum())
        self._frame.append(stack.frame[:, None].expand_as(valid)[valid])
        self._anchor.append(stack.index.gather(1, anchor)[valid])
        if score is not None:
            self._score.append(score[valid])
        if group is not None:
            joins = group >= 0
            self._source.append(stack.index[joins])
            self._row.append(row.gather(1, group.clamp(min=0))[joins])

    def keep(self) -> TokenMap:
        """Keep the anchors, in row order."""
        index, order = self._placed()
        score = torch.cat(self._score)[order] if self._score else None
        return TokenMap.keep(index, self.num_sources, score=score)

    def mean(self, mass: Tensor | None = None) -> TokenMap:
        """Average each row's tokens, plainly or weighted by ``mass`` [N]."""
        index, order = self._placed()
        group = torch.full((self.num_sources,), -1, dtype=torch.int64, device=self.device)
        if self._source:
            rank = torch.empty_like(order)
            rank[order] = torch.arange(order.shape[0], device=self.device)
            group[torch.cat(self._source)] = rank[torch.cat(self._row)]
        if mass is None:
            merged = TokenMap.mean(group, index.shape[0], anchor=index)
        else:
            merged = TokenMap.mass_mean(group, index.shape[0], mass, anchor=index)
        if not self._score:
            return merged
        score = torch.cat(self._score)[order]
        return TokenMap(
            src=merged.src, dst=merged.dst, weight=merged.weight, share=merged.share,
            anchor=index, num_sources=self.num_sources, score=score,
        )  # fmt: skip

    def _placed(self) -> tuple[Tensor, Tensor]:
        if not self._anchor:
            none = torch.empty(0, dtype=torch.int64, device=self.device)
            return none, none
        order = torch.argsort(torch.cat(self._frame), stable=True)
        return torch.cat(self._anchor)[order], order
