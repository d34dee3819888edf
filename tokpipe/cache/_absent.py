"""Streams that an item lacks and its dataset has: their columns without a row."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from tokpipe.cache.dataset import CacheDataset
from tokpipe.cache.format import NUMPY_DTYPES, deepstack_level, lookup

#: Features as torch knows them, by safetensors dtype.
FEATURES = {"F16": torch.float16, "F32": torch.float32, "BF16": torch.bfloat16}


def rowless(
    data: CacheDataset, streams: Sequence[str], columns: Sequence[str], dtype: torch.dtype | None
) -> dict[str, dict[str, Tensor]]:
    """``tokens`` [0, D] and other columns of every stream the dataset has, none of one it lacks.

    A stream of several widths or dtypes has no shape of its own and is left out.

    Args:
        streams: Of these.
        columns: Columns beside ``tokens``; those that a stream cannot have are left out.
        dtype: Of features, None as they are stored.
    """
    out = {}
    for stream in streams:
        found = data.info.streams.get(stream, [])
        kinds = {(about.get("dim"), about.get("dtype")) for about in found}
        width, stored = next(iter(kinds)) if len(kinds) == 1 else (None, None)
        if not isinstance(width, int) or stored not in FEATURES:
            continue
        feature = dtype or FEATURES[stored]
        signal = not any(about.get("weights") for about in found)
        levels = min(int(about.get("deepstack") or 0) for about in found)
        made = {"tokens": torch.empty((0, width), dtype=feature)}
        for name in columns:
            known = lookup(f"{stream}.{name}")
            if known is None or (known[1].need == "signal" and not signal):
                continue
            if (level := deepstack_level(name)) is not None:
                if level <= levels:
                    made[name] = torch.empty((0, width), dtype=feature)
                continue
            tail = [size for size in known[1].shape[1:] if isinstance(size, int)]
            made[name] = torch.from_numpy(np.empty((0, *tail), NUMPY_DTYPES[known[1].dtypes[0]]))
        out[stream] = made
    return out
