"""Rows of a segmented video: what stays still once per segment, the rest frame by frame.

Letters: T frames, C tokens of a frame, S segments, B = S or T items, K rows of an item.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tokpipe.budget import largest_remainder
from tokpipe.compress._segment import Segments
from tokpipe.maps import TokenMap


@dataclass(frozen=True, slots=True)
class Rows:
    """What the places of each item become.

    Attributes:
        label: int64 [B, C] row of each place within its item, -1 dropped.
        centre: int64 [B, K] place each row takes, -1 where an item has fewer rows.
        weight: float32 [B, C] part of each place in its row's data.
    """

    label: Tensor
    centre: Tensor
    weight: Tensor


def kept(mask: Tensor) -> Rows:
    """Every place of mask bool [B, C] as a row of its own, in order."""
    size, places = mask.shape
    label = (mask.cumsum(1) - 1).masked_fill(~mask, -1)
    most = int(mask.sum(1).max()) if size else 0
    centre = torch.arange(places, device=mask.device).expand(size, places)
    centre = centre.masked_fill(~mask, places).sort(1).values[:, :most]
    return Rows(label, centre.masked_fill(centre == places, -1), mask.float())


def chosen(where: Tensor, left: Rows, right: Rows) -> Rows:
    """Rows of ``left`` for items where bool [B], else of ``right``."""
    most = max(left.centre.shape[1], right.centre.shape[1])
    pick = where[:, None]
    return Rows(
        torch.where(pick, left.label, right.label),
        torch.where(pick, _padded(left.centre, most), _padded(right.centre, most)),
        torch.where(pick, left.weight, right.weight),
    )


def joined(first: Rows, then: Rows) -> Rows:
    """Rows of ``first``, after them those of ``then``, item by item; no place is in both."""
    count = (first.centre >= 0).sum(1, keepdim=True)
    label = torch.where(then.label >= 0, then.label + count, first.label)
    most = first.centre.shape[1] + then.centre.shape[1]
    # The extra column takes the writes of absent rows.
    centre = _padded(first.centre, most + 1)
    slot = torch.arange(then.centre.shape[1], device=count.device) + count
    centre = centre.scatter(1, torch.where(then.centre < 0, most, slot), then.centre)
    return Rows(label, centre[:, :most], first.weight + then.weight)


def _padded(centre: Tensor, width: int) -> Tensor:
    return torch.nn.functional.pad(centre, (0, width - centre.shape[1]), value=-1)


def best_places(score: Tensor, count: Tensor, among: Tensor | None = None) -> Tensor:
    """Mask bool [B, C] of the ``count`` int64 [B] highest of score [B, C], lower place first.

    Args:
        score: float [B, C], no NaN.
        count: At most the places there are among.
        among: bool [B, C] places that may be taken; None all.
    """
    if among is not None:
        lowest = torch.finfo(score.dtype).min
        score = score.clamp(min=lowest).masked_fill(~among, -torch.inf)
    order = torch.argsort(score, dim=1, descending=True, stable=True)
    taken = torch.arange(score.shape[1], device=score.device) < count[:, None]
    return torch.zeros_like(taken).scatter(1, order, taken.expand_as(order))


def quotas(budget: int, counts: Sequence[int]) -> list[int]:
    """Rows of each group of ``counts`` tokens: in proportion, one for each where that fits."""
    filled = sum(c > 0 for c in counts)
    floors = [1 if budget >= filled else 0] * len(counts)
    return largest_remainder(budget, counts, caps=counts, floors=floors)


def segment_rows(segments: Segments, size: int, still: Rows, moving: Rows) -> TokenMap:
    """Segment by segment: rows of what stays still, then the moving ones frame after frame.

    Args:
        segments: Of T frames.
        size: C; sources are T x C.
        still: Of each segment; a row is averaged over its frames and placed in the first.
        moving: Of each frame.
    """
    device = moving.label.device
    start = torch.tensor([a for a, _ in segments], device=device)
    frames = torch.tensor([b - a for a, b in segments], device=device)
    segment = torch.repeat_interleave(torch.arange(len(segments), device=device), frames)
    steps = torch.arange(segment.shape[0], device=device)
    # Items in the order of their rows: each segment comes right before its first frame.
    counts = torch.zeros(len(segments) + segment.shape[0], dtype=torch.int64, device=device)
    at_still, at_moving = start + torch.arange(len(segments), device=device), steps + segment + 1
    counts[at_still] = (still.centre >= 0).sum(1)
    counts[at_moving] = (moving.centre >= 0).sum(1)
    base = counts.cumsum(0) - counts
    over = Rows(still.label[segment], still.centre, still.weight[segment] / frames[segment, None])
    src, dst, weight = [], [], []
    for rows, first in ((over, base[at_still][segment]), (moving, base[at_moving])):
        frame, place = torch.nonzero(rows.label >= 0, as_tuple=True)
        src.append(frame * size + place)
        dst.append(first[frame] + rows.label[frame, place])
        weight.append(rows.weight[frame, place])
    anchor = counts.new_empty(int(counts.sum()))
    for rows, first, origin in (
        (still, base[at_still], start * size), (moving, base[at_moving], steps * size)
    ):  # fmt: skip
        item, slot = torch.nonzero(rows.centre >= 0, as_tuple=True)
        anchor[first[item] + slot] = origin[item] + rows.centre[item, slot]
    return TokenMap(
        src=torch.cat(src), dst=torch.cat(dst), weight=torch.cat(weight),
        share=torch.ones(sum(s.shape[0] for s in src), device=device), anchor=anchor,
        num_sources=segment.shape[0] * size,
    )  # fmt: skip
