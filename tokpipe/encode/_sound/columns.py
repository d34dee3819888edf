"""Columns of sound towers for the rules: attention received, keys and queries of the last block.

Places are positions of the tower's blocks; a token's column is the mean of its one, two or four
places. Without a class token ``attention`` is what a token receives from the others.

Letters: P places, n tokens, H heads, d width of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from tokpipe.encode._attend import Seen, heads_of, keys, queries, received

#: What can be asked for.
COLUMNS = ("attention", "received", "keys", "queries")


def place_columns(
    module: nn.Module, seen: Seen, borders: Sequence[int], wanted: frozenset[str]
) -> dict[str, Tensor]:
    """Columns of all places.

    Args:
        module: The attention module of the block.
        seen: What it was given, [1, P, D].
        borders: Places between which attention stays; what lies after the last is nobody's.
        wanted: Names of ``COLUMNS``.

    Returns:
        ``attention`` and ``received`` float32 [P], 1 in sum over each stretch, 0 after the last
        border; ``keys`` and ``queries`` [P, H, d].
    """
    heads = heads_of(module)
    query, key = queries(seen, heads), keys(seen, heads)
    made: dict[str, Tensor] = {}
    if wanted & {"attention", "received"}:
        total = torch.zeros(key.shape[2], device=key.device)
        for a, b in pairwise(borders):
            total[a:b] = received(query[:, :, a:b], key[:, :, a:b], heads.scale)[0]
        made["attention"] = made["received"] = total
    made["keys"], made["queries"] = key[0].transpose(0, 1), query[0].transpose(0, 1)
    return {name: made[name] for name in wanted if name in made}


def pooled(columns: dict[str, Tensor], size: int, tokens: int) -> dict[str, Tensor]:
    """Columns [1, n, ...] of tokens, each the mean of ``size`` places; the rest is cut."""
    made = {}
    for name, value in columns.items():
        whole = value[: tokens * size].reshape(tokens, size, *value.shape[1:])
        made[name] = whole.mean(1)[None]
    return made
