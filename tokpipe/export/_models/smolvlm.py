"""SmolVLM, SmolVLM2 and Idefics3: pictures between marks; frames after their times."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from importlib import import_module
from typing import Any, ClassVar

from torch import Tensor

from tokpipe.errors import CacheError, MissingExtra
from tokpipe.export._models.family import Family, Given, Part, Run, Script
from tokpipe.export._models.pictures import pictures, tiles_of

#: Rows or columns of crops by which a shape cut may miss the shape recorded, and what tells two
#: shapes apart that fit alike.
_SLACK, _LEAST = 0.2, 1e-9


class Idefics3(Family):
    """Idefics3: images only, a frame of a video is one without crops."""

    modality: ClassVar[Mapping[str, str]] = {"video": "image"}
    language: ClassVar[tuple[str, ...]] = ("text_model",)
    towers: ClassVar[Mapping[str, tuple[str, ...]]] = {"video": ("vision_model",)}

    @property
    def fake(self) -> str:
        """The mark around a picture."""
        return str(self.words.find("fake_image_token", "<fake_token_around_image>"))

    def script(self, given: Given) -> Script:
        """See ``Family``."""
        return self.images(given)

    def images(self, given: Given) -> Script:
        """Each picture as an image."""
        media = given.media["video"]
        token = self.words.token(self.config.image_token_id)
        if not media.about.get("tiles"):
            rows, placed = pictures(media)
            shown = [self._whole(token, picture) for picture in rows]
        else:
            tiles, placed = tiles_of(media)
            cut = [self._shape(given, len(picture) - 1) for picture in tiles]
            if placed and None not in cut:
                shown = [
                    self._cut(token, picture, shape)
                    for picture, shape in zip(tiles, cut, strict=True) if shape
                ]  # fmt: skip
            else:
                raise CacheError(
                    "how the pictures of the cache were cut into crops is not recorded",
                    hint="encode again with this version of tokpipe, or without tiles",
                    code="export.layout",
                )
        parts = tuple(Part(token, pieces) for pieces in shown)
        return Script(
            parts=parts, content={"video": ({"type": "image"},) * len(parts)}, placed=placed,
        )  # fmt: skip

    def _run(self, token: str, rows: Tensor) -> Run:
        return Run(stream="video", token=token, rows=rows)

    def _whole(self, token: str, rows: Tensor) -> tuple[str | Run, ...]:
        mark = str(self.words.find("global_image_token", "<global-img>"))
        return (f"{self.fake}{mark}", self._run(token, rows), self.fake)

    def _cut(
        self, token: str, tiles: Sequence[Tensor], shape: tuple[int, int]
    ) -> tuple[str | Run, ...]:
        if shape == (0, 0):
            return self._whole(token, tiles[-1])
        pieces: list[str | Run] = []
        for row in range(shape[0]):
            for col in range(shape[1]):
                line = "\n" if row and not col else ""
                pieces.append(f"{line}{self.fake}<row_{row + 1}_col_{col + 1}>")
                pieces.append(self._run(token, tiles[row * shape[1] + col]))
        head, *rest = self._whole(token, tiles[-1])
        return (*pieces, f"\n\n{head}", *rest)

    def _shape(self, given: Given, crops: int) -> tuple[int, int] | None:
        """Rows and columns of crops; (0, 0) without any, None where it is not known."""
        if crops == 0:
            return (0, 0)
        if given.size is None:
            return None
        # The longer side is a whole number of crops, the other is rounded up to one; sides are
        # rounded to pixels before that, so that the shape recorded is not quite the shape cut.
        height, width = given.size

        def off(rows: int) -> float:
            cols = crops // rows
            more = rows - cols * height / width if width >= height else cols - rows * width / height
            return max(-more, more - 1 + _LEAST, 0.0)

        best = min((n for n in range(1, crops + 1) if crops % n == 0), key=off)
        return (best, crops // best) if off(best) < _SLACK else None


class SmolVlm(Idefics3):
    """SmolVLM and SmolVLM2."""

    def script(self, given: Given) -> Script:
        """See ``Family``."""
        media = given.media["video"]
        if media.about.get("tiles") or given.image:
            return self.images(given)
        rows, placed = pictures(media)
        token = self.words.token(self.config.image_token_id)
        times = media.times.tolist()
        span = timedelta(seconds=int(given.duration or times[-1]))
        count = _in_words(len(rows))
        said = f"You are provided the following series of {count} frames from a {span} [H:MM:SS]"
        pieces: list[str | Run] = [f"{said} video.\n"]
        for time, picture in zip(times, rows, strict=True):
            head, run, tail = self._whole(token, picture)
            stamp = f"\nFrame from {int(time // 60):02d}:{int(time % 60):02d}:"
            pieces = [*pieces[:-1], f"{pieces[-1]}{stamp}{head}", run, tail]
        pieces[-1] = f"{pieces[-1]}\n\n"
        marker = str(self.words.find("video_token", "<video>"))
        return Script(
            parts=(Part(marker, tuple(pieces)),), content={"video": ({"type": "video"},)},
            placed=placed,
        )  # fmt: skip


def _in_words(number: int) -> str:
    try:
        num2words: Any = import_module("num2words").num2words
    except ImportError as error:
        raise MissingExtra(
            "prompts of SmolVLM write numbers in words", hint="pip install num2words"
        ) from error
    return str(num2words(number))
