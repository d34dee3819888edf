"""One vector for a picture: the built-in descriptors pooled, or any neural encoder.

Letters: B pictures, E width of a vector, n tokens of a picture.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from tokpipe import registry
from tokpipe.device import inference, pick_device
from tokpipe.encode.pixels import describe
from tokpipe.errors import RecipeError
from tokpipe.grid import CELL
from tokpipe.spec import StepSpec
from tokpipe.towers import Running, load_tower

#: Name of the built-in features.
BUILT_IN = "descriptors"
#: Regions of a picture that each have their own numbers: rows, columns.
_REGIONS = (4, 6)
#: Pictures embedded together.
BATCH = 8
#: The column that holds a whole picture's vector in the space of its text.
_POOLED = "frame_embedding"

Vectors = NDArray[np.float32]


class Embedder(Protocol):
    """Makes unit vectors of pictures of one size."""

    @property
    def name(self) -> str:
        """What the features are called in a report."""
        ...

    def __call__(self, pictures: Sequence[NDArray[np.uint8]]) -> Vectors:
        """Unit vectors float32 [B, E] of uint8 [H, W, 3] each."""
        ...


class Descriptors:
    """Colour, edge strength and pattern of 4 x 6 regions, without weights.

    The DCT descriptors of all cells (``encode.pixels``) are averaged over 4 x 6 regions, in three
    groups: mean luma, Cb and Cr (minus mid grey); how strong each luma frequency is, as
    log(1 + size); the signed luma frequencies. Each group has length 1 times its weight, and a
    small constant keeps an even grey picture from having no direction.
    """

    name = BUILT_IN
    #: Weights of colour, strength, pattern, constant.
    weights = (1.0, 1.0, 0.7, 0.1)

    def __call__(self, pictures: Sequence[NDArray[np.uint8]]) -> Vectors:
        """Unit vectors float32 [B, E]; sides must be multiples of 28."""
        cells = describe(torch.from_numpy(np.stack(pictures))).float().movedim(-1, 1)
        flat = cells[:, [0, 16, 20]] / torch.tensor([CELL, CELL / 2, CELL / 2]).reshape(1, 3, 1, 1)
        flat[:, 0] -= 128
        waves = cells[:, 1:16]
        groups = [_regions(flat), _regions(waves.abs().log1p()), _regions(waves)]
        parts = [weight * _unit(group) for weight, group in zip(self.weights, groups, strict=False)]
        parts.append(torch.full((len(pictures), 1), self.weights[-1]))
        return _unit(torch.cat(parts, 1)).numpy()


class Neural:
    """A vision tower: its vector in the space of text where it has one, else the mean token.

    Args:
        step: The encoder, as ``encoder_choice.encoder_step`` reads it.
        label: What the user called it.

    Raises:
        RecipeError: An encoder of sound.
        ModelError: The weights are not there, or not those expected.
    """

    def __init__(self, step: StepSpec, running: Running, label: str) -> None:
        kind = registry.load(step.use)
        if kind.modalities[0] != "video":
            raise RecipeError(
                f"`{label}` encodes sound, coverage is measured on pictures",
                hint="name an encoder of pictures, such as open_clip:ViT-B-32",
            )
        operator = kind(**step.params)
        self._label, self._running = label, running
        pooled = _POOLED in operator.outline().extras
        self._columns = frozenset([_POOLED] if pooled else [])
        self._tower: Any = load_tower(operator, running.device, running.dtype, running.compiled)

    @property
    def name(self) -> str:
        """What the user called it."""
        return self._label

    def __call__(self, pictures: Sequence[NDArray[np.uint8]]) -> Vectors:
        """Unit vectors float32 [B, E]."""
        device, step = pick_device(self._running.device), self._running.batch or BATCH
        rows = []
        for a in range(0, len(pictures), step):
            pixels = torch.from_numpy(np.stack(pictures[a : a + step])).to(device)
            with inference():
                made = self._tower.encode(self._tower.prepare(pixels), self._columns)
            pooled = made.columns[_POOLED][:, 0] if self._columns else made.data.float().mean(1)
            rows.append(pooled.float().cpu())
        return _unit(torch.cat(rows)).numpy()


def _regions(maps: Tensor) -> Tensor:
    """Means [B, c x regions] of maps [B, c, rows, cols], laid out as the picture lies."""
    wide = maps.shape[3] >= maps.shape[2]
    means: Tensor = adaptive_avg_pool2d(maps, _REGIONS if wide else _REGIONS[::-1])
    return means.flatten(1)


def _unit(rows: Tensor) -> Tensor:
    length: Tensor = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    return rows / length.clamp(min=1e-9)


class Collector:
    """Embeds pictures as they come, some at a time, and hands each vector to its owner.

    Args:
        embedders: Every picture goes through each of them.
    """

    def __init__(self, embedders: Sequence[Embedder]) -> None:
        self._embedders = embedders
        self._held: list[tuple[Callable[[str, NDArray[np.float32]], None], NDArray[np.uint8]]] = []

    def add(
        self, picture: NDArray[np.uint8], owner: Callable[[str, NDArray[np.float32]], None]
    ) -> None:
        """Embed uint8 [H, W, 3]; ``owner`` is called with features' name and vector [E]."""
        self._held.append((owner, picture))
        if len(self._held) == BATCH:
            self.flush()

    def flush(self) -> None:
        """Embed what is held."""
        if not self._held:
            return
        for embedder in self._embedders:
            made = embedder([picture for _, picture in self._held])
            for (owner, _), vector in zip(self._held, made, strict=True):
                owner(embedder.name, vector)
        self._held.clear()


def to_size(picture: NDArray[np.uint8], width: int, height: int) -> NDArray[np.uint8]:
    """The picture uint8 [height, width, 3], enlarged smoothly or averaged."""
    from PIL import Image

    if picture.shape[:2] == (height, width):
        return picture
    smaller = width <= picture.shape[1] and height <= picture.shape[0]
    rule = Image.Resampling.BOX if smaller else Image.Resampling.BICUBIC
    return np.asarray(Image.fromarray(picture).resize((width, height), rule))


def at_half_side(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """What a picture looks like after it was kept at half its sides, uint8 [H, W, 3]."""
    height, width = picture.shape[:2]
    small = to_size(picture, max(1, width // 2), max(1, height // 2))
    return to_size(small, width, height)
