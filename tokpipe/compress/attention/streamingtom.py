"""Fixed tokens per frame: what repeats the frame before is clustered, the new kept by attention.

Source: Chen et al., "StreamingTOM: Streaming Token Compression for Efficient Video Understanding",
2025, arXiv:2510.18269, section 3.2 (causal temporal reduction).
Differs: centres lie far from anything denser, as density peaks are defined; the released code
turns that comparison round (``compat="released"``). No random noise, ties go to the lower index, at
least 2 neighbours. The quantised store of keys and values inside the language model is left out.

Shapes: T frames of C tokens; G rows of each, in raster order. A token is static where its cosine to
the same place one frame before (as it was) is above ``tau``; the first frame is all new. Causal:
one frame is remembered. Cost: O(T C^2 D). Passes: 3/2 N x N, 1 N x K of one frame, beyond 2896
tokens in tiles.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from tokpipe.budget import largest_remainder
from tokpipe.compress._cluster import mixed, peaks_of_each
from tokpipe.compress._columns import head_mean
from tokpipe.compress._segment import adjacent_cosine
from tokpipe.compress._windows import best_places
from tokpipe.errors import BudgetError
from tokpipe.frames import equal_frames
from tokpipe.spec import Layout, Scope, Where
from tokpipe.tensors import Query, TokenBatch, TokenMap


@dataclass(frozen=True, slots=True)
class State:
    """What is remembered between pushes.

    Attributes:
        budget, steps: As given to ``start``.
        seen: Frames so far.
        last: float [C, D] the frame before, None at the start.
        settled: bool [K] all true: rows never change once made.
    """

    budget: int | None
    steps: int | None
    seen: int = 0
    last: Tensor | None = None
    settled: Tensor | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamingTom:
    """Causal: a fixed number of rows of every frame, static and new ones in proportion.

    Attributes:
        tokens: Rows of a frame when no budget is given, 1 or more.
        tau: Cosine to the frame before above which a token is static, -1 to 1.
        beta: Part of the centre in a cluster's token, 0 to 1; the rest is the others' mean.
        k: Neighbours in the density, 2 or more.
        compat: Density peaks as defined, or the released comparison.
    """

    source: ClassVar[str] = "arXiv:2510.18269, section 3.2"
    scope: ClassVar[Scope] = "stream"
    needs: ClassVar[tuple[str, ...]] = ("attention",)
    modalities: ClassVar[tuple[str, ...]] = ("video",)
    causal: ClassVar[bool] = True
    layouts: ClassVar[tuple[Layout, ...]] = ("ragged",)
    where: ClassVar[Where] = "outputs"
    golden: ClassVar[tuple[str, ...]] = ("streamingtom_ctr",)
    version: ClassVar[int] = 1
    exact: ClassVar[bool] = True

    tokens: Annotated[int, Field(ge=1)] = 50
    tau: Annotated[float, Field(ge=-1, le=1)] = 0.9
    beta: Annotated[float, Field(ge=0, le=1)] = 0.6
    k: Annotated[int, Field(ge=2)] = 7
    compat: Literal["paper", "released"] = "paper"

    def decide(
        self, tokens: TokenBatch, budget: int | None, query: Query | None = None
    ) -> TokenMap:
        """Reduce every frame to its part of ``budget``, or to ``tokens`` rows.

        Raises:
            RecipeError: No column ``attention``, or the frames are not all of one size.
        """
        steps, _ = equal_frames(tokens, "streamingtom")
        return self._pushed(self.start(budget, steps), tokens)

    def start(self, budget: int | None, steps: int | None) -> State:
        """Fresh state for ``steps`` frames.

        Raises:
            BudgetError: A budget, but the number of frames is not known.
        """
        if budget is not None and steps is None:
            raise BudgetError(
                "`streamingtom` cannot share a budget over an unknown number of frames",
                hint="set its parameter `tokens` to the rows of a frame instead",
            )
        return State(budget, steps)

    def push(
        self, state: State, carried: TokenBatch | None, new: TokenBatch
    ) -> tuple[State, TokenMap]:
        """State and map over [carried; new]; nothing is ever carried.

        Raises:
            RecipeError: No column ``attention``, or the frames are not all of one size.
        """
        made = self._pushed(state, new)
        settled = torch.ones(len(made), dtype=torch.bool, device=new.data.device)
        steps, size = equal_frames(new, "streamingtom")
        if not steps:
            return replace(state, settled=settled), made
        # A copy: a view would keep the whole block.
        last = new.data[-size:].clone()
        return replace(state, seen=state.seen + steps, last=last, settled=settled), made

    def _pushed(self, state: State, new: TokenBatch) -> TokenMap:
        """The map of new frames."""
        attention = head_mean(new, "attention", "streamingtom")
        steps, size = equal_frames(new, "streamingtom")
        if not steps:
            return TokenMap.identity(0, new.data.device)
        data = new.data.reshape(steps, size, -1)
        quota = self._quota(state, steps, size)
        return self._rows(
            data, self.static(data, state.last), attention.reshape(steps, size), quota
        )

    def finish(self, state: State, carried: TokenBatch) -> TokenMap:
        """Nothing is left to decide."""
        return TokenMap.identity(len(carried), carried.data.device)

    def _quota(self, state: State, steps: int, size: int) -> Tensor:
        """Rows int64 [T] of the next ``steps`` frames of ``size`` tokens."""
        if state.budget is None or state.steps is None:
            return torch.full((steps,), min(self.tokens, size))
        each = largest_remainder(state.budget, [1] * max(1, state.steps))
        return torch.tensor(each[state.seen : state.seen + steps]).clamp(max=size)

    def static(self, data: Tensor, last: Tensor | None) -> Tensor:
        """Places bool [T, C] that repeat the frame before, ``last`` before the first."""
        repeats = adjacent_cosine(data) > self.tau
        first = torch.zeros_like(data[:1, :, 0], dtype=torch.bool)
        if last is not None and last.shape == data[0].shape:
            first = adjacent_cosine(torch.stack([last, data[0]])) > self.tau
        return torch.cat([first, repeats])

    def split(self, static: Tensor, quota: Tensor) -> tuple[Tensor, Tensor]:
        """Static and new rows int64 [T] each, of ``quota`` int64 [T] and static bool [T, C]."""
        count = static.sum(1)
        other = static.shape[1] - count
        for_static = torch.minimum(quota * count // static.shape[1], count)
        for_new = torch.minimum(quota - for_static, other)
        return torch.minimum(quota - for_new, count), for_new

    def _rows(self, data: Tensor, static: Tensor, attention: Tensor, quota: Tensor) -> TokenMap:
        """The map of data [T, C, D]; rows are placed at cluster centres and chosen new tokens."""
        steps, size = static.shape
        for_static, for_new = self.split(static, quota.to(static.device))
        peaks = peaks_of_each(
            data, for_static, (static.sum(1) - 1).clamp(2, self.k),
            valid=static & (for_static > 0)[:, None], by_index=True,
            lower=self.compat == "released",
        )  # fmt: skip
        new = best_places(attention, for_new, ~static)
        place = torch.arange(size, device=static.device).expand(steps, size)
        if peaks.centre.shape[1]:
            heart = peaks.centre.gather(1, peaks.label.clamp(min=0))
            target = torch.where(peaks.label >= 0, heart, torch.where(new, place, -1))
        else:
            target = torch.where(new, place, -1)
        kept = (target == place).flatten()
        row = kept.cumsum(0) - 1
        src = torch.nonzero(target.flatten() >= 0).flatten()
        weight = mixed(peaks.label, peaks.centre, self.beta) + new.float()
        return TokenMap(
            src=src, dst=row[(src // size) * size + target.flatten()[src]],
            weight=weight.flatten()[src], share=torch.ones(src.shape[0], device=src.device),
            anchor=torch.nonzero(kept).flatten(), num_sources=kept.shape[0],
        )  # fmt: skip

    def out_count(self, n: int, budget: int | None) -> tuple[int, bool]:
        """Rows for ``n`` tokens: exact with a budget; else a bound."""
        return (n, n <= 1) if budget is None else (min(n, budget), True)
