"""Merge runs of alike neighbours into one token each, weighted by attention.

Source: Lu et al., "FastAdaSP: Multitask-Adapted Efficient Inference for Large Speech Language
Model", EMNLP 2024 industry track, arXiv:2410.03007, section 3.
Differs: runs once on the encoder's output instead of at one or more layers of the language model;
where no attention is supplied the mean is plain (the paper's ``merge_ave``, and the form used
after the projector by SA-MAP's authors). The released function also overwrites the weight of each
run's first token in the caller's tensor; here nothing is changed.

Shapes: N tokens in order of time; rows in order of time. Cost: O(N D + N log N).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from tokpipe.compress._adjacent import adjacent_cosine, joined, metric_of, ranks, weighted_groups
from tokpipe.spec import Layout, Scope, Where
from tokpipe.tensors import Query, TokenBatch, TokenMap


@dataclass(frozen=True, slots=True, kw_only=True)
class FastAdaSP:
    """The most alike links close, and each run of closed links becomes one token.

    Links are cosines of the extra ``keys`` ([N, D'], or [N, heads, D'] with heads put end to
    end) where the encoder offers it, else of the data. A row takes the place of its first token.

    Attributes:
        ratio: Links closed when no budget is given, as a part of the tokens, 0 .. 1.
        weights: ``attention`` weights each run's mean by the extra ``attention`` ([N], or
            [N, heads] summed over heads) where it is supplied; ``none`` takes plain means.

    Example:
        >>> import torch
        >>> data = torch.tensor([[1.0, 0.0], [1.0, 0.1], [1.0, 0.2], [0.0, 1.0]])
        >>> tokens = TokenBatch.build(data, torch.arange(4).double())
        >>> FastAdaSP().decide(tokens, budget=2).dst.tolist()
        [0, 0, 0, 1]
    """

    source: ClassVar[str] = "arXiv:2410.03007, section 3"
    scope: ClassVar[Scope] = "video"
    needs: ClassVar[tuple[str, ...]] = ()
    modalities: ClassVar[tuple[str, ...]] = ("audio",)
    causal: ClassVar[bool] = False
    layouts: ClassVar[tuple[Layout, ...]] = ("ragged",)
    scale_free: ClassVar[bool] = True
    version: ClassVar[int] = 1
    exact: ClassVar[bool] = True
    where: ClassVar[Where] = "llm"
    golden: ClassVar[tuple[str, ...]] = ("fastadasp", "samap_suite")

    ratio: Annotated[float, Field(ge=0, le=1)] = 0.3
    weights: Literal["attention", "none"] = "attention"

    def decide(
        self, tokens: TokenBatch, budget: int | None, query: Query | None = None
    ) -> TokenMap:
        """Merge runs.

        Returns:
            Rows in order of time, exactly as many as ``out_count`` says.
        """
        n = len(tokens)
        target, _ = self.out_count(n, budget)
        if target >= n:
            return TokenMap.identity(n, tokens.data.device)
        links = adjacent_cosine(metric_of(tokens, "joined"))
        group = joined(ranks(links) < n - target)
        attention = tokens.extras.get("attention") if self.weights == "attention" else None
        if attention is None:
            return TokenMap.mean(group, target)
        weight = attention.float().sum(1) if attention.ndim == 2 else attention.float()
        return weighted_groups(group, target, weight)

    def out_count(self, n: int, budget: int | None) -> tuple[int, bool]:
        """Rows for ``n`` tokens, exact."""
        wanted = n - int(n * self.ratio) if budget is None else budget
        return min(n, max(1, wanted)), True
