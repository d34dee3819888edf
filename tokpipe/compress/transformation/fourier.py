"""Keep each frame's lowest spatial frequencies, on a smaller grid.

Source: "Fourier-VLM: Compressing Vision Tokens in the Frequency Domain for Large Vision-Language
Models", arXiv:2508.06038, section 3 (2-D DCT, low frequencies kept, inverse on the smaller grid).
Differs: rows are divided by sqrt(N / K), so that a constant picture stays what it is; the released
code does not (it fine-tunes), ``compat="released"`` does as it does. Both transforms and the cut
are one matrix per axis.

Shapes: N = T x R x C tokens, whole frames in raster order; result T x a x b with
y = P_h X P_w^T. Every row depends on all tokens of its frame, its place is where its weight is
largest. Cost: O(N (a + b) D).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from tokpipe.compress._grid_axes import Grids, low_pass
from tokpipe.maps import GridMap, TokenMap
from tokpipe.spec import Layout, Scope, Where
from tokpipe.tensors import Query, TokenBatch


@dataclass(frozen=True, slots=True, kw_only=True)
class Fourier:
    """A low-pass resampled grid per frame.

    Attributes:
        ratio: Part of each side kept, above 0 to 1, rounded half to even,
            at least one; None is 0.5, or whatever the budget pays.
        rows, cols: Rows and columns kept instead, 1 or more, at most the frame's own.
        compat: ``released`` leaves out the division by sqrt(N / K).

    Example:
        >>> from tokpipe.testing.golden import frame_tokens
        >>> import torch
        >>> tokens = frame_tokens(torch.full((16, 1), 3.0))
        >>> rows = tokens.reduce(Fourier().decide(tokens, None))
        >>> [round(value, 5) for value in rows.data.flatten().tolist()]
        [3.0, 3.0, 3.0, 3.0]
    """

    source: ClassVar[str] = "arXiv:2508.06038, section 3"
    scope: ClassVar[Scope] = "frame"
    needs: ClassVar[tuple[str, ...]] = ()
    modalities: ClassVar[tuple[str, ...]] = ("video",)
    causal: ClassVar[bool] = True
    layouts: ClassVar[tuple[Layout, ...]] = ("grid", "ragged")
    scale_free: ClassVar[bool] = True
    version: ClassVar[int] = 1
    exact: ClassVar[bool] = False
    where: ClassVar[Where] = "outputs"
    golden: ClassVar[tuple[str, ...]] = ("fourier_dct",)

    ratio: Annotated[float, Field(gt=0, le=1)] | None = None
    rows: Annotated[int, Field(ge=1)] | None = None
    cols: Annotated[int, Field(ge=1)] | None = None
    compat: Literal["paper", "released"] = "paper"

    @property
    def drop(self) -> bool:
        """A shape that was asked for holds whatever the budget."""
        return (self.ratio, self.rows, self.cols) != (None, None, None)

    def decide(
        self, tokens: TokenBatch, budget: int | None, query: Query | None = None
    ) -> TokenMap | GridMap:
        """Resample every frame; with a budget, to the largest shape within it.

        Raises:
            RecipeError: The tokens are not whole frames in raster order.
        """
        grid = Grids.of(tokens, "fourier")
        ratio = self.ratio or (0.5 if budget is None or self.drop else 1.0)
        a = min(grid.rows, self.rows or max(1, round(ratio * grid.rows)))
        b = min(grid.cols, self.cols or max(1, round(ratio * grid.cols)))
        steps, a, b = grid.within(a, b, budget)
        if steps * a * b == len(grid):
            return grid.keep()
        scaled = self.compat == "paper"
        over_time = None if steps == grid.steps else GridMap.average(grid.steps, steps)
        return grid.map(
            over_time,
            low_pass(grid.rows, a, scaled=scaled),
            low_pass(grid.cols, b, scaled=scaled),
        )

    def out_count(self, n: int, budget: int | None) -> tuple[int, bool]:
        """Most rows for ``n`` tokens; the shape depends on the frame's own."""
        free = not self.drop and budget is not None
        return (n, free) if budget is None else (min(n, budget), free and budget >= n)
