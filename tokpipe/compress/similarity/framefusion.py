"""Merge tokens into the token before them at the same place, round by round.

Source: Fu et al., "FrameFusion: Combining Similarity and Importance for Video Token Reduction on
Large Vision Language Models", arXiv:2501.01986, section 4.2 (merging stage).
Differs: works on one item's tokens at once (there between shallow layers of the LLM, where the
features change between rounds); the pruning by attention that follows there is left to other
operators; rounds that have cost too much already merge all they may (an error there). As released,
means are not weighted by what a token already stands for.

A token is merged when its cosine to the token before it at its place is at least ``threshold``,
but never more than what the computation budget ``cost`` asks for: then the most similar are
merged, and no round follows. A run of merged tokens and the token before it become their mean, at
the place of that token.

Shapes: tokens of T frames, any places; rows stay in order. With a budget one round merges the
N - budget most similar; where even one token a place is too many, evenly spread ones are kept.
Cost: O(N D) each round.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from tokpipe.compress._heads import spread
from tokpipe.compress._tracks import NOTHING, Tracks, cosines, highest
from tokpipe.spec import Layout, Scope, Where
from tokpipe.tensors import Query, TokenBatch, TokenMap


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameFusion:
    """Temporal merging under a computation budget.

    Attributes:
        threshold: Cosine from which a token is merged into the one before it, -1 to 1.
        cost: Computation to be left, as a part of all layers on all tokens, above 0 to 1.
        stop_below: No further round when less than this part of the tokens was similar, 0 to 1.
        layers: Layers of the language model that ``cost`` counts, 1 or more.
        rounds: Most rounds, 1 or more; ``layers`` must exceed it.

    Example:
        >>> data = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
        >>> tokens = TokenBatch.build(data, torch.arange(3).double())
        >>> FrameFusion().decide(tokens, None).dst.tolist()
        [0, 0, 1]
    """

    source: ClassVar[str] = "arXiv:2501.01986, section 4.2"
    scope: ClassVar[Scope] = "video"
    needs: ClassVar[tuple[str, ...]] = ()
    modalities: ClassVar[tuple[str, ...]] = ("video",)
    causal: ClassVar[bool] = False
    layouts: ClassVar[tuple[Layout, ...]] = ("ragged",)
    scale_free: ClassVar[bool] = True
    version: ClassVar[int] = 1
    exact: ClassVar[bool] = True
    where: ClassVar[Where] = "llm"
    golden: ClassVar[tuple[str, ...]] = ("framefusion",)

    threshold: Annotated[float, Field(ge=-1, le=1)] = 0.6
    cost: Annotated[float, Field(gt=0, le=1)] = 0.3
    stop_below: Annotated[float, Field(ge=0, le=1)] = 0.1
    layers: Annotated[int, Field(ge=2)] = 28
    rounds: Annotated[int, Field(ge=1, le=1000)] = 1

    def __post_init__(self) -> None:
        """Check that the rounds leave a layer."""
        if self.rounds >= self.layers:
            raise ValueError("rounds must be below layers")

    def decide(
        self, tokens: TokenBatch, budget: int | None, query: Query | None = None
    ) -> TokenMap:
        """Merge repeats."""
        n, device = len(tokens), tokens.data.device
        if n == 0:
            return TokenMap.identity(0, device)
        tracks = Tracks.of(tokens)
        if budget is not None:
            return _to_count(tokens.data, tracks, min(budget, n))
        data, group = tokens.data, torch.arange(n, device=device)
        weight, anchor = torch.ones(n, device=device), group
        sparsity: list[float] = []
        for step in range(self.rounds):
            alike = cosines(data, tracks.previous(), tracks.size)
            spent = _work(sparsity)[1] > self.layers * self.cost
            bound = 1.0 if spent else prune_ratio(sparsity, self.cost, self.layers)
            similar = (alike >= self.threshold) & (alike > NOTHING)
            part = float(similar.sum()) / len(alike)
            last = part >= bound or part < self.stop_below or step == self.rounds - 1
            if part >= bound:
                similar = highest(alike, int(bound * len(alike)))
            similar &= alike > NOTHING
            sparsity.append(part)
            into, size = _runs(similar, tracks)
            weight = weight / size[into][group]
            group, anchor = into[group], anchor[~similar]
            if last:
                break
            data, tracks = _means(data, into, size), _rest(tracks, similar)
        made = TokenMap.mean(group, anchor.shape[0], anchor=anchor)
        return replace(made, weight=weight)

    def out_count(self, n: int, budget: int | None) -> tuple[int, bool]:
        """Most rows for ``n`` tokens, exact with a budget."""
        return (n, False) if budget is None else (min(n, budget), True)


def prune_ratio(sparsity: Sequence[float], cost: float, layers: int) -> float:
    """Part of the tokens to remove so that all layers together cost ``cost``, 0 to 1.

    Args:
        sparsity: Part removed in each layer so far.
        cost: Computation allowed, as a part of all layers on all tokens.
        layers: Layers in all, more than ``sparsity`` holds.

    Raises:
        ValueError: The layers so far have spent more than ``cost``.
    """
    left, spent = _work(sparsity)
    over = layers * cost - spent
    if over < 0:
        raise ValueError(f"the first {len(sparsity)} layers cost more than {cost} of all")
    most = (layers - len(sparsity)) * left
    return 0.0 if over >= most else 1 - over / most


def _work(sparsity: Sequence[float]) -> tuple[float, float]:
    """Tokens left after the layers so far, and their work in whole layers of all tokens."""
    left, spent = 1.0, 0.0
    for part in sparsity:
        left *= 1 - part
        spent += left
    return left, spent


def _to_count(data: Tensor, tracks: Tracks, count: int) -> TokenMap:
    """Merge the most similar down to ``count`` rows."""
    n = data.shape[0]
    alike = cosines(data, tracks.previous(), tracks.size)
    similar = highest(alike, n - count) & (alike > NOTHING)
    group, _ = _runs(similar, tracks)
    anchor = torch.nonzero(~similar).flatten()
    if (rows := anchor.shape[0]) > count:
        one = torch.zeros(rows, dtype=torch.int64, device=anchor.device)
        size, most = torch.tensor([rows]), torch.tensor([count])
        stays = spread(one, size.to(one.device), most.to(one.device))
        number = torch.where(stays, stays.cumsum(0) - 1, -1)
        group, anchor = number[group], anchor[stays]
    return TokenMap.mean(group, anchor.shape[0], anchor=anchor)


def _runs(similar: Tensor, tracks: Tracks) -> tuple[Tensor, Tensor]:
    """Row int64 [N] of each token, and tokens float32 [K] of each row."""
    head = tracks.latest(~similar)
    number = (~similar).cumsum(0) - 1
    group = number[head]
    return group, torch.bincount(group).float()


def _means(data: Tensor, group: Tensor, size: Tensor) -> Tensor:
    """Means float32 [K, D] of each group of rows."""
    out = torch.zeros((size.shape[0], data.shape[1]), device=data.device)
    return out.index_add_(0, group, data.float()) / size[:, None]


def _rest(tracks: Tracks, gone: Tensor) -> Tracks:
    """The tracks without the tokens ``gone`` bool [N], numbered anew."""
    number = (~gone).cumsum(0) - 1
    stays = ~gone[tracks.order]
    before = stays.cumsum(0) - stays.long()
    frame = tracks.frame[~gone]
    counts = torch.bincount(frame, minlength=tracks.counts.shape[0])
    order = number[tracks.order[stays]]
    return Tracks(order, before[tracks.start[stays]], frame, counts, None)
