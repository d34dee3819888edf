"""How much the pixels of a cell change against the frame before, and what a stream keeps of it.

Letters: N tokens, V values of a cell, B budget.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cache

import torch
from torch import Tensor

from tokpipe.compress._tracks import by_place, highest, keep_first, latest, places
from tokpipe.maps import TokenMap
from tokpipe.tensors import TokenBatch

#: Width of a ``pixels`` descriptor: 4 x 4 luma, 2 x 2 Cb, 2 x 2 Cr; and pixels of a cell's side.
_DIM, _SIDE = 24, 28
#: Score of a cell that has nothing before it, and the largest score of any.
FIRST = 1e6
_IMAGENET_STD = (0.229, 0.224, 0.225)
#: BT.601 full-range colour from Y, Cb - 128, Cr - 128.
_RGB = ((1.0, 0.0, 1.402), (1.0, -0.344136, -0.714136), (1.0, 1.772, 0.0))
#: Elements of one block of differences (16 MB in float32).
_BLOCK = 1 << 22


@dataclass(slots=True)
class ChangeState:
    """What a stream remembers.

    Attributes:
        budget: Most rows, None where the rule's own threshold decides.
        keys: int64 [P] places seen, and ``values`` [P, V] their latest first-frame pixels.
        place: int64 [K] place of each carried row, and ``score`` float32 [K] its score.
        settled: bool [K] rows of the last map that no later cell can join.
    """

    budget: int | None = None
    keys: Tensor | None = None
    values: Tensor | None = None
    place: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    score: Tensor = field(default_factory=lambda: torch.empty(0))
    settled: Tensor | None = None


def values_of(tokens: TokenBatch, tubelet: int, *, normalised: bool) -> tuple[Tensor, Tensor]:
    """Pixels of the first and of the last frame of each cell, [N, V] each.

    The column ``patch_pixels`` [N, tubelet * V] where there is one. Else `pixels` descriptors are
    turned back into 4 x 4 RGB pixels of 0 .. 1 (the two are the same: a cell is one frame); with
    ``normalised`` divided by ImageNet's deviations. Tokens of another width are taken as they are.
    """
    column = tokens.extras.get("patch_pixels")
    if column is not None:
        flat = column.reshape(len(tokens), -1)
        part = max(1, flat.shape[1] // tubelet)
        return flat[:, :part], flat[:, flat.shape[1] - part :]
    data = tokens.data.float()
    if data.shape[1] == _DIM:
        data = data @ _low_resolution(normalised).to(data.device)
    return data, data


@cache
def _low_resolution(normalised: bool) -> Tensor:
    """Matrix [24, 48] from a descriptor to 4 x 4 x RGB of 0 .. 1, up to a constant."""
    luma = torch.kron(_inverse(4, _SIDE), _inverse(4, _SIDE))
    small = torch.kron(_inverse(2, _SIDE // 2), _inverse(2, _SIDE // 2)).reshape(2, 2, 4)
    chroma = small.repeat_interleave(2, 0).repeat_interleave(2, 1).reshape(16, 4)
    colour = torch.tensor(_RGB, dtype=torch.float64)
    out = torch.zeros(_DIM, 16, 3, dtype=torch.float64)
    for rgb in range(3):
        out[:16, :, rgb] = colour[rgb, 0] * luma.T
        out[16:20, :, rgb] = colour[rgb, 1] * chroma.T
        out[20:, :, rgb] = colour[rgb, 2] * chroma.T
    out /= 255
    if normalised:
        out /= torch.tensor(_IMAGENET_STD, dtype=torch.float64)
    return out.reshape(_DIM, 48).float()


def _inverse(points: int, side: int) -> Tensor:
    """Matrix [points, points]: low frequencies of ``side`` pixels to ``points`` samples."""
    k = torch.arange(points, dtype=torch.float64)
    n = torch.arange(points, dtype=torch.float64)[:, None]
    out = torch.cos(math.pi * (2 * n + 1) * k / (2 * points)) * math.sqrt(2 / points)
    out[:, 0] /= math.sqrt(2)
    return out * math.sqrt(points / side)


def change(first: Tensor, last: Tensor, before: Tensor) -> Tensor:
    """Mean absolute difference float32 [N] of ``last`` to the ``first`` of token ``before``.

    Infinite where there is none (-1). The first frame of the one and the last of the other: a
    slow change shows most there.
    """
    n, width = last.shape
    step = max(1, _BLOCK // max(1, width))
    out = torch.empty(n, device=last.device)
    for a in range(0, n, step):
        there = first[before[a : a + step].clamp(min=0)].float()
        out[a : a + step] = (last[a : a + step].float() - there).abs_().mean(1)
    return torch.where(before >= 0, out, torch.inf)


def score_of(difference: Tensor, threshold: float) -> Tensor:
    """Differences in units of the threshold: 1 is the border of a repeat."""
    return (difference / threshold).clamp(max=FIRST)


def observe(state: ChangeState, tokens: TokenBatch, first: Tensor, last: Tensor) -> Tensor:
    """Differences float32 [N] of new tokens to those before, also of earlier blocks."""
    key = places(tokens, _frames(tokens))
    held = 0
    if state.keys is not None and state.values is not None:
        held = len(state.keys)
        key = torch.cat([state.keys, key])
        first = torch.cat([state.values, first])
    order, start = by_place(key)
    rank = torch.arange(len(order), device=order.device)
    before = torch.full_like(order, -1)
    later = rank > start
    before[order[later]] = order[rank[later] - 1]
    final = torch.ones_like(later)
    final[:-1] = start[1:] != start[:-1]
    state.keys, state.values = key[order[final]], first[order[final]]
    return change(first, last, before[held:])


def advance(state: ChangeState, tokens: TokenBatch, score: Tensor, keep: Tensor | None) -> TokenMap:
    """Map over [carried; new] after new tokens ``score`` float32 [N].

    Args:
        state: Moves on.
        tokens: The new tokens, in time order.
        score: Their scores.
        keep: bool [N] with no budget; else the best scores of all so far stay.
    """
    key = torch.cat([state.place.to(score.device), places(tokens, _frames(tokens))])
    held = len(key) - len(tokens)
    score = torch.cat([state.score.to(score.device), score])
    if state.budget is not None:
        mask = highest(score, state.budget)
    elif keep is not None:
        mask = torch.ones(len(key), dtype=torch.bool, device=key.device)
        mask[held:] = keep
    order, start = by_place(key)
    rows = torch.nonzero(mask).flatten()
    made = keep_first(latest(order, start, mask), rows, score=score)
    state.place, state.score = key[rows], score[rows]
    state.settled = torch.zeros(len(rows), dtype=torch.bool, device=key.device)
    if state.budget is None:
        inner, begins = by_place(state.place)
        state.settled[inner[:-1]] = begins[1:] == begins[:-1]
        state.place, state.score = state.place[~state.settled], state.score[~state.settled]
    return made


def finish(state: ChangeState, carried: TokenBatch) -> TokenMap:
    """Every carried row is kept."""
    state.settled = torch.ones(len(carried), dtype=torch.bool, device=carried.data.device)
    return TokenMap.identity(len(carried), carried.data.device)


def _frames(tokens: TokenBatch) -> Tensor:
    begins = torch.ones(len(tokens), dtype=torch.int64, device=tokens.at.device)
    begins[1:] = tokens.at[1:] != tokens.at[:-1]
    return begins.cumsum(0) - 1
