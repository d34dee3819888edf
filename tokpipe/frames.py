"""Which tokens belong to which frame, whole regular frames, and rules applied frame by frame.

Letters: N tokens, T frames, C tokens of a frame, K rows kept, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tokpipe.budget import largest_remainder
from tokpipe.checks import checked_together
from tokpipe.errors import RecipeError
from tokpipe.maps import TokenMap
from tokpipe.spec import MODALITY_CODE
from tokpipe.tensors import TokenBatch


@dataclass(frozen=True, slots=True)
class Frames:
    """Frames present in a batch, in time order.

    Attributes:
        index: int64 [N] frame of each token.
        counts: int64 [T] tokens of each frame.
    """

    index: Tensor
    counts: Tensor

    def __len__(self) -> int:
        """Return T."""
        return int(self.counts.shape[0])


def one_item(tokens: TokenBatch) -> bool:
    """All tokens are of one frame, or are sound, which has no frames: it is one item."""
    if not len(tokens):
        return True
    sound = tokens.modality == MODALITY_CODE["audio"]
    return bool((tokens.at == tokens.at[0]).all() | sound.all())


def frames_of(tokens: TokenBatch) -> Frames:
    """Group tokens of equal ``at`` into frames; sound is one item."""
    if len(tokens) and one_item(tokens):
        index = torch.zeros(len(tokens), dtype=torch.int64, device=tokens.at.device)
        return Frames(index, torch.full_like(index[:1], len(tokens)))
    _, index, counts = torch.unique(tokens.at, return_inverse=True, return_counts=True)
    return Frames(index, counts)


def raster_shape(tokens: TokenBatch) -> tuple[int, int] | None:
    """Rows and columns of one frame whose tokens are a whole grid in raster order, else None.

    The lines of the grid need not be next to each other: a pooled frame is a grid again.
    """
    if not len(tokens) or int(tokens.cell[:, 1:].min()) < 0 or int(tokens.tile.max()) > 0:
        return None
    lines, y = torch.unique(tokens.cell[:, 1], return_inverse=True)
    columns, x = torch.unique(tokens.cell[:, 2], return_inverse=True)
    rows, cols = len(lines), len(columns)
    place = y * cols + x
    expected = torch.arange(len(tokens), device=place.device)
    return (rows, cols) if rows * cols == len(tokens) and torch.equal(place, expected) else None


def whole_grids(tokens: TokenBatch, name: str) -> tuple[int, int, int]:
    """T, rows and columns, when every frame is the same whole grid in raster order.

    Raises:
        RecipeError: It is not; ``name`` is the operator that needs it.
    """
    steps, size = equal_frames(tokens, name)
    shape = raster_shape(tokens.take(slice(0, size))) if size else None
    if shape is not None:
        place = tokens.cell[:, 1:].reshape(steps, size, 2)
        if torch.equal(place, place[:1].expand_as(place)) and int(tokens.tile.max()) == 0:
            return steps, *shape
    raise _not_whole(name)


def equal_frames(tokens: TokenBatch, name: str) -> tuple[int, int]:
    """T and C, when all frames have C tokens, frame after frame: ``data.reshape(T, C, D)`` holds.

    Raises:
        RecipeError: They do not; ``name`` is the operator that needs it.
    """
    n = len(tokens)
    if n == 0 or one_item(tokens):
        return min(n, 1), n
    starts = torch.nonzero(tokens.at[1:] != tokens.at[:-1]).flatten() + 1
    steps = int(starts.shape[0]) + 1
    size = n // steps
    expected = torch.arange(1, steps, device=starts.device) * size
    if steps * size == n and torch.equal(starts, expected) and bool((tokens.at.diff() >= 0).all()):
        return steps, size
    raise _not_whole(name)


def _not_whole(name: str) -> RecipeError:
    return RecipeError(
        f"`{name}` needs whole frames of one size in raster order",
        hint="put it before the steps that drop or merge tokens",
        code="recipe.needs",
    )


def each_frame(
    tokens: TokenBatch,
    budget: int | None,
    decide: Callable[[TokenBatch, int | None], TokenMap],
) -> TokenMap:
    """Decide every frame by itself; rows come frame after frame.

    Args:
        tokens: N tokens of any number of frames.
        budget: Rows in all, shared as ``allocate_frames`` does; None leaves each frame's count to
            the rule.
        decide: The rule for the tokens of one frame.
    """
    n = len(tokens)
    if one_item(tokens):
        return decide(tokens, budget)
    found = frames_of(tokens)
    counts = found.counts.tolist()
    quota: list[int | None] = [None] * len(counts)
    if budget is not None:
        quota = list(allocate_frames(counts, min(budget, n)))
    order = None
    if bool((found.index.diff() < 0).any()):
        order = torch.argsort(found.index, stable=True)
    maps, a = [], 0
    with checked_together():
        for count, rows in zip(counts, quota, strict=True):
            index = slice(a, a + count) if order is None else order[a : a + count]
            if rows != 0:
                made = decide(tokens.take(index), rows)
                maps.append(placed(made, a if order is None else order[a : a + count], n))
            a += count
    return stacked(maps, n, tokens.at.device)


def allocate_frames(counts: Sequence[int], budget: int) -> list[int]:
    """Split ``budget`` over frames in proportion to their tokens ``counts``, largest remainder.

    With less than one each, frames at the middles of equal spans get one.

    Returns:
        Tokens per frame, at most its count, summing to min(budget, all).
    """
    full = [i for i, count in enumerate(counts) if count]
    if 0 < budget < len(full):
        chosen = {full[(2 * i + 1) * len(full) // (2 * budget)] for i in range(budget)}
        return [int(i in chosen) for i in range(len(counts))]
    return largest_remainder(budget, counts, caps=counts)


def placed(decision: TokenMap, where: int | Tensor, num_sources: int) -> TokenMap:
    """The map of some tokens as a map of all ``num_sources``.

    Args:
        decision: Decided on a part.
        where: The part's first token where it is a run, else int64 [n] its tokens.
        num_sources: N.
    """
    if isinstance(where, int):
        src, anchor = decision.src + where, decision.anchor + where
    else:
        src, anchor = where[decision.src], where[decision.anchor.clamp(min=0)]
    anchor = torch.where(decision.anchor >= 0, anchor, -1)
    return replace(decision, src=src, anchor=anchor, num_sources=num_sources)


def stacked(maps: list[TokenMap], num_sources: int, device: torch.device | str) -> TokenMap:
    """Rows of several maps over the same sources, one after the other."""
    if not maps:
        return TokenMap.keep(torch.empty(0, dtype=torch.int64, device=device), num_sources)
    if len(maps) == 1:
        return maps[0]
    offset, dst = 0, []
    for made in maps:
        dst.append(made.dst + offset)
        offset += len(made)
    score = kind = None
    if any(m.score is not None for m in maps):
        score = torch.cat([m.anchor.new_full((len(m),), torch.nan, dtype=torch.float32)
                           if m.score is None else m.score for m in maps])  # fmt: skip
    if all(m.kind is not None for m in maps):
        kind = torch.cat([m.kind for m in maps if m.kind is not None])
    elif any(m.kind is not None for m in maps):
        kind = torch.cat([m.kinds() for m in maps])
    return TokenMap(
        src=torch.cat([m.src for m in maps]), dst=torch.cat(dst),
        weight=torch.cat([m.weight for m in maps]), share=torch.cat([m.share for m in maps]),
        anchor=torch.cat([m.anchor for m in maps]), num_sources=num_sources,
        score=score, kind=kind,
    )  # fmt: skip
