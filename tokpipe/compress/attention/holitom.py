"""Average still tokens over windows that save most, keep the moving ones attention favours.

Source: Shao et al., "HoliTom: Holistic Token Merging for Fast Video Large Language Models",
NeurIPS 2025, arXiv:2505.21334, section 3.2 (global redundancy-aware temporal merging and inner
spatial merging; the part outside the language model).
Differs: no random noise on the density, ties go to the lower index, at least 2 neighbours; the
contextual merge works in windows of several frames too (the released code raises there). With a
budget every group of tokens gets its part of it in proportion.

Shapes: T frames of C tokens. A token is still where its cosine to the next frame is above ``tau``;
dynamic programming cuts windows so that most repeats go. Rows: window by window the still
clusters, then of each frame the tokens of highest attention and clusters of the others, each in
raster order. Cost: O(T C D + S C^2 D + T^2) for S windows. Passes: 3/2 N x N, 1 N x K
of one frame, beyond 2896 tokens in tiles.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from tokpipe.compress._cluster import mixed, peaks_of_each
from tokpipe.compress._columns import head_mean
from tokpipe.compress._segment import (
    Segments,
    adjacent_cosine,
    segment_of,
    static_windows,
    window_means,
)
from tokpipe.compress._windows import Rows, best_places, joined, kept, quotas, segment_rows
from tokpipe.frames import equal_frames
from tokpipe.spec import Layout, Scope, Where
from tokpipe.tensors import Query, TokenBatch, TokenMap


@dataclass(frozen=True, slots=True, kw_only=True)
class HoliTom:
    """Window by window: still tokens once and clustered, moving ones by attention.

    Attributes:
        ratio: Part of all tokens aimed at, above 0 to 1; what repeats gave away counts.
        tau: Cosine to the next frame above which a token is still.
        contextual: Part of a frame's moving rows that are clusters of the tokens attention
            passes over, 0 to 1; 0 keeps the best only.
        beta: Part of the centre in a cluster's token, 0 to 1; the rest is the others' mean.
        k: Neighbours in the density, 2 or more; at most the clusters, and not under 2.
        longest: Most frames of a window, 1 or more.
    """

    source: ClassVar[str] = "arXiv:2505.21334, section 3.2"
    scope: ClassVar[Scope] = "video"
    needs: ClassVar[tuple[str, ...]] = ("attention",)
    modalities: ClassVar[tuple[str, ...]] = ("video",)
    causal: ClassVar[bool] = False
    layouts: ClassVar[tuple[Layout, ...]] = ("ragged",)
    where: ClassVar[Where] = "outputs"
    golden: ClassVar[tuple[str, ...]] = ("holitom",)
    version: ClassVar[int] = 1
    exact: ClassVar[bool] = False

    ratio: Annotated[float, Field(gt=0, le=1)] = 0.1
    tau: Annotated[float, Field(ge=-1, le=2)] = 0.8
    contextual: Annotated[float, Field(ge=0, le=1)] = 0.0
    beta: Annotated[float, Field(ge=0, le=1)] = 0.6
    k: Annotated[int, Field(ge=2)] = 7
    longest: Annotated[int, Field(ge=1)] = 1024

    def decide(
        self, tokens: TokenBatch, budget: int | None, query: Query | None = None
    ) -> TokenMap:
        """Reduce to ``budget`` rows, or by ``ratio``.

        Raises:
            RecipeError: No column ``attention``, or the frames are not all of one size.
        """
        attention = head_mean(tokens, "attention", "holitom")
        steps, size = equal_frames(tokens, "holitom")
        if not steps or (budget is not None and budget >= len(tokens)):
            return TokenMap.identity(len(tokens), tokens.data.device)
        data = tokens.data.reshape(steps, size, -1)
        alike = adjacent_cosine(data) > self.tau
        windows, saved = static_windows(alike, self.longest)
        still = still_throughout(alike, windows)
        moving = ~still[segment_of(windows, still.device)]
        rows = self.row_counts(still, moving, saved, budget)
        split = len(windows)
        clusters = self._clusters(window_means(data, windows), still, rows[:split])
        best = self._moving(data, moving, attention.reshape(steps, size), rows[split:])
        return segment_rows(windows, size, clusters, best)

    def row_counts(
        self, still: Tensor, moving: Tensor, saved: int, budget: int | None
    ) -> list[int]:
        """Rows of each window's still places, then of each frame's moving ones.

        Args:
            still: bool [S, C].
            moving: bool [T, C].
            saved: Tokens that averaging over windows takes away.
            budget: Rows in all; None applies ``ratio``.
        """
        windows, total = still.shape[0], moving.numel()
        counts: list[int] = torch.cat([still.sum(1), moving.sum(1)]).tolist()
        if budget is not None:
            return quotas(budget, counts)
        part = min(self.ratio / (1 - saved / total), 1)
        rows = [round(c * part) for c in counts[:windows]]
        return rows + [math.ceil(c * part) for c in counts[windows:]]

    def _clusters(self, data: Tensor, mask: Tensor, rows: list[int]) -> Rows:
        """``rows`` clusters of the places of mask bool [B, C] of each item of data [B, C, D]."""
        wanted = torch.tensor(rows, device=mask.device)
        peaks = peaks_of_each(
            data, wanted, wanted.clamp(2, self.k), valid=mask & (wanted > 0)[:, None], by_index=True
        )
        return Rows(peaks.label, peaks.centre, mixed(peaks.label, peaks.centre, self.beta))

    def _moving(self, data: Tensor, mask: Tensor, attention: Tensor, rows: list[int]) -> Rows:
        """Rows of the moving places: the best by attention, then clusters of the others."""
        best = [round(n * (1 - self.contextual)) for n in rows]
        top = best_places(attention, torch.tensor(best, device=mask.device), mask)
        found = kept(top)
        if best == rows:
            return found
        clusters = [n - b for n, b in zip(rows, best, strict=True)]
        return joined(found, self._clusters(data, mask & ~top, clusters))

    def out_count(self, n: int, budget: int | None) -> tuple[int, bool]:
        """Most rows for ``n`` tokens; the count depends on what stays still."""
        return (n, n <= 1) if budget is None else (min(n, budget), budget >= n)


def still_throughout(alike: Tensor, windows: Segments) -> Tensor:
    """Places bool [S, C] that are alike bool [T - 1, C] from each frame of a window to the next."""
    still = torch.zeros((len(windows), alike.shape[1]), dtype=torch.bool, device=alike.device)
    for i, (a, b) in enumerate(windows):
        if b - a > 1:
            torch.all(alike[a : b - 1], 0, out=still[i])
    return still
