"""Merge neighbours in pairs, the most alike pair first, each token at most once.

Source: Li et al., "Accelerating Transducers through Adjacent Token Merging", Interspeech 2023,
arXiv:2306.16009 (fixed ratio and fixed threshold); as read by "Token Merging for Multilingual
ASR", ICNLSP 2026, inside Whisper.
Differs: runs on the encoder's output instead of between attention and feed-forward; with a budget
rounds follow each other on the merged tokens until it is met.

Shapes: N tokens in order of time; rows in order of time. Cost: O(N D + N log N), no loop over
pairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from tokpipe.compress._adjacent import greedy_pairs, merge_rounds, metric_of, ranks
from tokpipe.spec import Layout, Scope, Where
from tokpipe.tensors import Query, TokenBatch, TokenMap


@dataclass(frozen=True, slots=True, kw_only=True)
class ATomeGreedy:
    """Adjacent token merging, third reading: pairs by decreasing similarity.

    Links are cosines of the extra ``keys`` ([N, D'], or [N, heads, D'] averaged over heads)
    where the encoder offers it, else of the data. A pair becomes its plain mean and takes the
    place of its first token. With a budget neither ``ratio`` nor ``threshold`` applies.

    Attributes:
        ratio: Most pairs merged when no budget is given, as a part of the links, 0 .. 0.5.
        threshold: Only pairs more alike than this merge, however many, -1 .. 1; None uses
            ``ratio``.
        size_weighted: Weight means by mass, so that later rounds are not biased.

    Example:
        >>> data = torch.tensor([[1.0, 0.0], [1.0, 0.2], [1.0, 0.3], [0.0, 1.0]])
        >>> tokens = TokenBatch.build(data, torch.arange(4).double())
        >>> ATomeGreedy(threshold=0.9).decide(tokens, None).dst.tolist()
        [0, 1, 1, 2]
    """

    source: ClassVar[str] = "arXiv:2306.16009"
    scope: ClassVar[Scope] = "video"
    needs: ClassVar[tuple[str, ...]] = ()
    modalities: ClassVar[tuple[str, ...]] = ("audio",)
    causal: ClassVar[bool] = False
    layouts: ClassVar[tuple[Layout, ...]] = ("ragged",)
    scale_free: ClassVar[bool] = True
    version: ClassVar[int] = 1
    exact: ClassVar[bool] = True
    where: ClassVar[Where] = "encoder"
    golden: ClassVar[tuple[str, ...]] = ("atome_greedy",)

    ratio: Annotated[float, Field(ge=0, le=0.5)] = 0.3
    threshold: Annotated[float, Field(ge=-1, le=1)] | None = None
    size_weighted: bool = False

    def decide(
        self, tokens: TokenBatch, budget: int | None, query: Query | None = None
    ) -> TokenMap:
        """Merge pairs of neighbours.

        Returns:
            Rows in order of time: exactly min(budget, N), or what one round leaves.
        """
        n = len(tokens)
        if n < 2 or (budget is not None and budget >= n):
            return TokenMap.identity(n, tokens.data.device)
        metric = metric_of(tokens, "mean")
        if budget is None:
            return merge_rounds(
                tokens, metric, 1, self._one_round, rounds=1, size_weighted=self.size_weighted
            )
        return merge_rounds(tokens, metric, max(1, budget), _best, size_weighted=self.size_weighted)

    def out_count(self, n: int, budget: int | None) -> tuple[int, bool]:
        """Rows for ``n`` tokens; how many pairs one round finds is not known before."""
        return (n, False) if budget is None else (min(n, budget), True)

    def _one_round(self, links: Tensor, remove: int) -> Tensor:
        if self.threshold is None:
            return _best(links, int(links.shape[0] * self.ratio))
        return greedy_pairs(ranks(links)) & (links > self.threshold)


def _best(links: Tensor, remove: int) -> Tensor:
    """The first ``remove`` greedy pairs."""
    rank = ranks(links)
    taken = greedy_pairs(rank)
    return taken & (ranks(links.masked_fill(~taken, -torch.inf)) < remove)
