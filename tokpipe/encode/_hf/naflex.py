"""SigLIP2 with NaFlex: a grid that follows the picture's shape, within a number of patches.

The grid is the processor's own rule for the picture's size. Frames of a call are of one size, so
their patches need no padding: the model's own path with the same patches and a mask of ones gives
the same tokens to the bit; its padded path within rounding.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tokpipe.encode._fit import Frame
from tokpipe.encode._hf.load import config_source, read_processor
from tokpipe.encode._hf.pixels import patch_places
from tokpipe.encode._hf.plain import PlainFamily, PlainTower
from tokpipe.encode._tower import Places


class NaflexFamily(PlainFamily):
    """SigLIP2 with variable grids; ``max_pixels`` bounds the picture it makes.

    Pictures are enlarged or shrunk to just under the bound, so ``min_pixels`` has no meaning.
    """

    @property
    def most(self) -> int:
        """Patches of a picture at most."""
        area = self.patch[0] * self.patch[1]
        if self.settings.max_pixels:
            return max(1, self.settings.max_pixels // area)
        return int(read_processor(*config_source(self.settings)).max_num_patches)

    def grid_for(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns for a picture, by the processor's rule."""
        from transformers.models.siglip2.image_processing_siglip2 import (
            get_image_size_for_max_num_patches as rule,
        )

        high, wide = rule(height, width, self.patch[0], self.most)
        return high // self.patch[0], wide // self.patch[1]

    def where(self) -> dict[str, Any]:
        """See ``PlainFamily``."""
        return {"image_size": None, "max_patches": self.most, "fit": "grid", "native_fit": "grid"}

    def places(self, height: int, width: int) -> Places:
        """See ``Family``."""
        grid = self.grid_for(height, width)
        frame = Frame(0, 0, grid[0] * self.patch[0], grid[1] * self.patch[1])
        return patch_places(frame, self.patch, grid)

    def load(
        self,
        device: torch.device,
        dtype: torch.dtype,
        *,
        compile: bool,  # noqa: A002
    ) -> NaflexTower:
        """See ``Family``."""
        return NaflexTower(self, device, dtype, compile=compile)


class NaflexTower(PlainTower):
    """A loaded tower with variable grids.

    ``prepare`` gives pictures, not patches, so that the grid is still to be seen:
    [T, 3, rows x patch, columns x patch].
    """

    _family: NaflexFamily

    def prepare(self, pixels: Tensor) -> Tensor:
        """[T, 3, h, w] in the tower's dtype with h and w whole patches, from uint8 [T, H, W, 3]."""
        family = self._family
        grid = family.grid_for(int(pixels.shape[1]), int(pixels.shape[2]))
        canvas = (grid[0] * family.patch[0], grid[1] * family.patch[1])
        made = family.pixels.placed(pixels, Frame(0, 0, *canvas), canvas)
        return made.to(self._place[1])

    def _entered(self, prepared: Tensor) -> tuple[Tensor, dict[str, Any]]:
        grid, patches = patches_of(prepared, self._family.patch[0])
        hidden = self._tower.embeddings(patches, grid)
        return hidden, {"attention_mask": None}


def patches_of(prepared: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Their grid int64 [1, 2] and patches [T, n, side x side x 3] of pictures [T, 3, h, w].

    Numbers of a patch lie row by row, colours innermost, as NaFlex takes them. The grid is on the
    CPU and stands for all pictures: positions are then made once a batch, and as the library checks
    the grid's values, nothing waits for the device.
    """
    t, colours, high, wide = prepared.shape
    rows, cols = high // side, wide // side
    cut = prepared.reshape(t, colours, rows, side, cols, side).permute(0, 2, 4, 3, 5, 1)
    return torch.tensor([[rows, cols]]), cut.reshape(t, rows * cols, -1)
