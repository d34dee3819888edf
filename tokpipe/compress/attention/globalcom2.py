"""The small whole picture decides how many tokens each crop keeps, and helps to choose them.

Source: Liu et al., "Global Compression Commander: Plug-and-Play Inference Acceleration for
High-Resolution Large Vision-Language Models" (GlobalCom2), 2025, arXiv:2501.05179, section 3.
Differs: tokens that stand for padding must be dropped before; newline tokens are the exporter's
matter; with a budget the parts are scaled and rounded so that they sum to it.

Shapes: tokens of one picture, tile 0 the whole, tiles 1 .. P its crops (none: plain top-k);
attention [N] or [N, H]; the whole picture's tokens by decreasing attention, then those of the crops
in raster order of the stitched picture. Cost: O(N log N).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import interpolate

from tokpipe.budget import largest_remainder
from tokpipe.compress._absorb import best_first
from tokpipe.compress._columns import head_mean
from tokpipe.compress._tiles import Crops, crops_of
from tokpipe.frames import each_frame
from tokpipe.spec import Layout, Scope, Where
from tokpipe.tensors import Query, TokenBatch, TokenMap


@dataclass(frozen=True, slots=True, kw_only=True)
class GlobalCom2:
    """Crops that the whole picture attends to keep more; global and local attention choose.

    Attributes:
        ratio: Part of the tokens kept when no budget is given, above 0 to 1.
        temperature: Divides the attention sums of the crops before the softmax, above 0; at the
            official 10 crops hardly differ.
        columns: Crops side by side, 1 or more; None: the most square layout.

    Example:
        >>> tokens = TokenBatch.build(torch.eye(3), torch.zeros(3).double())
        >>> tokens = tokens.with_extras(attention=torch.tensor([0.1, 0.2, 0.7]))
        >>> GlobalCom2().decide(tokens, budget=2).anchor.tolist()
        [2, 1]
    """

    source: ClassVar[str] = "arXiv:2501.05179, section 3"
    scope: ClassVar[Scope] = "frame"
    needs: ClassVar[tuple[str, ...]] = ("attention",)
    modalities: ClassVar[tuple[str, ...]] = ("video",)
    causal: ClassVar[bool] = False
    layouts: ClassVar[tuple[Layout, ...]] = ("ragged",)
    version: ClassVar[int] = 1
    gives: ClassVar[tuple[str, ...]] = ("score",)
    exact: ClassVar[bool] = True
    where: ClassVar[Where] = "outputs"
    golden: ClassVar[tuple[str, ...]] = ("globalcom2",)

    ratio: Annotated[float, Field(gt=0, le=1)] = 0.25
    temperature: Annotated[float, Field(gt=0)] = 10.0
    columns: Annotated[int, Field(ge=1)] | None = None

    def decide(
        self, tokens: TokenBatch, budget: int | None, query: Query | None = None
    ) -> TokenMap:
        """Keep ``budget`` tokens, shared over the frames.

        Returns:
            ``score`` is what the tokens were chosen by: the attention in the whole picture, the
            sum of both normalised attentions in a crop.

        Raises:
            RecipeError: ``attention`` is missing.
        """
        return each_frame(tokens, budget, self._one)

    def out_count(self, n: int, budget: int | None) -> tuple[int, bool]:
        """Rows for ``n`` tokens: exact with a budget, else a bound."""
        if budget is None:
            return n, False
        return min(n, budget), True

    def _one(self, tokens: TokenBatch, budget: int | None) -> TokenMap:
        attention = head_mean(tokens, "attention", "globalcom2")
        n = len(tokens)
        if not n:
            return TokenMap.identity(0, attention.device)
        crops = crops_of(tokens, self.columns)
        ratio = self.ratio if budget is None else min(1.0, budget / n)
        scales = crop_scales(attention, crops, ratio, self.temperature)
        sizes = [part.shape[0] for part in (crops.whole, *crops.parts)]
        wanted = [sizes[0] * ratio, *(c * s for c, s in zip(sizes[1:], scales, strict=True))]
        if budget is None:
            counts = [int(w) for w in wanted]
        else:
            counts = largest_remainder(budget, wanted, caps=sizes)
        score = _scores(attention, crops)
        whole = crops.whole[best_first(score[crops.whole])[: counts[0]]]
        kept = [p[best_first(score[p])[:c]] for p, c in zip(crops.parts, counts[1:], strict=True)]
        index = torch.cat([whole, *_raster(crops, kept, n)])
        return TokenMap.keep(index, n, score=score[index])


def crop_scales(attention: Tensor, crops: Crops, ratio: float, temperature: float) -> list[float]:
    """Part of its tokens that each crop keeps, at most 1.

    Args:
        attention: float32 [N].
        crops: Tiles of the picture.
        ratio: Mean part.
        temperature: Divides the crops' sums of attention.
    """
    count = len(crops.parts)
    if not count:
        return []
    mass = torch.zeros(crops.rows * crops.cols, device=attention.device)
    mass = mass.index_add_(0, crops.region(), attention[crops.whole])[:count]
    favour = torch.softmax(mass / temperature, 0)
    scale: list[float] = (ratio * (1 + favour - favour.mean())).clamp(max=1).tolist()
    return scale


def _scores(attention: Tensor, crops: Crops) -> Tensor:
    """What tokens are chosen by: [N]."""
    if not crops.parts:
        return attention
    y, x = crops.stitched()
    high, wide = int(y.max() - y.min()) + 1, int(x.max() - x.min()) + 1
    whole_y, whole_x = crops.y[crops.whole], crops.x[crops.whole]
    shape = [int(v.max()) + 1 if v.shape[0] else 1 for v in (whole_y, whole_x)]
    seen = torch.zeros(shape, device=attention.device)
    seen[whole_y, whole_x] = attention[crops.whole]
    large = interpolate(seen[None, None], (high, wide), mode="bilinear", align_corners=False)[0, 0]
    score, start = attention.clone(), 0
    for part in crops.parts:
        place = slice(start, start + part.shape[0])
        shown = large[y[place] - y.min(), x[place] - x.min()]
        local = attention[part]
        score[part] = sum(
            (v / torch.linalg.vector_norm(v).clamp(min=1e-12) for v in (local, shown)),
            torch.zeros_like(local),
        )
        start += part.shape[0]
    return score


def _raster(crops: Crops, kept: list[Tensor], n: int) -> list[Tensor]:
    """Kept crop tokens in raster order of the stitched picture, in one piece."""
    if not kept:
        return []
    y, x = crops.stitched()
    every, index = torch.cat(crops.parts), torch.cat(kept)
    key = torch.zeros(n, dtype=torch.int64, device=y.device)
    key[every] = y * (crops.cols * crops.width) + x
    return [index[torch.argsort(key[index], stable=True)]]
