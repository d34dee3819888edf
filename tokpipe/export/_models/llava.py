"""LLaVA-1.5, LLaVA-NeXT, LLaVA-NeXT-Video, LLaVA-OneVision and Video-LLaVA.

The prompt of a picture is its placeholders and nothing else; a video is all of its pictures'. What
these models add after the projector, a learned newline, is part of a cache of crops (``kind`` 3)
and is added here to pictures without crops: one after each of LLaVA-NeXT, as the model packs a
picture that is a single tile, and one after a whole video of LLaVA-OneVision.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from tokpipe.cache.format import KIND_LAYOUT
from tokpipe.errors import CacheError
from tokpipe.export._media import Media
from tokpipe.export._models.family import Family, Given, Part, Run, Script
from tokpipe.export._models.pictures import filled, in_order, pictures

#: From this shrink on LLaVA-OneVision interpolates the grid of crops.
_SHRINK = 1.1


class Images(Family):
    """Models that take each picture as an image of its own."""

    modality: ClassVar[Mapping[str, str]] = {"video": "image"}

    @property
    def image_token(self) -> str:
        """Placeholder of an image."""
        return self.words.token(number_of(self.config, "image"))

    def script(self, given: Given) -> Script:
        """See ``Family``."""
        media = given.media["video"]
        rows, placed = pictures(media)
        return self.images(rows, placed=placed)

    def images(
        self, rows: Sequence[Tensor], *, placed: bool, added: Tensor | None = None,
        notes: tuple[str, ...] = (),
    ) -> Script:  # fmt: skip
        """One image for each of ``rows``."""
        token = self.image_token
        parts = tuple(
            Part(token, (Run(stream="video", token=token, rows=picture),)) for picture in rows
        )
        return Script(
            parts=parts, content={"video": ({"type": "image"},) * len(parts)}, placed=placed,
            modality={"video": "image"}, added={} if added is None else {"video": added},
            notes=notes,
        )  # fmt: skip


class Llava(Images):
    """LLaVA-1.5."""


class LlavaNext(Images):
    """LLaVA-NeXT."""

    def script(self, given: Given) -> Script:
        """See ``Family``."""
        return self.packed(given)

    #: With several images the model's own processor makes no crops.
    alone: ClassVar[bool] = False

    def packed(self, given: Given) -> Script:
        """Pictures as the model packs images: crops as one grid with newlines, or the whole."""
        media = given.media["video"]
        if _tiled(media):
            made = self._crops(media, given.size)
            if not self.alone or len(made.parts) == 1:
                return made
            note = "the model's own processor makes crops of a single image only"
            return replace(made, notes=(*made.notes, note))
        rows, placed = pictures(media)
        newline = self.newline()
        if newline is None:
            return self.images(rows, placed=placed)
        end = torch.tensor([len(media)])
        note = "pictures without crops: each is the whole of an image, ended by the newline"
        return self.images(
            [torch.cat([picture, end]) for picture in rows], placed=placed, added=newline,
            notes=(note,),
        )  # fmt: skip

    def newline(self) -> Tensor | None:
        """The learned newline [1, D]."""
        found = getattr(self.base, "image_newline", None)
        return None if found is None else found.detach()[None].float().cpu()

    def _crops(self, media: Media, size: tuple[int, int] | None) -> Script:
        mosaic = self._mosaic(media, size)
        rows: list[Tensor | None] = []
        if mosaic is not None:
            places = _places(_grid(media), mosaic)
            rows = [filled(media, step, places) for step in range(len(media.times))]
        known = [picture for picture in rows if picture is not None]
        if known and len(known) == len(media.times):
            return self.images(known, placed=True)
        return self.images(in_order(media), placed=False)

    def _mosaic(self, media: Media, size: tuple[int, int] | None) -> tuple[int, int] | None:
        """Rows and columns of the grid of crops, without newlines.

        From the size of the picture, else from where its newlines are.
        """
        g = _grid(media)[0]
        crops = int(media.about.get("tokens_per_picture", 0)) - g * _grid(media)[1]
        ends = media.cell[media.kind >= KIND_LAYOUT, 2]
        if size is not None:
            made = self._mosaic_of(size, g)
            if crops < 0 or made[0] * (made[1] + 1) == crops:
                return made
        if len(ends) and crops > 0 and crops % (int(ends[0]) + 1) == 0:
            return crops // (int(ends[0]) + 1), int(ends[0])
        return None

    def _mosaic_of(self, size: tuple[int, int], g: int) -> tuple[int, int]:
        from transformers.image_processing_utils import select_best_resolution

        height, width = size
        side = int(self.config.vision_config.image_size)
        pins = [tuple(pin) for pin in self.config.image_grid_pinpoints]
        canvas = select_best_resolution((height, width), pins)
        rows, cols = canvas[0] // side * g, canvas[1] // side * g
        if width / height > cols / rows:
            rows -= (rows - int(round(height * (cols / width), 7))) // 2 * 2
        else:
            cols -= (cols - int(round(width * (rows / height), 7))) // 2 * 2
        return self._shrunk(rows, cols, g)

    def _shrunk(self, rows: int, cols: int, g: int) -> tuple[int, int]:
        return rows, cols


class LlavaNextVideo(LlavaNext):
    """LLaVA-NeXT-Video: pictures pooled as frames of a video, or as images with crops."""

    modality: ClassVar[Mapping[str, str]] = {"video": "video"}

    def script(self, given: Given) -> Script:
        """See ``Family``."""
        media = given.media["video"]
        if _tiled(media):
            return self.packed(given)
        return _one_video(self, given, None)


class LlavaOnevision(LlavaNext):
    """LLaVA-OneVision: frames of a video, ended by one newline, or images with crops."""

    modality: ClassVar[Mapping[str, str]] = {"video": "video"}
    stacked: ClassVar[tuple[str, ...]] = ("video",)
    alone: ClassVar[bool] = True

    def script(self, given: Given) -> Script:
        """See ``Family``."""
        media = given.media["video"]
        if _tiled(media):
            return self.packed(given)
        return _one_video(self, given, self.newline())

    def _shrunk(self, rows: int, cols: int, g: int) -> tuple[int, int]:
        digits = str(self.config.vision_aspect_ratio).removeprefix("anyres_max_")
        if not digits.isdigit():
            return rows, cols
        ratio = math.sqrt(rows * cols / (int(digits) * g**2))
        return (int(rows // ratio), int(cols // ratio)) if ratio > _SHRINK else (rows, cols)


class VideoLlava(Images):
    """Video-LLaVA: a token of the whole picture stands before those of its grid."""

    modality: ClassVar[Mapping[str, str]] = {"video": "video"}
    stacked: ClassVar[tuple[str, ...]] = ("video", "image")
    towers: ClassVar[Mapping[str, tuple[str, ...]]] = {"video": ("video_tower",)}

    def script(self, given: Given) -> Script:
        """See ``Family``."""
        media = given.media["video"]
        if media.about.get("enters_as") == "image":
            return Images.script(self, given)
        grid = torch.cartesian_prod(torch.zeros(1).long(), *map(torch.arange, _grid(media)))
        places = torch.cat([torch.tensor([[0, -1, -1]]), grid])
        rows = [filled(media, step, places) for step in range(len(media.times))]
        known = [picture for picture in rows if picture is not None]
        placed = len(known) == len(media.times)
        return _as_video(self, given, known if placed else in_order(media), placed=placed)

    def without(self, media: Media) -> tuple[str, ...]:
        """See ``Family``: frames and images have towers of their own."""
        image = media.about.get("enters_as") == "image"
        return (*self.language, "video_tower" if image else "image_tower")


def _one_video(family: Family, given: Given, newline: Tensor | None) -> Script:
    """All pictures as one video."""
    rows, placed = pictures(given.media["video"])
    return _as_video(family, given, rows, placed=placed, newline=newline)


def _as_video(
    family: Family, given: Given, rows: Sequence[Tensor], *, placed: bool,
    newline: Tensor | None = None,
) -> Script:  # fmt: skip
    """Rows of pictures one after another.

    Raises:
        CacheError: They are asked for as images.
    """
    if given.image:
        raise CacheError(
            f"the rows are frames of a video as {type(family.model).__name__} makes them, the "
            "messages ask for images",
            hint='mark {"type": "video"}, or encode with tiles for images with crops',
            code="export.modality",
        )
    if newline is not None:
        rows = [*rows, torch.tensor([len(given.media["video"])])]
    token = family.words.token(number_of(family.config, "video"))
    run = Run(stream="video", token=token, rows=torch.cat(list(rows)))
    return Script(
        parts=(Part(token, (run,)),), content={"video": ({"type": "video"},)}, placed=placed,
        modality={"video": "video"}, added={} if newline is None else {"video": newline},
    )  # fmt: skip


def number_of(config: Any, kind: str) -> int:
    """Id of a placeholder; the key has two names, by version."""
    found = getattr(config, f"{kind}_token_id", None)
    return int(getattr(config, f"{kind}_token_index") if found is None else found)


def _tiled(media: Media) -> bool:
    return bool(media.about.get("tiles")) or bool((media.tile > 0).any())


def _grid(media: Media) -> tuple[int, int]:
    return media.grid or (0, 0)


def _places(grid: tuple[int, int], mosaic: tuple[int, int]) -> Tensor:
    """int64 [n, 3] (tile, y, x): the whole picture, then lines of crops, each with a newline."""
    whole = torch.cartesian_prod(torch.zeros(1).long(), *map(torch.arange, grid))
    lines = torch.cartesian_prod(
        torch.ones(1).long(), torch.arange(mosaic[0]), torch.arange(mosaic[1] + 1)
    )
    return torch.cat([whole, lines])
