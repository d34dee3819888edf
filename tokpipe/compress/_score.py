"""How much tokens stand out: a kernel against means, on the channels that vary least.

Letters: N tokens, T frames, C tokens of a frame, D width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

#: Rows of one block of a large product.
_ROWS = 256


def quiet_channels(parts: Sequence[Tensor], ratio: float) -> Tensor:
    """Channels int64 [int(D * ratio)] of lowest variance over all rows, by rising variance.

    Args:
        parts: Rows [*, D] of any floating type, one or more in all.
        ratio: Part of the channels.
    """
    width, count = parts[0].shape[1], sum(len(part) for part in parts)
    # Sums of differences to a common shift: small numbers, so little is lost.
    shift = parts[0].float().mean(0)
    total = torch.zeros(width, dtype=torch.float64, device=shift.device)
    square = torch.zeros_like(total)
    for part in parts:
        for rows in torch.split(part, _ROWS):
            moved = rows.float() - shift
            total += moved.sum(0)
            square += moved.square_().sum(0)
    variance = square - total.square() / max(1, count)
    return torch.argsort(variance, stable=True)[: max(1, int(width * ratio))]


def kernel(similar: Tensor, square: Tensor | float, centre: Tensor) -> Tensor:
    """Sum over k = -3 .. 1 of exp(-d^2 / (2 * 2^k)) of unit rows to a centre.

    Args:
        similar: float32 dot product of each row with the centre.
        square: Squared length of each row: 1, or 0 for a zero row.
        centre: float32 squared length of the centre.
    """
    apart = (square + centre - 2 * similar).clamp(min=0)
    # Each further term is the square of the one before: 2^k halves.
    term = torch.exp(apart / -4)
    out = term.clone()
    for _ in range(4):
        term = term.square()
        out += term
    return out


def on_channels(channels: Tensor, width: int) -> Tensor:
    """Mask float32 [D] of the channels."""
    mask = torch.zeros(width, device=channels.device)
    mask[channels] = 1
    return mask


def inverse_lengths(rows: Tensor, mask: Tensor) -> Tensor:
    """One over the length of each float32 row on the channels of ``mask``; 0 for zero rows."""
    length = rows.square().mv(mask).sqrt()
    return torch.where(length > 1e-12, 1 / length.clamp(min=1e-12), 0.0)


def unit_mean(rows: Tensor, inverse: Tensor) -> Tensor:
    """Mean float32 [D] of the rows, each times ``inverse``."""
    return inverse @ rows / max(1, rows.shape[0])


def likeness(rows: Tensor, inverse: Tensor, centre: Tensor) -> Tensor:
    """Kernel of normalised rows [C, D] to a centre [D] that is zero on other channels."""
    square = (inverse > 0).float()
    return kernel(rows.mv(centre) * inverse, square, centre.dot(centre))
