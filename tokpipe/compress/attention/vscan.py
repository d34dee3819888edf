"""Keep tokens attended locally and globally; the others join the kept token they resemble.

Source: Zhang et al., "VScan: Rethinking Visual Token Reduction for Efficient Large
Vision-Language Models", 2025, arXiv:2505.22654, section 3.2 (stage 1).
Differs: local places lost to rounding go to the global part, so the count is met; the released
code leaves them unused (``compat="released"``). Windows come from the cells, so ragged frames
work, and windows at the border may be smaller. The merge is one blocked product.

Shapes: N tokens of a frame, attention and attention_shallow [N] or [N, H]; min(budget, N) rows.
Passes: 1 N x K, in blocks of rows.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from tokpipe.compress._absorb import absorb, best_first, others, owners
from tokpipe.compress._columns import head_mean
from tokpipe.frames import each_frame
from tokpipe.spec import Layout, Scope, Where
from tokpipe.tensors import Query, TokenBatch, TokenMap


@dataclass(frozen=True, slots=True, kw_only=True)
class VScan:
    """Best of every window by shallow attention, best of the rest by deep attention, then means.

    Attributes:
        keep: Rows of a frame when no budget is given, 1 or more; None keeps everything.
        window: Side of a window in cells, 1 or more.
        global_ratio: Part of the rows chosen over the whole frame, 0 to 1; the other part is
            rounded down and spread over the windows.
        compat: ``released`` leaves unused what windows cannot share evenly.

    Example:
        >>> data = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
        >>> tokens = TokenBatch.build(data, torch.zeros(3).double())
        >>> seen = torch.tensor([0.5, 0.2, 0.3])
        >>> tokens = tokens.with_extras(attention=seen, attention_shallow=seen)
        >>> VScan().decide(tokens, budget=2).dst.tolist()
        [0, 0, 1]
    """

    source: ClassVar[str] = "arXiv:2505.22654, section 3.2"
    scope: ClassVar[Scope] = "frame"
    needs: ClassVar[tuple[str, ...]] = ("attention", "attention_shallow")
    modalities: ClassVar[tuple[str, ...]] = ("video",)
    causal: ClassVar[bool] = False
    layouts: ClassVar[tuple[Layout, ...]] = ("ragged",)
    scale_free: ClassVar[bool] = True
    version: ClassVar[int] = 1
    gives: ClassVar[tuple[str, ...]] = ("score",)
    exact: ClassVar[bool] = True
    where: ClassVar[Where] = "outputs"
    golden: ClassVar[tuple[str, ...]] = ("vscan",)

    keep: Annotated[int, Field(ge=1)] | None = None
    window: Annotated[int, Field(ge=1)] = 6
    global_ratio: Annotated[float, Field(ge=0, le=1)] = 0.5
    compat: Literal["paper", "released"] = "paper"

    def decide(
        self, tokens: TokenBatch, budget: int | None, query: Query | None = None
    ) -> TokenMap:
        """Reduce to ``budget`` rows, shared over the frames.

        Returns:
            Rows of each frame in ascending order of their place; ``score`` is the deep attention
            there.

        Raises:
            RecipeError: ``attention`` or ``attention_shallow`` is missing.
        """
        return each_frame(tokens, budget, self._one)

    def out_count(self, n: int, budget: int | None) -> tuple[int, bool]:
        """Rows for ``n`` tokens: exact with a budget (a bound as released), else a bound."""
        if budget is None:
            return n, self.keep is None or n <= self.keep
        return min(n, budget), self.compat == "paper" or budget >= n

    def _one(self, tokens: TokenBatch, budget: int | None) -> TokenMap:
        deep = head_mean(tokens, "attention", "vscan")
        shallow = head_mean(tokens, "attention_shallow", "vscan")
        n, device = len(tokens), deep.device
        wanted = self.keep if budget is None else budget
        if wanted is None or wanted >= n:
            return replace(TokenMap.identity(n, device), score=deep)
        local = int(wanted * (1 - self.global_ratio))
        picked = self._local(tokens, shallow, local)
        room = wanted - (local if self.compat == "released" else picked.shape[0])
        rest = others(n, picked)
        kept = torch.cat([picked, rest[best_first(deep[rest])[:room]]]).sort().values
        gone = others(n, kept)
        group = torch.empty(n, dtype=torch.int64, device=device)
        group[kept] = torch.arange(kept.shape[0], device=device)
        group[gone] = owners(tokens.data, kept, gone)
        return replace(absorb(group, kept), score=deep[kept])

    def _local(self, tokens: TokenBatch, shallow: Tensor, count: int) -> Tensor:
        """As many of the best of every window as ``count`` allows, the same number of each."""
        place = torch.cat([tokens.tile[:, None], tokens.cell[:, 1:] // self.window], 1)
        _, index, sizes = torch.unique(place, dim=0, return_inverse=True, return_counts=True)
        order = best_first(shallow)
        order = order[torch.argsort(index[order], stable=True)]
        rank = torch.arange(order.shape[0], device=order.device)
        rank = rank - (sizes.cumsum(0) - sizes)[index[order]]
        return order[rank < count // sizes.shape[0]]
