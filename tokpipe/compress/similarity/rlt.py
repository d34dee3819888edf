"""Drop patches that stay the same, and count how long each kept one lasts.

Source: Choudhury et al., "Don't Look Twice: Faster Video Transformers with Run-Length
Tokenization", NeurIPS 2024, arXiv:2411.05222, section 3.
Differs: the run length is the ``mass`` of the kept token and comes in the tokens' own order (the
released code lists lengths place after place beside tokens in time order). On `pixels` cells the
difference is taken on 4 x 4 RGB pixels made by the inverse of the descriptor's low DCT
coefficients, and a cell is one frame of 28 x 28 (there two of 16 x 16); the column
``patch_pixels``, where an encoder gives it, is compared whole. Works as a stream.

Shapes: tokens of T frames in time order; kept tokens stay in their order. ``patch_pixels``
[N, tubelet * V]: the encoder's input, frame after frame, in the units of ``threshold``. Compared
are the first frame of the patch before and the last of this one. With a budget the patches that
change most are kept, first ones before all others. Cost: O(N V); a stream holds one frame and,
with a budget, its rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field

from tokpipe.compress._cell_change import (
    ChangeState,
    advance,
    change,
    finish,
    observe,
    score_of,
    values_of,
)
from tokpipe.compress._tracks import Tracks, highest, keep_first
from tokpipe.spec import Layout, Scope, Where
from tokpipe.tensors import Query, TokenBatch, TokenMap


@dataclass(frozen=True, slots=True, kw_only=True)
class Rlt:
    """Run-length tokenization.

    Attributes:
        threshold: Mean absolute difference up to which a patch counts as a repeat, in RGB of
            0 .. 1 over ImageNet's deviations (or in the units of ``patch_pixels``).
        tubelet: Frames in a row of ``patch_pixels``, 1 to 16.

    Example:
        >>> tokens = TokenBatch.build(torch.tensor([[0.5], [0.5], [0.9]]), torch.arange(3).double())
        >>> tokens.reduce(Rlt().decide(tokens, None)).mass.tolist()
        [2.0, 1.0]
    """

    source: ClassVar[str] = "arXiv:2411.05222, section 3"
    scope: ClassVar[Scope] = "stream"
    needs: ClassVar[tuple[str, ...]] = ("pixels",)
    modalities: ClassVar[tuple[str, ...]] = ("video",)
    causal: ClassVar[bool] = True
    layouts: ClassVar[tuple[Layout, ...]] = ("ragged",)
    version: ClassVar[int] = 1
    exact: ClassVar[bool] = True
    where: ClassVar[Where] = "pixels"
    golden: ClassVar[tuple[str, ...]] = ("rlt",)
    gives: ClassVar[tuple[str, ...]] = ("score",)

    threshold: Annotated[float, Field(gt=0, le=255)] = 0.1
    tubelet: Annotated[int, Field(ge=1, le=16)] = 2

    def decide(
        self, tokens: TokenBatch, budget: int | None, query: Query | None = None
    ) -> TokenMap:
        """Keep what changed; ``score`` is the difference over the threshold."""
        n = len(tokens)
        if n == 0:
            return TokenMap.identity(0, tokens.data.device)
        tracks = Tracks.of(tokens)
        first, last = values_of(tokens, self.tubelet, normalised=True)
        moved = change(first, last, tracks.previous())
        score = score_of(moved, self.threshold)
        keep = moved > self.threshold if budget is None else highest(score, min(budget, n))
        return keep_first(tracks.latest(keep), torch.nonzero(keep).flatten(), score=score)

    def start(self, budget: int | None = None, steps: int | None = None) -> ChangeState:
        """Fresh state; the length of the stream does not matter."""
        return ChangeState(budget=budget)

    def push(
        self, state: ChangeState, carried: TokenBatch | None, new: TokenBatch
    ) -> tuple[ChangeState, TokenMap]:
        """Map over [carried; new], whole frames in time order."""
        moved = observe(state, new, *values_of(new, self.tubelet, normalised=True))
        score = score_of(moved, self.threshold)
        return state, advance(state, new, score, moved > self.threshold)

    def finish(self, state: ChangeState, carried: TokenBatch) -> TokenMap:
        """Every carried row is kept."""
        return finish(state, carried)

    def out_count(self, n: int, budget: int | None) -> tuple[int, bool]:
        """Most rows for ``n`` tokens, exact with a budget."""
        return (n, False) if budget is None else (min(n, budget), True)
