"""Which tokens belong to which frame, and whether a frame is a whole regular grid."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tokpipe.tensors import TokenBatch


@dataclass(frozen=True, slots=True)
class Frames:
    """Frames present in a batch, in time order.

    Attributes:
        index: int64 [N] frame of each token.
        counts: int64 [T] tokens of each frame.
    """

    index: Tensor
    counts: Tensor

    def __len__(self) -> int:
        """Return T."""
        return int(self.counts.shape[0])


def frames_of(tokens: TokenBatch) -> Frames:
    """Group tokens of equal ``at`` into frames."""
    _, index, counts = torch.unique(tokens.at, return_inverse=True, return_counts=True)
    return Frames(index, counts)


def raster_shape(tokens: TokenBatch) -> tuple[int, int] | None:
    """Rows and columns of one frame whose tokens are a whole grid in raster order, else None."""
    y, x = tokens.cell[:, 1].long(), tokens.cell[:, 2].long()
    if not len(tokens) or int(torch.minimum(y, x).min()) < 0 or int(tokens.tile.max()) > 0:
        return None
    rows, cols = int(y.max() - y.min()) + 1, int(x.max() - x.min()) + 1
    place = (y - y.min()) * cols + (x - x.min())
    expected = torch.arange(len(tokens), device=place.device)
    return (rows, cols) if rows * cols == len(tokens) and torch.equal(place, expected) else None
