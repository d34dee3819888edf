"""Average each frame to a smaller regular grid.

Source: adaptive average pooling as in DeCo (Yao et al., 2024, arXiv:2405.20985), Honeybee, PLLaVA
(Xu et al., 2024, arXiv:2404.16994) and MobileVLM V2; bins floor(i n / m) .. ceil((i + 1) n / m).
Differs: never enlarges: fewer frames or cells than asked for stay as many as they are (PLLaVA
repeats frames). ``frames`` averages runs of consecutive frames, the last may be shorter.

Shapes: N = T x R x C tokens, whole frames in raster order; result T' x a x b. Bins overlap where
a size is not a multiple, mass is then split. Cost: O(N D).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from tokpipe.compress._grid_axes import Grids, runs
from tokpipe.maps import GridMap, TokenMap
from tokpipe.spec import Layout, Scope, Where
from tokpipe.tensors import Query, TokenBatch


@dataclass(frozen=True, slots=True, kw_only=True)
class GridPool:
    """A smaller regular grid per frame.

    Attributes:
        rows, cols: Most rows and columns of the result, 1 or more; None the frame's own.
        frames: Consecutive frames averaged into one, 1 or more.
        steps: Most frames of the result, averaged adaptively over time as over space; None as
            many as ``frames`` leaves.

    Example:
        >>> import torch
        >>> cell = torch.tensor([[0, 0, 0], [0, 0, 1], [0, 1, 0], [0, 1, 1]], dtype=torch.int32)
        >>> data, at = torch.tensor([[1.0], [2.0], [3.0], [4.0]]), torch.zeros(4).double()
        >>> tokens = TokenBatch.build(data, at, cell=cell)
        >>> tokens.reduce(GridPool(rows=1).decide(tokens, None)).data.flatten().tolist()
        [2.0, 3.0]
    """

    source: ClassVar[str] = "arXiv:2405.20985, section 3"
    needs: ClassVar[tuple[str, ...]] = ()
    modalities: ClassVar[tuple[str, ...]] = ("video",)
    causal: ClassVar[bool] = False
    layouts: ClassVar[tuple[Layout, ...]] = ("grid", "ragged")
    scale_free: ClassVar[bool] = True
    version: ClassVar[int] = 1
    exact: ClassVar[bool] = False
    where: ClassVar[Where] = "outputs"
    golden: ClassVar[tuple[str, ...]] = ("adaptive_avg_pool",)
    aliases: ClassVar[tuple[str, ...]] = ("adaptive-pool",)

    rows: Annotated[int, Field(ge=1)] | None = None
    cols: Annotated[int, Field(ge=1)] | None = None
    frames: Annotated[int, Field(ge=1)] = 1
    steps: Annotated[int, Field(ge=1)] | None = None

    @property
    def scope(self) -> Scope:
        """One frame, or the video when frames are averaged."""
        return "frame" if self.frames == 1 and self.steps is None else "video"

    def decide(
        self, tokens: TokenBatch, budget: int | None, query: Query | None = None
    ) -> TokenMap | GridMap:
        """Pool every frame to the largest shape within ``budget`` rows in all.

        Raises:
            RecipeError: The tokens are not whole frames in raster order.
        """
        grid = Grids.of(tokens, "grid-pool")
        a, b = min(grid.rows, self.rows or grid.rows), min(grid.cols, self.cols or grid.cols)
        steps = -(-grid.steps // self.frames)
        steps = min(steps, self.steps or steps)
        wanted = Grids(steps, a, b, grid.device).within(a, b, budget)
        if wanted[0] == grid.steps or wanted[0] != -(-grid.steps // self.frames):
            return grid.averaged(*wanted)
        axes = GridMap.average(grid.rows, wanted[1]), GridMap.average(grid.cols, wanted[2])
        return grid.map(runs(grid.steps, self.frames), *axes)

    def out_count(self, n: int, budget: int | None) -> tuple[int, bool]:
        """Most rows for ``n`` tokens; the shape depends on the frame's own."""
        free = self.rows is None and self.cols is None and self.scope == "frame"
        if budget is None:
            return n, free
        return min(n, budget), free and budget >= n
