"""Keep the sound that resembles the query, second by second, then what attention favours.

Source: Lin et al., "SpeechPrune: Context-aware Token Pruning for Speech Information Retrieval",
ICME 2025, arXiv:2412.12009, equations 4 to 12.
Differs: no code was public. A second's part is handed out by largest remainder and what it cannot
hold goes to the others, so the count is met; ``compat="released"`` rounds down and caps, as the
equations say, and keeps fewer. The second phase ranks by attention received (the mean over a
token's own keys is constant). Its binarised projections come as columns, see ``binarised``.

Shapes: N tokens in order of time, query [L, E]; rows in order of time.
Cost: O(N L E), and O(S^2 D') for the second phase over S tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from tokpipe.budget import largest_remainder
from tokpipe.compress._columns import column, compared
from tokpipe.compress._neighbors import blocks, unit_rows
from tokpipe.compress._ranked import best_of_each
from tokpipe.spec import Layout, Scope, Where
from tokpipe.tensors import Query, TokenBatch, TokenMap


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeechPrune:
    """Query similarity with a budget for each second, then attention received.

    A token's score is its mean cosine to the query's tokens; a second's part of the count is the
    softmax of its summed scores. The second phase needs the columns ``queries`` and ``keys``
    ([N, D'] or [N, heads, D']).

    Attributes:
        keep: Part of the tokens the first phase keeps when no budget is given, 0 .. 1.
        attended: Part of those that the second phase keeps, 0.001 .. 1; 1 leaves it out.
        seconds: Length of a stretch, 0.01 to 3600 s.
        temperature: Divides the summed scores, 0.001 or more; above 1 evens the parts out.
        compat: ``released`` rounds each part down and hands out no remainder.

    Example:
        >>> data = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.1]])
        >>> tokens = TokenBatch.build(data, torch.arange(3).double() / 25)
        >>> query = Query(text="who", pooled=torch.tensor([[1.0, 0.0]]))
        >>> SpeechPrune().decide(tokens, 2, query).anchor.tolist()
        [0, 2]
    """

    source: ClassVar[str] = "arXiv:2412.12009, equations 4 to 12"
    scope: ClassVar[Scope] = "video"
    needs: ClassVar[tuple[str, ...]] = ("query",)
    modalities: ClassVar[tuple[str, ...]] = ("audio",)
    causal: ClassVar[bool] = False
    layouts: ClassVar[tuple[Layout, ...]] = ("ragged",)
    version: ClassVar[int] = 1
    exact: ClassVar[bool] = True
    where: ClassVar[Where] = "outputs"
    golden: ClassVar[tuple[str, ...]] = ("speechprune",)
    gives: ClassVar[tuple[str, ...]] = ("score",)

    keep: Annotated[float, Field(ge=0, le=1)] = 0.5
    attended: Annotated[float, Field(ge=1e-3, le=1)] = 1.0
    seconds: Annotated[float, Field(ge=0.01, le=3600)] = 1.0
    temperature: Annotated[float, Field(ge=1e-3, le=1e6)] = 1.0
    compat: Literal["paper", "released"] = "paper"

    def decide(
        self, tokens: TokenBatch, budget: int | None, query: Query | None = None
    ) -> TokenMap:
        """Keep what resembles the query.

        Returns:
            Rows in order of time; ``score`` is the similarity.

        Raises:
            RecipeError: There is no query, or a column is missing.
        """
        n, device = len(tokens), tokens.data.device
        value, query = compared(tokens, query, "speechprune")
        if n == 0 or (budget is not None and budget >= n):
            return TokenMap.identity(n, device)
        score = similarity(value, query)
        stretch, parts = self.parts(tokens.at, score)
        sizes = torch.bincount(stretch, minlength=len(parts)).tolist()
        first, second = self._counts(n, budget)
        if self.compat == "released":
            quota = [min(int(first * p), size) for p, size in zip(parts, sizes, strict=True)]
        else:
            quota = largest_remainder(first, parts, caps=sizes)
        index = best_of_each(score, stretch, quota)
        if self.attended < 1:
            received = attention_received(
                column(tokens, "queries", "speechprune")[index],
                column(tokens, "keys", "speechprune")[index],
            )
            left = int(len(index) * self.attended) if second is None else second
            order = torch.argsort(received, descending=True, stable=True)
            index = index[order[:left]].sort().values
        return TokenMap.keep(index, n, score=score[index])

    def out_count(self, n: int, budget: int | None) -> tuple[int, bool]:
        """Rows for ``n`` tokens, exact; a bound with ``released``."""
        first, second = self._counts(n, budget)
        if budget is not None and budget >= n:
            return n, True
        if second is None:
            second = int(first * self.attended)
        return second, self.compat == "paper"

    def parts(self, at: Tensor, score: Tensor) -> tuple[Tensor, list[float]]:
        """Stretch int64 [N] of each token, and each stretch's part of the count."""
        # A millionth of a stretch forgives times that are no round binary fractions.
        number = ((at - at.min()) / self.seconds + 1e-6).floor()
        stretch: Tensor = torch.unique(number, return_inverse=True)[1]
        size = int(stretch.max()) + 1
        total = torch.zeros(size, dtype=torch.float64, device=at.device)
        total.index_add_(0, stretch, score.double())
        return stretch, (total / self.temperature).softmax(0).tolist()

    def _counts(self, n: int, budget: int | None) -> tuple[int, int | None]:
        """Tokens after each phase; None: the part of what the first leaves."""
        if budget is None:
            return round(n * self.keep), None
        return min(n, math.ceil(budget / self.attended)), budget


def similarity(value: Tensor, query: Query) -> Tensor:
    """Mean cosine float32 [N] of each row of ``value`` [N, E] to the query's tokens."""
    value = value.float()
    words = query.pooled if query.tokens is None else query.tokens
    # The mean of the products is the product with the mean of the words' unit vectors.
    product: Tensor = value @ unit_rows(words.to(value.device)).mean(0)
    length: Tensor = torch.linalg.vector_norm(value, dim=1)
    return product / length.clamp(min=1e-12)


def binarised(data: Tensor, weight: Tensor) -> Tensor:
    """Projection by signs alone: sign(data) sign(weight), for the columns of the second phase.

    Args:
        data: [N, D] tokens.
        weight: [D, D'] query or key projection of the language model's first layer.
    """
    return data.float().sign() @ weight.float().sign()


def attention_received(queries: Tensor, keys: Tensor) -> Tensor:
    """Attention float32 [S] each token receives, mean over queries and heads.

    Args:
        queries, keys: float32 [S, D'] or [S, H, D'].
    """
    if queries.ndim == 2:
        queries, keys = queries[:, None], keys[:, None]
    size, heads, width = queries.shape
    total = torch.zeros(size, device=queries.device)
    for head in range(heads):
        for a, b in blocks(size, size):
            logits = queries[a:b, head] @ keys[:, head].T / math.sqrt(width)
            total += logits.softmax(1).sum(0)
    return total / (size * heads) if size else total
