"""Keep the frames that are unlike the frames around them.

Source: Shen et al., "LongVU: Spatiotemporal Adaptive Compression for Long Video-Language
Understanding", arXiv:2410.17434, section 3.1 (temporal reduction).
Differs: compares the tokens at hand (the paper DINOv2's). The released code acts only above the
model's frame limit; here the chain or the budget says when. Frames of different size are compared
by their mean token. A dropped frame's tokens are stood for by the kept ones of their place before
them, at the beginning by the first after them. As released, a frame goes when its mean cosine to
its window (itself included) is high: in a window with a cut well inside, nothing goes.

Shapes: tokens of T frames; whole frames are kept, in time order. In each run of ``window`` frames
the middle one always stays. With a budget the frames least like their window, as many as fit;
below one frame, one at the largest smaller grid. Cost: O(window N D).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from tokpipe.compress._tracks import Tracks, keep_first
from tokpipe.frames import raster_shape
from tokpipe.grid import regular_shape, spans
from tokpipe.spec import KIND_POOLED, Layout, Scope, Where
from tokpipe.tensors import Query, TokenBatch, TokenMap


@dataclass(frozen=True, slots=True, kw_only=True)
class LongvuFrames:
    """Frame dedupe by windows.

    Attributes:
        threshold: Mean cosine to the window from which a frame goes, -1 to 1.
        window: Frames of a window, 1 or more.
        cap: Most frames when no budget is given, evenly picked of those that stay; 1 or more.

    Example:
        >>> tokens = TokenBatch.build(torch.ones(4, 2), torch.arange(4).double())
        >>> LongvuFrames().decide(tokens, None).anchor.tolist()
        [2]
    """

    source: ClassVar[str] = "arXiv:2410.17434, section 3.1"
    scope: ClassVar[Scope] = "video"
    needs: ClassVar[tuple[str, ...]] = ()
    modalities: ClassVar[tuple[str, ...]] = ("video",)
    causal: ClassVar[bool] = False
    layouts: ClassVar[tuple[Layout, ...]] = ("frames", "ragged")
    scale_free: ClassVar[bool] = True
    version: ClassVar[int] = 1
    exact: ClassVar[bool] = False
    where: ClassVar[Where] = "outputs"
    golden: ClassVar[tuple[str, ...]] = ("longvu__frames",)

    threshold: Annotated[float, Field(ge=-1, le=1)] = 0.83
    window: Annotated[int, Field(ge=1)] = 16
    cap: Annotated[int, Field(ge=1)] = 400

    def decide(
        self, tokens: TokenBatch, budget: int | None, query: Query | None = None
    ) -> TokenMap:
        """Keep whole frames, in the order they come."""
        n = len(tokens)
        if n == 0 or (budget is not None and budget >= n):
            return TokenMap.identity(n, tokens.data.device)
        tracks = Tracks.of(tokens)
        alike = self._window_similarity(tokens.data, tracks)
        if budget is None:
            chosen = torch.nonzero(alike < self.threshold).flatten()
            count = chosen.shape[0]
            if count > self.cap:
                chosen = chosen[torch.arange(self.cap, device=chosen.device) * count // self.cap]
        else:
            order = torch.argsort(alike, stable=True)
            chosen = order[tracks.counts[order].cumsum(0) <= budget]
            if not len(chosen):
                return _reduced(tokens, torch.nonzero(tracks.frame == order[0]).flatten(), budget)
        keep = torch.zeros_like(alike, dtype=torch.bool)
        keep[chosen] = True
        mask = keep[tracks.frame]
        keeper = tracks.latest(mask)
        keeper = torch.where(keeper >= 0, keeper, tracks.earliest(mask))
        return keep_first(keeper, torch.nonzero(mask).flatten())

    def _window_similarity(self, data: Tensor, tracks: Tracks) -> Tensor:
        """Mean cosine float32 [T] of each frame to its window, -2 for the middle ones."""
        t = tracks.counts.shape[0]
        if tracks.size is not None:
            frames = data.reshape(t, -1)
        else:
            frames = data.new_zeros((t, data.shape[1]), dtype=torch.float32)
            frames.index_add_(0, tracks.frame, data.float())
        out = torch.empty(t, device=data.device)
        for a in range(0, t, self.window):
            part = frames[a : a + self.window]
            out[a : a + self.window] = _mean_cosine(part)
            out[a + part.shape[0] // 2] = -2
        return out

    def out_count(self, n: int, budget: int | None) -> tuple[int, bool]:
        """Most rows for ``n`` tokens; fewer where the budget is not a whole number of frames."""
        return (n, False) if budget is None else (min(n, budget), budget >= n)


def _mean_cosine(rows: Tensor) -> Tensor:
    """Mean cosine float32 [W] of each row of [W, E] with all of them, itself included."""
    rows = rows.float()
    product = rows @ rows.T
    length = product.diagonal().clamp(min=0).sqrt().clamp(min=1e-12)
    return (product / (length[:, None] * length)).mean(1)


def _reduced(tokens: TokenBatch, frame: Tensor, budget: int) -> TokenMap:
    """One frame averaged down to the largest regular grid within ``budget``."""
    part = tokens.take(frame)
    rows, cols = raster_shape(part) or (1, len(part))
    high, wide = regular_shape(rows, cols, budget)
    bins = [
        torch.repeat_interleave(torch.arange(k), torch.tensor([b - a for a, b in spans(size, k)]))
        for size, k in ((rows, high), (cols, wide))
    ]
    group = torch.full((len(tokens),), -1, dtype=torch.int64, device=frame.device)
    group[frame] = (bins[0][:, None] * wide + bins[1]).flatten().to(frame.device)
    pooled = TokenMap.mean(group, high * wide)
    kind = torch.full((high * wide,), KIND_POOLED, dtype=torch.uint8, device=frame.device)
    return replace(pooled, kind=kind)
