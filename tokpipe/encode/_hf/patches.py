"""Where patches of pictures of any size lie, in the order towers of the Qwen kind take them.

Letters: T pictures, P patches of one picture, n = P / s^2 merge groups of s x s patches. Patches of
a group follow each other; groups are in raster order (windows, where a tower has them, are given as
an order of the groups). Rotary positions and the weights of interpolated position embeddings are
computed by transformers' own functions for the whole grid and then thinned out, so that a patch has
the same place whether its neighbours enter or not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from tokpipe.encode._hf.segments import Segments


@dataclass(frozen=True, slots=True)
class Layout:
    """What of a tower's configuration decides where patches lie.

    Attributes:
        merge: Side s of a merge group.
        window: Groups on a side of an attention window, 0 without windows.
        table: Side of the square table of learned position embeddings, 0 without.
    """

    merge: int
    window: int = 0
    table: int = 0

    @property
    def unit(self) -> int:
        """Patches of a group."""
        return self.merge**2


@dataclass(frozen=True, slots=True)
class Patches:
    """Places of the patches of one call.

    Attributes:
        grid: int64 [T, 3] of (time, rows, columns) in patches, on the CPU.
        where: Tensors by the names under which the towers of transformers take them precomputed.
        segments: Which patches see each other.
        back: int64 [T * n], position of each group in the order the tower works in, None where
            that is raster order.
    """

    grid: Tensor
    where: Mapping[str, Tensor]
    segments: Segments
    back: Tensor | None = None


@lru_cache(maxsize=16)
def whole(layout: Layout, grid: tuple[int, int], pictures: int, device: torch.device) -> Patches:
    """All patches of T pictures of ``grid`` rows and columns of patches each."""
    every = torch.ones(grid[0] * grid[1] // layout.unit, dtype=torch.bool)
    return _patches(layout, grid, every, pictures, device)


def kept(layout: Layout, grid: tuple[int, int], live: Tensor, device: torch.device) -> Patches:
    """Patches of the live groups of one picture, each where it lies in the full grid.

    Windows are those of the full grid without the absent patches.

    Args:
        live: bool [n] on the CPU, at least one of them.
    """
    return _patches(layout, grid, live, 1, device)


def _patches(
    layout: Layout, grid: tuple[int, int], live: Tensor, pictures: int, device: torch.device
) -> Patches:
    groups = int(live.sum())
    length = groups * layout.unit
    patch = live.repeat_interleave(layout.unit)
    where = {
        name: value[patch].repeat(pictures, 1).to(device)
        for name, value in _places(layout, grid).items()
    }
    # Everything is one sequence to the tower; what sees what is said by the segments.
    whole = torch.tensor([0, pictures * length], dtype=torch.int32)
    where["cu_seqlens"] = whole
    windows, back = torch.tensor([length]), None
    if layout.window:
        order, windows = _windows(layout, grid, live)
        shift = torch.arange(pictures).repeat_interleave(groups) * groups
        order = (order.repeat(pictures) + shift).to(device)
        where |= {"window_index": order, "cu_window_seqlens": whole}
        back = order.argsort()
    # One column of groups: any shape of as many groups does where all places are given.
    shape = [1, groups * layout.merge, layout.merge]
    return Patches(
        grid=torch.tensor([shape] * pictures),
        where=where,
        segments=Segments.of(pictures, windows, device),
        back=back,
    )


@lru_cache(maxsize=16)
def _places(layout: Layout, grid: tuple[int, int]) -> Mapping[str, Tensor]:
    """Rotary and learned positions [P, ...] of the patches of one picture."""
    from transformers import vision_utils

    thw = torch.tensor([[1, *grid]])
    where = {"position_ids": vision_utils.get_vision_position_ids(thw, layout.merge)}
    if layout.table:
        indices, weights = vision_utils.get_vision_interpolation_indices_and_weights(
            thw,
            num_grid_per_side=layout.table,
            mode="bilinear",
            align_corners=True,
            spatial_merge_size=layout.merge,
        )
        where |= {"interp_indices": indices, "interp_weights": weights}
    return where


def _windows(layout: Layout, grid: tuple[int, int], live: Tensor) -> tuple[Tensor, Tensor]:
    """Order of the live groups by window, and the patches of each window with any.

    Returns:
        int64 [n'], numbers among the live groups, and int64 [W].
    """
    order, window = _window_order(layout, grid)
    there = live[order]
    sizes = torch.bincount(window[there]) * layout.unit
    # Windows are kept in the model's own order: another would change the last bits of sums.
    return (live.cumsum(0) - 1)[order[there]], sizes[sizes > 0]


@lru_cache(maxsize=16)
def _window_order(layout: Layout, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Groups of one picture by window int64 [n], and the window of each int64 [n]."""
    from transformers import vision_utils

    order, borders = vision_utils.get_vision_window_index(
        torch.tensor([[1, *grid]]),
        spatial_merge_size=layout.merge,
        # The function divides by patches first; in these units only whole groups are left.
        window_size=layout.window * layout.merge,
        patch_size=1,
    )
    return order, torch.repeat_interleave(borders.long().diff() // layout.unit)
