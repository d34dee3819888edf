"""VideoLLaMA3: each frame of a video after its time; an image is its placeholders alone.

Frames of a video and images are cut otherwise (2 x 2 patches a token, or one), which the cache
says (``enters_as``). The model's own dropping of still patches is that of a recipe here: frames of
which it keeps nothing leave their time in its prompts, and are left out of these.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from torch import nn

from tokpipe.export._models.family import Family, Given, Part, Run, Script
from tokpipe.export._models.pictures import pictures


class VideoLlama3(Family):
    """VideoLLaMA3 in transformers' own form."""

    towers: ClassVar[Mapping[str, tuple[str, ...]]] = {"video": ("vision_model", "projector")}

    def script(self, given: Given) -> Script:
        """See ``Family``."""
        media = given.media["video"]
        rows, placed = pictures(media)
        made_as = media.about.get("enters_as")
        image = made_as == "image" if made_as else bool(given.image)
        kind = "image" if image else "video"
        token = self.words.token(getattr(self.config, f"{kind}_token_id"))
        runs = [Run(stream="video", token=token, rows=picture) for picture in rows]
        if image:
            parts = tuple(Part(token, (run,)) for run in runs)
        else:
            pieces: list[str | Run] = []
            for run, time in zip(runs, media.times.tolist(), strict=True):
                head = f"Time {time:.1f}s:"
                pieces += [f",{head}" if pieces else head, run]
            parts = (Part(token, tuple(pieces)),)
        return Script(
            parts=parts, content={"video": ({"type": kind},) * len(parts)}, placed=placed,
            modality={"video": kind},
        )  # fmt: skip

    def parts(self, stream: str) -> tuple[nn.Module, ...]:
        """See ``Family``."""
        return (self.base.vision_model, self.base.projector)
