"""Drop cells whose pixels changed little since the frame before.

Source: Yao et al., "TimeChat-Online: 80% Visual Tokens are Naturally Redundant in Streaming
Videos", arXiv:2504.17343, section 3 (Differential Token Dropping, pixel level).
Differs: on `pixels` cells the difference is taken on 4 x 4 RGB pixels made by the inverse of the
descriptor's low DCT coefficients (the released code has all 28 x 28), and a cell is one frame
(there a pair); the column ``patch_pixels``, where an encoder gives it, is compared whole. A
dropped cell is stood for by the last kept one of its place. Works as a stream.

Shapes: tokens of T frames in time order; kept tokens stay in their order. ``patch_pixels``
[N, tubelet * V]: RGB of 0 .. 1, frame after frame. Compared are the first frame of the cell before
and the last of this one. With a budget the cells that change most are kept, first ones before
all others. Cost: O(N V); a stream holds one frame and, with a budget, its rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from tokpipe.compress._cell_change import (
    ChangeState,
    advance,
    change,
    finish,
    observe,
    score_of,
    values_of,
)
from tokpipe.compress._tracks import Tracks, highest, keep_first, lowest_of_each
from tokpipe.spec import Layout, Scope, Where
from tokpipe.tensors import Query, TokenBatch, TokenMap


@dataclass(frozen=True, slots=True, kw_only=True)
class DtdPixel:
    """Differential token dropping on pixels.

    Attributes:
        threshold: Mean absolute RGB difference (0 .. 1) below which a cell counts as a repeat.
        relative: Part of each frame to drop instead, the cells that change least, 0 to 1.
        tubelet: Frames in a row of ``patch_pixels``, 1 to 16.

    Example:
        >>> tokens = TokenBatch.build(torch.tensor([[0.5], [0.5], [0.9]]), torch.arange(3).double())
        >>> DtdPixel().decide(tokens, None).anchor.tolist()
        [0, 2]
    """

    source: ClassVar[str] = "arXiv:2504.17343, section 3"
    scope: ClassVar[Scope] = "stream"
    needs: ClassVar[tuple[str, ...]] = ("pixels",)
    modalities: ClassVar[tuple[str, ...]] = ("video",)
    causal: ClassVar[bool] = True
    layouts: ClassVar[tuple[Layout, ...]] = ("ragged",)
    version: ClassVar[int] = 1
    exact: ClassVar[bool] = True
    where: ClassVar[Where] = "pixels"
    golden: ClassVar[tuple[str, ...]] = ("dtd__pixel",)
    gives: ClassVar[tuple[str, ...]] = ("score",)

    threshold: Annotated[float, Field(gt=0, le=1)] = 0.05
    relative: Annotated[float, Field(ge=0, le=1)] | None = None
    tubelet: Annotated[int, Field(ge=1, le=16)] = 2

    def decide(
        self, tokens: TokenBatch, budget: int | None, query: Query | None = None
    ) -> TokenMap:
        """Keep what changed; ``score`` is the difference over the threshold."""
        n = len(tokens)
        if n == 0:
            return TokenMap.identity(0, tokens.data.device)
        tracks = Tracks.of(tokens)
        first, last = values_of(tokens, self.tubelet, normalised=False)
        moved = change(first, last, tracks.previous())
        if budget is not None:
            keep = highest(score_of(moved, self.threshold), min(budget, n))
        else:
            keep = self._kept(moved, tracks.frame, tracks.counts)
        rows = torch.nonzero(keep).flatten()
        return keep_first(tracks.latest(keep), rows, score=score_of(moved, self.threshold))

    def _kept(self, moved: Tensor, frame: Tensor, counts: Tensor) -> Tensor:
        if self.relative is None:
            return moved >= self.threshold
        quota = counts - (counts.double() * self.relative).long()
        return lowest_of_each(-moved, frame, quota) | moved.isinf()

    def start(self, budget: int | None = None, steps: int | None = None) -> ChangeState:
        """Fresh state; the length of the stream does not matter."""
        return ChangeState(budget=budget)

    def push(
        self, state: ChangeState, carried: TokenBatch | None, new: TokenBatch
    ) -> tuple[ChangeState, TokenMap]:
        """Map over [carried; new], whole frames in time order."""
        moved = observe(state, new, *values_of(new, self.tubelet, normalised=False))
        _, frame, counts = torch.unique_consecutive(new.at, return_inverse=True, return_counts=True)
        keep = self._kept(moved, frame, counts)
        return state, advance(state, new, score_of(moved, self.threshold), keep)

    def finish(self, state: ChangeState, carried: TokenBatch) -> TokenMap:
        """Every carried row is kept."""
        return finish(state, carried)

    def out_count(self, n: int, budget: int | None) -> tuple[int, bool]:
        """Most rows for ``n`` tokens, exact with a budget."""
        return (n, False) if budget is None else (min(n, budget), True)
