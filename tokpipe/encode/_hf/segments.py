"""Attention within pictures and windows, all of one size in one call.

The vision towers of transformers cut a packed sequence by a Python loop, one attention call for
each picture or window of each layer. Registered as an implementation of attention, this cuts it by
reshaping instead, as pictures of a batch are of one size and windows of a few sizes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

#: Name of the implementation in transformers' registry.
NAME = "tokpipe_segments"


@dataclass(frozen=True, slots=True)
class Segments:
    """Which patches of a packed sequence see each other.

    Attributes:
        pictures: T pictures of one size follow each other.
        windows: Patches of one picture by windows of one size, int64 [windows, length] each;
            empty where all are of one size.
        size: That size in patches; of the whole picture where a tower has no windows.
        back: int64 [P], place of each patch among all of ``windows``.
        windowed: Attention modules that see windows only; the others see whole pictures.
    """

    pictures: int
    windows: tuple[Tensor, ...]
    size: int
    back: Tensor | None = None
    windowed: frozenset[nn.Module] = frozenset()

    @staticmethod
    def of(pictures: int, lengths: Tensor, device: torch.device) -> Segments:
        """Segments of pictures whose windows follow each other, ``lengths`` patches each."""
        sizes = sorted(set(lengths.tolist()))
        if len(sizes) == 1:
            return Segments(pictures, (), sizes[0])
        starts = lengths.cumsum(0) - lengths
        windows = [starts[lengths == size][:, None] + torch.arange(size) for size in sizes]
        back = torch.cat([window.flatten() for window in windows]).argsort()
        return Segments(pictures, tuple(w.to(device) for w in windows), 0, back.to(device))


def register() -> None:
    """Make the implementation known to transformers under ``NAME``; again is no harm."""
    from transformers import AttentionInterface

    disabled: Any = torch.compiler.disable
    # Compiled blocks of one shape share their code, where which of them see windows is lost.
    AttentionInterface.register(NAME, disabled(attend))


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    segments: Segments,
    scaling: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Softmax attention within segments; signature of transformers' attention functions.

    Args:
        query, key, value: [1, H, T * P, Dh].

    Returns:
        [1, T * P, H, Dh], and no weights.
    """
    pictures = segments.pictures
    # [T, P, H, Dh]
    parts = [
        x[0].transpose(0, 1).reshape(pictures, -1, x.shape[1], x.shape[3])
        for x in (query, key, value)
    ]
    if module not in segments.windowed:
        made = _seen(parts, parts[0].shape[1], scaling)
    elif segments.back is None:
        made = _seen(parts, segments.size, scaling)
    else:
        cuts = [
            _seen([x[:, window.flatten()] for x in parts], window.shape[1], scaling)
            for window in segments.windows
        ]
        made = torch.cat(cuts, 1)[:, segments.back]
    return made.flatten(0, 1).unsqueeze(0), None


def _seen(parts: list[Tensor], length: int, scaling: float | None) -> Tensor:
    """Attention of sequences of ``length`` that follow each other, [T, p, H, Dh] as given."""
    shape = parts[0].shape
    query, key, value = (x.reshape(-1, length, *shape[2:]).transpose(1, 2) for x in parts)
    made = nn.functional.scaled_dot_product_attention(query, key, value, scale=scaling)
    return made.transpose(1, 2).reshape(shape)
