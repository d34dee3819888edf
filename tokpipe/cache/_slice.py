"""Rows of a cache in memory: numpy columns, and on request the same rows as torch tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from tokpipe.cache._file import Array
from tokpipe.cache.format import deepstack_level

if TYPE_CHECKING:
    from tokpipe.tensors import TokenBatch

#: Columns of every slice beside ``tokens``.
SLICE_COLUMNS = ("at", "pts", "frame", "cell", "extent", "tile", "mass", "kind", "segment",
                  "score", "rank")  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class TokenSlice:
    """Rows of one stream as numpy columns; names and units as in docs/format.md.

    Attributes:
        stream: ``video`` or ``audio``.
        dtype: Safetensors dtype the features are stored in.
        rows: int64 [N] row numbers in the file.
        tokens: float16 or float32 [N, D]; BF16 is widened to float32, exactly.
        extras: The optional columns that the file has: ``deepstack_1`` ..., ``atlas_box``,
            ``clip_offset``, and ``members`` [M] with ``members_offsets`` [N+1].
    """

    stream: str
    dtype: str
    rows: npt.NDArray[np.int64]
    tokens: Array
    at: npt.NDArray[np.float64]
    pts: npt.NDArray[np.float64]
    frame: npt.NDArray[np.int64]
    cell: npt.NDArray[np.int32]
    extent: npt.NDArray[np.int32]
    tile: npt.NDArray[np.int32]
    mass: npt.NDArray[np.float32]
    kind: npt.NDArray[np.uint8]
    segment: npt.NDArray[np.int32]
    score: npt.NDArray[np.float32]
    rank: npt.NDArray[np.int32]
    extras: Mapping[str, Array] = field(default_factory=dict)

    def __len__(self) -> int:
        """Return N."""
        return len(self.at)

    def __repr__(self) -> str:
        """Show shape and span."""
        span = f"{self.at[0]:.3f}..{self.at[-1]:.3f} s" if len(self) else "empty"
        return f"TokenSlice({self.stream}, {list(self.tokens.shape)} {self.dtype}, {span})"

    def to_tokens(self) -> TokenBatch:
        """The same rows as torch tensors on the CPU; imports torch.

        ``rank`` and the optional columns become extras; members stay behind.
        """
        import torch

        from tokpipe.spec import MODALITY_CODE
        from tokpipe.tensors import Reduction, TokenBatch

        def tensor(array: Array) -> torch.Tensor:
            return torch.from_numpy(np.array(array, order="C"))

        def feature(array: Array) -> torch.Tensor:
            wide = tensor(array)
            return wide.to(torch.bfloat16) if self.dtype == "BF16" else wide

        extras = {"rank": tensor(self.rank)}
        rules: dict[str, Reduction] = {"rank": "drop"}
        for name, value in self.extras.items():
            if name.startswith("members"):
                continue
            deep = deepstack_level(name) is not None
            extras[name] = feature(value) if deep else tensor(value)
            rules[name] = "linear" if deep else "anchor"
        columns = {n: tensor(getattr(self, n)) for n in SLICE_COLUMNS if n != "rank"}
        code = MODALITY_CODE[self.stream]
        modality = torch.full((len(self),), code, dtype=torch.uint8)
        return TokenBatch(
            data=feature(self.tokens), modality=modality, extras=extras, rules=rules, **columns
        )
