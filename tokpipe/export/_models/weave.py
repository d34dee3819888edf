"""How the Omni models lay pictures and the sound beneath them in one row.

Qwen2.5-Omni in chunks of 2 s, the pictures of a chunk before its sound; Qwen3-Omni by position,
pictures first where equal.

Source: transformers 5.24, ``get_rope_index`` and the processors of qwen2_5_omni, qwen3_omni_moe.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from tokpipe.export._models.rope import Pictures, Sound, Woven

#: (is sound, first, end) of every turn, none empty.
Pieces = tuple[tuple[bool, int, int], ...]
_Slices = list[tuple[int, int]]


def weave_chunks(
    pictures: Tensor, sound: Tensor, chunk: int, *, compatible: bool = False
) -> Pieces:
    """Turns of Qwen2.5-Omni.

    Args:
        pictures: [N] position in time of each picture token, rising, from 0.
        sound: [M] that of each sound token.
        chunk: Positions of a chunk (2 s: 50).
        compatible: Cut as the released code does, one chunk further per cut. It is the same
            unless a step is longer than a chunk: then the released code parts the first token of
            a picture from the others.

    Returns:
        The turns.
    """
    cut: Callable[[Tensor, int], _Slices] = released_chunks if compatible else _true_chunks
    both = cut(pictures, chunk), cut(sound, chunk)
    return tuple(
        (heard, *slices[turn])
        for turn in range(max(map(len, both)))
        for heard, slices in ((False, both[0]), (True, both[1]))
        if turn < len(slices) and slices[turn][1] > slices[turn][0]
    )


def weave_merged(pictures: Tensor, sound: Tensor) -> Pieces:
    """Turns of Qwen3-Omni; see ``weave_chunks``."""
    both = torch.cat([pictures.double(), sound.double()])
    heard = torch.arange(len(both)) >= len(pictures)
    heard = heard[torch.argsort(both, stable=True)]
    turns = (torch.nonzero(heard[1:] != heard[:-1]).flatten() + 1).tolist()
    done, made = [0, 0], []
    for first, end in pairwise([0, *turns, len(heard)]):
        which = bool(heard[first])
        made.append((which, done[which], done[which] + end - first))
        done[which] += end - first
    return tuple(made)


def woven(pictures: Pictures, sound: Sound, pieces: Pieces) -> Woven:
    """Both in turns; their ticks count from the same start."""
    both = pictures.places(), sound.places()
    laid = torch.cat([both[heard][:, first:end] for heard, first, end in pieces], 1)
    return Woven(laid, pieces[-1][2] - pieces[-1][1])


def order_of(pieces: Pieces) -> Tensor:
    """int64 [N]: which token follows which, pictures numbered first, then sound."""
    shift = max((end for heard, _, end in pieces if not heard), default=0)
    return torch.cat([torch.arange(first, end) + shift * heard for heard, first, end in pieces])


def released_chunks(ticks: Tensor, chunk: int) -> _Slices:
    """Slices of rising positions as the released code cuts them: each cut is one chunk further."""
    slices: _Slices = []
    first = 0
    for place, tick in enumerate(ticks.tolist()):
        if tick >= (len(slices) + 1) * chunk:
            slices.append((first, place))
            first = place
    return [*slices, (first, len(ticks))]


def _true_chunks(ticks: Tensor, chunk: int) -> _Slices:
    """Slices of rising positions, one for every chunk up to the last; some may be empty."""
    if len(ticks) == 0:
        return []
    edges = torch.arange(1, int(ticks[-1]) // chunk + 1, dtype=torch.float64) * chunk
    cuts = torch.searchsorted(ticks.double().contiguous(), edges).tolist()
    return list(pairwise([0, *cuts, len(ticks)]))
