"""Merge each row's runs of alike neighbours.

Source: Zhang et al., "DynTok: Dynamic Compression of Visual Tokens for Efficient and Effective
Video Understanding", arXiv:2506.03990, section 3.
Differs: no code is released; from the paper. Groups begin anew in each row of the grid (the paper
does not say); means are weighted by mass, plain for tokens that were not merged before. Tokens
without a cell count as one row.

Shapes: frames of any shape; a token joins the group of its left neighbour when their cosine is
above the threshold. Rows of the map come frame by frame in raster order. With a budget the most
alike neighbours are joined; where one group a row is too many, across the ends of rows as well.
Cost: O(N D).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field

from tokpipe.budget import largest_remainder
from tokpipe.compress._tracks import NOTHING, cosines, lowest_of_each
from tokpipe.frames import frames_of
from tokpipe.spec import Layout, Scope, Where
from tokpipe.tensors import Query, TokenBatch, TokenMap


@dataclass(frozen=True, slots=True, kw_only=True)
class DynTok:
    """Row-wise run merging.

    Attributes:
        threshold: Cosine above which a token joins its left neighbour, -1 to 1.

    Example:
        >>> data = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]])
        >>> tokens = TokenBatch.build(data, torch.zeros(3).double())
        >>> DynTok().decide(tokens, None).dst.tolist()
        [0, 0, 1]
    """

    source: ClassVar[str] = "arXiv:2506.03990, section 3"
    scope: ClassVar[Scope] = "frame"
    needs: ClassVar[tuple[str, ...]] = ()
    modalities: ClassVar[tuple[str, ...]] = ("video",)
    causal: ClassVar[bool] = True
    layouts: ClassVar[tuple[Layout, ...]] = ("ragged",)
    scale_free: ClassVar[bool] = True
    version: ClassVar[int] = 1
    exact: ClassVar[bool] = True
    where: ClassVar[Where] = "outputs"
    golden: ClassVar[tuple[str, ...]] = ()

    threshold: Annotated[float, Field(ge=-1, le=1)] = 0.6

    def decide(
        self, tokens: TokenBatch, budget: int | None, query: Query | None = None
    ) -> TokenMap:
        """Merge runs of neighbours."""
        n, device = len(tokens), tokens.data.device
        if n == 0:
            return TokenMap.identity(0, device)
        order = tokens.order()
        found = frames_of(tokens)
        frame = found.index[order]
        line = torch.stack([frame, tokens.tile[order].long(), tokens.cell[order, 1].long()])
        other = torch.arange(-1, n - 1, device=device)
        straight = bool((order.diff() > 0).all())
        data = tokens.data if straight else tokens.data[order]
        alike = cosines(data, other)
        same = torch.zeros(n, dtype=torch.bool, device=device)
        same[1:] = (line[:, 1:] == line[:, :-1]).all(0)
        within = torch.zeros_like(same)
        within[1:] = frame[1:] == frame[:-1]
        if budget is None:
            joins, stays = same & (alike > self.threshold), torch.ones_like(same)
        else:
            counts = found.counts.tolist()
            parts = largest_remainder(min(budget, n), counts, caps=counts)
            quota = torch.tensor(parts, dtype=torch.int64, device=device)
            # What begins a group: first the frame's first token, then row ends, then the unlike.
            rank = torch.where(same, alike, alike + 2 * NOTHING)
            rank = torch.where(within, rank, 4 * NOTHING)
            joins = ~lowest_of_each(rank, frame, quota)
            stays = quota[frame] > 0
        begins = ~joins
        group = torch.empty(n, dtype=torch.int64, device=device)
        group[order] = torch.where(stays, begins.cumsum(0) - 1, -1)
        return TokenMap.mass_mean(group, int(begins.sum()), tokens.mass, anchor=order[begins])

    def out_count(self, n: int, budget: int | None) -> tuple[int, bool]:
        """Most rows for ``n`` tokens, exact with a budget."""
        return (n, False) if budget is None else (min(n, budget), True)
