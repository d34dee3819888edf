"""Split the budget of a picture over its crops by early attention, keep the best by late attention.

Source: Arif et al., "HiRED: Attention-Guided Token Dropping for Efficient Inference of
High-Resolution Vision-Language Models", AAAI 2025, arXiv:2408.10945, section 4.
Differs: a crop's part of the whole picture is its own rectangle, and no token of the budget is lost
to rounding or caps; the released code takes horizontal strips and rounds down
(``compat="released"``). Heads are averaged, the same order as their sum.

Shapes: tokens of one picture, tile 0 the whole, tiles 1 .. P its crops (none: plain top-k);
attention and attention_shallow [N] or [N, H]; min(budget, N) rows in order. Cost: O(N log N).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from tokpipe.budget import largest_remainder
from tokpipe.compress._absorb import best_first
from tokpipe.compress._columns import head_mean
from tokpipe.compress._tiles import Crops, crops_of
from tokpipe.frames import each_frame
from tokpipe.spec import Layout, Scope, Where
from tokpipe.tensors import Query, TokenBatch, TokenMap


@dataclass(frozen=True, slots=True, kw_only=True)
class HiRed:
    """Most attended tokens of the whole picture and of each crop, as many as the crop deserves.

    Attributes:
        ratio: Part of the tokens kept when no budget is given, above 0 to 1, rounded down.
        alpha: Part of the kept that the whole picture takes, 0 to 1; a crop deserves its part of
            the 1 - alpha tokens of the whole that early attention prefers.
        columns: Crops side by side, 1 or more; None: the most square layout.
        compat: ``released`` splits the whole picture into strips and rounds down.

    Example:
        >>> tokens = TokenBatch.build(torch.eye(3), torch.zeros(3).double())
        >>> seen = torch.tensor([0.1, 0.7, 0.2])
        >>> tokens = tokens.with_extras(attention=seen, attention_shallow=seen)
        >>> HiRed().decide(tokens, budget=2).anchor.tolist()
        [1, 2]
    """

    source: ClassVar[str] = "arXiv:2408.10945, section 4"
    scope: ClassVar[Scope] = "frame"
    needs: ClassVar[tuple[str, ...]] = ("attention", "attention_shallow")
    modalities: ClassVar[tuple[str, ...]] = ("video",)
    causal: ClassVar[bool] = False
    layouts: ClassVar[tuple[Layout, ...]] = ("ragged",)
    version: ClassVar[int] = 1
    gives: ClassVar[tuple[str, ...]] = ("score",)
    exact: ClassVar[bool] = True
    where: ClassVar[Where] = "outputs"
    golden: ClassVar[tuple[str, ...]] = ("hired",)

    ratio: Annotated[float, Field(gt=0, le=1)] = 0.2
    alpha: Annotated[float, Field(ge=0, le=1)] = 0.5
    columns: Annotated[int, Field(ge=1)] | None = None
    compat: Literal["paper", "released"] = "paper"

    def decide(
        self, tokens: TokenBatch, budget: int | None, query: Query | None = None
    ) -> TokenMap:
        """Keep ``budget`` tokens, shared over the frames.

        Returns:
            Kept tokens of each frame in the order they come; ``score`` is the late attention.

        Raises:
            RecipeError: ``attention`` or ``attention_shallow`` is missing.
        """
        return each_frame(tokens, budget, self._one)

    def out_count(self, n: int, budget: int | None) -> tuple[int, bool]:
        """Rows for ``n`` tokens: exact with a budget (a bound as released), else a bound."""
        if budget is None:
            return int(n * self.ratio), False
        return min(n, budget), self.compat == "paper"

    def _one(self, tokens: TokenBatch, budget: int | None) -> TokenMap:
        late = head_mean(tokens, "attention", "hired")
        early = head_mean(tokens, "attention_shallow", "hired")
        n = len(tokens)
        total = int(n * self.ratio) if budget is None else min(n, budget)
        if not n:
            return TokenMap.identity(0, late.device)
        crops = crops_of(tokens, self.columns)
        kept = []
        for part, count in zip(
            (crops.whole, *crops.parts), self._counts(crops, early, total), strict=True
        ):
            kept.append(part[best_first(late[part])[:count]])
        index = torch.cat(kept).sort().values
        return TokenMap.keep(index, n, score=late[index])

    def _counts(self, crops: Crops, early: Tensor, total: int) -> list[int]:
        """Tokens to keep of the whole picture and of each crop."""
        sizes = [part.shape[0] for part in crops.parts]
        size = crops.whole.shape[0]
        full = min(int(total * self.alpha), size)
        if not sizes:
            return [min(total, size)]
        sub = min(total - full, sum(sizes))
        best = best_first(early[crops.whole])[: int(size * (1 - self.alpha))]
        if self.compat == "released":
            # Released: the raster list is cut into as many runs, that is strips of the picture.
            region = best // max(1, size // len(sizes))
        else:
            region = crops.region()[best]
        votes = torch.bincount(region, minlength=len(sizes))[: len(sizes)].tolist()
        if self.compat == "released":
            voters = max(1, sum(votes))
            return [
                full,
                *(min(int(v / voters * sub), c) for v, c in zip(votes, sizes, strict=True)),
            ]
        return [total - sub, *largest_remainder(sub, votes, caps=sizes)]
