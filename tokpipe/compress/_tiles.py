"""Crops of a picture: which tokens are whose, and where they lie in the stitched picture.

Tile 0 is the whole picture in small, tiles 1 .. P are its crops in raster order; cells count
within their tile. Letters: N tokens, P crops, H W rows and columns of one tile.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tokpipe.tensors import TokenBatch


@dataclass(frozen=True, slots=True)
class Crops:
    """Tiles of one picture.

    Attributes:
        rows, cols: How the crops are laid out.
        height, width: Cells of one crop.
        whole: int64 tokens of the whole picture.
        parts: int64 tokens of each crop.
        y, x: int64 [N] place within the tile.
    """

    rows: int
    cols: int
    height: int
    width: int
    whole: Tensor
    parts: tuple[Tensor, ...]
    y: Tensor
    x: Tensor

    def region(self) -> Tensor:
        """Crop int64 that each token of the whole picture lies in."""
        y, x = self.y[self.whole], self.x[self.whole]
        high, wide = (int(v.max()) + 1 if v.shape[0] else 1 for v in (y, x))
        # Equal bands of whole cells; the last one takes what is left over.
        row = (y // max(1, high // self.rows)).clamp(max=self.rows - 1)
        col = (x // max(1, wide // self.cols)).clamp(max=self.cols - 1)
        return row * self.cols + col

    def stitched(self) -> tuple[Tensor, Tensor]:
        """Row and column int64 of every crop token, crop after crop, in the stitched picture."""
        rows = [self.y[p] + i // self.cols * self.height for i, p in enumerate(self.parts)]
        cols = [self.x[p] + i % self.cols * self.width for i, p in enumerate(self.parts)]
        return torch.cat(rows), torch.cat(cols)


def crops_of(tokens: TokenBatch, columns: int | None) -> Crops:
    """Tiles of the tokens of one picture.

    Args:
        tokens: Of one frame, at least one.
        columns: Crops side by side; None takes the most square layout, rather wider than tall.
    """
    tile = tokens.tile.long()
    count = int(tile.max())
    cols = columns or next((c for c in range(1, count + 1) if c * c >= count > 0 == count % c), 1)
    parts = tuple(torch.nonzero(tile == i).flatten() for i in range(1, count + 1))
    y, x = (tokens.cell[:, axis].long().clamp(min=0) for axis in (1, 2))
    cut = tile > 0 if count else tile >= 0
    return Crops(
        rows=max(1, -(-count // cols)),
        cols=cols,
        height=int(y[cut].max()) + 1,
        width=int(x[cut].max()) + 1,
        whole=torch.nonzero(tile == 0).flatten(),
        parts=parts,
        y=y,
        x=x,
    )
