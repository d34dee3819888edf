"""Merge tokens above a similarity threshold, so that plain frames keep fewer than rich ones.

Source: Wang et al., "DyMU: Dynamic Merging and Virtual Unmerging for Efficient VLMs", 2025,
arXiv:2504.17040, section 3.
Differs: on encoder outputs with one threshold; the paper has one for every layer, learned as the
score at rank r x B of a batch of B images. Here a budget, or ``r``, finds it in the same way over
the frames of the video, exactly; where one round is not enough, whole rounds come first.
``compat="released"`` divides sums of several frames by size + 1e-4, as the released batch code.

A frame of the paper's full length comes back by ``TokenMap.unmerge`` (virtual unmerging).

Shapes: data [N, D]; frames keep different numbers of rows, each round at least half.
Cost: O(C^2 D / 4) for the first round of a group of C tokens.
Passes: 1/3 N x N in blocks of rows, over all rounds; half of the rows, averaged, are held.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from tokpipe.budget import largest_remainder
from tokpipe.compress._match import Pairs, Protected, merge_best
from tokpipe.compress._merge_rounds import Gatherer, Groups, Part, Plan, Rounds, Rule, groups_of
from tokpipe.compress._metric import keys_or_data
from tokpipe.spec import Layout, Scope, Where
from tokpipe.tensors import Query, TokenBatch, TokenMap


@dataclass(frozen=True, slots=True, kw_only=True)
class DyMU:
    """Bipartite matching within each frame, one threshold for all frames; means by mass.

    The metric is the extra ``keys``, heads averaged, where the encoder offers it, else the data.

    Attributes:
        threshold: Tokens more like their destination than this merge, -1 .. 1; the default is
            ours, the paper learns it per encoder and layer.
        r: Tokens to merge away per frame on average when no budget is given: the threshold is
            then learned from the frames at hand and never negative; 0 takes ``threshold``.
        class_token: Token 0 of a frame is a class token and stays as it is.
        compat: ``released`` shrinks the means of several frames by size / (size + 1e-4).
    """

    source: ClassVar[str] = "arXiv:2504.17040, section 3"
    scope: ClassVar[Scope] = "video"
    needs: ClassVar[tuple[str, ...]] = ()
    modalities: ClassVar[tuple[str, ...]] = ("video",)
    causal: ClassVar[bool] = False
    layouts: ClassVar[tuple[Layout, ...]] = ("ragged",)
    scale_free: ClassVar[bool] = True
    version: ClassVar[int] = 1
    exact: ClassVar[bool] = True
    where: ClassVar[Where] = "encoder"
    golden: ClassVar[tuple[str, ...]] = ("dymu",)

    threshold: Annotated[float, Field(ge=-1, le=1)] = 0.85
    r: Annotated[int, Field(ge=0)] = 0
    class_token: bool = False
    compat: Literal["paper", "released"] = "paper"

    def decide(
        self, tokens: TokenBatch, budget: int | None, query: Query | None = None
    ) -> TokenMap:
        """Merge the best pairs of all frames.

        Returns:
            Rows frame after frame, each in the order of ToMe. Where protected tokens leave
            nothing to merge, the last rows are dropped.
        """
        n, device = len(tokens), tokens.data.device
        if n == 0 or (budget is not None and budget >= n):
            return TokenMap.identity(n, device)
        groups, rule = groups_of(tokens, 1), Rule(protected=Protected(self.class_token))
        plans, left = _whole_rounds(rule, groups, budget)
        gather = Gatherer(groups, device)
        frames = _last_pairs(tokens, gather, plans, rule)
        if budget is None and not self.r:
            moves = _above(frames, self.threshold)
        elif budget is None:
            moves = _best(frames, self.r * len(frames), least=0.0)
        else:
            moves = _best(frames, left)
        parts = [_merged(frame, r, rule) for frame, r in zip(frames, moves, strict=True)]
        rows = [part.anchor.shape[1] for part in parts]
        if budget is not None and sum(rows) > budget:
            rows = largest_remainder(budget, rows, caps=rows)
        decision = gather.join(parts, rows, tokens.mass)
        several = self.compat == "released" and len(frames) > 1
        return _shrunk(decision, tokens.mass) if several else decision

    def out_count(self, n: int, budget: int | None) -> tuple[int, bool]:
        """Rows for ``n`` tokens of a video: the budget, else a bound."""
        return (n, False) if budget is None else (min(n, budget), True)


@dataclass(frozen=True, slots=True)
class _Frame:
    """A frame before its last round; ``pairs`` None where one row is left."""

    part: Part
    pairs: Pairs | None
    room: int


def _whole_rounds(rule: Rule, groups: Groups, budget: int | None) -> tuple[list[Plan], int]:
    """Rounds that merge all they can in every frame, and the merges left to a last one."""
    sizes, rounds = list(groups.sizes), []
    left = 0 if budget is None else sum(sizes) - budget
    while budget is not None and left:
        rooms = [rule.room(n) for n in sizes]
        if not 0 < sum(rooms) <= left:
            break
        rounds.append(rooms)
        left -= sum(rooms)
        sizes = [n - room for n, room in zip(sizes, rooms, strict=True)]
    of_group = list(zip(*rounds, strict=True)) if rounds else [()] * len(sizes)
    plans = [
        Plan(first, tuple(room for room in rooms if room), last)
        for first, rooms, last in zip(groups.sizes, of_group, sizes, strict=True)
    ]
    return plans, left


def _last_pairs(
    tokens: TokenBatch, gather: Gatherer, plans: list[Plan], rule: Rule
) -> list[_Frame]:
    """Every frame after its whole rounds, with its best pairs."""
    metric = keys_or_data(tokens)
    found: dict[int, _Frame] = {}
    for ids in gather.batches(plans, metric.shape[1]):
        place = gather.places(ids)
        mass = gather.read(tokens.mass, ids, place)[:, :, 0]
        done = Rounds([gather.read(metric, ids, place)], mass, rule)
        done.run(plans[ids[0]].rounds, last=False)
        kept = done.anchor.shape[1]
        pairs = done.pairs_now() if kept > 1 else None
        for i, frame in enumerate(ids):
            at = slice(i, i + 1)
            part = Part([frame], place[at], done.group[at], done.anchor[at])
            found[frame] = _Frame(part, pairs and pairs.of(i), rule.room(kept))
    return [found[i] for i in range(len(plans))]


def _candidates(frames: list[_Frame]) -> tuple[Tensor, list[int]]:
    """Likeness of all sources, -inf beyond a frame's room, and their number by frame."""
    values = []
    for frame in frames:
        if frame.pairs is None:
            values.append(torch.empty(0, device=frame.part.group.device))
            continue
        value = frame.pairs.best[0].clone()
        value[frame.pairs.order[0, frame.room :]] = -torch.inf
        values.append(value)
    return torch.cat(values), [len(value) for value in values]


def _counts(chosen: Tensor, sizes: list[int]) -> list[int]:
    """Chosen sources of each frame."""
    frame = torch.arange(len(sizes), device=chosen.device)
    frame = frame.repeat_interleave(torch.tensor(sizes, device=chosen.device))
    return torch.bincount(frame[chosen], minlength=len(sizes)).tolist()


def _above(frames: list[_Frame], threshold: float) -> list[int]:
    values, sizes = _candidates(frames)
    return _counts((values > threshold) & (values > -torch.inf), sizes)


def _best(frames: list[_Frame], count: int, *, least: float = -torch.inf) -> list[int]:
    """How many of the ``count`` best pairs of all frames lie in each; ties to the earlier."""
    values, sizes = _candidates(frames)
    chosen = torch.zeros_like(values, dtype=torch.bool)
    chosen[torch.argsort(values, descending=True, stable=True)[:count]] = True
    return _counts(chosen & (values > -torch.inf) & (values >= least), sizes)


def _merged(frame: _Frame, remove: int, rule: Rule) -> Part:
    """A frame after its last round."""
    if frame.pairs is None or not remove:
        return frame.part
    match = merge_best(frame.pairs, remove, protected=rule.protected)
    part = frame.part
    return replace(
        part, group=match.group.gather(1, part.group), anchor=part.anchor.gather(1, match.anchor)
    )


def _shrunk(decision: TokenMap, mass: Tensor) -> TokenMap:
    """Sums divided by size + 1e-4 in place of the size."""
    size = torch.zeros(len(decision), device=mass.device)
    size.index_add_(0, decision.dst, decision.share * mass[decision.src])
    return replace(decision, weight=decision.weight * (size / (size + 1e-4))[decision.dst])
