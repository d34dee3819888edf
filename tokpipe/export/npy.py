"""Per video ID.npy with a row for each frame, as VTimeLLM and its kind read, and ID.times.npy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from tokpipe.cache.reader import TokenCache, open_cache
from tokpipe.errors import CacheError, error_context
from tokpipe.export._contract import Written
from tokpipe.export._storage.columns import to_form
from tokpipe.export._storage.gather import gather
from tokpipe.export._storage.pooled import every_token, mean_rows, spread
from tokpipe.spec import Layout

_EXAMPLE = """\
import numpy as np
rows, times = np.load("FOLDER/{key}.npy"), np.load("FOLDER/{key}.times.npy")"""


@dataclass(frozen=True, slots=True)
class Npy:
    """A folder with two files for each cache.

    A frame's row is the mean of all tokens whose span holds its time, each weighed by the cells of
    one picture that it stands for, so that cells which did not change and were dropped count with
    the token that stands for them. A cache holds no class token.

    Attributes:
        pool: A ``mean`` for each frame, or ``all`` tokens one after the other.
        frames: This many rows: the frames shown at evenly spread times; 0 is every frame.
        stream: ``video`` or ``audio``.
        dtype: ``float16`` or ``float32``.
    """

    source: ClassVar[str] = "VTimeLLM, vtimellm/train/dataset.py: {id}.npy (T, D) float16"
    takes: ClassVar[tuple[Layout, ...]] = ("ragged", "frames", "grid")
    domains: ClassVar[tuple[str, ...]] = ("signal", "feature")
    extra: ClassVar[str] = ""
    whole: ClassVar[bool] = True
    suffix: ClassVar[str] = ""
    model_use: ClassVar[str] = "no"
    accepts: ClassVar[str] = "caches that have the stream"
    loses: ClassVar[str] = "places, spans and all but one vector a frame; float16 rounds the mean"
    python: ClassVar[str] = ""

    pool: Literal["mean", "all"] = "mean"
    frames: Annotated[int, Field(ge=0)] = 0
    stream: Literal["video", "audio"] = "video"
    dtype: Literal["float16", "float32"] = "float16"

    def __post_init__(self) -> None:
        """Refuse what cannot be meant.

        Raises:
            ValueError: ``frames`` where nothing is pooled.
        """
        if self.frames and self.pool == "all":
            raise ValueError("frames counts pooled rows: leave it out, or use pool=mean")

    def check(self, cache: TokenCache) -> None:
        """Refuse a cache without the stream."""
        if self.stream not in cache.streams:
            raise CacheError(
                f"the cache has no {self.stream}", code="cache.stream",
                hint=f"leave it out, or use stream={'/'.join(cache.streams)}",
            )  # fmt: skip

    def write_all(self, caches: Sequence[Path], target: Path) -> Written:
        """Write the files into the folder ``target``.

        Raises:
            CacheError: A file is no cache, has no such stream, or a mean is beyond float16.
        """
        found = gather(caches)
        target.mkdir()
        rows = 0
        for key, path in zip(found.ids, found.paths, strict=True):
            with error_context(str(path)), open_cache(path) as cache:
                self.check(cache)
                pooled = every_token if self.pool == "all" else mean_rows
                values, times = pooled(cache, self.stream)
                if self.frames:
                    chosen = spread(cache, self.stream, times, self.frames)
                    values, times = values[chosen], times[chosen]
            np.save(target / f"{key}.npy", to_form(values, self.dtype))
            np.save(target / f"{key}.times.npy", times)
            rows += len(times)
        return Written(
            tokens=sum(found.tokens.values()), items={"caches": len(found.paths), "rows": rows},
            example=_EXAMPLE.format(key=found.ids[0]),
        )  # fmt: skip
