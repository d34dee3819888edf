"""Keep in every frame the tokens unlike the frame and unlike what was seen before.

Source: Wang et al., "Accelerating Streaming Video Large Language Models via Hierarchical Token
Compression" (STC-Pruner), arXiv:2512.00891, section 3; kernel of VidCom2, arXiv:2505.14454.
Differs: the memory is the mean of the chunks so far over all channels, read on the channels of
the present chunk; the released code averages each chunk's own channels by their rank of variance
and so mixes them (``compat="released"``). As released, the memory holds the present chunk too.

Shapes: tokens of T frames; a chunk is ``chunk`` frames. On the half of a chunk's channels that
vary least, each normalised token is compared (Gaussian kernels of five widths) with the memory
and with its frame's mean; the least alike stay, in their order, the rest are dropped. Works as a
stream: it holds one mean and the frames of an unfinished chunk. A budget is spread evenly over the
frames; a stream must know their number for that. Cost: O(N D).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

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


@dataclass(slots=True)
class _State:
    """Sums of what was seen.

    ``total`` is the stream's tokens (None unknown), ``seen`` and ``kept`` those decided so far,
    ``memory`` the sum of the means of ``chunks`` chunks.
    """

    budget: int | None = None
    steps: int | None = None
    total: int | None = None
    seen: int = 0
    kept: int = 0
    memory: Tensor | None = None
    chunks: int = 0
    settled: Tensor | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StcPruner:
    """Causal pruning against a running memory.

    Attributes:
        per_frame: Tokens kept of each frame when no budget is given, 1 or more.
        chunk: Frames decided together, 1 or more.
        channel_ratio: Part of the channels compared, those that vary least; above 0 to 1.
        compat: ``released`` averages means of different channels as the released code does.

    Example:
        >>> tokens = TokenBatch.build(torch.eye(4), torch.zeros(4).double())
        >>> len(StcPruner().decide(tokens, budget=2))
        2
    """

    source: ClassVar[str] = "arXiv:2512.00891, section 3"
    scope: ClassVar[Scope] = "stream"
    needs: ClassVar[tuple[str, ...]] = ()
    modalities: ClassVar[tuple[str, ...]] = ("video",)
    causal: ClassVar[bool] = True
    layouts: ClassVar[tuple[Layout, ...]] = ("ragged",)
    keeps_outliers: ClassVar[bool] = True
    scale_free: ClassVar[bool] = True
    version: ClassVar[int] = 1
    exact: ClassVar[bool] = True
    where: ClassVar[Where] = "outputs"
    golden: ClassVar[tuple[str, ...]] = ("stc_pruner",)
    gives: ClassVar[tuple[str, ...]] = ("score",)

    per_frame: Annotated[int, Field(ge=1)] = 60
    chunk: Annotated[int, Field(ge=1)] = 1
    channel_ratio: Annotated[float, Field(gt=0, le=1)] = 0.5
    compat: Literal["paper", "released"] = "paper"

    def decide(
        self, tokens: TokenBatch, budget: int | None, query: Query | None = None
    ) -> TokenMap:
        """Decide all frames as the stream would; ``score`` is minus the likeness to both means."""
        state = self.start(budget)
        state.total = len(tokens)
        return self._decided(state, tokens, whole=True)

    def start(self, budget: int | None = None, steps: int | None = None) -> _State:
        """Fresh state for a stream of ``steps`` whole frames; a budget needs their number."""
        return _State(budget=budget, steps=steps)

    def push(
        self, state: _State, carried: TokenBatch | None, new: TokenBatch
    ) -> tuple[_State, TokenMap]:
        """Map over [carried; new]: whole chunks are decided, the frames after them wait."""
        both = new if carried is None or not len(carried) else TokenBatch.cat([carried, new])
        return state, self._decided(state, both, whole=False)

    def finish(self, state: _State, carried: TokenBatch) -> TokenMap:
        """Decide the last, shorter chunk."""
        return self._decided(state, carried, whole=True)

    def out_count(self, n: int, budget: int | None) -> tuple[int, bool]:
        """Most rows for ``n`` tokens, exact with a budget."""
        return (n, False) if budget is None else (min(n, budget), True)

    def _decided(self, state: _State, tokens: TokenBatch, *, whole: bool) -> TokenMap:
        """Decide the whole chunks of ``tokens``, with ``whole`` all of it; keep the rest."""
        n, device = len(tokens), tokens.data.device
        if n == 0:
            state.settled = torch.zeros(0, dtype=torch.bool, device=device)
            return TokenMap.identity(0, device)
        found = frames_of(tokens)
        if state.total is None and state.steps is not None:
            state.total = state.steps * int(found.counts[0])
        steps = len(found) if whole else len(found) // self.chunk * self.chunk
        order = torch.argsort(found.index, stable=True)
        straight = bool((order.diff() > 0).all())
        data = tokens.data if straight else tokens.data[order]
        frames = torch.split(data, found.counts.tolist())
        parts = [
            self._likeness(state, frames[a : min(a + self.chunk, steps)])
            for a in range(0, steps, self.chunk)
        ]
        alike = torch.zeros(n, device=device)
        done = int(found.counts[:steps].sum())
        if parts:
            alike[order[:done]] = torch.cat(parts)
        quota = found.counts.clone()
        quota[:steps] = self._quota(state, found.counts[:steps])
        keep = lowest_of_each(alike, found.index, quota)
        rows = torch.nonzero(keep).flatten()
        state.settled = found.index[rows] < steps
        return TokenMap.keep(rows, n, score=-alike[rows])

    def _quota(self, state: _State, counts: Tensor) -> Tensor:
        """Tokens int64 [T] of each frame to keep; moves the counts on."""
        edges = state.seen + torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        state.seen = int(edges[-1])
        if state.budget is None:
            quota = counts.clamp(max=self.per_frame)
        elif state.total is None:
            quota = counts.clamp(max=self.per_frame)
            left = state.budget - state.kept - (quota.cumsum(0) - quota)
            quota = left.clamp(min=0).minimum(quota)
        else:
            # Equal steps over all tokens: every prefix of the stream has its part.
            ends = edges.clamp(max=state.total) * min(state.budget, state.total) // state.total
            quota = ends.diff().minimum(counts)
        state.kept += int(quota.sum())
        return quota

    def _likeness(self, state: _State, frames: tuple[Tensor, ...]) -> Tensor:
        """Likeness float32 [N] of a chunk's tokens to the memory and their frame's mean."""
        values = [rows.float() for rows in frames]
        width, count = values[0].shape[1], sum(len(rows) for rows in values)
        channels = quiet_channels(values, self.channel_ratio)
        mask = on_channels(channels, width)
        inverses = [inverse_lengths(rows, mask) for rows in values]
        means = [unit_mean(r, inverse) * mask for r, inverse in zip(values, inverses, strict=True)]
        # Means of plain values, not of normalised ones as in a frame.
        mean = torch.stack([rows.sum(0) for rows in values]).sum(0) / count
        if self.compat == "released":
            mean = mean[channels]
        state.memory = mean if state.memory is None else state.memory + mean
        state.chunks += 1
        centre = torch.zeros_like(mask)
        centre[channels] = state.memory if self.compat == "released" else state.memory[channels]
        centre = centre / torch.linalg.vector_norm(centre).clamp(min=1e-12)
        return torch.cat(
            [
                likeness(r, inverse, centre) + likeness(r, inverse, m)
                for r, inverse, m in zip(values, inverses, means, strict=True)
            ]
        )
