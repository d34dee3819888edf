"""Link neighbouring cells of equal colour and keep a share of every component.

Source: Lin et al., "ShowUI: One Vision-Language-Action Model for GUI Visual Agent", CVPR 2025,
arXiv:2411.17465, section 3.1 (UI connected graph).
Differs: components are found by label passing in place of one union after the other (the same
components); which of a component stay is even, the form the released code has for inference; with
a budget components get parts in proportion, at least one each, and where there are more
components than that, the shortest links are added until there are not.

Shapes: extra ``patch_pixels`` [N, P], normalised as the encoder takes it; kept tokens in the order
they come. Cost: O(N P), no pairs but neighbours.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from tokpipe.budget import largest_remainder
from tokpipe.compress._columns import column
from tokpipe.compress._components import connected
from tokpipe.frames import each_frame, frames_of
from tokpipe.spec import Layout, Scope, Where
from tokpipe.tensors import Query, TokenBatch, TokenMap


@dataclass(frozen=True, slots=True, kw_only=True)
class ShowuiGraph:
    """Evenly spaced tokens of each connected component of cells; single cells always stay.

    Attributes:
        threshold: Length of the difference of two cells' pixels under which they are linked, 0
            or more.
        skip: Part of each component given up, 0 to below 1 (rounded down; one stays at least).
    """

    source: ClassVar[str] = "arXiv:2411.17465, section 3.1"
    scope: ClassVar[Scope] = "frame"
    needs: ClassVar[tuple[str, ...]] = ("patch_pixels",)
    modalities: ClassVar[tuple[str, ...]] = ("video",)
    causal: ClassVar[bool] = False
    layouts: ClassVar[tuple[Layout, ...]] = ("ragged",)
    where: ClassVar[Where] = "pixels"
    golden: ClassVar[tuple[str, ...]] = ("showui_uigraph",)
    version: ClassVar[int] = 1
    exact: ClassVar[bool] = True

    threshold: Annotated[float, Field(ge=0)] = 1.0
    skip: Annotated[float, Field(ge=0, lt=1)] = 0.5

    def decide(
        self, tokens: TokenBatch, budget: int | None, query: Query | None = None
    ) -> TokenMap:
        """Keep a share of every component, or ``budget`` tokens over all components.

        Raises:
            RecipeError: ``patch_pixels`` is missing.
        """
        n = len(tokens)
        pixels = column(tokens, "patch_pixels", "showui-graph").flatten(1)
        if n == 0 or (budget is not None and budget >= n):
            return TokenMap.identity(n, tokens.data.device)
        left, right, length = links(tokens, pixels)
        if budget is None:
            near = length < self.threshold
            label = connected(_own(tokens), left[near], right[near])
            return _even(label, lambda size: size - (size * self.skip).floor().long())
        index = frames_of(tokens).index
        # Each token carries its place, by which a frame finds its own links again.
        numbered = tokens.with_extras(place=torch.arange(n, device=left.device))
        home = index[left]
        place = torch.empty(n, dtype=torch.int64, device=left.device)

        def one(frame: TokenBatch, quota: int | None) -> TokenMap:
            here = frame.extras["place"]
            place[here] = torch.arange(len(frame), device=here.device)
            own = home == index[here[0]]
            ends = place[left[own]], place[right[own]]
            label = self._fewer(len(frame), ends, length[own], quota or 1)
            return _even(label, lambda size: _parts(size, quota or 1))

        return each_frame(numbered, budget, one)

    def _fewer(self, n: int, ends: tuple[Tensor, Tensor], length: Tensor, most: int) -> Tensor:
        """Labels [n] of components: ``threshold``, or the shortest links that leave ``most``."""
        order = torch.argsort(length, stable=True)
        low = int((length < self.threshold).sum())
        own = torch.arange(n, device=length.device)

        def joined(count: int) -> Tensor:
            use = order[:count]
            return connected(own, ends[0][use], ends[1][use])

        label = joined(low)
        high = order.shape[0]
        while int((label == own).sum()) > most and low < high:
            middle = (low + high) // 2
            tried = joined(middle)
            if int((tried == own).sum()) > most:
                low = middle + 1
            else:
                high = middle
            label = joined(high) if low == high else label
        return label

    def out_count(self, n: int, budget: int | None) -> tuple[int, bool]:
        """Exact with a budget, else a bound."""
        return (n, False) if budget is None else (min(n, budget), True)


def links(tokens: TokenBatch, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Neighbouring cells of one frame and tile.

    Args:
        tokens: N tokens; those without a cell have no neighbours.
        pixels: float32 [N, P].

    Returns:
        Ends int64 [E] and [E], the second to the right of or below the first, and the length of
        the difference float32 [E].
    """
    y, x = tokens.cell[:, 1].long(), tokens.cell[:, 2].long()
    inside = torch.nonzero((y >= 0) & (x >= 0)).flatten()
    y, x = y[inside], x[inside]
    if not len(inside):
        none = inside.new_empty(0)
        return none, none, pixels.new_empty(0)
    rows, cols = int(y.max()) + 2, int(x.max()) + 2
    # One spare row and column, so that no neighbour is found over a border.
    tile = tokens.tile[inside].long()
    frame = frames_of(tokens).index[inside] * (int(tile.max()) + 1) + tile
    key = (frame * rows + y) * cols + x
    order = torch.argsort(key, stable=True)
    ranked = key[order]
    left, right = [], []
    for step in (1, cols):
        at = torch.searchsorted(ranked, key + step).clamp(max=len(ranked) - 1)
        hit = ranked[at] == key + step
        left.append(inside[hit])
        right.append(inside[order[at[hit]]])
    a, b = torch.cat(left), torch.cat(right)
    return a, b, torch.linalg.vector_norm(pixels[a] - pixels[b], dim=1)


def _own(tokens: TokenBatch) -> Tensor:
    return torch.arange(len(tokens), device=tokens.data.device)


def _parts(size: Tensor, total: int) -> Tensor:
    """Tokens kept of each component [K]: one and a part in proportion, or the largest only."""
    sizes = size.tolist()
    if len(sizes) > total:
        order = torch.argsort(size, descending=True, stable=True)[:total]
        return torch.zeros_like(size).scatter_(0, order, 1)
    rest = [s - 1 for s in sizes]
    more = largest_remainder(total - len(sizes), rest, caps=rest) if sum(rest) else rest
    return 1 + torch.tensor(more, device=size.device)


def _even(label: Tensor, count: Callable[[Tensor], Tensor]) -> TokenMap:
    """Keep evenly spaced members of components, the first and the last among them.

    Args:
        label: int64 [N] component of each token.
        count: From sizes int64 [K] to the members kept int64 [K], 0 .. size.
    """
    _, group, size = torch.unique(label, return_inverse=True, return_counts=True)
    kept = count(size)[group]
    order = torch.argsort(group, stable=True)
    rank = torch.empty_like(order)
    start = torch.cumsum(size, 0) - size
    rank[order] = torch.arange(order.shape[0], device=order.device)
    rank = rank - start[group]
    span, gaps = (size - 1)[group], (kept - 1).clamp(min=1)
    # The i-th of k stands at floor(i (size - 1) / (k - 1)); i is the first that reaches this rank.
    nth = (rank * gaps + span - 1) // span.clamp(min=1)
    stays = (nth < kept) & (nth * span // gaps == rank)
    stays = torch.where(kept == 1, rank == 0, stays & (kept > 0))
    return TokenMap.keep(torch.nonzero(stays).flatten(), label.shape[0])
