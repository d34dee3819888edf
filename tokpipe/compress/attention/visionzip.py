"""Keep the most attended tokens and pour the others into a few evenly spaced ones.

Source: Yang et al., "VisionZip: Longer is Better but Not Necessary in Vision Language Models",
CVPR 2025, arXiv:2412.04467, section 3.2.
Differs: a contextual row is the mean of its target and what it takes; the released code adds the
mean of what it takes to the target, about twice the length (``compat="released"``). The class
token is optional. A budget is split as ``dominant`` to ``contextual``. Where few tokens are left,
all of them become targets.

Shapes: N tokens of a frame, attention [N] or [N, H], keys [N, D']; dominant + contextual rows
(one more with a class token).
Passes: 1 N x K of keys at most, in blocks of rows.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field

from tokpipe.compress._absorb import (
    Combine,
    absorb,
    best_first,
    flat_keys,
    others,
    owners,
)
from tokpipe.compress._columns import head_mean
from tokpipe.frames import each_frame
from tokpipe.spec import Layout, Scope, Where
from tokpipe.tensors import Query, TokenBatch, TokenMap


@dataclass(frozen=True, slots=True, kw_only=True)
class VisionZip:
    """Dominant tokens as they are, contextual tokens merged by the similarity of keys.

    Attributes:
        dominant: Most attended tokens kept of a frame when no budget is given, 1 or more, not
            counting the class token; with a budget its part beside ``contextual``.
        contextual: Rows that take the other tokens, 0 or more: every so-many-th of them.
        class_token: Token 0 of each frame is the class token and stays as it is.
        compat: ``released`` makes contextual rows as the authors' code does.

    Example:
        >>> attention = torch.tensor([0.1, 0.6, 0.1, 0.2])
        >>> tokens = TokenBatch.build(torch.eye(4), torch.zeros(4).double())
        >>> tokens = tokens.with_extras(attention=attention, keys=torch.eye(4))
        >>> VisionZip(dominant=1, contextual=1).decide(tokens, None).anchor.tolist()
        [1, 0]
    """

    source: ClassVar[str] = "arXiv:2412.04467, section 3.2"
    scope: ClassVar[Scope] = "frame"
    needs: ClassVar[tuple[str, ...]] = ("attention", "keys")
    modalities: ClassVar[tuple[str, ...]] = ("video",)
    causal: ClassVar[bool] = False
    layouts: ClassVar[tuple[Layout, ...]] = ("ragged",)
    scale_free: ClassVar[bool] = True
    version: ClassVar[int] = 1
    gives: ClassVar[tuple[str, ...]] = ("score",)
    exact: ClassVar[bool] = True
    where: ClassVar[Where] = "outputs"
    golden: ClassVar[tuple[str, ...]] = ("visionzip",)

    dominant: Annotated[int, Field(ge=1)] = 54
    contextual: Annotated[int, Field(ge=0)] = 10
    class_token: bool = False
    compat: Literal["paper", "released"] = "paper"

    def decide(
        self, tokens: TokenBatch, budget: int | None, query: Query | None = None
    ) -> TokenMap:
        """Reduce each frame to its dominant and contextual rows.

        Returns:
            Per frame the dominant tokens in ascending order (the class token first), then the
            contextual rows in ascending order; ``score`` is the attention of the row's place.

        Raises:
            RecipeError: ``attention`` or ``keys`` is missing.
        """
        return each_frame(tokens, budget, self._one)

    def out_count(self, n: int, budget: int | None) -> tuple[int, bool]:
        """Rows for ``n`` tokens: exact with a budget, else a bound."""
        if budget is None:
            return n, n <= self.dominant + self.contextual + self.class_token
        return min(n, budget), True

    def _one(self, tokens: TokenBatch, budget: int | None) -> TokenMap:
        attention = head_mean(tokens, "attention", "visionzip")
        keys = flat_keys(tokens, "visionzip")
        n, device = len(tokens), attention.device
        dominant, contextual = self._counts(n, budget)
        if dominant + contextual + self.class_token >= n:
            return replace(TokenMap.identity(n, device), score=attention)
        if self.class_token:
            attention = attention.clone()
            attention[0] = torch.inf
        top = best_first(attention)[: dominant + self.class_token].sort().values
        if not contextual:
            return TokenMap.keep(top, n, score=attention[top])
        rest = others(n, top, distinct=True)
        step = max(1, rest.shape[0] // contextual)
        target = rest[::step][:contextual]
        anchor = torch.cat([top, target])
        group = torch.empty(n, dtype=torch.int64, device=device)
        group[rest] = top.shape[0] + owners(keys, target, rest)
        group[anchor] = torch.arange(anchor.shape[0], device=device)
        combine: Combine = "added" if self.compat == "released" else "mean"
        made = absorb(group, anchor, combine, whole=True)
        return replace(made, score=attention[anchor])

    def _counts(self, n: int, budget: int | None) -> tuple[int, int]:
        """Dominant and contextual rows of a frame of ``n`` tokens."""
        if budget is None:
            return min(self.dominant, n), self.contextual
        room = max(0, budget - self.class_token)
        contextual = int(room * self.contextual / (self.dominant + self.contextual))
        return room - contextual, contextual
