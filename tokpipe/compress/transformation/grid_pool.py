"""Average each frame to a smaller regular grid.

Source: adaptive average pooling as in DeCo (Yao et al., 2024, arXiv:2405.20985), Honeybee, PLLaVA
(Xu et al., 2024, arXiv:2404.16994) and MobileVLM V2; bins floor(i n / m) .. ceil((i + 1) n / m).
Differs: in time, ``frames`` consecutive frames are averaged, the last group may be shorter.

Shapes: N = T x R x C tokens, whole frames in raster order; result T' x a x b. Bins overlap where
a size is not a multiple, mass is then split. Cost: O(N D).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from tokpipe.frames import whole_grids
from tokpipe.grid import regular_shape
from tokpipe.spec import Layout, Scope
from tokpipe.tensors import GridMap, Query, TokenBatch, TokenMap


@dataclass(frozen=True, slots=True, kw_only=True)
class GridPool:
    """A smaller regular grid per frame.

    Attributes:
        rows, cols: Most rows and columns of the result, 1 or more; None the frame's own.
        frames: Consecutive frames averaged into one, 1 or more.

    Example:
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
    version: ClassVar[int] = 1
    exact: ClassVar[bool] = False

    rows: Annotated[int, Field(ge=1)] | None = None
    cols: Annotated[int, Field(ge=1)] | None = None
    frames: Annotated[int, Field(ge=1)] = 1

    @property
    def scope(self) -> Scope:
        """One frame, or the video when frames are averaged."""
        return "frame" if self.frames == 1 else "video"

    def decide(
        self, tokens: TokenBatch, budget: int | None, query: Query | None = None
    ) -> TokenMap | GridMap:
        """Pool every frame to the largest shape within ``budget`` rows in all.

        Raises:
            RecipeError: The tokens are not whole frames in raster order.
        """
        n, device = len(tokens), tokens.at.device
        t, rows, cols = whole_grids(tokens, "grid-pool")
        steps = -(-t // self.frames)
        a, b = min(rows, self.rows or rows), min(cols, self.cols or cols)
        over_time = _strided(t, self.frames)
        if budget is not None and steps * a * b > budget:
            if steps > budget:
                steps, over_time = budget, GridMap.average(t, budget)
            a, b = regular_shape(a, b, budget // steps)
        if steps * a * b == n:
            return TokenMap.identity(n, device)
        axes = (over_time, GridMap.average(rows, a), GridMap.average(cols, b))
        return GridMap(**{k: m.to(device) for k, m in zip("tyx", axes, strict=True)})

    def out_count(self, n: int, budget: int | None) -> tuple[int, bool]:
        """Most rows for ``n`` tokens; the shape depends on the frame's own."""
        free = self.rows is None and self.cols is None and self.frames == 1
        if budget is None:
            return n, free
        return min(n, budget), free and budget >= n


def _strided(size: int, stride: int) -> Tensor:
    """Matrix [ceil(size / stride), size] that averages runs of ``stride``."""
    group = torch.arange(size) // stride
    matrix = torch.nn.functional.one_hot(group).T.float()
    return matrix / matrix.sum(1, keepdim=True)
