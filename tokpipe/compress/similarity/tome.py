"""Merge the most similar tokens by balanced bipartite matching.

Source: Bolya et al., "Token Merging: Your ViT But Faster", ICLR 2023, arXiv:2210.09461, section 3
and appendix D (k-th partition).
Differs: works on one item instead of a batch of equal length; as many rounds as the budget needs
happen in one call, each on the merged metric; ties go to the lower index; zero rows resemble
nothing; with ``every`` above 2 the trailing tokens are sources instead of being dropped.

Shapes: data [N, D]; result min(budget, N) rows, each round at most halves (every = 2).
Cost: O(N^2 D / 4) time for the first round, memory bounded by blocks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from tokpipe.compress._match import bipartite, fold, removable
from tokpipe.spec import Layout
from tokpipe.tensors import Query, TokenBatch, TokenMap


@dataclass(frozen=True, slots=True, kw_only=True)
class ToMe:
    """Bipartite soft matching, mass-weighted means.

    The metric is the extra ``keys`` ([N, D'], or [N, heads, D'] averaged over heads) where the
    encoder offers it, else the data. A row takes the place of its destination.

    Attributes:
        r: Tokens to merge away in one round when no budget is given, 0 or more.
        every: One destination in so many tokens, 2 or more.
        class_token: Token 0 is a class token and stays as it is.
        distill_token: Token 1 is a distillation token and stays as it is.
        scope: Merge within a frame, or over the whole video.

    Example:
        >>> data = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
        >>> tokens = TokenBatch.build(data, torch.zeros(3).double())
        >>> ToMe().decide(tokens, budget=2).dst.tolist()
        [1, 1, 0]
    """

    source: ClassVar[str] = "arXiv:2210.09461, section 3"
    needs: ClassVar[tuple[str, ...]] = ()
    modalities: ClassVar[tuple[str, ...]] = ("video", "audio")
    causal: ClassVar[bool] = False
    layouts: ClassVar[tuple[Layout, ...]] = ("ragged",)
    version: ClassVar[int] = 1
    exact: ClassVar[bool] = True

    r: Annotated[int, Field(ge=0)] = 0
    every: Annotated[int, Field(ge=2)] = 2
    class_token: bool = False
    distill_token: bool = False
    scope: Literal["frame", "video"] = "frame"

    def __post_init__(self) -> None:
        """Check that a distillation token comes with a class token."""
        if self.distill_token and not self.class_token:
            raise ValueError("distill_token needs class_token")

    def decide(
        self, tokens: TokenBatch, budget: int | None, query: Query | None = None
    ) -> TokenMap:
        """Merge down to ``budget`` rows.

        Returns:
            Rows in the paper's order of the last round: unmerged sources by decreasing
            similarity (ascending with a class token), then destinations. Where protected tokens
            leave nothing to merge, the last rows are dropped.
        """
        n, device = len(tokens), tokens.data.device
        target, _ = self.out_count(n, budget)
        if target >= n:
            return TokenMap.identity(n, device)
        metric, mass = _metric(tokens), tokens.mass
        group = anchor = torch.arange(n, device=device)
        while (size := anchor.shape[0]) > target and (room := self._room(size)):
            match = bipartite(
                metric,
                min(room, size - target),
                every=self.every,
                class_token=self.class_token,
                distill_token=self.distill_token,
            )
            metric, mass = fold(metric, mass, match)
            group, anchor = match.group[group], anchor[match.anchor]
        group = torch.where(group < target, group, -1)
        return TokenMap.mass_mean(group, target, tokens.mass, anchor=anchor[:target])

    def out_count(self, n: int, budget: int | None) -> tuple[int, bool]:
        """Rows for ``n`` tokens, exact."""
        if budget is None:
            return n - min(self.r, self._room(n)), True
        return min(n, budget), True

    def _room(self, n: int) -> int:
        return removable(n, self.every, self.class_token + self.distill_token)


def _metric(tokens: TokenBatch) -> Tensor:
    keys = tokens.extras.get("keys", tokens.data).float()
    return keys.mean(1) if keys.ndim == 3 else keys
