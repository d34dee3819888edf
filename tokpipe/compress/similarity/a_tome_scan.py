"""Mark the most alike neighbours, then merge marked pairs in one scan from left to right.

Source: Li et al., "Accelerating Transducers through Adjacent Token Merging", Interspeech 2023,
arXiv:2306.16009; as read by the baseline of FastAdaSP (EMNLP 2024 industry track,
arXiv:2410.03007).
Differs: runs on the encoder's output instead of between attention and feed-forward. A scan loses
the marks inside a run, so the ratio form removes fewer tokens than it marks, as in the released
baseline; with a budget just enough links are marked to meet it, in several rounds below half.

Shapes: N tokens in order of time; rows in order of time. Cost: O(N D + N log N).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field
from torch import Tensor

from tokpipe.compress._adjacent import every_other, merge_rounds, metric_of, ranks
from tokpipe.spec import Layout, Scope, Where
from tokpipe.tensors import Query, TokenBatch, TokenMap


@dataclass(frozen=True, slots=True, kw_only=True)
class ATomeScan:
    """Adjacent token merging, first reading: overlapping links, one scan.

    Links are cosines of the extra ``keys`` ([N, D'], or [N, heads, D'] with heads put end to
    end) where the encoder offers it, else of the data. A pair becomes its plain mean and takes
    the place of its first token.

    Attributes:
        ratio: Links marked when no budget is given, as a part of the tokens, 0 .. 1.
        size_weighted: Weight means by mass, so that later rounds are not biased.

    Example:
        >>> import torch
        >>> data = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]])
        >>> tokens = TokenBatch.build(data, torch.arange(3).double())
        >>> ATomeScan().decide(tokens, budget=2).dst.tolist()
        [0, 0, 1]
    """

    source: ClassVar[str] = "arXiv:2306.16009; arXiv:2410.03007, baseline"
    scope: ClassVar[Scope] = "video"
    needs: ClassVar[tuple[str, ...]] = ()
    modalities: ClassVar[tuple[str, ...]] = ("audio",)
    causal: ClassVar[bool] = False
    layouts: ClassVar[tuple[Layout, ...]] = ("ragged",)
    scale_free: ClassVar[bool] = True
    version: ClassVar[int] = 1
    exact: ClassVar[bool] = True
    where: ClassVar[Where] = "encoder"
    golden: ClassVar[tuple[str, ...]] = ("fastadasp",)

    ratio: Annotated[float, Field(ge=0, le=1)] = 0.3
    size_weighted: bool = False

    def decide(
        self, tokens: TokenBatch, budget: int | None, query: Query | None = None
    ) -> TokenMap:
        """Merge pairs of neighbours.

        Returns:
            Rows in order of time: exactly min(budget, N), or what one scan of the marked links
            leaves.
        """
        n = len(tokens)
        if n < 2 or (budget is not None and budget >= n):
            return TokenMap.identity(n, tokens.data.device)
        metric, sized = metric_of(tokens, "joined"), self.size_weighted
        if budget is None:
            return merge_rounds(tokens, metric, 1, self._marked, rounds=1, size_weighted=sized)
        return merge_rounds(tokens, metric, max(1, budget), _just_enough, size_weighted=sized)

    def out_count(self, n: int, budget: int | None) -> tuple[int, bool]:
        """Rows for ``n`` tokens; the ratio form removes an unknown part of what it marks."""
        return (n, False) if budget is None else (min(n, budget), True)

    def _marked(self, links: Tensor, remove: int) -> Tensor:
        return every_other(ranks(links) < int((links.shape[0] + 1) * self.ratio))


def _just_enough(links: Tensor, remove: int) -> Tensor:
    """Pairs of the fewest marks that remove ``remove`` tokens; all pairs where none do.

    One mark more removes one token more or none, so halving finds the number.
    """
    rank = ranks(links)
    low, high = remove, links.shape[0]
    while low < high:
        middle = (low + high) // 2
        if int(every_other(rank < middle).sum()) < remove:
            low = middle + 1
        else:
            high = middle
    return every_other(rank < low)
