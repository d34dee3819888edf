"""Windows of consecutive tokens laid end to end along the channels."""

from __future__ import annotations

import torch
from torch.nn.functional import pad

from tokpipe.compress._project import projected
from tokpipe.maps import TokenMap
from tokpipe.tensors import TokenBatch


def window_count(n: int, kernel: int, stride: int, *, padded: bool) -> int:
    """Windows over ``n`` tokens; with ``padded`` the last may reach beyond the end."""
    if padded:
        return min(n, 1) if n <= kernel else -(-(n - kernel) // stride) + 1
    return 0 if n < kernel else (n - kernel) // stride + 1


def time_windows(tokens: TokenBatch, kernel: int, stride: int, *, padded: bool) -> TokenBatch:
    """One token a window: its ``kernel`` tokens side by side in order of time.

    A token in several windows splits its share evenly; one in none is dropped. A row takes the
    place of its window's first token.

    Args:
        tokens: N tokens in order of time, D wide.
        kernel: Tokens of a window.
        stride: Tokens from one window's start to the next one's.
        padded: Fill the last window with zeros instead of dropping it.

    Returns:
        W tokens, kernel x D wide.
    """
    n, device = len(tokens), tokens.data.device
    rows = window_count(n, kernel, stride, padded=padded)
    reach = (rows - 1) * stride + kernel
    data = tokens.data[:reach] if rows else tokens.data[:0]
    if rows:
        data = pad(data, (0, 0, 0, max(0, reach - n))).unfold(0, kernel, stride).transpose(1, 2)
    dst = torch.arange(rows, device=device).repeat_interleave(kernel)
    src = dst * stride + torch.arange(kernel, device=device).repeat(rows)
    dst, src = dst[src < n], src[src < n]
    times = torch.bincount(src, minlength=n).clamp(min=1).float()
    group = TokenMap(
        src=src, dst=dst, weight=torch.full_like(times[src], 1 / kernel), share=1 / times[src],
        anchor=torch.arange(rows, device=device) * stride, num_sources=n,
    )  # fmt: skip
    return projected(tokens, data.reshape(rows, kernel * tokens.data.shape[1]), group)
