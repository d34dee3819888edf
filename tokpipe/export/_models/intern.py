"""InternVL: frames of a video, each named and between two marks, or images with crops."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from tokpipe.export._media import Media
from tokpipe.export._models.family import Family, Given, Part, Run, Script
from tokpipe.export._models.pictures import pictures, tiles_of


class InternVl(Family):
    """InternVL 3 and 3.5 in transformers' own form (``...-hf``)."""

    modality: ClassVar[Mapping[str, str]] = {"video": "image"}
    stacked: ClassVar[tuple[str, ...]] = ("image",)

    def script(self, given: Given) -> Script:
        """See ``Family``."""
        media = given.media["video"]
        token = self.words.token(self.config.image_token_id)
        start = str(self.words.find("start_image_token", "<img>"))
        end = str(self.words.find("end_image_token", "</img>"))
        tiled = bool(media.about.get("tiles"))
        rows, placed = _tiles(media) if tiled else pictures(media)
        shown = [(start, Run(stream="video", token=token, rows=each), end) for each in rows]
        if tiled or given.image:
            parts = tuple(Part(token, pieces) for pieces in shown)
            return Script(
                parts=parts, content={"video": ({"type": "image"},) * len(parts)}, placed=placed
            )
        pieces: list[str | Run] = []
        for number, frame in enumerate(shown, 1):
            head = f"Frame{number}: {frame[0]}"
            pieces += ["\n" + head if pieces else head, *frame[1:]]
        marker = str(self.words.find("video_token", "<video>"))
        return Script(
            parts=(Part(marker, tuple(pieces)),), content={"video": ({"type": "video"},)},
            placed=placed,
        )  # fmt: skip


def _tiles(media: Media) -> tuple[list[Tensor], bool]:
    """Crops first, the whole picture last."""
    found, placed = tiles_of(media)
    return [torch.cat(tiles) for tiles in found], placed
