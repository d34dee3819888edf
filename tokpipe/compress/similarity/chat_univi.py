"""Cluster frames into events and their tokens at several levels of detail.

Source: Jin et al., "Chat-UniVi: Unified Visual Representation Empowers Large Language Models with
Image and Video Understanding", CVPR 2024, arXiv:2311.08046, section 3.2.
Differs: no random noise on the density, ties go to the lower index; at least 2 neighbours (with
one, as the released code takes for 3 events or fewer, noise alone decides). With a budget below the
official size the finest level comes first, as coarser rows only average finer ones; above it all
levels grow in proportion.

Shapes: T frames of C tokens. Each level clusters the tokens of the level before, in every frame;
events are clusters of frame means, not always contiguous, in order of their first frame; each level
is clustered once more over the frames of an event. Rows: event by event, level by level, by
decreasing score. Every token stands in all levels and splits its share. Cost: O(T C^2 D).
Passes: 3/2 N x N, 1 N x K of one frame and level, beyond 2896 tokens in tiles.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from tokpipe.budget import largest_remainder
from tokpipe.compress._cluster import EachPeaks, averaged, density_peaks, peaks_of_each
from tokpipe.compress._segment import frame_means
from tokpipe.frames import equal_frames
from tokpipe.spec import Layout, Where
from tokpipe.tensors import Query, TokenBatch, TokenMap


@dataclass(frozen=True, slots=True)
class _Level:
    """One level of every frame.

    Attributes:
        group: int64 [T, C] row within the frame that each token is in, -1 none.
        weight: float32 [T, C] its part of the row's data.
        centre: int64 [T, K] the token at the heart of each row, -1 where a frame has fewer.
        data: float32 [T, K, D] the rows.
    """

    group: Tensor
    weight: Tensor
    centre: Tensor
    data: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatUniVi:
    """Density-peak clusters at several levels, of each frame or of each event.

    Attributes:
        levels: Clusters of each level when no budget is given, 1 or more each, coarser and coarser.
        k: Neighbours in the density of each level, 2 or more each; the last one also serves further
            levels. Above the number of clusters c it becomes max(2, min(3, c // 2)).
        rate: Events as a part of the frames, above 0 to 1 (rounded up).
        event_k: Neighbours in the density of frames, 2 or more, limited like ``k``.
        scope: Clusters of events over the video, or of each frame (as for images).
    """

    source: ClassVar[str] = "arXiv:2311.08046, section 3.2"
    needs: ClassVar[tuple[str, ...]] = ()
    modalities: ClassVar[tuple[str, ...]] = ("video",)
    causal: ClassVar[bool] = False
    layouts: ClassVar[tuple[Layout, ...]] = ("ragged",)
    where: ClassVar[Where] = "outputs"
    golden: ClassVar[tuple[str, ...]] = ("chatunivi",)
    version: ClassVar[int] = 1
    exact: ClassVar[bool] = False

    levels: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)] = (64, 32, 16)
    k: Annotated[tuple[Annotated[int, Field(ge=2)], ...], Field(min_length=1)] = (5, 3, 3)
    rate: Annotated[float, Field(gt=0, le=1)] = 1 / 16
    event_k: Annotated[int, Field(ge=2)] = 5
    scope: Literal["frame", "video"] = "video"

    def decide(
        self, tokens: TokenBatch, budget: int | None, query: Query | None = None
    ) -> TokenMap:
        """Cluster to ``budget`` rows, or by ``levels``.

        Raises:
            RecipeError: The frames are not all of one size.
        """
        steps, size = equal_frames(tokens, "chat-univi")
        if not steps or (budget is not None and budget >= len(tokens)):
            return TokenMap.identity(len(tokens), tokens.data.device)
        data = tokens.data.reshape(steps, size, -1)
        events = [[t] for t in range(steps)]
        if self.scope == "video":
            count = math.ceil(steps * self.rate)
            events = self._events(data, count if budget is None else min(count, budget))
        wanted = self._wanted(len(events), budget)
        if self.scope == "frame":
            return self._frame_rows(self._cascade(data, wanted), len(tokens))
        sizes = [max(column) for column in zip(*wanted, strict=True)]
        return self._rows(self._cascade(data, [sizes] * steps), events, wanted, size)

    def event_labels(self, data: Tensor, count: int) -> list[int]:
        """Event of each frame of data [T, C, D], by decreasing score of its centre."""
        steps, _, dim = data.shape
        count = min(steps, max(1, count))
        near = min(steps, _neighbours(self.event_k, count))
        found = density_peaks(frame_means(data) / dim**0.5, count, near)
        labels: list[int] = found.label.tolist()
        return labels

    def _events(self, data: Tensor, count: int) -> list[list[int]]:
        """Frames of each event, events by their first frame."""
        events: dict[int, list[int]] = {}
        for t, label in enumerate(self.event_labels(data, count)):
            events.setdefault(label, []).append(t)
        return list(events.values())

    def _wanted(self, events: int, budget: int | None) -> list[list[int]]:
        """Rows of each level of each event, before what the event offers bounds them."""
        official = sum(self.levels)
        if budget is None:
            return [[*self.levels]] * events
        out = []
        for rows in largest_remainder(budget, [1] * events):
            if rows >= official:
                out.append(largest_remainder(rows, self.levels))
                continue
            # Coarser rows only average finer ones: they come last.
            parts: list[int] = []
            for level in self.levels:
                parts.append(min(level, rows - sum(parts)))
            out.append(parts)
        return out

    def _cascade(self, data: Tensor, sizes: list[list[int]]) -> list[_Level]:
        """Levels of every frame, each from the rows of the one before.

        Args:
            data: float [T, C, D].
            sizes: Clusters of each level in each frame; levels that no frame has are left out.
        """
        levels: list[_Level] = []
        for i, wanted in enumerate(zip(*sizes, strict=True)):
            if not max(wanted):
                break
            held = levels[-1] if levels else None
            rows = data if held is None else held.data
            valid = None if held is None else held.centre >= 0
            k = self.k[min(i, len(self.k) - 1)]
            most = [rows.shape[1]] * len(wanted) if valid is None else valid.sum(1).tolist()
            count = [min(n, m) for n, m in zip(wanted, most, strict=True)]
            near = [_neighbours(k, n) for n in count]
            peaks = peaks_of_each(
                rows, torch.tensor(count, device=data.device),
                torch.tensor(near, device=data.device), valid=valid,
            )  # fmt: skip
            levels.append(_level(rows, peaks, held))
        return levels

    def _frame_rows(self, levels: list[_Level], tokens: int) -> TokenMap:
        """The map of levels of frames: frame by frame, level by level."""
        count = torch.stack([(level.centre >= 0).sum(1) for level in levels], 1)
        base = (count.flatten().cumsum(0) - count.flatten()).reshape(count.shape)
        parts = (count > 0).sum(1).clamp(min=1)
        src, dst, weight, share = [], [], [], []
        anchor = count.new_empty(int(count.sum()))
        for i, level in enumerate(levels):
            frame, place = torch.nonzero(level.group >= 0, as_tuple=True)
            src.append(frame * level.group.shape[1] + place)
            dst.append(base[frame, i] + level.group[frame, place])
            weight.append(level.weight[frame, place])
            share.append(1 / parts[frame])
            frame, slot = torch.nonzero(level.centre >= 0, as_tuple=True)
            heart = frame * level.group.shape[1] + level.centre[frame, slot]
            anchor[base[frame, i] + slot] = heart
        return TokenMap(
            src=torch.cat(src), dst=torch.cat(dst), weight=torch.cat(weight),
            share=torch.cat(share), anchor=anchor, num_sources=tokens,
        )  # fmt: skip

    def _rows(
        self, levels: list[_Level], events: list[list[int]], counts: list[list[int]], size: int
    ) -> TokenMap:
        """The map: levels of events, clustered once more over their frames."""
        device, base = levels[0].group.device, 0
        src, dst, weight, share, anchor = [], [], [], [], []
        place = torch.arange(size, device=device)
        for event, wanted in zip(events, counts, strict=True):
            frames = torch.tensor(event, device=device)
            source = (frames[:, None] * size + place).flatten()
            # A coarser level may be missing; the finest is there wherever there are rows at all.
            parts = sum(n > 0 for n in wanted)
            for i, (level, rows) in enumerate(zip(levels, wanted, strict=False)):
                if not rows:
                    continue
                label, centre, part = self._merged(level, frames, rows, i)
                held = level.centre.shape[1]
                row = level.group[frames] + held * torch.arange(len(event), device=device)[:, None]
                src.append(source)
                dst.append(label[row.flatten()] + base)
                weight.append(level.weight[frames].flatten() * part[row.flatten()])
                share.append(torch.full(source.shape, 1 / parts, device=device))
                heart = (frames[:, None] * size + level.centre[frames]).flatten()
                anchor.append(heart[centre])
                base += centre.shape[0]
        return TokenMap(
            src=torch.cat(src), dst=torch.cat(dst), weight=torch.cat(weight),
            share=torch.cat(share), anchor=torch.cat(anchor),
            num_sources=levels[0].group.numel(),
        )  # fmt: skip

    def _merged(
        self, level: _Level, frames: Tensor, count: int, number: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Label, centre and weight of an event's rows of one level, clustered to ``count``."""
        data = level.data[frames].flatten(0, 1)
        rows, dim = data.shape
        count = min(count, rows)
        near = min(rows, _neighbours(self.k[min(number, len(self.k) - 1)], count))
        peaks = density_peaks(data, count, near, unit=dim**0.5)
        return peaks.label, peaks.centre, averaged(peaks.label[None], peaks.centre[None])[0]

    def out_count(self, n: int, budget: int | None) -> tuple[int, bool]:
        """Most rows for ``n`` tokens; the count depends on frames and events."""
        return (n * len(self.levels), False) if budget is None else (min(n, budget), budget >= n)


def _level(rows: Tensor, peaks: EachPeaks, held: _Level | None) -> _Level:
    """The level that ``peaks`` make of rows [T, C, D], those of ``held`` or the tokens."""
    steps, _, dim = rows.shape
    part = averaged(peaks.label, peaks.centre)
    clusters = peaks.centre.shape[1]
    slot = torch.where(peaks.label < 0, clusters, peaks.label)
    data = torch.zeros((steps, clusters + 1, dim), device=rows.device)
    for t in range(steps):
        data[t].index_add_(0, slot[t], rows[t].float() * part[t, :, None])
    data = data[:, :clusters]
    if held is None:
        return _Level(peaks.label, part, peaks.centre, data)
    before, absent = held.group.clamp(min=0), held.group < 0
    group = peaks.label.gather(1, before).masked_fill(absent, -1)
    weight = held.weight * part.gather(1, before)
    centre = held.centre.gather(1, peaks.centre.clamp(min=0)).masked_fill(peaks.centre < 0, -1)
    return _Level(group, weight, centre, data)


def _neighbours(k: int, clusters: int) -> int:
    """Neighbours for so many clusters."""
    return k if k <= clusters else max(2, min(3, clusters // 2))
