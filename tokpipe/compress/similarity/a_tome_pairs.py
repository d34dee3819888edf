"""Merge the most alike of the disjoint pairs (0, 1), (2, 3) and so on.

Source: Li et al., "Accelerating Transducers through Adjacent Token Merging", Interspeech 2023,
arXiv:2306.16009; as read by the baseline of the SA-MAP repository (AngelSlim) after the projector.
Differs: with a budget below half the tokens further rounds follow on the merged tokens, where the
baseline stops at half.

Shapes: N tokens in order of time; rows in order of time. Cost: O(N D + N log N).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from tokpipe.compress._adjacent import merge_rounds, metric_of, ranks
from tokpipe.spec import Layout, Scope, Where
from tokpipe.tensors import Query, TokenBatch, TokenMap


@dataclass(frozen=True, slots=True, kw_only=True)
class ATomePairs:
    """Adjacent token merging, second reading: fixed pairs, the best ones merged.

    Links are cosines of the extra ``keys`` ([N, D'], or [N, heads, D'] with heads put end to
    end) where the encoder offers it, else of the data. A pair becomes its plain mean and takes
    the place of its first token.

    Attributes:
        keep: Part of the tokens kept when no budget is given, 0 .. 1; at least 2 tokens, and
            never fewer than half in one round.
        size_weighted: Weight means by mass, so that later rounds are not biased.

    Example:
        >>> data = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [1.0, 1.0]])
        >>> tokens = TokenBatch.build(data, torch.arange(4).double())
        >>> ATomePairs().decide(tokens, budget=3).dst.tolist()
        [0, 1, 2, 2]
    """

    source: ClassVar[str] = "arXiv:2306.16009; SA-MAP repository, baseline"
    scope: ClassVar[Scope] = "video"
    needs: ClassVar[tuple[str, ...]] = ()
    modalities: ClassVar[tuple[str, ...]] = ("audio",)
    causal: ClassVar[bool] = False
    layouts: ClassVar[tuple[Layout, ...]] = ("ragged",)
    scale_free: ClassVar[bool] = True
    version: ClassVar[int] = 1
    exact: ClassVar[bool] = True
    where: ClassVar[Where] = "encoder"
    golden: ClassVar[tuple[str, ...]] = ("samap_suite",)

    keep: Annotated[float, Field(ge=0, le=1)] = 0.6
    size_weighted: bool = False

    def decide(
        self, tokens: TokenBatch, budget: int | None, query: Query | None = None
    ) -> TokenMap:
        """Merge pairs of neighbours.

        Returns:
            Rows in order of time: exactly min(budget, N), or ``keep`` of them but at least half.
        """
        n = len(tokens)
        target, _ = self.out_count(n, budget)
        if target >= n:
            return TokenMap.identity(n, tokens.data.device)
        metric = metric_of(tokens, "joined")
        return merge_rounds(tokens, metric, max(1, target), _best, size_weighted=self.size_weighted)

    def out_count(self, n: int, budget: int | None) -> tuple[int, bool]:
        """Rows for ``n`` tokens, exact."""
        if budget is not None:
            return min(n, budget), True
        return min(n, max(round(n * self.keep), 2, n - n // 2)), True


def _best(links: Tensor, remove: int) -> Tensor:
    mask = torch.zeros(links.shape[0], dtype=torch.bool, device=links.device)
    mask[::2] = ranks(links[::2]) < remove
    return mask
