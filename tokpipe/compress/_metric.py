"""What tokens are compared by: the encoder's keys where there are any, else the data."""

from __future__ import annotations

import torch
from torch import Tensor

from tokpipe.tensors import TokenBatch


def keys_or_data(tokens: TokenBatch, head_width: int = 0) -> Tensor:
    """The extra ``keys`` [N, D'], heads averaged, else the data, float [N, D'].

    Args:
        tokens: N tokens.
        head_width: Channels of a head of the data, over which it is averaged; 0, or a width that
            does not divide D, takes whole rows.
    """
    keys = tokens.extras.get("keys")
    if keys is not None:
        return keys.mean(1, dtype=torch.float32) if keys.ndim == 3 else keys
    width = tokens.data.shape[1]
    if head_width == 0 or width % head_width or width == head_width:
        return tokens.data
    heads = tokens.data.reshape(len(tokens), -1, head_width)
    return heads.mean(1, dtype=torch.float32)
