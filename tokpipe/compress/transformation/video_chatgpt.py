"""Describe a video by the mean of each frame and the mean of each position over time.

Source: Maaz et al., "Video-ChatGPT", ACL 2024, arXiv:2306.05424, section 3.1.
Differs: no rows of zeros; ``compat="released"`` fills the frames up to 100 with them. A token is
in its frame's row and in its position's row and gives half of its mass to each.

Shapes: N = T x R x C tokens, whole frames in raster order; result T + R C rows, frames first.
A budget below that averages over time (its part of the rows) and positions. Cost: O(N D).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch

from tokpipe.compress._grid_axes import Grids, together
from tokpipe.grid import regular_shape
from tokpipe.maps import GridMap, TokenMap
from tokpipe.spec import Layout, Scope, Where
from tokpipe.tensors import Query, TokenBatch

#: Rows for frames in the released code.
_SLOTS = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoChatGpt:
    """Means over space, then means over time.

    Attributes:
        compat: ``released`` adds rows of zeros until there are 100 for frames, without a budget.

    Example:
        >>> from tokpipe.testing.golden import frame_tokens
        >>> tokens = frame_tokens(torch.tensor([[[1.0], [3.0]], [[5.0], [7.0]]]))
        >>> tokens.reduce(VideoChatGpt().decide(tokens, 3)).data.flatten().tolist()
        [4.0, 3.0, 5.0]
        >>> tokens.reduce(VideoChatGpt().decide(tokens, None)).data.flatten().tolist()
        [2.0, 6.0, 3.0, 5.0]
    """

    source: ClassVar[str] = "arXiv:2306.05424, section 3.1"
    scope: ClassVar[Scope] = "video"
    needs: ClassVar[tuple[str, ...]] = ()
    modalities: ClassVar[tuple[str, ...]] = ("video",)
    causal: ClassVar[bool] = False
    layouts: ClassVar[tuple[Layout, ...]] = ("ragged",)
    version: ClassVar[int] = 1
    exact: ClassVar[bool] = False
    where: ClassVar[Where] = "outputs"
    golden: ClassVar[tuple[str, ...]] = ("videochatgpt",)

    compat: Literal["paper", "released"] = "paper"

    def decide(
        self, tokens: TokenBatch, budget: int | None, query: Query | None = None
    ) -> TokenMap:
        """Average along both axes; with room for every token, keep them all.

        Raises:
            RecipeError: The tokens are not whole frames in raster order.
        """
        grid = Grids.of(tokens, "video-chatgpt")
        n, steps, cells = len(grid), grid.steps, grid.rows * grid.cols
        if n == 0 or (budget is not None and budget >= n):
            return grid.keep()
        a, b = grid.rows, grid.cols
        if budget is not None and budget < steps + cells:
            steps = min(steps, max(1, budget * steps // (steps + cells)))
            rest = budget - steps
            a, b = regular_shape(a, b, rest) if rest else (0, 0)
        whole = (GridMap.average(grid.rows, 1), GridMap.average(grid.cols, 1))
        maps = [grid.map(GridMap.average(grid.steps, steps), *whole).expand()]
        if self.compat == "released" and budget is None and steps < _SLOTS:
            maps.append(_empty(_SLOTS - steps, n, grid.device))
        if a:
            places = GridMap.average(grid.rows, a), GridMap.average(grid.cols, b)
            maps.append(grid.map(GridMap.average(grid.steps, 1), *places).expand())
        return together(maps, n, grid.device)

    def out_count(self, n: int, budget: int | None) -> tuple[int, bool]:
        """Most rows for ``n`` tokens; frames and positions are not known apart."""
        if budget is None:
            return n + max(1, _SLOTS), False
        return min(n, budget), budget >= n


def _empty(count: int, num_sources: int, device: torch.device) -> TokenMap:
    """Rows of zeros that stand for nothing, at the place of the last token."""
    last = torch.full((count,), num_sources - 1, dtype=torch.int64, device=device)
    kept = TokenMap.keep(last, num_sources)
    none = kept.src[:0]
    kind = torch.full((count,), 2, dtype=torch.uint8, device=device)
    return replace(
        kept, src=none, dst=none, weight=kept.weight[:0], share=kept.share[:0], kind=kind
    )
