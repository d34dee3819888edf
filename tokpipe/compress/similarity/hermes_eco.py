"""Keep a memory of so many frames by merging the most alike neighbours at each position.

Source: Faure et al., "HERMES: temporal-coHERent long-forM understanding with Episodes and
Semantics", ICCV 2025, arXiv:2408.17443, section 3 (episodic compressor); the rule of MA-LMM (He
et al., CVPR 2024, arXiv:2404.05726, section 3.2, memory bank compression).
Differs: nothing in the rule. With a budget of less than one frame the last frame's positions are
merged too, by bipartite matching.

Shapes: T whole frames of C tokens; capacity x C rows, bank frame after bank frame. Cost:
O(T C D). The memory of the online form is capacity + 1 frames, the other holds all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from tokpipe.compress._bank import merge_positions, merge_rows
from tokpipe.frames import equal_frames
from tokpipe.spec import Layout, Scope, Where
from tokpipe.tensors import Query, TokenBatch, TokenMap


@dataclass(slots=True)
class _State:
    budget: int | None
    cells: int = 0
    settled: Tensor | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class HermesEco:
    """Stream reducer: a bank of frames whose cells are means weighted by mass.

    Attributes:
        capacity: Frames of the bank when no budget is given, 1 or more; a budget is divided by
            the tokens of a frame.
        online: Frames come one by one and the bank is kept within its capacity at each; False
            merges once all frames are there.

    Example:
        >>> from tokpipe.testing.golden import frame_tokens
        >>> data = torch.tensor([[[1.0, 0.0]], [[1.0, 0.1]], [[0.0, 1.0]]])
        >>> HermesEco(capacity=2).decide(frame_tokens(data), budget=None).dst.tolist()
        [0, 0, 1]
    """

    source: ClassVar[str] = "arXiv:2408.17443, section 3; arXiv:2404.05726, section 3.2"
    scope: ClassVar[Scope] = "stream"
    needs: ClassVar[tuple[str, ...]] = ()
    modalities: ClassVar[tuple[str, ...]] = ("video",)
    causal: ClassVar[bool] = True
    layouts: ClassVar[tuple[Layout, ...]] = ("ragged",)
    scale_free: ClassVar[bool] = True
    version: ClassVar[int] = 1
    exact: ClassVar[bool] = False
    where: ClassVar[Where] = "outputs"
    golden: ClassVar[tuple[str, ...]] = ("hermes_eco",)
    aliases: ClassVar[tuple[str, ...]] = ("ma-lmm",)

    capacity: Annotated[int, Field(ge=1)] = 20
    online: bool = True

    def decide(
        self, tokens: TokenBatch, budget: int | None, query: Query | None = None
    ) -> TokenMap:
        """Merge whole frames down to the bank's capacity.

        Returns:
            A row per position and bank frame, at the place of its first member.

        Raises:
            RecipeError: The frames are not of one size.
        """
        _, cells = equal_frames(tokens, "hermes-eco")
        return self._merged(tokens, budget, cells, shrink=True)

    def start(self, budget: int | None, steps: int | None) -> _State:
        """Fresh state; the length does not matter."""
        return _State(budget)

    def push(
        self, state: _State, carried: TokenBatch | None, new: TokenBatch
    ) -> tuple[_State, TokenMap]:
        """Take frames into the bank; the bank is what is carried."""
        _, cells = equal_frames(new, "hermes-eco")
        state.cells = state.cells or cells
        both = new if carried is None or not len(carried) else TokenBatch.cat([carried, new])
        if self.online:
            made = self._merged(both, state.budget, state.cells, shrink=False)
        else:
            made = TokenMap.identity(len(both), both.data.device)
        state.settled = torch.zeros(len(made), dtype=torch.bool, device=both.data.device)
        return state, made

    def finish(self, state: _State, carried: TokenBatch) -> TokenMap:
        """The bank itself, or its merged positions where the budget is less than a frame."""
        return self._merged(carried, state.budget, state.cells, shrink=True)

    def out_count(self, n: int, budget: int | None) -> tuple[int, bool]:
        """At most the budget; how many exactly depends on the frame's size."""
        return n if budget is None else min(n, budget), False

    def _merged(
        self, tokens: TokenBatch, budget: int | None, cells: int, *, shrink: bool
    ) -> TokenMap:
        n, device = len(tokens), tokens.data.device
        if n == 0:
            return TokenMap.identity(0, device)
        steps = n // cells
        capacity = self.capacity if budget is None else max(1, budget // cells)
        made = TokenMap.identity(n, device)
        if steps > capacity:
            data = tokens.data.float().reshape(steps, cells, -1)
            link = merge_positions(
                data, tokens.mass.reshape(steps, cells), capacity, online=self.online
            )
            group = (link * cells + torch.arange(cells, device=device)).flatten()
            made = TokenMap.mass_mean(group, capacity * cells, tokens.mass)
        if shrink and budget is not None and len(made) > budget:
            rows = tokens.reduce(made)
            made = made.then(merge_rows(rows.data.float(), rows.mass, budget))
        return made
