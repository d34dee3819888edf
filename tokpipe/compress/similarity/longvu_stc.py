"""Drop tokens that resemble the same place of the first frame of their chunk.

Source: Shen et al., "LongVU: Spatiotemporal Adaptive Compression for Long Video-Language
Understanding", arXiv:2410.17434, section 3.3 (spatial token compression).
Differs: a dropped token is stood for by the last kept one of its place. The released code acts
only above the model's token limit; here the chain or the budget says when. ``max_tokens`` is its
forced cut; a budget keeps the tokens least like their reference instead.

Shapes: tokens of T frames, any places; the first of every ``chunk`` frames is whole, kept tokens
stay in their order. Where the first frames do not fit the budget, each keeps its part, least like
the one before. Cost: O(N D).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from tokpipe.compress._heads import compared, few_of_heads
from tokpipe.compress._tracks import NOTHING, Tracks, highest, keep_first
from tokpipe.spec import Layout, Scope, Where
from tokpipe.tensors import Query, TokenBatch, TokenMap


@dataclass(frozen=True, slots=True, kw_only=True)
class LongvuStc:
    """Spatial token compression against the chunk's first frame.

    Attributes:
        threshold: Cosine from which a token counts as a repeat, -1 to 1.
        chunk: Frames of a chunk, 1 or more.
        max_tokens: Where more remain, the same number of tokens is cut from the end of every
            chunk, as released (only without a budget); None for no cut.

    Example:
        >>> data = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
        >>> tokens = TokenBatch.build(data, torch.arange(3).double())
        >>> LongvuStc().decide(tokens, None).anchor.tolist()
        [0, 2]
    """

    source: ClassVar[str] = "arXiv:2410.17434, section 3.3"
    scope: ClassVar[Scope] = "video"
    needs: ClassVar[tuple[str, ...]] = ()
    modalities: ClassVar[tuple[str, ...]] = ("video",)
    causal: ClassVar[bool] = True
    layouts: ClassVar[tuple[Layout, ...]] = ("ragged",)
    scale_free: ClassVar[bool] = True
    version: ClassVar[int] = 1
    exact: ClassVar[bool] = True
    where: ClassVar[Where] = "outputs"
    golden: ClassVar[tuple[str, ...]] = ("longvu__stc",)
    gives: ClassVar[tuple[str, ...]] = ("score",)

    threshold: Annotated[float, Field(ge=-1, le=1)] = 0.8
    chunk: Annotated[int, Field(ge=1)] = 8
    max_tokens: Annotated[int, Field(ge=1)] | None = None

    def decide(
        self, tokens: TokenBatch, budget: int | None, query: Query | None = None
    ) -> TokenMap:
        """Keep what differs; ``score`` is 1 - cosine, 3 in first frames and at new places."""
        n = len(tokens)
        if n == 0:
            return TokenMap.identity(0, tokens.data.device)
        tracks = Tracks.of(tokens)
        index = torch.arange(len(tracks.counts), device=tokens.data.device)
        reference = index - index % self.chunk
        head = reference == index
        alike = compared(tokens.data, tracks, reference)
        if budget is None:
            keep = (alike < self.threshold) | (alike == NOTHING)
            keep = self._cut(keep, tracks)
        elif (whole := int(tracks.counts[head].sum())) > (budget := min(budget, n)):
            keep = few_of_heads(tokens.data, tracks, head, budget)
        else:
            keep = head[tracks.frame]
            keep = keep | highest(torch.where(keep, -torch.inf, -alike), budget - whole)
        rows = torch.nonzero(keep).flatten()
        return keep_first(tracks.latest(keep), rows, score=1 - alike)

    def _cut(self, keep: Tensor, tracks: Tracks) -> Tensor:
        """Cut the ends of the chunks, then the end of all, down to ``max_tokens``."""
        excess = int(keep.sum()) - (self.max_tokens or 0)
        if self.max_tokens is None or excess <= 0:
            return keep
        rows = torch.nonzero(keep).flatten()
        chunk = tracks.frame[rows] // self.chunk
        order = torch.argsort(chunk, stable=True)
        sizes = torch.bincount(chunk)
        each = -(-excess // sizes.shape[0])
        rank = torch.arange(rows.shape[0], device=rows.device)
        rank = rank - (sizes.cumsum(0) - sizes)[chunk[order]]
        rows = rows[order[rank < (sizes - each)[chunk[order]]]]
        out = torch.zeros_like(keep)
        out[rows[: self.max_tokens]] = True
        return out

    def out_count(self, n: int, budget: int | None) -> tuple[int, bool]:
        """Most rows for ``n`` tokens, exact with a budget."""
        if budget is None:
            return (n if self.max_tokens is None else min(n, self.max_tokens)), False
        return min(n, budget), True
