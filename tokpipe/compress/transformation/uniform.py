"""Keep whole frames at the middles of equal spans.

Source: tokpipe; frame selection as in most video LLMs' data loaders (LLaVA-NeXT-Video, Qwen2-VL).
Differs: spans are counted over the frames present, and a budget below one frame gives a smaller
regular grid of the middle frame instead of nothing.

Shapes: N tokens of T frames, at most C each; keeps k = min(T, budget // C) frames, all of their
tokens. Frame i of k is floor((2 i + 1) T / (2 k)). Cost: O(N log N).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from tokpipe.frames import frames_of, raster_shape
from tokpipe.grid import regular_shape, spans
from tokpipe.spec import KIND_POOLED, Layout, Scope, Where
from tokpipe.tensors import Query, TokenBatch, TokenMap


@dataclass(frozen=True, slots=True, kw_only=True)
class Uniform:
    """Whole frames, evenly spread.

    Attributes:
        frames: Most frames to keep, 1 or more; None as many as the budget pays.

    Example:
        >>> at = torch.arange(6, dtype=torch.float64)
        >>> Uniform().decide(TokenBatch.build(torch.zeros(6, 2), at), budget=2).anchor.tolist()
        [1, 4]
    """

    source: ClassVar[str] = "tokpipe"
    scope: ClassVar[Scope] = "video"
    needs: ClassVar[tuple[str, ...]] = ()
    modalities: ClassVar[tuple[str, ...]] = ("video",)
    causal: ClassVar[bool] = False
    layouts: ClassVar[tuple[Layout, ...]] = ("frames", "ragged")
    version: ClassVar[int] = 1
    exact: ClassVar[bool] = False
    where: ClassVar[Where] = "pixels"
    golden: ClassVar[tuple[str, ...]] = ()

    frames: Annotated[int, Field(ge=1)] | None = None

    def decide(
        self, tokens: TokenBatch, budget: int | None, query: Query | None = None
    ) -> TokenMap:
        """Keep whole frames worth at most ``budget`` tokens, in the order they come."""
        n, device = len(tokens), tokens.at.device
        found = frames_of(tokens)
        total = len(found)
        wanted = total if self.frames is None else min(total, self.frames)
        if budget is not None and budget < n:
            largest = int(found.counts.max())
            if budget < largest:
                return self._reduced(tokens, found.index == total // 2, budget)
            wanted = min(wanted, budget // largest)
        if wanted == total:
            return TokenMap.identity(n, device)
        order = torch.arange(wanted, device=device)
        chosen = (2 * order + 1) * total // (2 * wanted)
        keep = torch.isin(found.index, chosen)
        return TokenMap.keep(torch.nonzero(keep).flatten(), n)

    def _reduced(self, tokens: TokenBatch, member: Tensor, budget: int) -> TokenMap:
        """Average one frame down to the largest regular grid within ``budget``."""
        source = torch.nonzero(member).flatten()
        frame = tokens.take(source)
        # A frame with holes, tiles or no grid is cut into equal runs of its tokens.
        rows, cols = raster_shape(frame) or (1, len(frame))
        a, b = regular_shape(rows, cols, budget)
        y, x = _bins(rows, a), _bins(cols, b)
        group = torch.full((len(tokens),), -1, dtype=torch.int64)
        group[source.cpu()] = (y[:, None] * b + x).flatten()
        pooled = TokenMap.mean(group.to(source.device), a * b)
        kind = torch.full((a * b,), KIND_POOLED, dtype=torch.uint8, device=source.device)
        return pooled if a * b == len(frame) else replace(pooled, kind=kind)

    def out_count(self, n: int, budget: int | None) -> tuple[int, bool]:
        """Most rows for ``n`` tokens; fewer where the budget is not a whole number of frames."""
        if budget is None:
            return n, self.frames is None
        return min(n, budget), budget >= n and self.frames is None


def _bins(size: int, parts: int) -> Tensor:
    """Part int64 [size] of each position when ``size`` is cut into ``parts`` runs."""
    lengths = torch.tensor([b - a for a, b in spans(size, parts)])
    return torch.repeat_interleave(torch.arange(parts), lengths)
