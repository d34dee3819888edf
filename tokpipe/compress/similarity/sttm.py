"""Cut frames into quadtree cells, then join alike cells of consecutive frames.

Source: Hyun et al., "Multi-Granular Spatio-Temporal Token Merging for Training-Free Acceleration
of Video LLMs", ICCV 2025, arXiv:2507.07990, section 3.
Differs: cells that an odd side leaves with fewer children are compared with those alone, and all
cells linked by a chain are joined; the released code compares such cells with the frame's corner
too and stops joining early (``compat="released"``). Runs on encoder outputs, the paper's on the
hidden states of an early layer.

Shapes: T whole frames of H x W cells; K rows in (t, y, x) order. Cost: O(T H W D).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from tokpipe.compress._components import connected
from tokpipe.compress._quadtree import Nodes, levels, quadtree
from tokpipe.frames import whole_grids
from tokpipe.spec import Layout, Scope, Where
from tokpipe.tensors import Query, TokenBatch, TokenMap

#: Elements of the frames that are worked on at once.
_BLOCK = 1 << 21


@dataclass(frozen=True, slots=True, kw_only=True)
class Sttm:
    """Quadtree in space, union in time.

    Attributes:
        threshold: Cosine from which a cell stands for its children, -1 to 1; a budget is met by
            searching it.
        temporal: Cosine from which cells of consecutive frames, one within the other, join,
            -1 to 1; None joins nothing.
        root: Level that begins, 0 the coarsest; higher ones than there are mean the tokens.
        weighted: A cell counts as many times as it holds source tokens, instead of once.
        compat: ``released`` has the code's border rule and early stop.

    Example:
        >>> from tokpipe.testing.golden import frame_tokens
        >>> len(Sttm(root=0).decide(frame_tokens(torch.ones(3, 16, 2)), budget=None))
        4
    """

    source: ClassVar[str] = "arXiv:2507.07990, section 3"
    scope: ClassVar[Scope] = "video"
    needs: ClassVar[tuple[str, ...]] = ()
    modalities: ClassVar[tuple[str, ...]] = ("video",)
    causal: ClassVar[bool] = False
    layouts: ClassVar[tuple[Layout, ...]] = ("ragged",)
    scale_free: ClassVar[bool] = True
    version: ClassVar[int] = 1
    exact: ClassVar[bool] = False
    where: ClassVar[Where] = "llm"
    golden: ClassVar[tuple[str, ...]] = ("sttm",)

    threshold: Annotated[float, Field(ge=-1, le=1)] = 0.85
    temporal: Annotated[float, Field(ge=-1, le=1)] | None = 0.65
    root: Annotated[int, Field(ge=0)] = 1
    weighted: bool = False
    compat: Literal["paper", "released"] = "paper"

    def decide(
        self, tokens: TokenBatch, budget: int | None, query: Query | None = None
    ) -> TokenMap:
        """Merge by the thresholds; ``budget`` is left to the search for ``threshold``.

        Returns:
            One row per group of joined cells, at the place of its first.

        Raises:
            RecipeError: The frames are not whole grids of one size.
        """
        steps, rows, cols = whole_grids(tokens, "sttm")
        if not steps:
            return TokenMap.identity(0, tokens.data.device)
        size = rows * cols
        block = max(1, _BLOCK // (size * tokens.data.shape[1]))
        first, owner, part, links = [], [], [], []
        before, count = None, 0
        for t in range(0, steps, block):
            a, b = t * size, min(steps, t + block) * size
            nodes = self._cut(tokens, a, b, rows, cols)
            if self.temporal is not None:
                links.append(_links(before, nodes, size, self.temporal) + count)
                before = _last(nodes, size)
            first.append(nodes.first + a)
            owner.append(nodes.owner + count)
            part.append(nodes.part)
            count += nodes.first.shape[0]
        group, rank = self._join(torch.cat(links, 1) if links else None, count, torch.cat(first))
        return self._map(tokens, torch.cat(owner), torch.cat(part), group, rank)

    def out_count(self, n: int, budget: int | None) -> tuple[int, bool]:
        """At most ``n`` rows: how many is known only from the tokens."""
        return n, False

    def _cut(self, tokens: TokenBatch, a: int, b: int, rows: int, cols: int) -> Nodes:
        data = tokens.data[a:b].float().reshape(-1, rows, cols, tokens.data.shape[1])
        mass = tokens.mass[a:b].reshape(-1, rows, cols) if self.weighted else None
        top = max(0, len(levels(rows, cols)) - 1 - self.root)
        return quadtree(data, mass, self.threshold, top, self.compat == "released")

    def _join(self, links: Tensor | None, count: int, first: Tensor) -> tuple[Tensor, Tensor]:
        """Row of each node int64 [M] and first token of each row int64 [K]."""
        node = torch.arange(count, device=first.device)
        lead = node
        if links is not None and self.compat == "released":
            lead = _early(node, links)
        elif links is not None:
            lead = connected(node, links[0], links[1])
        leads = lead == node
        return (torch.cumsum(leads, 0) - 1)[lead], first[leads]

    def _map(
        self, tokens: TokenBatch, owner: Tensor, part: Tensor, group: Tensor, rank: Tensor
    ) -> TokenMap:
        if self.weighted:
            return TokenMap.mass_mean(group[owner], rank.shape[0], tokens.mass, anchor=rank)
        members = torch.bincount(group, minlength=rank.shape[0])
        row = group[owner]
        return TokenMap(
            src=torch.arange(len(tokens), device=owner.device), dst=row,
            weight=part / members[row], share=torch.ones_like(part), anchor=rank,
            num_sources=len(tokens),
        )  # fmt: skip


def _last(nodes: Nodes, size: int) -> Nodes:
    """The last frame's part of the nodes, numbered from 0 and placed in a frame of its own."""
    low = nodes.owner[-size:].min()
    return Nodes(nodes.feature[low:], nodes.first[low:] - nodes.first[low],
                 nodes.owner[-size:] - low, nodes.part[-size:])  # fmt: skip


def _links(before: Nodes | None, nodes: Nodes, size: int, threshold: float) -> Tensor:
    """Pairs int64 [2, E] of alike nodes of consecutive frames, one of which holds the other.

    Nodes of ``before``, the frame before, have negative numbers, its last is -1.
    """
    feature, owner, first, behind = nodes.feature, nodes.owner, nodes.first, 0
    if before is not None:
        behind = before.first.shape[0]
        feature = torch.cat([before.feature, feature])
        owner = torch.cat([before.owner, owner + behind])
        first = torch.cat([before.first, first + size])
    cells = torch.bincount(owner)
    place = torch.arange(owner.shape[0], device=owner.device)
    begins = (first[owner] == place).reshape(-1, size)
    owner = owner.reshape(-1, size)
    old, new = owner[:-1], owner[1:]
    # Cells of a quadtree overlap only where one holds the other: look at the inner one's corner.
    pair = torch.where(cells[old] < cells[new], begins[:-1], begins[1:])
    old, new = old[pair], new[pair]
    length = torch.linalg.vector_norm(feature, dim=1)
    dot = torch.linalg.vecdot(feature.index_select(0, old), feature.index_select(0, new))
    alike = dot >= threshold * (length[old] * length[new]).clamp(min=1e-12)
    return torch.stack([old[alike], new[alike]]) - behind


def _early(node: Tensor, links: Tensor) -> Tensor:
    """Lead of each node as the released code finds it: it stops before all chains are joined."""
    lead = node
    while True:
        low = torch.minimum(lead[links[0]], lead[links[1]])
        lead = lead.scatter_reduce(0, links[0], low, "amin")
        lead = lead.scatter_reduce(0, links[1], low, "amin")
        lead = lead[lead]
        if torch.equal(lead, lead[lead]):
            return lead
