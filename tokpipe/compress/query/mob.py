"""Keep tokens that cover the prompt, then tokens that cover the picture.

Source: Li et al., "Why 1 + 1 < 1 in Visual Token Pruning: Beyond Naive Integration via
Multi-Objective Balanced Covering" (MoB), NeurIPS 2025, arXiv:2505.10118, algorithm 1.
Differs: no code was released. Of a token near to several prompt vectors the largest cosine counts;
with a budget, what prompt centres do not use goes to the picture. Runs on encoder outputs, the
paper's on the hidden states of the second layer of the language model.

Shapes: data [N, D], prompt [L, E]; keeps min(budget, N): prompt centres by decreasing cosine, then
picks, each farthest from all kept.
Passes: 1 N x K and 1 N x L, in blocks of rows; beyond 1024 tokens most wait to follow many picks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from tokpipe.compress._columns import compared
from tokpipe.compress._cosine import Cosines
from tokpipe.compress._farthest import farthest_first
from tokpipe.compress._relevance import text_cosines
from tokpipe.frames import each_frame
from tokpipe.spec import Layout, Scope, Where
from tokpipe.tensors import Query, TokenBatch, TokenMap


@dataclass(frozen=True, slots=True, kw_only=True)
class MoB:
    """Balanced covering of prompt and picture.

    The prompt is ``Query.tokens``, else ``Query.pooled``. Each of its vectors proposes its
    nearest tokens; the best of all proposals become prompt centres.

    Attributes:
        prompt: Prompt centres when no budget is given, 0 or more.
        picture: Further picks when no budget is given, 0 or more; with both None everything stays.
        share: Part of a budget that prompt centres may take, 0 to 1 (rounded down).
        nearest: Tokens that each prompt vector proposes, 1 or more; None: an eighth of the prompt
            centres, at least one.

    Example:
        >>> data = torch.tensor([[0.1, 1.0], [1.0, 0.0], [1.0, 0.1], [-1.0, 0.0]])
        >>> tokens = TokenBatch.build(data, torch.zeros(4).double())
        >>> query = Query(text="a", pooled=torch.tensor([[1.0, 0.0]]))
        >>> MoB(share=0.5).decide(tokens, 2, query).anchor.tolist()
        [1, 3]
    """

    source: ClassVar[str] = "arXiv:2505.10118, algorithm 1"
    scope: ClassVar[Scope] = "frame"
    needs: ClassVar[tuple[str, ...]] = ("query",)
    modalities: ClassVar[tuple[str, ...]] = ("video", "audio")
    causal: ClassVar[bool] = False
    layouts: ClassVar[tuple[Layout, ...]] = ("ragged",)
    scale_free: ClassVar[bool] = True
    version: ClassVar[int] = 1
    exact: ClassVar[bool] = True
    where: ClassVar[Where] = "llm"
    golden: ClassVar[tuple[str, ...]] = ("mob_paper",)

    prompt: Annotated[int, Field(ge=0)] | None = None
    picture: Annotated[int, Field(ge=0)] | None = None
    share: Annotated[float, Field(ge=0, le=1)] = 0.4375
    nearest: Annotated[int, Field(ge=1)] | None = None

    def decide(
        self, tokens: TokenBatch, budget: int | None, query: Query | None = None
    ) -> TokenMap:
        """Keep ``budget`` tokens of each frame, shared in proportion.

        Returns:
            Prompt centres by decreasing cosine, then picks in their order, frame after frame.

        Raises:
            RecipeError: There is no query, or the tokens lack the column of its space.
        """
        compared(tokens, query, "mob")
        return each_frame(tokens, budget, lambda part, rows: self._frame(part, rows, query))

    def out_count(self, n: int, budget: int | None) -> tuple[int, bool]:
        """Rows for ``n`` tokens of one frame; a bound where prompt centres may be missing."""
        if budget is not None:
            return min(n, budget), True
        if self.prompt is None and self.picture is None:
            return n, True
        return min(n, (self.prompt or 0) + (self.picture or 0)), False

    def coupling(self, tokens: TokenBatch, query: Query | None) -> Tensor:
        """Hausdorff distance of the normalised tokens and prompt, 0 to 2: large is weak coupling.

        The paper gives the prompt a larger share (7/16 to 1/2) where it is large, and 1/4 to 3/8
        where it is small.
        """
        alike = self._cosines(tokens, query)
        apart = (2 - 2 * alike).clamp(min=0).sqrt()
        return torch.maximum(apart.amin(1).amax(), apart.amin(0).amax())

    def _frame(self, tokens: TokenBatch, budget: int | None, query: Query | None) -> TokenMap:
        n, device = len(tokens), tokens.data.device
        if budget is not None:
            count = min(n, budget)
            centres, picks = int(self.share * count), count
        elif self.prompt is None and self.picture is None:
            return TokenMap.identity(n, device)
        else:
            centres, picks = self.prompt or 0, self.picture or 0
        if budget is not None and count == n:
            return TokenMap.identity(n, device)
        alike = self._cosines(tokens, query)
        chosen = _centres(alike, centres, self.nearest or max(1, centres // 8))
        left = picks - chosen.shape[0] if budget is not None else picks
        count = chosen.shape[0] + min(left, n - chosen.shape[0])
        if not count:
            return TokenMap.keep(chosen, n)
        # Without prompt centres the first token begins.
        first = chosen if chosen.shape[0] else torch.zeros(1, dtype=torch.int64, device=device)
        kept, _ = farthest_first(Cosines(tokens.data[None], pairs=0), count, first=first[None])
        return TokenMap.keep(kept[0], n)

    def _cosines(self, tokens: TokenBatch, query: Query | None) -> Tensor:
        vectors, asked = compared(tokens, query, "mob")
        return text_cosines(vectors, asked.pooled if asked.tokens is None else asked.tokens)


def _centres(alike: Tensor, count: int, nearest: int) -> Tensor:
    """At most ``count`` tokens of the ``nearest`` ones of each prompt vector, by cosine [N, L]."""
    order = torch.argsort(alike, dim=0, descending=True, stable=True)[:nearest]
    proposed = torch.full_like(alike[:, 0], -torch.inf)
    value = alike.gather(0, order)
    proposed = proposed.scatter_reduce(0, order.flatten(), value.flatten(), "amax")
    best = torch.argsort(proposed, descending=True, stable=True)[:count]
    return best[proposed[best] > -torch.inf]
