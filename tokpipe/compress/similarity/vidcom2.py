"""Give unusual frames more tokens, and of each frame keep those that stand out.

Source: Liu et al., "Video Compression Commander: Plug-and-Play Inference Acceleration for Video
Large Language Models", EMNLP 2025, arXiv:2505.14454, section 3.
Differs: frames may have different sizes; means and variances are taken in one pass over the
tokens. Paper and released code agree that the tokens least like their means stay.

Shapes: tokens of T frames. On the half of the channels that vary least, each normalised token is
compared (Gaussian kernels of five widths) with the mean of the video and of its frame. A frame's
share follows how little its tokens resemble the video's mean (softmax), around ``ratio``. Kept
tokens stay in order; the rest are dropped. With a budget the frames' shares are scaled to it.
Cost: O(N D).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from tokpipe.budget import largest_remainder
from tokpipe.compress._score import (
    inverse_lengths,
    likeness,
    on_channels,
    quiet_channels,
    unit_mean,
)
from tokpipe.compress._tracks import lowest_of_each
from tokpipe.frames import frames_of
from tokpipe.spec import Layout, Scope, Where
from tokpipe.tensors import Query, TokenBatch, TokenMap


@dataclass(frozen=True, slots=True)
class Standing:
    """How tokens stand in their video.

    Attributes:
        channels: int64 channels compared, ascending.
        video, frame: float32 [N] likeness to the mean of the video, of the token's frame.
        number: int64 [N] frame of each token, and ``counts`` int64 [T] tokens of each.
        scales: float32 [T] part of its tokens each frame keeps.
    """

    channels: Tensor
    video: Tensor
    frame: Tensor
    number: Tensor
    counts: Tensor
    scales: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class VidCom2:
    """Frame shares by uniqueness, tokens by how they stand out.

    Attributes:
        ratio: Part of the tokens kept when no budget is given, above 0 to 1 (not exact: a frame
            keeps at least one, rounded half to even).
        temperature: Of the softmax over frames; small ones favour one frame. Above 0.
        channel_ratio: Part of the channels compared, those that vary least; above 0 to 1.

    Example:
        >>> tokens = TokenBatch.build(torch.eye(4), torch.zeros(4).double())
        >>> VidCom2().decide(tokens, budget=2).anchor.tolist()
        [0, 1]
    """

    source: ClassVar[str] = "arXiv:2505.14454, section 3"
    scope: ClassVar[Scope] = "video"
    needs: ClassVar[tuple[str, ...]] = ()
    modalities: ClassVar[tuple[str, ...]] = ("video",)
    causal: ClassVar[bool] = False
    layouts: ClassVar[tuple[Layout, ...]] = ("ragged",)
    keeps_outliers: ClassVar[bool] = True
    scale_free: ClassVar[bool] = True
    version: ClassVar[int] = 1
    exact: ClassVar[bool] = True
    where: ClassVar[Where] = "outputs"
    golden: ClassVar[tuple[str, ...]] = ("vidcom2",)
    gives: ClassVar[tuple[str, ...]] = ("score",)

    ratio: Annotated[float, Field(gt=0, le=1)] = 0.25
    temperature: Annotated[float, Field(gt=0, le=100)] = 0.01
    channel_ratio: Annotated[float, Field(gt=0, le=1)] = 0.5

    def decide(
        self, tokens: TokenBatch, budget: int | None, query: Query | None = None
    ) -> TokenMap:
        """Keep what stands out; ``score`` is minus the likeness to both means."""
        n = len(tokens)
        if n == 0 or (budget is not None and budget >= n):
            return TokenMap.identity(n, tokens.data.device)
        found = self.standing(tokens)
        if budget is None:
            quota = (found.scales * found.counts).round().long().clamp(min=1)
        else:
            counts = found.counts.tolist()
            weights = (found.scales.double() * found.counts).tolist()
            parts = largest_remainder(budget, weights, caps=counts)
            quota = torch.tensor(parts, dtype=torch.int64, device=found.counts.device)
        both = found.video + found.frame
        keep = lowest_of_each(both, found.number, quota)
        rows = torch.nonzero(keep).flatten()
        return TokenMap.keep(rows, n, score=-both[rows])

    def standing(self, tokens: TokenBatch) -> Standing:
        """Likeness to the means and the frames' shares of N >= 1 tokens."""
        groups = frames_of(tokens)
        order = torch.argsort(groups.index, stable=True)
        straight = bool((order.diff() > 0).all())
        data = tokens.data if straight else tokens.data[order]
        frames = torch.split(data, groups.counts.tolist())
        channels = quiet_channels(frames, self.channel_ratio).sort().values
        mask = on_channels(channels, data.shape[1])
        inverses, parts, total = [], [], torch.zeros_like(mask)
        for rows in frames:
            values = rows.float()
            inverse = inverse_lengths(values, mask)
            mean = unit_mean(values, inverse) * mask
            parts.append(likeness(values, inverse, mean))
            inverses.append(inverse)
            total += mean * len(rows)
        centre = total / len(data)
        wide = [
            likeness(r.float(), inverse, centre)
            for r, inverse in zip(frames, inverses, strict=True)
        ]
        unlike = -torch.stack([part.mean() for part in wide])
        chance = torch.softmax((unlike - unlike.max()) / self.temperature, 0)
        scales = (self.ratio * (1 + chance - chance.mean())).clamp(max=1)
        video, frame = torch.empty(len(data)), torch.empty(len(data))
        video, frame = video.to(data.device), frame.to(data.device)
        video[order], frame[order] = torch.cat(wide), torch.cat(parts)
        return Standing(channels, video, frame, groups.index, groups.counts, scales)

    def out_count(self, n: int, budget: int | None) -> tuple[int, bool]:
        """Most rows for ``n`` tokens, exact with a budget."""
        return (n, False) if budget is None else (min(n, budget), True)
