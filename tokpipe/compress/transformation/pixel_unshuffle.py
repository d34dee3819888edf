"""Join the tokens of each square window into one wider token.

Source: Chen et al., "How Far Are We to GPT-4V? Closing the Gap to Commercial Multimodal Models with
Open-Source Suites" (InternVL 1.5), arXiv:2404.16821, section 3.2 (pixel shuffle).
Differs: none; both orders of the released code are there.

A projector: the width grows from D to side^2 D, so the cache must hold features (cells of a signal
have a width of their own). Channels are the window's tokens in raster order, one after the other.
Receptive field: one window of one frame.

Shapes: [T x R x C, D], whole frames in raster order, R and C multiples of ``side``, to
[T x R / side x C / side, side^2 D]. Cost: O(N D).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field

from tokpipe.compress._grid_axes import Grids, floored, in_order
from tokpipe.compress._project import projected
from tokpipe.errors import RecipeError
from tokpipe.spec import Layout, Scope, Where
from tokpipe.tensors import TokenBatch


@dataclass(frozen=True, slots=True, kw_only=True)
class PixelUnshuffle:
    """Space to channels.

    Attributes:
        side: Cells of a window along each side, 1 or more.
        order: ``v2`` gives rows in raster order; ``v1``, InternVL's first version, column by
            column (it leaves the grid transposed).

    Example:
        >>> from tokpipe.testing.golden import frame_tokens
        >>> tokens = frame_tokens(torch.arange(8.0).reshape(8, 1), (2, 4))
        >>> PixelUnshuffle().project(tokens).data.tolist()
        [[0.0, 1.0, 4.0, 5.0], [2.0, 3.0, 6.0, 7.0]]
    """

    source: ClassVar[str] = "arXiv:2404.16821, section 3.2"
    scope: ClassVar[Scope] = "frame"
    needs: ClassVar[tuple[str, ...]] = ("features",)
    modalities: ClassVar[tuple[str, ...]] = ("video",)
    causal: ClassVar[bool] = True
    layouts: ClassVar[tuple[Layout, ...]] = ("grid", "ragged")
    version: ClassVar[int] = 1
    exact: ClassVar[bool] = False
    where: ClassVar[Where] = "outputs"
    golden: ClassVar[tuple[str, ...]] = ("pixel_unshuffle",)

    side: Annotated[int, Field(ge=1)] = 2
    order: Literal["v2", "v1"] = "v2"

    @property
    def receptive_field(self) -> tuple[int, int, int]:
        """Frames, rows and columns a new token depends on."""
        return 1, self.side, self.side

    def project(self, tokens: TokenBatch) -> TokenBatch:
        """New tokens, side^2 times as wide, frame after frame.

        Raises:
            RecipeError: The tokens are not whole frames in raster order, or their rows and
                columns are no multiples of ``side``.
        """
        grid, side = Grids.of(tokens, "pixel-unshuffle"), self.side
        if len(grid) == 0:
            return tokens.with_columns(data=tokens.data.repeat(1, side * side))
        if grid.rows % side or grid.cols % side:
            raise RecipeError(
                f"`pixel-unshuffle` needs rows and columns in multiples of {side}, "
                f"got {grid.rows} x {grid.cols}",
                hint="resize before it, for example with `bilinear`",
                code="recipe.needs",
            )
        a, b = grid.rows // side, grid.cols // side
        cube = tokens.data.reshape(grid.steps, a, side, b, side, tokens.data.shape[1])
        data = cube.permute(0, 1, 3, 2, 4, 5).reshape(grid.steps * a * b, -1)
        group = grid.map(None, floored(grid.rows, side), floored(grid.cols, side)).expand()
        if self.order == "v1":
            rows = torch.arange(grid.steps * a * b, device=grid.device)
            turned = rows.reshape(grid.steps, a, b).transpose(1, 2).flatten()
            data, group = data[turned], in_order(group, turned)
        return projected(tokens, data, group)

    def out_count(self, n: int, budget: int | None) -> tuple[int, bool]:
        """Rows for ``n`` tokens, exact."""
        return n // (self.side * self.side), True
