"""Average runs of neighbours that are alike beyond a threshold.

Source: Xiang et al., "Do We Need Distinct Representations for Every Speech Token?", Findings of
ACL 2026, arXiv:2604.06871 (Affinity Pooling at the input).
Differs: only the input part; the same merge in deep layers of the language model is not ours to
run. With a budget the most alike links close, as many as it takes, whatever the threshold. No
code was public; written from the description.

Shapes: N tokens in order of time; rows in order of time. Cost: O(N D + N log N).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from tokpipe.compress._adjacent import adjacent_cosine, joined, ranks
from tokpipe.spec import Layout, Scope, Where
from tokpipe.tensors import Query, TokenBatch, TokenMap


@dataclass(frozen=True, slots=True, kw_only=True)
class AffinityPooling:
    """Neighbours whose cosine reaches the threshold share a token, their plain mean.

    A row takes the place of its first token.

    Attributes:
        threshold: Smallest cosine of neighbours that merge when no budget is given, -1 .. 1.

    Example:
        >>> import torch
        >>> data = torch.tensor([[1.0, 0.0], [1.0, 0.1], [1.0, 0.2], [0.0, 1.0]])
        >>> tokens = TokenBatch.build(data, torch.arange(4).double())
        >>> AffinityPooling().decide(tokens, None).dst.tolist()
        [0, 0, 0, 1]
    """

    source: ClassVar[str] = "arXiv:2604.06871"
    scope: ClassVar[Scope] = "video"
    needs: ClassVar[tuple[str, ...]] = ()
    modalities: ClassVar[tuple[str, ...]] = ("audio",)
    causal: ClassVar[bool] = False
    layouts: ClassVar[tuple[Layout, ...]] = ("ragged",)
    scale_free: ClassVar[bool] = True
    version: ClassVar[int] = 1
    exact: ClassVar[bool] = True
    where: ClassVar[Where] = "outputs"
    golden: ClassVar[tuple[str, ...]] = ()

    threshold: Annotated[float, Field(ge=-1, le=1)] = 0.85

    def decide(
        self, tokens: TokenBatch, budget: int | None, query: Query | None = None
    ) -> TokenMap:
        """Merge runs.

        Returns:
            Rows in order of time: exactly min(budget, N), or what the threshold leaves.
        """
        n = len(tokens)
        if n < 2 or (budget is not None and budget >= n):
            return TokenMap.identity(n, tokens.data.device)
        links = adjacent_cosine(tokens.data)
        close = links >= self.threshold if budget is None else ranks(links) < n - max(1, budget)
        group = joined(close)
        return TokenMap.mean(group, int(group[-1]) + 1)

    def out_count(self, n: int, budget: int | None) -> tuple[int, bool]:
        """Rows for ``n`` tokens; how many the threshold leaves is not known before."""
        return (n, False) if budget is None else (min(n, max(1, budget)), True)
