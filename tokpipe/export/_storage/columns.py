"""A cache as plain arrays, by the names of the format; bfloat16 is settled here for all forms."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from tokpipe.cache.format import F16_MAX, METADATA, NUMPY_DTYPES, is_feature
from tokpipe.digest import canonical_json
from tokpipe.errors import CacheError

if TYPE_CHECKING:
    from tokpipe.cache.reader import TokenCache

Array = npt.NDArray[Any]
#: ``auto``: F16 and F32 as they are, BF16 as float32, all exact. ``keep``: BF16 stays BF16.
DType = Literal["auto", "float16", "float32", "keep"]
#: The same where numbers of numpy or Arrow are written, which have no bfloat16.
NumpyDType = Literal["auto", "float16", "float32"]

#: Bytes of a block when a tensor is walked.
_BLOCK_BYTES = 1 << 22
_FORMS = {"F16": "float16", "BF16": "bfloat16", "F32": "float32"}


def form_of(stored: Iterable[str], choice: DType) -> str:
    """The one dtype in which features stored as ``stored`` are written.

    Args:
        stored: Safetensors dtypes of all that go into one place.
        choice: What the user asked for.

    Returns:
        ``float16``, ``float32`` or ``bfloat16``.

    Raises:
        CacheError: ``keep``, and the dtypes differ.
    """
    kinds = set(stored)
    if choice in ("float16", "float32"):
        return choice
    if len(kinds) == 1:
        form = _FORMS[kinds.pop()]
        return "float32" if form == "bfloat16" and choice == "auto" else form
    if choice == "keep":
        raise CacheError(
            f"the caches hold {', '.join(sorted(kinds))}, one column holds one dtype",
            hint="use dtype=float32", code="export.dtype",
        )  # fmt: skip
    return "float32"


def dtype_note(stored: Iterable[str], form: str) -> str:
    """What the change of dtype means, empty where nothing changes."""
    other = sorted({_FORMS[kind] for kind in stored} - {form})
    if not other:
        return ""
    what = f"{' and '.join(other)} features were written as {form}"
    if form == "float32":
        return f"{what}, exactly"
    lost = "to 11 bits" if "float32" in other else "where it is below 6.1e-05"
    return f"{what}: a value is rounded {lost}"


@dataclass(frozen=True, slots=True)
class Plain:
    """One tensor of a cache as a plain array.

    Attributes:
        name: Name of the format, such as ``video.at``.
        form: ``bfloat16`` or the numpy dtype of the blocks; bfloat16 comes as uint16 bit patterns.
        shape: Sizes; the first is 0 where the cache has no such tensor.
        cache: Where it is read from, None where the cache has no such tensor.
    """

    name: str
    form: str
    shape: tuple[int, ...]
    cache: TokenCache | None

    @property
    def dtype(self) -> np.dtype[Any]:
        """Dtype in numpy of what ``read`` gives, little-endian."""
        return np.dtype("<u2" if self.form == "bfloat16" else self.form).newbyteorder("<")

    @property
    def nbytes(self) -> int:
        """Bytes of the whole array."""
        return prod(self.shape) * self.dtype.itemsize

    def read(self, start: int = 0, stop: int | None = None) -> Array:
        """Rows [start, stop).

        Raises:
            CacheError: A value is beyond the range of float16.
        """
        stop = self.shape[0] if stop is None else min(stop, self.shape[0])
        if self.cache is None:
            return np.zeros((max(0, stop - start), *self.shape[1:]), self.dtype)
        rows = self.cache.column(self.name, start, stop)
        if not is_feature(self.name):
            return rows
        return to_form(rows, self.form, self.name)

    def blocks(self, rows: int | None = None) -> Iterator[Array]:
        """Walk the array in blocks of about 4 MiB, or of ``rows`` rows; none for an empty one."""
        row = max(1, prod(self.shape[1:]) * self.dtype.itemsize)
        step = rows or max(1, _BLOCK_BYTES // row)
        for start in range(0, self.shape[0], step):
            yield self.read(start, start + step)


def to_form(rows: Array, form: str, name: str = "tokens") -> Array:
    """Convert float16 or float32 features; bfloat16 gives uint16 bit patterns.

    Raises:
        CacheError: A value is beyond the range of float16.
    """
    if form == "bfloat16":
        # Widened from bfloat16, so that the lower half is zero.
        return (np.ascontiguousarray(rows, "<f4").view("<u4") >> 16).astype("<u2")
    if form == "float16" and rows.dtype.itemsize > 2 and rows.size:
        largest = float(np.abs(rows).max())
        if largest > F16_MAX:
            raise CacheError(
                f"`{name}` reaches {largest:g}, beyond the range of float16",
                hint="use dtype=float32", code="export.overflow",
            )  # fmt: skip
    return rows.astype(np.dtype(form).newbyteorder("<"), copy=False)


def plain_columns(cache: TokenCache, choice: DType = "auto") -> dict[str, Plain]:
    """Every tensor of a cache in the order of the file, features in the dtype asked for."""
    out = {}
    for name in cache.names:
        info = cache.tensor_info(name)
        if info.dtype not in NUMPY_DTYPES:
            continue
        form = NUMPY_DTYPES[info.dtype].name
        if is_feature(name):
            form = form_of([info.dtype], choice)
        out[name] = Plain(name, form, info.shape, cache)
    return out


def dtype_notes(cache: TokenCache, choice: DType) -> tuple[str, ...]:
    """What the change of dtype means for one cache, a sentence each."""
    stored = {cache.tensor_info(name).dtype for name in cache.names if is_feature(name)}
    notes = [dtype_note([kind], form_of([kind], choice)) for kind in sorted(stored)]
    return tuple(note for note in notes if note)


def metadata_text(cache: TokenCache) -> dict[str, str]:
    """The metadata as the file has them: every value a text, JSON where it is structured."""
    out = {}
    for key, value in cache.metadata.items():
        known = METADATA.get(key)
        plain = known is None or known.form == "text"
        out[key] = str(value) if plain else canonical_json(value)
    return out


def transcript(cache: TokenCache) -> list[tuple[float, float, str]]:
    """Lines of the transcript as (start, stop, text), empty without one."""
    if "text.utf8" not in cache.names:
        return []
    data = cache.column("text.utf8").tobytes()
    edges = cache.column("text.offsets").tolist()
    pairs = zip(edges[:-1], edges[1:], cache.column("text.pts").tolist(), strict=True)
    return [(p[0], p[1], data[a:b].decode("utf-8", "replace")) for a, b, p in pairs]


def describe(cache: TokenCache, columns: Mapping[str, Plain]) -> dict[str, Any]:
    """What a cache is, without its arrays: for a JSON beside them."""
    streams = {}
    for stream in cache.streams:
        tokens = columns[f"{stream}.tokens"]
        deep = [n for n in columns if n.startswith(f"{stream}.deepstack_")]
        streams[stream] = {
            "tokens": tokens.shape[0], "dim": tokens.shape[1], "dtype": tokens.form,
            "stored": cache.tensor_info(tokens.name).dtype, "deepstack": len(deep),
        }  # fmt: skip
    return {
        "name": cache.info.get("name"), "duration": cache.duration, "domain": cache.domain,
        "layout": cache.layout, "streams": streams, "transcript": transcript(cache),
        "metadata": dict(cache.metadata),
    }  # fmt: skip
