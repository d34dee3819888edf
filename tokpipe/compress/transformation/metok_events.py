"""Cut events where neighbouring frames differ most, and pool dull frames more than key ones.

Source: Wang et al., "METok: Multi-Stage Event-based Token Compression for Efficient Long Video
Understanding", EMNLP 2025, arXiv:2506.02850, section 3 (event-aware compression, the first stage).
Differs: events and frames are ranked by novelty unless a query or scores are asked for (the paper
ranks by the similarity of frame and question); no newline token after an event, exporters add
them; the stages inside the language model are left out. With a budget all strides are scaled.

Shapes: T frames of R x C cells, pooled to ceil(R / s) x ceil(C / s) by linear interpolation without
antialiasing: cells between the points of a coarse grid are dropped. Rows in time and raster order.
Cost: O(T R C D).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from tokpipe.compress._columns import compared
from tokpipe.compress._grid_axes import bilinear
from tokpipe.compress._neighbors import unit_rows
from tokpipe.compress._segment import Segments, cut_lowest, frame_means
from tokpipe.frames import whole_grids
from tokpipe.spec import KIND_KEPT, KIND_POOLED, Layout, Scope, Where
from tokpipe.tensors import GridMap, Query, TokenBatch, TokenMap

#: Halvings of the range of scales; strides are told apart long before.
_STEPS = 48


@dataclass(frozen=True, slots=True, kw_only=True)
class MetokEvents:
    """Coarse grids for dull frames, finer ones for the best frames of the best events.

    Attributes:
        cuts: Cuts at the lowest similarities of adjacent frames, 0 or more.
        events: Key events, those that hold the highest scores, 0 or more.
        frames: Best frames of each event, 0 or more.
        key: Strides of the best and the other frames of a key event, 1 or more each.
        other: The same for the other events.
        score: What ranks frames: ``novelty`` (1 - cosine to the frame before), ``query`` (the
            best cosine to the question) or ``column`` (the highest score of the frame's tokens).
    """

    source: ClassVar[str] = "arXiv:2506.02850, section 3"
    scope: ClassVar[Scope] = "video"
    modalities: ClassVar[tuple[str, ...]] = ("video",)
    causal: ClassVar[bool] = False
    layouts: ClassVar[tuple[Layout, ...]] = ("ragged",)
    where: ClassVar[Where] = "outputs"
    golden: ClassVar[tuple[str, ...]] = ("metok_events",)
    scale_free: ClassVar[bool] = True
    version: ClassVar[int] = 1
    exact: ClassVar[bool] = False

    cuts: Annotated[int, Field(ge=0)] = 4
    events: Annotated[int, Field(ge=0)] = 3
    frames: Annotated[int, Field(ge=0)] = 6
    key: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]] = (2, 4)
    other: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]] = (4, 8)
    score: Literal["novelty", "query", "column"] = "novelty"

    @property
    def needs(self) -> tuple[str, ...]:
        """A query, or scores, where they rank the frames."""
        return {"novelty": (), "query": ("query",), "column": ("score",)}[self.score]

    def decide(
        self, tokens: TokenBatch, budget: int | None, query: Query | None = None
    ) -> TokenMap:
        """Pool every frame by its stride; with a budget by a multiple of it.

        Raises:
            RecipeError: The tokens are not whole frames in raster order, or there is no query.
        """
        if not len(tokens):
            return TokenMap.identity(0, tokens.data.device)
        steps, rows, cols = whole_grids(tokens, "metok-events")
        if budget is not None and budget >= len(tokens):
            return TokenMap.identity(len(tokens), tokens.data.device)
        means = frame_means(tokens.data.reshape(steps, rows * cols, -1))
        score = self.frame_score(tokens, means, query)
        stride = self.strides(self.cut(means), score)
        live = torch.ones(steps, dtype=torch.bool, device=score.device)
        scale = 1.0
        if budget is not None:
            counts = {s: int((stride == s).sum()) for s in {*self.key, *self.other}}
            scale = _scale(counts, rows, cols, budget)
            if steps > budget:
                # Not even one row a frame: the best frames keep theirs.
                live[torch.argsort(score, descending=True, stable=True)[budget:]] = False
        return self._pooled(stride, live, rows, cols, scale)

    def cut(self, means: Tensor) -> Segments:
        """Events of frames by their mean tokens float32 [T, D]."""
        unit = unit_rows(means)
        return cut_lowest((unit[1:] * unit[:-1]).sum(1), self.cuts)

    def frame_score(self, tokens: TokenBatch, means: Tensor, query: Query | None) -> Tensor:
        """Score float32 [T] of each frame; ``means`` float32 [T, D] are its mean tokens."""
        steps = means.shape[0]
        if self.score == "column":
            return torch.nan_to_num(tokens.score, nan=0.0).reshape(steps, -1).amax(1)
        if self.score == "query":
            value, asked = compared(tokens, query, "metok-events")
            unit = unit_rows(frame_means(value.reshape(steps, -1, value.shape[1])))
            return (unit @ unit_rows(asked.pooled.to(unit.device)).T).amax(1)
        unit = unit_rows(means)
        # The first frame is all new.
        return torch.cat([unit.new_ones(1), 1 - (unit[1:] * unit[:-1]).sum(1)])

    def key_events(self, segments: Segments, score: Tensor) -> list[int]:
        """Events of the highest frame scores, best first."""
        best = torch.stack([score[a:b].max() for a, b in segments])
        order: list[int] = torch.argsort(best, descending=True, stable=True).tolist()
        return order[: self.events]

    def strides(self, segments: Segments, score: Tensor) -> Tensor:
        """Stride int64 [T] of each frame."""
        out = torch.empty(score.shape[0], dtype=torch.int64, device=score.device)
        key = self.key_events(segments, score)
        for i, (a, b) in enumerate(segments):
            best, rest = self.key if i in key else self.other
            out[a:b] = rest
            order = torch.argsort(score[a:b], descending=True, stable=True)
            out[a + order[: self.frames]] = best
        return out

    def _pooled(self, stride: Tensor, live: Tensor, rows: int, cols: int, scale: float) -> TokenMap:
        """The map that pools each live frame by its stride times ``scale``."""
        device, size = stride.device, rows * cols
        sizes = {
            s: (_side(rows, s, scale), _side(cols, s, scale)) for s in {*self.key, *self.other}
        }
        counts = torch.zeros_like(stride)
        for s, (high, wide) in sizes.items():
            counts[(stride == s) & live] = high * wide
        base = counts.cumsum(0) - counts
        total = int(counts.sum())
        anchor = torch.empty(total, dtype=torch.int64, device=device)
        kind = torch.full((total,), KIND_POOLED, dtype=torch.uint8, device=device)
        src, dst, weight, share = [], [], [], []
        for s, (high, wide) in sizes.items():
            frames = torch.nonzero((stride == s) & live)
            one = GridMap(t=torch.ones(1, 1), y=bilinear(rows, high), x=bilinear(cols, wide))
            made = one.expand().to(device)
            src.append((frames * size + made.src).flatten())
            dst.append((base[frames] + made.dst).flatten())
            weight.append(made.weight.expand(len(frames), -1).flatten())
            share.append(made.share.expand(len(frames), -1).flatten())
            place = base[frames] + torch.arange(len(made), device=device)
            anchor[place] = frames * size + made.anchor
            if high * wide == size:
                kind[place] = KIND_KEPT
        return TokenMap(
            src=torch.cat(src), dst=torch.cat(dst), weight=torch.cat(weight),
            share=torch.cat(share), anchor=anchor, num_sources=stride.shape[0] * size, kind=kind,
        )  # fmt: skip

    def out_count(self, n: int, budget: int | None) -> tuple[int, bool]:
        """Most rows for ``n`` tokens; the count depends on frames and their grid."""
        return (n, n <= 1) if budget is None else (min(n, budget), budget >= n)


def _side(size: int, stride: int, scale: float) -> int:
    """Cells along one side of ``size`` cells."""
    return min(size, max(1, math.ceil(size / (stride * scale))))


def _scale(counts: dict[int, int], rows: int, cols: int, budget: int) -> float:
    """The least factor of strides, up to rounding, that fits ``counts`` frames in ``budget``."""
    low, high = -8.0, math.log2(max(rows, cols)) + 1
    for _ in range(_STEPS):
        middle = (low + high) / 2
        scale = 2**middle
        total = sum(n * _side(rows, s, scale) * _side(cols, s, scale) for s, n in counts.items())
        low, high = (low, middle) if total <= budget else (middle, high)
    return float(2**high)
