"""Keep the tokens that stand best for all tokens of a stretch (facility location).

Source: Cho et al., "FLoC: Facility Location-Based Efficient Visual Token Compression for Long Video
Understanding", arXiv:2511.00141, section 3 (lazy greedy).
Differs: no code is released; cover starts at 0, so a token is worth max(0, cosine) to each other at
first; gains are brought up to date from the tokens whose cover changed, and lazily where those are
many, which changes no pick.

Shapes: data [N, D] in chunks of C tokens; keeps min(budget, N), chunk after chunk in the order of
the picks.
Passes: 9 N x N of one chunk in practice, above 8192 tokens: lazily, in blocks of rows; those of
changed and of renewed tokens are made again, at most 256 at a time. Up to 8192 tokens 1 pass that
is kept (256 MB).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from tokpipe.budget import largest_remainder
from tokpipe.compress._cosine import Cosines
from tokpipe.compress._neighbors import BLOCK
from tokpipe.frames import frames_of
from tokpipe.spec import Layout, Scope, Where
from tokpipe.tensors import Query, TokenBatch, TokenMap

#: Pairs of a chunk whose cosines are kept (256 MB in float32).
_PAIRS = 1 << 26
#: Tokens whose gains are renewed together, and rows looked at together.
_BATCH, _PART = 32, 256
#: Gains this near, of 1 or of the largest, count as equal.
_TIE = 1e-6
#: Tokens whose change of cover is followed exactly where cosines are not kept.
_FEW = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Floc:
    """Greedy maximum of the sum over tokens of the largest cosine to a kept one.

    Attributes:
        ratio: Part of a chunk's tokens kept without a budget, above 0 to 1 (rounded down, at
            least one).
        chunk: Frames of a chunk, 1 or more.

    Example:
        >>> data = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]])
        >>> tokens = TokenBatch.build(data, torch.zeros(3).double())
        >>> Floc().decide(tokens, budget=2).anchor.tolist()
        [1, 2]
    """

    source: ClassVar[str] = "arXiv:2511.00141, section 3"
    scope: ClassVar[Scope] = "video"
    needs: ClassVar[tuple[str, ...]] = ()
    modalities: ClassVar[tuple[str, ...]] = ("video", "audio")
    causal: ClassVar[bool] = False
    layouts: ClassVar[tuple[Layout, ...]] = ("ragged",)
    where: ClassVar[Where] = "outputs"
    golden: ClassVar[tuple[str, ...]] = ("floc",)
    gives: ClassVar[tuple[str, ...]] = ("score",)
    scale_free: ClassVar[bool] = True
    version: ClassVar[int] = 1
    exact: ClassVar[bool] = True

    ratio: Annotated[float, Field(gt=0, le=1)] = 0.125
    chunk: Annotated[int, Field(ge=1)] = 32

    def decide(
        self, tokens: TokenBatch, budget: int | None, query: Query | None = None
    ) -> TokenMap:
        """Keep ``budget`` tokens, shared over the chunks; ``score`` is the gain of each pick."""
        n, device = len(tokens), tokens.data.device
        if n == 0 or (budget is not None and budget >= n):
            return TokenMap.identity(n, device)
        part = frames_of(tokens).index // self.chunk
        counts = torch.bincount(part).tolist()
        if budget is None:
            quota = [max(1, int(c * self.ratio)) for c in counts]
        else:
            quota = largest_remainder(budget, counts, caps=counts)
        whole = not bool((part.diff() < 0).any())
        order = None if whole else torch.argsort(part, stable=True)
        picks, gains, a = [], [], 0
        for count, wanted in zip(counts, quota, strict=True):
            if wanted:
                index = slice(a, a + count) if order is None else order[a : a + count]
                found, gain = facilities(Cosines(tokens.data[index][None], pairs=_PAIRS), wanted)
                picks.append(found + a if order is None else order[a : a + count][found])
                gains.append(gain)
            a += count
        return TokenMap.keep(torch.cat(picks), n, score=torch.cat(gains).float())

    def out_count(self, n: int, budget: int | None) -> tuple[int, bool]:
        """Exact with a budget, else a bound."""
        return (n, False) if budget is None else (min(n, budget), True)


def facilities(cosines: Cosines, count: int) -> tuple[Tensor, Tensor]:
    """Greedy picks by gain in sum over v of max(0, largest cosine of v to a pick).

    A gain only ever falls. A pick that changes the cover of few tokens is taken off every gain at
    once; after any other, old gains bound the new ones, and those of the best are renewed until
    the best is new.

    Args:
        cosines: Of one frame of C tokens.
        count: Picks, 1 .. C.

    Returns:
        (picks int64 [count], gains float64 [count]).
    """
    size, device = cosines.shape[1], cosines.data.device
    few = size if cosines.dense is not None else _FEW
    gain = torch.empty(size, dtype=torch.float64, device=device)
    for a, b, block in cosines.blocks():
        for i in range(0, b - a, _PART):
            part = block[0, i : min(b - a, i + _PART)]
            gain[a + i : a + i + part.shape[0]] = part.clamp(min=0).sum(1).double()
    fresh = torch.ones(size, dtype=torch.bool, device=device)
    reached = torch.zeros(size, device=device)
    picks, gains = torch.zeros(count, dtype=torch.int64, device=device), gain.new_zeros(count)
    for i in range(count):
        while True:
            # Two tokens that cover each other gain the same: rounding must not choose.
            top = gain.max()
            ranked = gain.masked_fill(gain >= top - _TIE * top.clamp(min=1), torch.inf)
            best = ranked.argmax()
            if bool(fresh[best]):
                break
            batch = torch.argsort(ranked, descending=True, stable=True)[:_BATCH]
            rows = cosines.rows(batch[None])[0]
            worth = (rows - reached).clamp_(min=0).sum(1, dtype=torch.float64)
            gain[batch] = torch.where(gain[batch] > -torch.inf, worth, -torch.inf)
            fresh[batch] = True
        picks[i], gains[i] = best, gain[best]
        row = cosines.rows(best.reshape(1, 1))[0, 0]
        changed = torch.nonzero(row > reached).flatten()
        now = torch.maximum(row, reached)
        if changed.shape[0] <= few:
            gain -= _lost(cosines, changed, reached, now)
        else:
            fresh.zero_()
        gain[best] = -torch.inf
        reached = now
    return picks, gains


def _lost(cosines: Cosines, changed: Tensor, before: Tensor, after: Tensor) -> Tensor:
    """What each token's gain float64 [C] loses as cover rises at the tokens ``changed`` [m]."""
    lost = torch.zeros(before.shape[0], dtype=torch.float64, device=before.device)
    step = max(1, min(_PART, BLOCK // before.shape[0]))
    for part in torch.split(changed, step):
        low = before[part, None]
        # max(0, s - before) - max(0, s - after), as s cut to between the two.
        rows = cosines.rows(part[None])[0].clamp_(low, after[part, None])
        lost += rows.sub_(low).sum(0).double()
        del rows
    return lost
