"""Take the maximum of each channel over windows of a frame.

Source: maximum pooling of visual tokens as in LLaVA-NeXT's 2-D pooling (stride windows) and
SlowFast-LLaVA, arXiv:2407.15841, section 3.2 (runs of neighbours in raster order).
Differs: a frame smaller than the window gives one row instead of none.

A projector: the maximum is no linear map. Receptive field: one window of one frame.

Shapes: [T x R x C, D], whole frames in raster order, to [T x floor(R / rows) x floor(C / cols), D];
what no whole window covers is dropped. Cost: O(N D).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from tokpipe.compress._grid_axes import Grids, floored
from tokpipe.compress._project import projected
from tokpipe.spec import Layout, Scope, Where
from tokpipe.tensors import TokenBatch


@dataclass(frozen=True, slots=True, kw_only=True)
class MaxPool:
    """Largest values of windows.

    Attributes:
        rows, cols: Size of a window in cells, 1 or more; windows do not overlap.
        run: Windows of this many neighbours in raster order instead, over the ends of rows, 2 or
            more; None is off.

    Example:
        >>> from tokpipe.testing.golden import frame_tokens
        >>> import torch
        >>> MaxPool().project(frame_tokens(torch.arange(9.0).reshape(9, 1))).data.tolist()
        [[4.0]]
    """

    source: ClassVar[str] = "arXiv:2407.15841, section 3.2"
    scope: ClassVar[Scope] = "frame"
    needs: ClassVar[tuple[str, ...]] = ()
    modalities: ClassVar[tuple[str, ...]] = ("video",)
    causal: ClassVar[bool] = True
    layouts: ClassVar[tuple[Layout, ...]] = ("grid", "ragged")
    version: ClassVar[int] = 1
    exact: ClassVar[bool] = False
    where: ClassVar[Where] = "outputs"
    golden: ClassVar[tuple[str, ...]] = ("pool2d", "llavanext_pool2d", "slowfast")

    rows: Annotated[int, Field(ge=1)] = 2
    cols: Annotated[int, Field(ge=1)] = 2
    run: Annotated[int, Field(ge=2)] | None = None

    @property
    def receptive_field(self) -> tuple[int, int, int]:
        """Frames, rows and columns a new token depends on (a run counts as one row)."""
        return (1, self.rows, self.cols) if self.run is None else (1, 1, self.run)

    def project(self, tokens: TokenBatch) -> TokenBatch:
        """New tokens, frame after frame in raster order.

        Raises:
            RecipeError: The tokens are not whole frames in raster order.
        """
        grid = Grids.of(tokens, "max-pool")
        if len(grid) == 0:
            return tokens
        if self.run is not None:
            grid = Grids(grid.steps, 1, grid.rows * grid.cols, grid.device)
        high = 1 if self.run is not None else min(self.rows, grid.rows)
        wide = min(self.run or self.cols, grid.cols)
        a, b = grid.rows // high, grid.cols // wide
        cube = tokens.data.reshape(grid.steps, grid.rows, grid.cols, -1)[:, : a * high, : b * wide]
        data = cube.reshape(grid.steps, a, high, b, wide, -1).amax((2, 4)).flatten(0, 2)
        group = grid.map(None, floored(grid.rows, high), floored(grid.cols, wide))
        return projected(tokens, data, group.expand())

    def out_count(self, n: int, budget: int | None) -> tuple[int, bool]:
        """Most rows for ``n`` tokens; the shape depends on the frame's own."""
        return n, self.receptive_field == (1, 1, 1)
