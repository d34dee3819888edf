"""Score tokens by their likeness to the text of the query.

Source: Radford et al., "Learning Transferable Visual Models From Natural Language Supervision"
(CLIP), ICML 2021, arXiv:2103.00020, section 3.1.2 (cosine of both embeddings), token by token.
Differs: several text segments are averaged, or the most alike counts.

Shapes: tokens [N, E], text [M, E]. Nothing is removed without a budget; with one the highest
scores stay. Cost: O(N M E). Put it before any rule that looks at the score: `top-k`, `cdpruner`
with relevance "score".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from tokpipe.compress._columns import compared
from tokpipe.compress._relevance import text_cosines
from tokpipe.spec import Layout, Scope, Where
from tokpipe.tensors import Query, TokenBatch, TokenMap


@dataclass(frozen=True, slots=True, kw_only=True)
class TextScore:
    """Writes the column ``score``: cosine of each token with the query, -1 to 1.

    Attributes:
        by: Text vectors: ``pooled``, one per segment, or ``tokens``, one per word piece.
        over: ``mean`` or ``max`` over the text vectors.

    Example:
        >>> data = torch.tensor([[0.0, 2.0], [3.0, 0.0]])
        >>> tokens = TokenBatch.build(data, torch.zeros(2).double())
        >>> query = Query(text="a", pooled=torch.tensor([[1.0, 0.0]]))
        >>> tokens.reduce(TextScore().decide(tokens, None, query)).score.tolist()
        [0.0, 1.0]
    """

    source: ClassVar[str] = "arXiv:2103.00020, section 3.1.2"
    scope: ClassVar[Scope] = "video"
    needs: ClassVar[tuple[str, ...]] = ("query",)
    modalities: ClassVar[tuple[str, ...]] = ("video", "audio")
    causal: ClassVar[bool] = True
    layouts: ClassVar[tuple[Layout, ...]] = ("ragged",)
    version: ClassVar[int] = 1
    gives: ClassVar[tuple[str, ...]] = ("score",)
    exact: ClassVar[bool] = True
    where: ClassVar[Where] = "outputs"
    golden: ClassVar[tuple[str, ...]] = ()

    by: Literal["pooled", "tokens"] = "pooled"
    over: Literal["mean", "max"] = "mean"

    def decide(
        self, tokens: TokenBatch, budget: int | None, query: Query | None = None
    ) -> TokenMap:
        """Score all tokens; with a budget keep the ``budget`` highest.

        Returns:
            Rows in the order they come.

        Raises:
            RecipeError: There is no query, or the tokens lack the column of its space.
        """
        vectors, asked = compared(tokens, query, "text-score")
        texts = asked.tokens if self.by == "tokens" and asked.tokens is not None else asked.pooled
        found = text_cosines(vectors, texts)
        score = found.mean(1) if self.over == "mean" else found.amax(1)
        count, _ = self.out_count(len(tokens), budget)
        order = torch.argsort(score, descending=True, stable=True)
        index = order[:count].sort().values
        return TokenMap.keep(index, len(tokens), score=score[index])

    def out_count(self, n: int, budget: int | None) -> tuple[int, bool]:
        """Rows for ``n`` tokens, exact."""
        return n if budget is None else min(n, budget), True
