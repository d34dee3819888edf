"""Merge tokens connected by chains of alike tokens, in each frame, then over the video.

Source: Sun et al., "LLaVA-Scissor: Token Compression with Semantic Connected Components for Video
LLMs", 2025, arXiv:2506.21862, section 3.
Differs: the components are exact, the released code samples nodes and loses some (its result
depends on a seed); the default threshold is the documented 0.9, the code's is 0.95. A token that
a row other than its component's absorbs stands half in each.

Shapes: data [N, D] of T frames; K rows, as many as components remain. Means are held where
they are few (128 MB), else made tile by tile.
Passes: 1 N x N, 1 N x K at most, of one frame: half the pairs of every frame, half those of the
first stage's components, then tokens with remaining rows; all in tiles.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from tokpipe.compress._components import Components, Means, alike_frames, group_means
from tokpipe.compress._neighbors import blocks, most_similar, unit_rows
from tokpipe.frames import frames_of
from tokpipe.spec import Layout, Scope, Where
from tokpipe.tensors import Query, TokenBatch, TokenMap

#: Most elements of means that are held (128 MB); more are made whenever they are needed.
_HELD = 1 << 25


@dataclass(frozen=True, slots=True, kw_only=True)
class Scissor:
    """Semantic connected components in two stages, then absorption of every source token.

    Stage one takes the mean of each component of a frame, stage two the mean of each component
    of those. Every token then joins the remaining row with the largest cosine: a row is the mean
    of itself and what it absorbs.

    Attributes:
        threshold: Cosine above which two tokens are connected, -1 to 1; a budget is met by
            searching it.

    Example:
        >>> data = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]])
        >>> tokens = TokenBatch.build(data, torch.zeros(3).double())
        >>> len(Scissor().decide(tokens, budget=None))
        2
    """

    source: ClassVar[str] = "arXiv:2506.21862, section 3"
    scope: ClassVar[Scope] = "video"
    needs: ClassVar[tuple[str, ...]] = ()
    modalities: ClassVar[tuple[str, ...]] = ("video", "audio")
    causal: ClassVar[bool] = False
    layouts: ClassVar[tuple[Layout, ...]] = ("ragged",)
    scale_free: ClassVar[bool] = True
    version: ClassVar[int] = 1
    exact: ClassVar[bool] = False
    where: ClassVar[Where] = "outputs"
    golden: ClassVar[tuple[str, ...]] = ("scissor",)
    aliases: ClassVar[tuple[str, ...]] = ("llava-scissor",)

    threshold: Annotated[float, Field(ge=-1, le=1)] = 0.9

    def decide(
        self, tokens: TokenBatch, budget: int | None, query: Query | None = None
    ) -> TokenMap:
        """Merge by the threshold; ``budget`` is left to the search for it.

        Returns:
            Rows in the order of their components' most connected tokens.
        """
        n, device = len(tokens), tokens.data.device
        if n == 0:
            return TokenMap.identity(0, device)
        first = self.within_frames(tokens)
        means = _means(tokens.data, first.group, first.root.shape[0])
        second = alike_frames(means if isinstance(means, Means) else means[None], self.threshold)
        rows = second.root.shape[0]
        taken = second.group[first.group]
        # A row made of one token alone is that token: nothing is nearer to it.
        lone = torch.bincount(taken, minlength=rows)[taken] == 1
        shared = torch.nonzero(~lone).flatten()
        if shared.shape[0] == 0:
            return _map(first, second, taken)
        made: Tensor | Means
        if isinstance(means, Means) or rows * tokens.data.shape[1] > _HELD:
            members = torch.bincount(first.group)[first.group]
            parts = torch.bincount(second.group)[taken]
            made = Means(tokens.data, taken, rows, 1 / (members * parts).float())
        else:
            made = group_means(means, second.group, rows)
        del means
        taken[shared] = _absorbing(tokens.data, shared, made)
        return _map(first, second, taken)

    def within_frames(self, tokens: TokenBatch) -> Components:
        """Stage one: components of each frame, frame after frame."""
        frames = frames_of(tokens)
        steps, sizes = len(frames), torch.unique(frames.counts).tolist()
        order = torch.argsort(frames.index, stable=True)
        start = torch.cumsum(frames.counts, 0) - frames.counts
        if len(sizes) == 1:
            inner = torch.arange(len(tokens), device=order.device)
            data = tokens.data if torch.equal(order, inner) else tokens.data[order]
            found = alike_frames(data.reshape(steps, sizes[0], -1), self.threshold)
            group = torch.empty_like(order)
            group[order] = found.group
            return Components(group, order[found.root])
        root = torch.empty_like(order)
        for size in sizes:
            place = start[frames.counts == size][:, None]
            at = order[(place + torch.arange(size, device=order.device)).flatten()]
            found = alike_frames(tokens.data[at].reshape(-1, size, tokens.data.shape[1]),
                                 self.threshold)  # fmt: skip
            root[at] = at[found.root[found.group]]
        here = torch.arange(len(tokens), device=order.device)[order]
        is_root = root[order] == here
        number = torch.empty_like(order)
        number[order] = torch.cumsum(is_root, 0) - 1
        return Components(number[root], here[is_root])

    def out_count(self, n: int, budget: int | None) -> tuple[int, bool]:
        """At most ``n`` rows: how many is known only from the tokens."""
        return n, False


def _means(data: Tensor, group: Tensor, count: int) -> Tensor | Means:
    """Means [K, D] of the rows of each group, made when asked for where they are many."""
    if count == data.shape[0]:
        return data
    if count * data.shape[1] > _HELD or data.dtype != torch.float32:
        return Means(data, group, count)
    return group_means(data, group, count)


def _absorbing(data: Tensor, shared: Tensor, survivors: Tensor | Means) -> Tensor:
    """The row int64 [R] of ``survivors`` [K, D] that each token int64 [R] resembles most."""
    best = torch.full(shared.shape, -torch.inf, device=data.device)
    taken = torch.zeros_like(shared)
    if isinstance(survivors, Means):
        parts = [(a, b) for a, b in blocks(survivors.shape[1], data.shape[1])]
    else:
        parts = [(0, survivors.shape[0])]
    for c, d in parts:
        held = survivors.rows(c, d) if isinstance(survivors, Means) else survivors
        unit = unit_rows(held)
        for a, b in blocks(shared.shape[0], data.shape[1]):
            rows = data.index_select(0, shared[a:b]).float()
            value, index = most_similar(rows, unit)
            better = value > best[a:b]
            best[a:b] = torch.where(better, value, best[a:b])
            taken[a:b] = torch.where(better, index + c, taken[a:b])
    return taken


def _map(first: Components, second: Components, taken: Tensor) -> TokenMap:
    """Weights of the two means and of what each row absorbs, entries of one pair joined."""
    n, rows, device = taken.shape[0], second.root.shape[0], taken.device
    own = second.group[first.group]
    members = torch.bincount(first.group)[first.group]
    parts = torch.bincount(second.group, minlength=rows)
    absorbed = torch.bincount(taken, minlength=rows) + 1
    mean = 1 / (members * parts[own] * absorbed[own]).float()
    join = 1 / absorbed[taken].float()
    same = own == taken
    source = torch.arange(n, device=device)
    other = torch.nonzero(~same).flatten()
    return TokenMap(
        src=torch.cat([source, other]),
        dst=torch.cat([own, taken[other]]),
        weight=torch.cat([torch.where(same, mean + join, mean), join[other]]),
        share=torch.cat([torch.where(same, 1.0, 0.5), torch.full_like(join[other], 0.5)]),
        anchor=first.root[second.root],
        num_sources=n,
    )
