"""Rounds of bipartite merging in the groups of a batch: frames, clips or everything at once.

Groups of one size with the same rounds to go are merged together, as many at a time as bounded
memory allows; the result is that of each alone. Letters: N tokens, G groups, C tokens of a group,
K rows, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from tokpipe.budget import largest_remainder
from tokpipe.compress._match import (
    Matching,
    Pairs,
    Protected,
    Score,
    best_pairs,
    cosine,
    merge_best,
    removable,
)
from tokpipe.compress._neighbors import BLOCK
from tokpipe.frames import frames_of, one_item
from tokpipe.maps import TokenMap
from tokpipe.tensors import TokenBatch


@dataclass(frozen=True, slots=True)
class Plan:
    """What becomes of one group.

    Attributes:
        size: C.
        rounds: Tokens to merge away, round by round.
        rows: Rows it keeps; those above are dropped.
    """

    size: int
    rounds: tuple[int, ...]
    rows: int


@dataclass(frozen=True, slots=True)
class Groups:
    """The tokens of a batch, group after group.

    Attributes:
        sizes: Tokens of each group.
        frames: Frames of each group.
        order: int64 [N] tokens group after group, None where they already are.
    """

    sizes: list[int]
    frames: list[int]
    order: Tensor | None

    def quotas(self, budget: int | None) -> list[int | None]:
        """A budget shared in proportion to the groups' tokens; None leaves it to the rule."""
        if budget is None:
            return [None] * len(self.sizes)
        if len(self.sizes) == 1:
            return [min(budget, self.sizes[0])]
        return list(largest_remainder(min(budget, sum(self.sizes)), self.sizes, caps=self.sizes))


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """How every round merges.

    Attributes:
        score: Makes the likeness of tokens from their columns float [G, C, D].
        every: One destination in so many tokens.
        protected: Tokens at the front of a group that stay.
        plain: Average the tokens of a round alike, not by mass.
        raster: Rows keep the order of their places.
        spare: Without a class token, count one token as protected all the same.
    """

    score: Callable[[list[Tensor]], Score] = field(default=lambda columns: cosine(columns[0]))
    every: int = 2
    protected: Protected = field(default_factory=Protected)
    plain: bool = False
    raster: bool = False
    spare: bool = False

    @property
    def fixed(self) -> int:
        """Tokens of a group that never merge."""
        found = self.protected.class_token + self.protected.distill_token
        return max(found, int(self.spare))

    def room(self, n: int) -> int:
        """Most tokens a round can merge away of ``n``."""
        return removable(n, self.every, self.fixed)

    def halvings(self, n: int, target: int) -> tuple[int, ...]:
        """Tokens to merge away round by round, in as few rounds as lead from n to target rows."""
        rounds = []
        while n > target and (room := self.room(n)):
            rounds.append(min(room, n - target))
            n -= rounds[-1]
        return tuple(rounds)

    def clipped(self, n: int, schedule: Sequence[int]) -> tuple[int, ...]:
        """A schedule of merges, each at most what its round can merge away."""
        rounds = []
        for wanted in schedule:
            rounds.append(min(wanted, self.room(n)))
            n -= rounds[-1]
        return tuple(r for r in rounds if r)

    def plan(self, n: int, quota: int | None, schedule: Sequence[int] = ()) -> Plan:
        """Down to ``quota`` rows in as few rounds as possible, or by a schedule without one."""
        if quota is None:
            rounds = self.clipped(n, schedule)
            return Plan(n, rounds, n - sum(rounds))
        quota = min(quota, n)
        return Plan(n, self.halvings(n, quota) if quota else (), quota)

    def plans(self, groups: Groups, budget: int | None, schedule: Sequence[int] = ()) -> list[Plan]:
        """The plan of every group, a budget shared in proportion."""
        quotas = zip(groups.sizes, groups.quotas(budget), strict=True)
        return [self.plan(n, quota, schedule) for n, quota in quotas]


def groups_of(tokens: TokenBatch, frames: int) -> Groups:
    """Groups of so many consecutive frames; 0 puts all tokens into one, in their own order."""
    n = len(tokens)
    one = one_item(tokens)
    sound = one and n > 0 and bool((tokens.at != tokens.at[0]).any())
    if one and not (sound and frames > 1):
        return Groups([n], [1], None)
    found = frames_of(tokens)
    # A clip of sound is so many tokens: each is a moment of its own.
    counts = [1] * n if sound else found.counts.tolist()
    if frames == 0:
        return Groups([n], [len(counts)], None)
    order = None
    if bool((found.index.diff() < 0).any()):
        order = torch.argsort(found.index, stable=True)
    parts = [counts[a : a + frames] for a in range(0, len(counts), frames)]
    return Groups([sum(part) for part in parts], [len(part) for part in parts], order)


class Rounds:
    """Some groups of one size while they merge.

    Attributes:
        group: int64 [G, C] present row of each token.
        anchor: int64 [G, K] the token whose place each row takes.
        weight: float32 [G, C] share of each token in its row, of plain means; else None.
    """

    def __init__(self, columns: list[Tensor], mass: Tensor, rule: Rule) -> None:
        """Begin with columns [G, C, D], float, and mass float32 [G, C]."""
        self.rule, self.columns, self.mass = rule, columns, mass
        position = torch.arange(mass.shape[1], device=mass.device)
        self.group = self.anchor = position.expand(mass.shape)
        self.weight = torch.ones_like(mass) if rule.plain else None
        self._own = False

    def pairs_now(self) -> Pairs:
        """Best destinations among the present rows."""
        groups, n = self.anchor.shape
        return best_pairs(
            self.rule.score(self.columns), groups, n, self.anchor.device,
            every=self.rule.every, protected=self.rule.protected,
        )  # fmt: skip

    def run(self, rounds: Sequence[int], *, last: bool = True) -> Rounds:
        """Merge round by round; after the ``last`` one the columns are not needed any more."""
        rule = self.rule
        for i, remove in enumerate(rounds):
            pairs = self.pairs_now()
            match = merge_best(pairs, remove, protected=rule.protected, raster=rule.raster)
            self._take(match, fold=not last or i + 1 < len(rounds))
        return self

    def _take(self, match: Matching, *, fold: bool) -> None:
        mass = torch.ones_like(self.mass) if self.rule.plain else self.mass
        total = mass.new_zeros(match.anchor.shape).scatter_add_(1, match.group, mass)
        part = mass / total.gather(1, match.group).clamp(min=1e-12)
        if self.weight is not None:
            self.weight = self.weight * part.gather(1, self.group)
        if fold:
            self.columns = [folded(column, part, match, spent=self._own) for column in self.columns]
            self._own = True
        self.mass = total
        self.group = match.group.gather(1, self.group)
        self.anchor = self.anchor.gather(1, match.anchor)


def folded(values: Tensor, part: Tensor, match: Matching, *, spent: bool = False) -> Tensor:
    """Weighted sums float32 [G, K, D] of values [G, C, D] with weights ``part`` [G, C].

    Args:
        values: Rows to add up.
        part: Weight of each row.
        match: Where each row goes.
        spent: Values are float32 and not needed any more, so a large block is made in its place.
    """
    groups, _, width = values.shape
    k = match.anchor.shape[1]
    offset = torch.arange(groups, device=values.device)[:, None]
    row = (match.group + offset * k).flatten()
    member = torch.argsort(row, stable=True)
    counts = torch.bincount(row, minlength=groups * k)
    starts, weight = torch.cumsum(counts, 0) - counts, part.flatten()[member]

    def sums(block: Tensor) -> Tensor:
        return embedding_bag(member, block, starts, mode="sum", per_sample_weights=weight)

    plain = values.dtype == torch.float32 and not spent
    if plain or groups > 1 or values.numel() <= BLOCK:
        return sums(values.reshape(-1, width).float()).reshape(groups, k, width)
    out = values if spent else torch.empty((1, k, width), device=values.device)
    step = max(1, BLOCK // values.shape[1])
    for a in range(0, width, step):
        out[0, :k, a : a + step] = sums(values[0, :, a : a + step].float().contiguous())
    return out[:, :k]


class Gatherer:
    """Reads groups of tokens as blocks, and puts their rows together as one map."""

    def __init__(self, groups: Groups, device: torch.device) -> None:
        """Begin with nothing read."""
        self.groups, self.device = groups, device
        self.starts = [0, *accumulate(groups.sizes)]

    def batches(self, plans: Sequence[Plan], width: int) -> Iterator[list[int]]:
        """Groups that merge alike, as many at a time as keep their columns within a block."""
        alike: dict[Plan, list[int]] = {}
        for i, plan in enumerate(plans):
            alike.setdefault(plan, []).append(i)
        for plan, found in alike.items():
            step = max(1, BLOCK // max(1, plan.size * max(width, plan.size // 4)))
            for a in range(0, len(found), step):
                yield found[a : a + step]

    def places(self, ids: Sequence[int]) -> Tensor:
        """Tokens int64 [G, C] of groups of one size."""
        first = torch.tensor([self.starts[i] for i in ids], device=self.device)
        place = first[:, None] + torch.arange(self.groups.sizes[ids[0]], device=self.device)
        return place if self.groups.order is None else self.groups.order[place]

    def read(self, column: Tensor, ids: Sequence[int], place: Tensor) -> Tensor:
        """Rows of a column [N, ...] as [G, C, D]: a view where the groups lie side by side."""
        count, size = place.shape
        if self.groups.order is None and ids[-1] - ids[0] + 1 == count:
            start = self.starts[ids[0]]
            return column[start : start + count * size].reshape(count, size, -1)
        return column[place].reshape(count, size, -1)

    def join(self, parts: Sequence[Part], rows: Sequence[int], mass: Tensor) -> TokenMap:
        """One map of all groups, rows group after group.

        Args:
            parts: What became of the groups, in any order.
            rows: Rows of each group; those above are dropped.
            mass: float32 [N].
        """
        n, first = mass.shape[0], [0, *accumulate(rows)]
        group = torch.full((n,), -1, dtype=torch.int64, device=self.device)
        anchor = torch.empty(first[-1], dtype=torch.int64, device=self.device)
        weight = torch.ones(n, device=self.device)
        plain = False
        for part in parts:
            count = rows[part.ids[0]]
            offset = torch.tensor([first[i] for i in part.ids], device=self.device)[:, None]
            group[part.place] = torch.where(part.group < count, part.group + offset, -1)
            row = offset + torch.arange(count, device=self.device)
            anchor[row] = part.place.gather(1, part.anchor[:, :count])
            if part.weight is not None:
                plain, weight[part.place] = True, part.weight
        made = TokenMap.mass_mean(group, first[-1], mass, anchor=anchor)
        return replace(made, weight=weight[made.src]) if plain else made


@dataclass(frozen=True, slots=True)
class Part:
    """What became of some groups of one size: see ``Rounds``; ``place`` int64 [G, C] tokens."""

    ids: Sequence[int]
    place: Tensor
    group: Tensor
    anchor: Tensor
    weight: Tensor | None = None


def merge_groups(
    tokens: TokenBatch, groups: Groups, plans: Sequence[Plan], columns: Sequence[Tensor], rule: Rule
) -> TokenMap:
    """Merge every group by its plan.

    Args:
        tokens: N tokens.
        groups: Which belong together.
        plans: What becomes of each group.
        columns: What they are compared by, each float [N, ...].
        rule: How every round merges.

    Returns:
        Rows group after group, in the order of the last round, at the places of their
        destinations.
    """
    n, device = len(tokens), tokens.data.device
    if groups.order is None and all(not p.rounds and p.rows == p.size for p in plans):
        return TokenMap.identity(n, device)
    gather, parts = Gatherer(groups, device), []
    width = sum(column[0].numel() for column in columns) if n else 0
    for ids in gather.batches(plans, width):
        plan, place = plans[ids[0]], gather.places(ids)
        mass = gather.read(tokens.mass, ids, place)[:, :, 0]
        found = [gather.read(column, ids, place) for column in columns] if plan.rounds else []
        done = Rounds(found, mass, rule).run(plan.rounds)
        parts.append(Part(ids, place, done.group, done.anchor, done.weight))
    return gather.join(parts, [plan.rows for plan in plans], tokens.mass)
