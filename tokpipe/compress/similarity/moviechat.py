"""Shorten each fragment of frames by averaging its most alike neighbours, and join the results.

Source: Song et al., "MovieChat: From Dense Token to Sparse Memory for Long Video Understanding",
CVPR 2024, arXiv:2307.16449, section 3.3 (memory consolidation).
Differs: of the long memory, ``capacity`` frames are left by merging the most alike neighbours by
cosine; the released code takes a distance for a similarity there and so merges the least alike,
and at first looks at some of the pairs only (``compat="released"``). The untouched short memory of
the breakpoint mode is not added. With a budget of less than one frame the last frame's positions
are merged too, by bipartite matching.

Shapes: T whole frames of C tokens; whole frames of C rows. Cost: O(T C D) and, where the long
memory of L frames is above its capacity, O(L^2 C D). What is carried: the open fragment, and the
long memory until the end where it must shrink.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from tokpipe.compress._bank import merge_adjacent, merge_rows
from tokpipe.frames import equal_frames
from tokpipe.spec import Layout, Scope, Where
from tokpipe.tensors import Query, TokenBatch, TokenMap


@dataclass(slots=True)
class _State:
    """Frames carried: ``held`` of the long memory, then those of the open fragment.

    ``seen`` counts all frames before the open fragment.
    """

    budget: int | None
    steps: int | None
    cells: int = 0
    held: int = 0
    seen: int = 0
    settled: Tensor | None = field(default=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class MovieChat:
    """Stream reducer: fragments of frames become few, in time order.

    Two neighbours are as alike as the mean dot product of their tokens; the most alike pair
    becomes its plain mean until ``merged`` frames are left of the fragment.

    With a budget of R whole frames: where the fragments give more, the long memory is merged down
    to R; where they give fewer and the stream's length is known, R is shared out to the fragments.

    Attributes:
        fragment: Frames of a fragment, 1 or more.
        short_memory: Frames at the end of a fragment that count, 1 or more.
        merged: Frames left of a fragment, 1 or more; at most those that count.
        capacity: Frames of the long memory when no budget is given, 1 or more; None: all.
        short_first: The first merge of the long memory looks at its first ``capacity`` pairs only,
            as the released code does.
        compat: ``released`` merges the least alike of the long memory, and ``short_first``.

    Example:
        >>> from tokpipe.testing.golden import frame_tokens
        >>> data = torch.tensor([[[2.0, 0.0]], [[0.0, 1.0]], [[0.0, 2.0]]])
        >>> MovieChat().decide(frame_tokens(data), budget=None).dst.tolist()
        [0, 1, 1]
    """

    source: ClassVar[str] = "arXiv:2307.16449, section 3.3"
    scope: ClassVar[Scope] = "stream"
    needs: ClassVar[tuple[str, ...]] = ()
    modalities: ClassVar[tuple[str, ...]] = ("video",)
    causal: ClassVar[bool] = False
    layouts: ClassVar[tuple[Layout, ...]] = ("ragged",)
    version: ClassVar[int] = 1
    exact: ClassVar[bool] = False
    where: ClassVar[Where] = "outputs"
    golden: ClassVar[tuple[str, ...]] = ("moviechat",)

    fragment: Annotated[int, Field(ge=1)] = 16
    short_memory: Annotated[int, Field(ge=1)] = 18
    merged: Annotated[int, Field(ge=1)] = 2
    capacity: Annotated[int, Field(ge=1)] | None = None
    short_first: bool = False
    compat: Literal["paper", "released"] = "paper"

    def decide(
        self, tokens: TokenBatch, budget: int | None, query: Query | None = None
    ) -> TokenMap:
        """Merge whole frames.

        Returns:
            Frames of rows in time order, each at the place of its first member.

        Raises:
            RecipeError: The frames are not of one size.
        """
        steps, cells = equal_frames(tokens, "moviechat")
        return self._merged(tokens, _State(budget, steps, cells), last=True)

    def start(self, budget: int | None, steps: int | None) -> _State:
        """Fresh state for a stream of ``steps`` frames."""
        return _State(budget, steps)

    def push(
        self, state: _State, carried: TokenBatch | None, new: TokenBatch
    ) -> tuple[_State, TokenMap]:
        """Take frames; every full fragment is merged."""
        _, cells = equal_frames(new, "moviechat")
        state.cells = state.cells or cells
        both = new if carried is None or not len(carried) else TokenBatch.cat([carried, new])
        made = self._merged(both, state, last=False)
        settled = torch.zeros(len(made), dtype=torch.bool, device=made.dst.device)
        if not self._shrinks(state):
            settled[: state.held * state.cells] = True
            state.held = 0
        state.settled = settled
        return state, made

    def finish(self, state: _State, carried: TokenBatch) -> TokenMap:
        """Merge the last fragment, and the long memory where it is above its capacity."""
        return self._merged(carried, state, last=True)

    def out_count(self, n: int, budget: int | None) -> tuple[int, bool]:
        """At most the budget; how many exactly depends on the frame's size."""
        return n if budget is None else min(n, budget), False

    def _merged(self, tokens: TokenBatch, state: _State, *, last: bool) -> TokenMap:
        n, cells, device = len(tokens), state.cells, tokens.data.device
        if n == 0:
            return TokenMap.identity(0, device)
        data = tokens.data.float().reshape(n // cells, -1)
        group, coefficient, count = self._fragments(data.reshape(-1, cells, data.shape[1] // cells),
                                                    state, last)  # fmt: skip
        limit = self._limit(state)
        if last and limit is not None and count > limit:
            live = torch.nonzero(group >= 0).flatten()
            members = torch.bincount(group[live], minlength=count)
            joined = torch.nn.functional.embedding_bag(
                live, data, torch.cumsum(members, 0) - members, mode="sum",
                per_sample_weights=coefficient[live],
            )  # fmt: skip
            released = self.compat == "released"
            first = limit if released or self.short_first else None
            above, part = merge_adjacent(
                joined @ joined.T, limit, cosine=True, least=released, first=first
            )
            coefficient = coefficient * part[group.clamp(min=0)]
            group, count = torch.where(group >= 0, above[group.clamp(min=0)], -1), limit
        made = _whole(group, coefficient, count, cells)
        if last and state.budget is not None and len(made) > state.budget:
            rows = tokens.reduce(made)
            made = made.then(merge_rows(rows.data.float(), rows.mass, state.budget))
        return made

    def _fragments(self, data: Tensor, state: _State, last: bool) -> tuple[Tensor, Tensor, int]:
        """Row [F] (-1 dropped) and coefficient [F] of each frame, and rows; moves ``state`` on."""
        frames, device = data.shape[0], data.device
        groups = [torch.arange(state.held, device=device)]
        parts = [torch.ones(state.held, device=device)]
        count, a = state.held, state.held
        # The mean of all dot products of two frames' tokens is the dot product of their means.
        centre = data[a:].mean(1)
        while a < frames and (last or frames - a >= self.fragment):
            b = min(frames, a + self.fragment)
            quota = self._quota(state, b - a)
            drop = max(0, b - a - max(self.short_memory, quota))
            seen = centre[a + drop - state.held : b - state.held]
            quota = min(quota, seen.shape[0])
            group, part = merge_adjacent(seen @ seen.T, quota, cosine=False)
            groups += [group.new_full((drop,), -1), group + count]
            parts += [part.new_zeros(drop), part]
            state.seen += b - a
            count, a = count + quota, b
        held = count
        groups.append(torch.arange(count, count + frames - a, device=device))
        parts.append(torch.ones(frames - a, device=device))
        state.held = held
        return torch.cat(groups), torch.cat(parts), held + frames - a

    def _limit(self, state: _State) -> int | None:
        """Frames of the long memory at the end."""
        return self.capacity if state.budget is None else max(1, state.budget // state.cells)

    def _quota(self, state: _State, size: int) -> int:
        """Frames left of the next fragment, of ``size`` frames."""
        if self._shrinks(state) or state.budget is None or state.steps is None:
            return min(size, self._left)
        most = min(state.steps, max(1, state.budget // state.cells))
        before, after = state.seen, min(state.steps, state.seen + size)
        return most * after // state.steps - most * before // state.steps

    def _shrinks(self, state: _State) -> bool:
        """The long memory may have to be merged at the end."""
        limit = self._limit(state)
        if limit is None:
            return False
        if state.steps is None:
            return True
        full, rest = divmod(state.steps, self.fragment)
        return full * min(self._left, self.fragment) + min(self._left, rest) > limit

    @property
    def _left(self) -> int:
        """Most frames left of a fragment where no budget says how many."""
        return min(self.merged, self.short_memory)


def _whole(group: Tensor, coefficient: Tensor, count: int, cells: int) -> TokenMap:
    """The map of tokens where frame f goes to frame ``group[f]``."""
    cell = torch.arange(cells, device=group.device)
    frame = torch.nonzero(group >= 0).flatten()
    first = torch.full((count,), group.shape[0], device=group.device)
    first = first.scatter_reduce(0, group[frame], frame, "amin")
    weight = coefficient[frame].repeat_interleave(cells)
    return TokenMap(
        src=(frame[:, None] * cells + cell).flatten(),
        dst=(group[frame][:, None] * cells + cell).flatten(),
        weight=weight, share=torch.ones_like(weight),
        anchor=(first[:, None] * cells + cell).flatten(),
        num_sources=group.shape[0] * cells,
    )  # fmt: skip
