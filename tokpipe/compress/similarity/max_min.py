"""Keep the tokens that lie farthest apart (max-min diversity).

Source: Alvar et al., "DivPrune: Diversity-based Visual Token Pruning", CVPR 2025,
arXiv:2503.02175, section 3.2 (Max-Min Diversity Problem, greedy).
Differs: no token is picked twice, also where all are equal; the least distance is updated pick by
pick, so memory is O(N); zero rows are at distance 1 from everything.

Shapes: data [N, D]; keeps min(budget, N). Distance 1 - cosine. First pick: the token farthest from
its nearest other; then always the one farthest from all picks. Cost: O(N^2 D) time once for the
first pick, in blocks, then O(k N D).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from tokpipe.compress._neighbors import nearest_other, unit_rows
from tokpipe.spec import Layout
from tokpipe.tensors import Query, TokenBatch, TokenMap


@dataclass(frozen=True, slots=True, kw_only=True)
class MaxMin:
    """A diverse subset, in the order of the picks.

    Attributes:
        ratio: Part of the tokens kept when no budget is given, above 0 to 1 (rounded half to
            even, at least one).
        scope: Diversity within a frame, or over the whole video.

    Example:
        >>> data = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]])
        >>> tokens = TokenBatch.build(data, torch.zeros(3).double())
        >>> MaxMin().decide(tokens, budget=2).anchor.tolist()
        [2, 0]
    """

    source: ClassVar[str] = "arXiv:2503.02175, section 3.2"
    needs: ClassVar[tuple[str, ...]] = ()
    modalities: ClassVar[tuple[str, ...]] = ("video", "audio")
    causal: ClassVar[bool] = False
    layouts: ClassVar[tuple[Layout, ...]] = ("ragged",)
    version: ClassVar[int] = 1
    gives: ClassVar[tuple[str, ...]] = ("score",)
    exact: ClassVar[bool] = True

    ratio: Annotated[float, Field(gt=0, le=1)] = 1.0
    scope: Literal["frame", "video"] = "frame"

    def decide(
        self, tokens: TokenBatch, budget: int | None, query: Query | None = None
    ) -> TokenMap:
        """Keep ``budget`` tokens in pick order.

        Returns:
            ``score`` is the distance to the picks before, never rising; 2 for the first.
        """
        n = len(tokens)
        count, _ = self.out_count(n, budget)
        if count >= n:
            return TokenMap.identity(n, tokens.data.device)
        picks, score = farthest_first(unit_rows(tokens.data), count)
        return TokenMap.keep(picks, n, score=score)

    def out_count(self, n: int, budget: int | None) -> tuple[int, bool]:
        """Rows for ``n`` tokens, exact."""
        if budget is None:
            return min(n, max(1, round(self.ratio * n))), True
        return min(n, budget), True


def farthest_first(unit: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Pick ``count`` of the rows of ``unit`` float32 [N, D], 1 <= count <= N, greedily.

    Returns:
        (picks int64 [count], least distance to earlier picks float32 [count], never rising).
    """
    n, device = unit.shape[0], unit.device
    picks = torch.empty(count, dtype=torch.int64, device=device)
    apart = torch.empty(count, device=device)
    least = torch.full((n,), 2.0, device=device)
    if n > 1:
        picks[0] = nearest_other(unit).argmin()
    else:
        picks[0] = 0
    apart[0] = 2.0
    for i in range(1, count):
        last = picks[i - 1 : i]
        least = torch.minimum(least, 1 - unit @ unit[last[0]])
        least.index_fill_(0, last, -torch.inf)
        best = least.max(0)
        picks[i], apart[i] = best.indices, best.values
    return picks, apart.cummin(0).values
