"""Keep what attention favours in each frame, merge the rest of a scene into dense anchors.

Source: Shen et al., "FastVID: Dynamic Density Pruning for Fast Video Large Language Models",
NeurIPS 2025, arXiv:2503.11187, sections 3.2 (dynamic temporal segmentation) and 3.3 (density
spatiotemporal pruning).
Differs: no random noise on the density, ties go to the lower index; an anchor always belongs to
itself; clips of fewer frames than segments are cut everywhere. By ``ratio`` the counts are rounded
down as in the released LLaVA-OneVision variant; with a budget nothing is lost to rounding.

Shapes: T frames of C tokens. Rows in time and raster order: tokens of highest attention as they
are; anchors, the densest other tokens of the last frame of a segment and of every p-th before it,
mixed with the tokens of the segment that resemble them most. A token joins one anchor of every
anchor frame, and its share is split between them. Cost: O(T C D + A C^2 D + sum L C m D) time for
A anchor frames and segments of L frames with m anchors; beside one map entry for each token
and anchor frame of its segment. Passes: 3/2 N x N, 1 N x K of one frame, beyond 2896 tokens in
tiles.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from tokpipe.budget import largest_remainder
from tokpipe.compress._cluster import peaks_of_each
from tokpipe.compress._columns import column, head_mean
from tokpipe.compress._neighbors import blocks, unit_rows
from tokpipe.compress._segment import Segments, cut_lowest
from tokpipe.compress._windows import best_places
from tokpipe.frames import equal_frames
from tokpipe.spec import Layout, Scope, Where
from tokpipe.tensors import Query, TokenBatch, TokenMap


@dataclass(frozen=True, slots=True, kw_only=True)
class FastVid:
    """Salient tokens of every frame, and dense anchors that stand for the rest of a scene.

    Attributes:
        ratio: Part of each frame kept, above 0 to 1 (rounded down, at least one token).
        segments: Least segments, 1 or more.
        tau: Cosine of frame embeddings below which a segment ends, -1 to 1.
        context: Part of the rows that are anchors, 0 to 1 (rounded down).
        every: Frames from one anchor frame to the next, 1 or more.
        beta: Least part of the anchor in its token, 0 to 1; the rest is its members' mean.
        k: Neighbours in the density, 2 or more.
    """

    source: ClassVar[str] = "arXiv:2503.11187, section 3"
    scope: ClassVar[Scope] = "video"
    needs: ClassVar[tuple[str, ...]] = ("attention", "frame_embedding")
    modalities: ClassVar[tuple[str, ...]] = ("video",)
    causal: ClassVar[bool] = False
    layouts: ClassVar[tuple[Layout, ...]] = ("ragged",)
    where: ClassVar[Where] = "outputs"
    golden: ClassVar[tuple[str, ...]] = ("fastvid",)
    version: ClassVar[int] = 1
    exact: ClassVar[bool] = True

    ratio: Annotated[float, Field(gt=0, le=1)] = 0.1
    segments: Annotated[int, Field(ge=1)] = 8
    tau: Annotated[float, Field(ge=-1, le=1)] = 0.9
    context: Annotated[float, Field(ge=0, le=1)] = 0.4
    every: Annotated[int, Field(ge=1)] = 4
    beta: Annotated[float, Field(ge=0, le=1)] = 0.6
    k: Annotated[int, Field(ge=2)] = 4

    def decide(
        self, tokens: TokenBatch, budget: int | None, query: Query | None = None
    ) -> TokenMap:
        """Keep ``budget`` rows, or by ``ratio``.

        Raises:
            RecipeError: No column ``attention`` or ``frame_embedding``, or the frames are not all
                of one size.
        """
        attention = head_mean(tokens, "attention", "fastvid")
        embedding = column(tokens, "frame_embedding", "fastvid")
        steps, size = equal_frames(tokens, "fastvid")
        if not steps or (budget is not None and budget >= len(tokens)):
            return TokenMap.identity(len(tokens), tokens.data.device)
        data, device = tokens.data.reshape(steps, size, -1), tokens.data.device
        found = self.cut(embedding[::size])
        frames = self.anchor_frames(found)
        salient, dense = self.row_counts(steps, size, found, budget)
        top = best_places(attention.reshape(steps, size), torch.tensor(salient, device=device))
        anchors = torch.zeros_like(top)
        at = torch.tensor(frames, device=device)
        anchors[at] = best_places(
            self.density(data[at], ~top[at]), torch.tensor(dense, device=device), ~top[at]
        )
        return self._rows(data, found, top, anchors)

    def cut(self, embedding: Tensor) -> Segments:
        """Segments of frames by their vectors float32 [T, E]."""
        unit = unit_rows(embedding)
        return cut_lowest((unit[1:] * unit[:-1]).sum(1), self.segments - 1, self.tau)

    def anchor_frames(self, segments: Segments) -> list[int]:
        """The last frame of each segment and every ``every``-th before it, ascending."""
        return [t for a, b in segments for t in range(a + (b - 1 - a) % self.every, b, self.every)]

    def row_counts(
        self, steps: int, size: int, segments: Segments, budget: int | None
    ) -> tuple[list[int], list[int]]:
        """Salient tokens of each frame and anchors of each anchor frame.

        Args:
            steps: T.
            size: C.
            segments: Of the T frames.
            budget: Rows in all, at most T x C; None applies ``ratio``.
        """
        # Each segment's frames, shared by its anchor frames.
        spans = [(b - a, len(self.anchor_frames([(a, b)]))) for a, b in segments]
        if budget is None:
            each = max(1, int(size * self.ratio))
            context = int(each * self.context)
            anchors = [context * n // q for n, q in spans for _ in range(q)]
            return [each - context] * steps, [min(c, size - each + context) for c in anchors]
        context = int(budget * self.context)
        salient = largest_remainder(budget - context, [1] * steps, caps=[size] * steps)
        frames = self.anchor_frames(segments)
        caps = [size - salient[t] for t in frames]
        part = [Fraction(n, q) for n, q in spans for _ in range(q)]
        dense = largest_remainder(context, part, caps=caps)
        room = [size - n for n in salient]
        for t, n in zip(frames, dense, strict=True):
            room[t] -= n
        extra = largest_remainder(budget - sum(salient) - sum(dense), [1] * steps, caps=room)
        return [n + e for n, e in zip(salient, extra, strict=True)], dense

    def density(self, data: Tensor, among: Tensor) -> Tensor:
        """Logarithm float64 [B, C] of density x separation among bool [B, C] of data [B, C, D]."""
        return peaks_of_each(data, 0, self.k, valid=among).score

    def _rows(self, data: Tensor, segments: Segments, top: Tensor, anchors: Tensor) -> TokenMap:
        """The map, from salient places and anchors, bool [T, C] each."""
        device, size = data.device, data.shape[1]
        index = torch.nonzero((top | anchors).flatten()).flatten()
        row = (top | anchors).flatten().cumsum(0) - 1
        alone = torch.nonzero(top.flatten()).flatten()
        src, dst, share = [alone], [row[alone]], [torch.ones(alone.shape[0], device=device)]
        per_frame = anchors.sum(1).tolist()
        pool = ~top
        for a, b in segments:
            counts = [n for n in per_frame[a:b] if n]
            if not counts:
                continue
            here = a * size + torch.nonzero(anchors[a:b].flatten()).flatten()
            members = a * size + torch.nonzero(pool[a:b].flatten()).flatten()
            joins = _nearest_of_each(data[a:b].reshape(-1, data.shape[2]), here - a * size, counts)
            joins = here[joins[members - a * size]]
            # Anchors belong to themselves within their own frame's group, whatever rounding says.
            own = torch.repeat_interleave(
                torch.arange(len(counts), device=device), torch.tensor(counts, device=device)
            )
            joins[torch.searchsorted(members, here), own] = here
            src.append(members.repeat_interleave(len(counts)))
            dst.append(row[joins.flatten()])
            share.append(torch.full((joins.numel(),), 1 / len(counts), device=device))
        return self._mixed(torch.cat(src), torch.cat(dst), torch.cat(share), index, pool)

    def _mixed(
        self, src: Tensor, dst: Tensor, share: Tensor, index: Tensor, pool: Tensor
    ) -> TokenMap:
        """Weights: an anchor keeps the larger of beta and an equal part, its members the rest."""
        count = torch.bincount(dst, minlength=index.shape[0])
        part = (1 / (count + 1)).clamp(min=self.beta).float()
        weight = (1 - part[dst]) / count[dst] + torch.where(src == index[dst], part[dst], 0.0)
        weight = torch.where(pool.flatten()[src], weight, 1.0)
        return TokenMap(src=src, dst=dst, weight=weight, share=share, anchor=index,
                        num_sources=pool.numel())  # fmt: skip

    def out_count(self, n: int, budget: int | None) -> tuple[int, bool]:
        """Rows for ``n`` tokens: exact with a budget; by ``ratio`` a bound."""
        return (n, n <= 1) if budget is None else (min(n, budget), True)


def _nearest_of_each(data: Tensor, anchors: Tensor, counts: list[int]) -> Tensor:
    """The most similar anchor of every group, for each token.

    Args:
        data: float [M, D].
        anchors: int64 [A] rows of data, group after group.
        counts: Anchors of each of G groups, 1 or more.

    Returns:
        Places int64 [M, G] in ``anchors``; of equals the first.
    """
    # The token's own length does not change which anchor is nearest.
    unit = unit_rows(data[anchors])
    out = torch.empty((data.shape[0], len(counts)), dtype=torch.int64, device=data.device)
    starts = [sum(counts[:g]) for g in range(len(counts))]
    for a, b in blocks(data.shape[0], max(unit.shape[0], data.shape[1])):
        product = data[a:b].float() @ unit.T
        for g, (start, count) in enumerate(zip(starts, counts, strict=True)):
            out[a:b, g] = product[:, start : start + count].argmax(1) + start
    return out
