"""What each API takes, and how a board is made to fit it.

One table, with the source of every row and the date it was read. What fits is chosen without
asking as long as nobody said otherwise; a parameter that an API does not take is an error that
names it.
"""

from __future__ import annotations

from dataclasses import dataclass

from tokpipe.errors import RecipeError
from tokpipe.export._storyboard.pictures import Look

#: Longer side in pixels down to which pictures are made smaller before frames are left out.
SMALLEST = 768


@dataclass(frozen=True, slots=True)
class Limits:
    """What one request may hold; 0 is no limit.

    Attributes:
        images: Pictures that some model takes.
        usual: Pictures that every model of the API takes: what is chosen unless asked for more.
        request: Bytes of the whole request, base64 and text.
        image: Bytes of one picture in base64.
        side: Pixels of the longer side.
        many, many_side: With more than ``many`` pictures, ``many_side`` replaces ``side``.
        useful: Longer side in pixels beyond which the API makes pictures smaller itself.
        why: What stands behind ``usual``.
        source, read: Where the figures are from, and when they were read.
    """

    images: int = 0
    usual: int = 0
    request: int = 0
    image: int = 0
    side: int = 0
    many: int = 0
    many_side: int = 0
    useful: int = 0
    why: str = ""
    source: str = ""
    read: str = ""

    def side_for(self, images: int) -> int:
        """Pixels of the longer side that so many pictures may have."""
        return self.many_side if self.many and images > self.many else self.side


LIMITS: dict[str, Limits] = {
    # The page says 512 MB since April 2026; requests of more than about 49 MB were refused in
    # September 2026 ("exceeds the allowed limit of 50MB").
    "openai": Limits(
        images=1500, usual=500, request=45_000_000, useful=2048,
        why="the limit of 500 pictures held until April 2026, and others that speak its protocol "
        "have lower ones",
        source="https://developers.openai.com/api/docs/guides/images-vision", read="2026-09",
    ),
    "anthropic": Limits(
        images=600, usual=100, request=32_000_000, image=10_000_000, side=8000, many=20,
        many_side=2000, useful=1568, why="models with a context of 200k tokens take 100 pictures",
        source="https://platform.claude.com/docs/en/build-with-claude/vision", read="2026-09",
    ),
    "gemini": Limits(
        images=3600, usual=900, request=100_000_000,
        why="Gemini 3 takes 900 pictures",
        source="https://ai.google.dev/gemini-api/docs/image-understanding, "
        "https://ai.google.dev/gemini-api/docs/file-input-methods", read="2026-09",
    ),
    "qwen": Limits(
        images=0, usual=384, why="models saw 768 frames at most, and each picture is two frames",
        source="qwen-vl-utils 0.0.14, FPS_MAX_FRAMES", read="2026-11",
    ),
    "hf": Limits(source="transformers 5.24", read="2026-11"),
}  # fmt: skip
APIS = tuple(LIMITS)


@dataclass(frozen=True, slots=True)
class Wish:
    """What was asked for; 0 where nothing was.

    Attributes:
        only: One API was named, so what it does not take is an error.
    """

    max_frames: int
    max_side: int
    only: bool


def most_frames(api: str, there: int, wish: Wish) -> tuple[int, str]:
    """Frames an API gets of those that are there, and a note where that is fewer than could be.

    Raises:
        RecipeError: ``max_frames`` is more than the API takes.
    """
    limits = LIMITS[api]
    asked = min(there, wish.max_frames or there)
    if wish.only and limits.images and wish.max_frames > limits.images:
        raise _too_much(api, "max_frames", wish.max_frames, limits.images, "pictures")
    most = limits.images if wish.max_frames else limits.usual
    if not most or asked <= most:
        return asked, ""
    reason = (
        "" if most == limits.images else f": {limits.why} (max_frames={limits.images} for more)"
    )
    return most, f"{api}: {most} of {asked} frames, spread evenly and chosen by rank{reason}"


def first_look(counts: dict[str, int], look: Look, size: tuple[int, int], wish: Wish) -> Look:
    """The size that pictures of (width, height) get before bytes are counted.

    Args:
        counts: Frames by API.

    Raises:
        RecipeError: ``max_side`` is more than an API takes.
    """
    sides = [look.max_side] if look.max_side else []
    for api, count in counts.items():
        limits = LIMITS[api]
        side = limits.side_for(count)
        if wish.only and side and wish.max_side > side and max(look.size(*size)) > side:
            raise _too_much(api, "max_side", wish.max_side, side, f"pixels with {count} pictures")
        sides += [s for s in (side, 0 if wish.max_side else limits.useful) if s]
    return Look(look.format, look.quality, min(sides, default=0))


def smaller(look: Look, side: int, excess: float) -> Look | None:
    """A look with which bytes come down by the factor ``excess``; None where it is small enough.

    Args:
        side: Longer side in pixels that pictures have now.
    """
    if side <= SMALLEST:
        return None
    # Bytes go with the area, a little slower than it.
    return Look(look.format, look.quality, max(SMALLEST, int(side * excess**-0.55 * 0.97)))


def excess(api: str, sizes: list[int], text: int) -> float:
    """How many times too large a request with pictures of these bytes would be, at least 1.

    Args:
        text: Bytes of all that is not a picture.
    """
    limits = LIMITS[api]
    coded = [4 * ((size + 2) // 3) for size in sizes]
    found = [1.0]
    if limits.request:
        found.append((sum(coded) + text) / limits.request)
    if limits.image and coded:
        found.append(max(coded) / limits.image)
    return max(found)


def too_large(api: str, parameters: str) -> RecipeError:
    """The error where what was asked for is more bytes than an API takes."""
    limits = LIMITS[api]
    return RecipeError(
        f"the request would be larger than the {limits.request / 1e6:g} MB {api} takes",
        hint=f"lower or leave out {parameters}", code="export.limit",
    )  # fmt: skip


def _too_much(api: str, name: str, value: int, most: int, what: str) -> RecipeError:
    return RecipeError(
        f"`storyboard`: {name}={value}: {api} takes {most} {what}",
        hint=f"{name}={most}, or leave it out ({LIMITS[api].source}, {LIMITS[api].read})",
        code="export.limit",
    )
