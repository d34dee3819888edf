"""What every neural encoder offers the engine: an outline known from its configuration, a tower.

An operator file (``open_clip.py``, ``hf_vision.py`` ...) holds a frozen dataclass of parameters
with ``outline()``, ``places(height, width)`` (pictures) and ``load(device, dtype)``. The first two
read configuration only, so that ``plan`` counts without weights; the last gives a tower.

Letters: T pictures, n tokens of one picture, D width, L samples, H heads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from tokpipe.spec import KIND_KEPT

if TYPE_CHECKING:
    from tokpipe.tensors import Query


@dataclass(frozen=True, slots=True, kw_only=True)
class Outline:
    """What an encoder gives, from its configuration alone.

    Attributes:
        dim: Width D of a token's row.
        deepstack: Rows beside each token (Qwen3-VL: 3), each of width D.
        extras: Names of the columns of ``spec.EXTRAS`` it can give.
        text: It has a text tower for queries.
        sparse: A picture may be encoded from some of its tokens alone (context ``kept``).
        rate: Hertz its sound must have; 0 for pictures.
        about: Further facts for ``tokpipe.encoder.S`` of the cache: stage, patch, merge,
            temporal_patch, image_size, layer, processor, mean, std, interpolation, rope ...
    """

    dim: int
    deepstack: int = 0
    extras: tuple[str, ...] = ()
    text: bool = False
    sparse: bool = False
    rate: int = 0
    about: Mapping[str, Any] = field(default_factory=dict)

    def merged(self, rule: str) -> Outline:
        """The same with a rule inside: no columns, no deepstack rows, whole pictures only."""
        about = {**self.about, "inside": rule}
        return replace(self, extras=(), deepstack=0, sparse=False, about=about)


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """Where the n tokens of one picture lie; the same for all pictures of one size.

    Attributes:
        grid: Rows and columns of the whole picture's token grid (tile 0).
        cell: int32 [n, 2], row and column of each token in its tile's grid.
        box: float64 [n, 4], (y0, x0, y1, x1) as fractions of the picture before any fitting;
            what lies outside 0..1 is padding. Newline rows have the box of their row.
        tile: int32 [n], 0 the whole picture, else the number of a crop.
        kind: uint8 [n], a kind code of ``spec``: kept, or newline.
    """

    grid: tuple[int, int]
    cell: Tensor
    box: Tensor
    tile: Tensor
    kind: Tensor

    def __len__(self) -> int:
        """Return n."""
        return int(self.cell.shape[0])

    @staticmethod
    def regular(y: Tensor, x: Tensor) -> Places:
        """A raster of tokens between the edges ``y`` float64 [rows + 1] and ``x`` [cols + 1]."""
        rows, cols = len(y) - 1, len(x) - 1
        row = torch.arange(rows).repeat_interleave(cols)
        col = torch.arange(cols).repeat(rows)
        return Places(
            grid=(rows, cols), cell=torch.stack([row, col], 1).int(),
            box=torch.stack([y[row], x[col], y[row + 1], x[col + 1]], 1).double(),
            tile=torch.zeros(rows * cols, dtype=torch.int32),
            kind=torch.full((rows * cols,), KIND_KEPT, dtype=torch.uint8),
        )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoded:
    """Tokens of T pictures or T equal stretches of sound, on the tower's device.

    Attributes:
        data: [T, n, D] in the tower's dtype.
        deepstack: Tensors like ``data``, one a level.
        columns: Extra columns [T, n, ...] by their name in ``spec.EXTRAS``.
    """

    data: Tensor
    deepstack: tuple[Tensor, ...] = ()
    columns: Mapping[str, Tensor] = field(default_factory=dict)


class VisionTower(Protocol):
    """A loaded tower for pictures. Nothing in it depends on how pictures are batched."""

    outline: Outline
    #: ``sha256:...`` over tower and projector, see ``_weights.digest_of``.
    weights: str

    def prepare(self, pixels: Tensor) -> Tensor:
        """Fit and normalise uint8 [T, H, W, 3] on the device the pixels are on."""
        ...

    def encode(self, prepared: Tensor, columns: frozenset[str] = frozenset()) -> Encoded:
        """Tokens of prepared pictures [T, ...]; asks for ``columns`` cost only when named."""
        ...

    def encode_kept(
        self, prepared: Tensor, live: Tensor, columns: frozenset[str] = frozenset()
    ) -> Encoded:
        """Tokens ``live`` bool [n] of one prepared picture [1, ...], encoded from them alone.

        A mask on the CPU is best: how many tokens it has must be known there. Every token keeps its
        place in the full grid; class and register tokens always enter. Only where
        ``outline.sparse``.
        """
        ...

    def embed_text(self, text: str) -> Query:
        """The text tower's vectors; ``space`` names the column they are compared with."""
        ...


class AudioTower(Protocol):
    """A loaded tower for sound that works in chunks which do not see each other.

    Attributes:
        chunk: Samples of one chunk: the smallest length from which encoding chunk by chunk gives
            what encoding the whole gives (``outline.about["chunk_exact"]`` False: a fixed window
            of our choice, for towers that attend over everything).
    """

    outline: Outline
    weights: str
    chunk: int

    def times(self, samples: int) -> Tensor:
        """float64 [n, 2] seconds from the chunk's start each token of a chunk stands for.

        ``samples`` is the true length of the chunk, at most ``chunk``; the last may be shorter.
        """
        ...

    def encode(self, waves: list[Tensor], columns: frozenset[str] = frozenset()) -> list[Encoded]:
        """Tokens of chunks float32 [L_i], L_i <= ``chunk``; one Encoded with T = 1 each."""
        ...
