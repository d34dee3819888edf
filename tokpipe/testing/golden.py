"""Golden cases: stored inputs and what the methods' released code made of them.

A case is one ``.npz``; an adapter runs our operator on its inputs and compares. Adapters read
inputs, parameters and array names from the case, never its file name.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tokpipe.compress._fit import expanded
from tokpipe.tensors import GridMap, TokenBatch, TokenMap

Adapter = Callable[["Case"], None]


@dataclass(frozen=True, slots=True)
class Case:
    """One stored case.

    Attributes:
        path: The file.
        arrays: Its arrays by name.
    """

    path: Path
    arrays: Mapping[str, Any]

    @staticmethod
    def load(path: Path) -> Case:
        """Read a file; pickled content is refused."""
        with np.load(path, allow_pickle=False) as stored:
            return Case(path, dict(stored))

    @property
    def meta(self) -> dict[str, Any]:
        """Parameters stored as JSON in the array ``meta``, else none."""
        return dict(json.loads(str(self.arrays["meta"]))) if "meta" in self.arrays else {}

    def __contains__(self, name: str) -> bool:
        """Whether an array of that name is stored."""
        return name in self.arrays

    def __call__(self, name: str) -> Tensor:
        """An array as a tensor."""
        return torch.from_numpy(np.ascontiguousarray(self.arrays[name]))

    def value(self, name: str, default: Any = None) -> Any:
        """A scalar array as a number or text, ``default`` where it is absent."""
        return self.arrays[name].item() if name in self.arrays else default

    def beside(self, name: str) -> Case:
        """Another case of the same folder, by stem or file name, as this one names it."""
        stem = name.removesuffix(".npz")
        return Case.load(self.path.with_name(f"{stem}.npz"))


def frame_tokens(
    data: Tensor, grid: tuple[int, int] | None = None, *, modality: int = 0, **extras: Tensor
) -> TokenBatch:
    """Tokens of T whole frames from ``data`` [T, C, D]; extras [T, C, ...] are flattened alike.

    Args:
        data: float [T, C, D]; [C, D] is one frame.
        grid: Rows and columns; default a square where C is one, else one row.
        modality: 0 video, 1 audio.
        extras: Further columns.
    """
    if data.ndim == 2:
        data, extras = data[None], {k: v[None] for k, v in extras.items()}
    steps, size, width = data.shape
    side = int(size**0.5)
    _, cols = grid or ((side, side) if side * side == size else (1, size))
    place = torch.arange(steps * size)
    cell = torch.stack([place // size, place % size // cols, place % cols], 1).int()
    at = (place // size).double()
    frame = torch.stack([place // size, place // size], 1)
    tokens = TokenBatch.build(
        data.reshape(-1, width), at, pts=torch.stack([at, at + 1], 1), cell=cell, frame=frame,
        modality=modality,
    )  # fmt: skip
    return replace(tokens, extras={k: v.reshape(-1, *v.shape[2:]) for k, v in extras.items()})


def group_of(decision: TokenMap | GridMap) -> Tensor:
    """Row int64 [N] of each source, -1 dropped; for maps where each source is in one row."""
    tmap = expanded(decision)
    group = torch.full((tmap.num_sources,), -1, dtype=torch.int64)
    group[tmap.src] = tmap.dst
    return group


def assert_index(found: Tensor | list[int], expected: Tensor) -> None:
    """Indices, labels, counts or masks are equal, order included."""
    found = torch.as_tensor(found)
    assert found.shape == expected.shape, f"{list(found.shape)} != {list(expected.shape)}"
    wrong = torch.nonzero(found.to(expected.dtype) != expected)
    first = wrong[0].tolist() if len(wrong) else None
    assert first is None, f"{len(wrong)} of {expected.numel()} differ, first at {first}"


def assert_values(
    found: Tensor, expected: Tensor, *, atol: float = 2e-4, rtol: float = 2e-4
) -> None:
    """Values are close; shapes are equal."""
    torch.testing.assert_close(found.double(), expected.double(), atol=atol, rtol=rtol)
