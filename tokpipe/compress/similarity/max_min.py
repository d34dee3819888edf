"""Keep the tokens that lie farthest apart (max-min diversity).

Source: Alvar et al., "DivPrune: Diversity-based Visual Token Pruning", CVPR 2025,
arXiv:2503.02175, section 3.2 (Max-Min Diversity Problem, greedy).
Differs: no token is picked twice, also where all are equal; the least distance is updated pick by
pick; zero rows are at distance 1 from everything.

Shapes: data [N, D]; keeps min(budget, N). Distance 1 - cosine. First pick: the token farthest from
its nearest other; then always the one farthest from all picks.
Passes: 1 N x N in blocks of rows for the first pick, 1 N x K for the others. Beyond 4096 tokens
cosines are not kept, and the least distances of most tokens wait to follow many picks at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from tokpipe.compress._cosine import DENSE, Cosines
from tokpipe.compress._farthest import farthest_first
from tokpipe.compress._stacks import Rows, stacks
from tokpipe.spec import Layout, Where
from tokpipe.tensors import Query, TokenBatch, TokenMap


@dataclass(frozen=True, slots=True, kw_only=True)
class MaxMin:
    """A diverse subset, in the order of the picks.

    Attributes:
        ratio: Part of the tokens kept when no budget is given, above 0 to 1 (rounded half to
            even, at least one).
        scope: Diversity within a frame, or over the whole video.

    Example:
        >>> import torch
        >>> data = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]])
        >>> tokens = TokenBatch.build(data, torch.zeros(3).double())
        >>> MaxMin().decide(tokens, budget=2).anchor.tolist()
        [2, 0]
    """

    source: ClassVar[str] = "arXiv:2503.02175, section 3.2"
    needs: ClassVar[tuple[str, ...]] = ()
    modalities: ClassVar[tuple[str, ...]] = ("video", "audio")
    causal: ClassVar[bool] = False
    where: ClassVar[Where] = "outputs"
    golden: ClassVar[tuple[str, ...]] = ("divprune",)
    layouts: ClassVar[tuple[Layout, ...]] = ("ragged",)
    scale_free: ClassVar[bool] = True
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
        if budget is not None and budget >= n:
            return TokenMap.identity(n, tokens.data.device)
        rows = Rows(n, tokens.data.device)
        for stack in stacks(tokens, budget, self.scope, DENSE):
            count = self._own(stack.index.shape[1]) if stack.quota is None else stack.most
            picks, score = farthest_first(Cosines(stack.of(tokens.data)), count)
            rows.add(stack, picks, stack.within(count), score=score)
        return rows.keep()

    def out_count(self, n: int, budget: int | None) -> tuple[int, bool]:
        """Rows for ``n`` tokens, exact."""
        if budget is None:
            return self._own(n), True
        return min(n, budget), True

    def _own(self, n: int) -> int:
        return min(n, max(1, round(self.ratio * n)))
