"""Keep centres that cover the tokens in what they show and where they lie.

Source: Zhu et al., "EVTP-IVS: Effective Visual Token Pruning For Unifying Instruction Visual
Segmentation In Multi-Modal Large Language Models", arXiv:2508.11886, section 3 (k-centre with
spatial information).
Differs: no code is released. The first centre is the token farthest from its nearest other, so
nothing is random; unit rows and coordinates are joined, which adds half the squared distance of
the places to 1 - cosine.

Shapes: data [N, D]; keeps min(budget, N), in the order of the picks.
Passes: 1 N x N in blocks of rows for the first pick, 1 N x K for the others, as `max-min`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from tokpipe.compress._cosine import DENSE, Cosines
from tokpipe.compress._farthest import farthest_first
from tokpipe.compress._stacks import Rows, stacks
from tokpipe.spec import Layout, Where
from tokpipe.tensors import Query, TokenBatch, TokenMap


@dataclass(frozen=True, slots=True, kw_only=True)
class EvtpIvs:
    """Greedy k-centre over unit features joined with coordinates.

    Attributes:
        ratio: Part of the tokens kept without a budget, above 0 to 1 (rounded half to even, at
            least one).
        spatial: Weight of coordinates that run from 0 to 1 over a frame, 0 or more.
        scope: Cover each frame, or the whole video (time is no coordinate).

    Example:
        >>> data = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]])
        >>> tokens = TokenBatch.build(data, torch.zeros(3).double())
        >>> EvtpIvs().decide(tokens, budget=2).anchor.tolist()
        [2, 0]
    """

    source: ClassVar[str] = "arXiv:2508.11886, section 3"
    needs: ClassVar[tuple[str, ...]] = ()
    modalities: ClassVar[tuple[str, ...]] = ("video",)
    causal: ClassVar[bool] = False
    layouts: ClassVar[tuple[Layout, ...]] = ("ragged",)
    where: ClassVar[Where] = "outputs"
    golden: ClassVar[tuple[str, ...]] = ()
    gives: ClassVar[tuple[str, ...]] = ("score",)
    scale_free: ClassVar[bool] = True
    version: ClassVar[int] = 1
    exact: ClassVar[bool] = True

    ratio: Annotated[float, Field(gt=0, le=1)] = 0.2
    spatial: Annotated[float, Field(ge=0)] = 1.0
    scope: Literal["frame", "video"] = "frame"

    def decide(
        self, tokens: TokenBatch, budget: int | None, query: Query | None = None
    ) -> TokenMap:
        """Keep ``budget`` tokens in pick order; ``score`` is the distance to the picks before."""
        n, device = len(tokens), tokens.data.device
        if budget is not None and budget >= n:
            return TokenMap.identity(n, device)
        middle = (tokens.cell[:, 1:] + tokens.extent[:, 1:] / 2).float()
        rows = Rows(n, device)
        for stack in stacks(tokens, budget, self.scope, DENSE):
            count = self._own(stack.index.shape[1]) if stack.quota is None else stack.most
            place = self.spatial * _normed(stack.of(middle))
            picks, score = farthest_first(Cosines(stack.of(tokens.data)), count, place=place)
            rows.add(stack, picks, stack.within(count), score=score)
        return rows.keep()

    def out_count(self, n: int, budget: int | None) -> tuple[int, bool]:
        """Rows for ``n`` tokens, exact."""
        return (self._own(n) if budget is None else min(n, budget)), True

    def _own(self, n: int) -> int:
        return min(n, max(1, round(self.ratio * n)))


def _normed(middle: Tensor) -> Tensor:
    """Places [T, C, 2] moved and scaled to 0 .. 1 within each frame, by its longer side."""
    low = middle.amin(1, keepdim=True)
    side = (middle - low).amax((1, 2), keepdim=True)
    return (middle - low) / torch.where(side > 0, side, 1.0)
