"""Read a token cache with numpy alone: columns, time slices, budgets, pictures and sound.

Only what is asked for is read: ranges by ``pread``, whole tensors as views of the mapped file.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from tokpipe.cache._clip import decode_clip
from tokpipe.cache._file import Array, CacheFile, Pread, parse_metadata
from tokpipe.cache._header import TensorInfo
from tokpipe.cache._rebuild import RebuiltFrame, rebuild_frames
from tokpipe.cache._slice import SLICE_COLUMNS, TokenSlice
from tokpipe.cache._structure import (
    check_version,
    problem_error,
    streams_of,
    structure_problems,
)
from tokpipe.cache._values import cheap_problems
from tokpipe.cache.format import bf16_to_f32, deepstack_level, is_feature, is_finite
from tokpipe.errors import BudgetError, CacheCorrupt, CacheError, error_context

__all__ = ["RebuiltFrame", "TokenCache", "TokenSlice", "open_cache"]

#: Runs of wanted rows with a smaller gap than this many bytes are read in one go.
_GAP_BYTES = 1 << 14


class TokenCache:
    """An open cache. Use :func:`open_cache`; close it or use it as a context manager.

    Attributes:
        metadata: Every metadata key; JSON values decoded.
        name: The file's name, or the item's key in a dataset.
        streams: Streams with tokens, of ``video`` and ``audio``.
    """

    def __init__(
        self, file: CacheFile, metadata: Mapping[str, Any], name: str | None = None
    ) -> None:
        self._file = file
        self.metadata = metadata
        self.name = file.path.name if name is None else name
        self.streams = streams_of(file)

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        expect: Mapping[str, object] | None = None,
        pread: Pread = os.pread,
        window: tuple[int, int] | None = None,
        name: str | None = None,
    ) -> TokenCache:
        """Open and check a cache; see :func:`open_cache`.

        Args:
            window: First byte and number of bytes of a cache that lies in a larger file.
            name: What it is called there.
        """
        with error_context(str(path)):
            file = CacheFile(path, pread, window)
            try:
                check_version(file.header.metadata)
                metadata = parse_metadata(file.header.metadata)
                cache = cls(file, metadata, name)
                for problem in structure_problems(file, metadata):
                    raise problem_error(problem)
                for problem in cheap_problems(file, metadata, cache.streams):
                    raise problem_error(problem)
                check_expected(metadata, expect or {})
            except BaseException:
                file.close()
                raise
        return cache

    def close(self) -> None:
        """Close the file; arrays that were handed out stay valid."""
        self._file.close()

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        """Close."""
        self.close()

    def __repr__(self) -> str:
        """Show the name and the tokens of each stream."""
        counts = ", ".join(f"{self.num_tokens(s)} {s}" for s in self.streams)
        return f"TokenCache({self.name!r}, {self.domain}, {counts})"

    @property
    def info(self) -> Mapping[str, Any]:
        """What is known of the source media (``tokpipe.source``)."""
        source: Mapping[str, Any] = self.metadata["tokpipe.source"]
        return source

    @property
    def duration(self) -> float | None:
        """Seconds of the source, None when unknown."""
        value = self.info.get("duration")
        return None if value is None else float(value)

    @property
    def domain(self) -> str:
        """``signal`` or ``feature``."""
        return str(self.metadata["tokpipe.domain"])

    @property
    def layout(self) -> str:
        """``ragged``, ``frames`` or ``grid``."""
        return str(self.metadata["tokpipe.layout"])

    @property
    def provenance(self) -> dict[str, Any]:
        """How the file came to be: format, writer, recipe, encoders, decode, counts, warnings."""
        keys = ("format", "writer", "recipe", "recipe_sha256", "encoder.video", "encoder.audio",
                "clock", "decode", "counts", "warnings")  # fmt: skip
        named = {key: self.metadata.get(f"tokpipe.{key}") for key in keys}
        return {key: value for key, value in named.items() if value is not None}

    @property
    def segments(self) -> npt.NDArray[np.float64]:
        """float64 [G, 2] start and stop of each segment in seconds; G may be 0."""
        if "segment.pts" not in self._file:
            return np.empty((0, 2))
        return np.asarray(self._read("segment.pts"), dtype=np.float64)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all tensors, without alignment pads."""
        return tuple(self._file.header.tensors)

    def tensor_info(self, name: str) -> TensorInfo:
        """Dtype and shape of a tensor by its full name, without reading it.

        Raises:
            CacheError: No such tensor.
        """
        return self._file.info(name)

    def num_tokens(self, stream: str | None = None) -> int:
        """Rows of one stream, 0 where it is absent; of all streams when None."""
        wanted = self.streams if stream is None else (stream,)
        return sum(self._file.num_rows(f"{s}.at") for s in wanted if s in self.streams)

    def column(self, name: str, start_row: int | None = None, stop_row: int | None = None) -> Array:
        """A tensor, or some of its rows, by its full name such as ``video.at``.

        Args:
            name: Name in the file.
            start_row: First row; None with ``stop_row`` None maps the whole tensor.
            stop_row: Row after the last; None is the end.

        Returns:
            A read-only array, BF16 widened to float32.

        Raises:
            CacheError: No such tensor, or the file is closed.
            CacheCorrupt: Features that are not finite.
        """
        with error_context(str(self._file.path)):
            if start_row is None and stop_row is None:
                return self._checked(name, self._file.view(name))
            return self._read(name, start_row or 0, stop_row)

    def rows(self, stream: str, start: float | None, stop: float | None) -> tuple[int, int]:
        """Row range [a, b) whose ``at`` lies in [start, stop) seconds, by binary search.

        Args:
            stream: ``video`` or ``audio``; an absent one has no rows.
            start: Seconds; None is from the beginning.
            stop: Seconds; None is to the end.
        """
        if stream not in self.streams:
            return 0, 0
        low = 0 if start is None else self._search(stream, float(start))
        high = self.num_tokens(stream) if stop is None else self._search(stream, float(stop))
        return low, max(low, high)

    def tokens(
        self,
        start: float | None = None,
        stop: float | None = None,
        *,
        stream: str | None = None,
        budget: int | None = None,
    ) -> dict[str, TokenSlice]:
        """All columns of the tokens with ``start <= at < stop``.

        Args:
            start: Seconds; None is from the beginning.
            stop: Seconds; None is to the end.
            stream: Only this one; None gives every stream of the file.
            budget: Only tokens with ``rank < budget``. Ranks are joint over the streams, so over
                the whole file exactly ``min(budget, N)`` tokens come.

        Returns:
            Stream name -> slice, for each stream that the file has.

        Raises:
            BudgetError: ``budget`` is below 1.
            CacheCorrupt: Features that are not finite.
        """
        if budget is not None and budget < 1:
            raise BudgetError(f"the budget must be at least 1, got {budget}")
        with error_context(str(self._file.path)):
            wanted = [s for s in self.streams if stream in (None, s)]
            return {s: self._slice(s, *self.rows(s, start, stop), budget) for s in wanted}

    def frames(self) -> Iterator[RebuiltFrame]:
        """Rebuild the pictures of a signal cache, one for each distinct ``at`` of its video.

        At time t a cell shows its latest stored content with ``at <= t``, else its earliest later
        content, else the mean of its known neighbours, else grey. Memory does not grow with the
        number of frames. Nothing comes from a cache without video.

        Raises:
            CacheError: The cache is of the feature domain: it holds no pictures.
            CacheCorrupt: A picture cannot be decoded, or a cell is outside the grid.
        """
        if self.domain != "signal":
            raise CacheError("a feature cache holds no pictures", code="cache.domain",
                             where=str(self._file.path))  # fmt: skip
        if "video" not in self.streams:
            return
        grid, atlas = self.metadata["tokpipe.grid"], self.metadata["tokpipe.atlas"]
        with error_context(str(self._file.path)):
            yield from rebuild_frames(self._file, grid, atlas)

    def audio(self) -> tuple[npt.NDArray[np.float32], int]:
        """Decode the sound of a signal cache.

        Returns:
            (samples float32 [L] in -1..1, rate in hertz). ``audio.clip_offset`` counts in them.

        Raises:
            CacheError: The cache has no sound.
            CacheCorrupt: The clip cannot be decoded or has another length than recorded.
        """
        with error_context(str(self._file.path)):
            if "audio.clip" not in self._file:
                raise CacheError("the cache holds no sound", code="cache.no_audio")
            data = self._file.read("audio.clip").tobytes()
            return decode_clip(data, self.metadata["tokpipe.clip"])

    def _search(self, stream: str, time: float) -> int:
        if math.isnan(time):
            raise CacheError("a time to look up is NaN", code="cache.time")
        low, high = 0, self.num_tokens(stream)
        while low < high:
            middle = (low + high) // 2
            if float(self._file.read(f"{stream}.at", middle, middle + 1)[0]) < time:
                low = middle + 1
            else:
                high = middle
        return low

    def _slice(self, stream: str, low: int, high: int, budget: int | None) -> TokenSlice:
        rank = self._read(f"{stream}.rank", low, high)
        rows = np.arange(low, high, dtype=np.int64)
        if budget is not None:
            rows = rows[rank < budget]
        columns = {name: self._gather(f"{stream}.{name}", rows) for name in SLICE_COLUMNS}
        extras = {}
        for full in self.names:
            owner, _, name = full.partition(".")
            per_row = name in ("atlas_box", "clip_offset")
            if owner == stream and (per_row or deepstack_level(name) is not None):
                extras[name] = self._gather(full, rows)
        if f"{stream}.members" in self._file:
            extras.update(self._members(stream, rows))
        return TokenSlice(
            stream=stream, dtype=self._file.info(f"{stream}.tokens").dtype, rows=rows,
            tokens=self._gather(f"{stream}.tokens", rows), extras=extras, **columns,
        )  # fmt: skip

    def _gather(self, name: str, rows: npt.NDArray[np.int64]) -> Array:
        """Rows by number (rising), reading runs of neighbours at once."""
        if not len(rows):
            return self._read(name, 0, 0)
        gap = 1 + _GAP_BYTES // max(1, self._file.info(name).row_bytes)
        runs = np.split(rows, np.flatnonzero(np.diff(rows) > gap) + 1)
        parts = []
        for run in runs:
            low, high = int(run[0]), int(run[-1]) + 1
            block = self._read(name, low, high)
            parts.append(block if high - low == len(run) else block[run - low])
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _members(self, stream: str, rows: npt.NDArray[np.int64]) -> dict[str, Array]:
        offsets = np.zeros(len(rows) + 1, dtype=np.int64)
        if not len(rows):
            return {"members": np.empty(0, dtype=np.int64), "members_offsets": offsets}
        low = int(rows[0])
        edges = self._read(f"{stream}.members_offsets", low, int(rows[-1]) + 2)
        starts, stops = edges[rows - low], edges[rows - low + 1]
        if (starts > stops).any() or edges[0] < 0:
            raise CacheCorrupt(f"`{stream}.members_offsets` is not monotone", code="cache.members")
        base = int(starts[0])
        flat = self._read(f"{stream}.members", base, int(stops[-1]))
        np.cumsum(stops - starts, out=offsets[1:])
        keep = [flat[a:b] for a, b in zip(starts - base, stops - base, strict=True)]
        return {"members": np.concatenate(keep), "members_offsets": offsets}

    def _read(self, name: str, start: int = 0, stop: int | None = None) -> Array:
        return self._checked(name, self._file.read(name, start, stop))

    def _checked(self, name: str, array: Array) -> Array:
        if not is_feature(name):
            return array
        dtype = self._file.info(name).dtype
        if not is_finite(array, dtype):
            raise CacheCorrupt(f"`{name}` is not finite", code="cache.finite")
        return bf16_to_f32(array) if dtype == "BF16" else array


def open_cache(
    path: str | os.PathLike[str],
    *,
    expect: Mapping[str, object] | None = None,
    pread: Pread = os.pread,
) -> TokenCache:
    """Open a cache and check what is cheap to check.

    Args:
        path: The file.
        expect: Metadata the file must have, by key. An object needs only the entries named here
            to be equal, so ``{"tokpipe.encoder.video": {"weights": digest}}`` refuses a cache
            of other weights.
        pread: Reads bytes at an offset, as ``os.pread`` does.

    Returns:
        The open cache.

    Raises:
        CacheError: Not a cache, an unknown codec, or not what ``expect`` asks for.
        CacheCorrupt: An invariant of the format page does not hold; the code names it.
        CacheVersion: Another major version of the format is needed.
    """
    return TokenCache.open(path, expect=expect, pread=pread)


def check_expected(metadata: Mapping[str, Any], expect: Mapping[str, object]) -> None:
    """Refuse metadata that are not what ``expect`` asks for; see :func:`open_cache`.

    Raises:
        CacheError: Naming the first key that differs.
    """
    for key, wanted in expect.items():
        found = metadata.get(key)
        parts = wanted.items() if isinstance(wanted, Mapping) else [(None, wanted)]
        for name, value in parts:
            there = found if name is None else found.get(name) if isinstance(found, dict) else None
            if there != value:
                label = key if name is None else f"{key}: {name}"
                raise CacheError(
                    f"the cache was made with another {label}: {there!r}, expected {value!r}",
                    code="cache.mismatch",
                    hint="use the encoder named in the cache, or compress the media again",
                )
