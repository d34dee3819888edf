"""What the header alone must satisfy: version, metadata, names, dtypes and shapes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from tokpipe.cache._file import CacheFile
from tokpipe.cache.format import (
    ATLAS_CODECS,
    DOMAINS,
    FORMAT_VERSION,
    METADATA,
    QUANT_CODECS,
    SHARED_COLUMNS,
    STREAM_COLUMNS,
    STREAMS,
    bind,
    deepstack_level,
    lookup,
)
from tokpipe.errors import CacheCorrupt, CacheError, CacheVersion

#: Largest picture in pixels a header may ask a reader to make (canvas or atlas page).
MAX_PIXELS = 1 << 26
#: Above every rate in hertz and every side in cells or pixels that makes sense.
_MAX_SIDE = 1 << 18


class Problem(NamedTuple):
    """One broken invariant.

    Attributes:
        code: Short stable name, as in docs/format.md.
        message: What is wrong and where.
    """

    code: str
    message: str


def problem_error(problem: Problem, where: str | None = None) -> CacheError:
    """The error a reader raises for a problem."""
    kind = CacheError if problem.code in ("codec", "domain") else CacheCorrupt
    return kind(problem.message, where=where, code=f"cache.{problem.code}")


def check_version(raw: Mapping[str, str]) -> None:
    """Refuse what is no token cache or needs another reader.

    Raises:
        CacheError: There is no ``tokpipe.format``.
        CacheCorrupt: It is not ``major.minor``.
        CacheVersion: The major version is not this one.
    """
    version = raw.get("tokpipe.format")
    if version is None:
        raise CacheError("not a token cache: no `tokpipe.format` in its metadata",
                         code="cache.format")  # fmt: skip
    major, dot, minor = version.partition(".")
    digits = major.isascii() and major.isdecimal() and minor.isascii() and minor.isdecimal()
    if not dot or not digits:
        raise CacheCorrupt(
            f"the format version {version!r} is not major.minor", code="cache.format"
        )
    if major != FORMAT_VERSION.partition(".")[0]:
        raise CacheVersion(
            f"the cache has format {version}, this tokpipe reads {FORMAT_VERSION}",
            hint=f"install a tokpipe that reads format {major}.x",
        )


def streams_of(file: CacheFile) -> tuple[str, ...]:
    """Streams with at least one tensor of the table."""
    there = {found[0] for name in file.header.tensors if (found := lookup(name))}
    return tuple(stream for stream in STREAMS if stream in there)


def structure_problems(file: CacheFile, metadata: Mapping[str, Any]) -> Iterator[Problem]:
    """Everything the header shows to be wrong, the most telling first."""
    if metadata.get("tokpipe.domain") not in DOMAINS:
        yield Problem("domain", f"unknown domain {metadata.get('tokpipe.domain')!r}")
        return
    signal = metadata["tokpipe.domain"] == "signal"
    streams = streams_of(file)
    if not streams:
        yield Problem("missing", "the cache has no tokens")
        return
    yield from _metadata(metadata, streams, signal)
    for stream in streams:
        yield from _stream(file, stream, signal)
    yield from _shared(file)
    for name, pad in file.header.pads.items():
        if pad.dtype != "U8" or len(pad.shape) != 1:
            yield Problem("dtype", f"`{name}` is {pad.dtype} {list(pad.shape)}, expected U8 [B]")


def _stream(file: CacheFile, stream: str, signal: bool) -> Iterator[Problem]:
    sizes: dict[str, int] = {}
    for column in STREAM_COLUMNS[stream].values():
        name = f"{stream}.{column.name}"
        if name in file:
            yield from _column(file, name, sizes)
        elif column.need == "always" or (column.need == "signal" and signal):
            yield Problem("missing", f"the column `{name}` is missing")
    for pair in (("members", "members_offsets"), ("atlas", "atlas_offsets")):
        yield from _together(file, [f"{stream}.{n}" for n in pair if n in STREAM_COLUMNS[stream]])
    levels = sorted(
        level
        for name in file.header.tensors
        if name.startswith(f"{stream}.") and (level := deepstack_level(name.split(".", 1)[1]))
    )
    for want, level in enumerate(levels, 1):
        yield from _column(file, f"{stream}.deepstack_{level}", sizes)
        if level != want:
            yield Problem("missing", f"`{stream}.deepstack_{want}` is missing below {level}")
    if levels and f"{stream}.tokens" in file:
        dtypes = {file.info(f"{stream}.deepstack_{level}").dtype for level in levels}
        if dtypes != {file.info(f"{stream}.tokens").dtype}:
            yield Problem("dtype", f"{stream}: deepstack rows and tokens differ in dtype")
    if sizes.get("N") == 0 or sizes.get("D") == 0:
        yield Problem("shape", f"{stream}: N and D must be at least 1")


def _shared(file: CacheFile) -> Iterator[Problem]:
    sizes: dict[str, int] = {}
    for name in SHARED_COLUMNS:
        if name in file:
            yield from _column(file, name, sizes)
    for group in ("segment", "text", "thumb"):
        yield from _together(file, [n for n in SHARED_COLUMNS if n.startswith(f"{group}.")])


def _column(file: CacheFile, name: str, sizes: dict[str, int]) -> Iterator[Problem]:
    found = lookup(name)
    assert found is not None  # noqa: S101 - only called for names of the format
    column, info = found[1], file.info(name)
    if info.dtype not in column.dtypes:
        yield Problem("dtype", f"`{name}` is {info.dtype}, expected {' or '.join(column.dtypes)}")
    expected = bind(info.shape, column.shape, sizes)
    if expected is not None:
        yield Problem("shape", f"`{name}` has shape {list(info.shape)}, expected {expected}")


def _together(file: CacheFile, names: list[str]) -> Iterator[Problem]:
    absent = [name for name in names if name not in file]
    if absent and len(absent) < len(names):
        yield Problem("missing", f"the tensor `{absent[0]}` is missing beside its companions")


def _metadata(
    metadata: Mapping[str, Any], streams: tuple[str, ...], signal: bool
) -> Iterator[Problem]:
    needed = {"always", *streams, *(f"signal-{s}" for s in streams if signal)}
    for key, known in METADATA.items():
        if known.need in needed and key not in metadata:
            yield Problem("metadata", f"the metadata key `{key}` is missing")
    for key in ("source", "counts", "digest", "encoder.video", "encoder.audio", "grid", "atlas",
                "clip", "quant", "clock", "decode", "thumb"):  # fmt: skip
        value = metadata.get(f"tokpipe.{key}", {})
        if not isinstance(value, dict):
            yield Problem("metadata", f"the metadata key `tokpipe.{key}` is not a JSON object")
            return
    duration = metadata.get("tokpipe.source", {}).get("duration")
    if duration is not None and not _number(duration):
        yield Problem("metadata", "`tokpipe.source` has a duration that is not seconds or null")
    yield from _quant(metadata.get("tokpipe.quant", {}))
    yield from _counts(metadata.get("tokpipe.counts", {}), streams)
    if "tokpipe.grid" in metadata:
        yield from _grid(metadata["tokpipe.grid"])
    if "tokpipe.atlas" in metadata:
        yield from _atlas(metadata["tokpipe.atlas"])
    if "tokpipe.clip" in metadata:
        yield from _clip(metadata["tokpipe.clip"])


def _quant(quant: dict[str, Any]) -> Iterator[Problem]:
    for stream, entry in quant.items():
        codec = entry.get("codec") if isinstance(entry, dict) else entry
        if not isinstance(codec, str) or codec not in QUANT_CODECS:
            yield Problem("codec", f"unknown quantisation codec {codec!r} of `{stream}`")


def _counts(counts: dict[str, Any], streams: tuple[str, ...]) -> Iterator[Problem]:
    for stream in (*streams, *(s for s in STREAMS if s in counts and s not in streams)):
        entry = counts.get(stream)
        fields = ("source", "dropped", "kept")
        if not isinstance(entry, dict) or not all(_number(entry.get(f)) for f in fields):
            yield Problem("metadata", f"`tokpipe.counts` lacks source, dropped, kept of `{stream}`")


def _grid(grid: dict[str, Any]) -> Iterator[Problem]:
    rows, cols, cell = (_side(grid.get(k)) for k in ("rows", "cols", "cell"))
    if not 1 <= rows * cols * cell * cell <= MAX_PIXELS:
        yield Problem("metadata", "`tokpipe.grid` lacks sensible rows, cols and cell")


def _atlas(atlas: dict[str, Any]) -> Iterator[Problem]:
    codec = atlas.get("codec")
    if not isinstance(codec, str) or codec not in ATLAS_CODECS:
        yield Problem("codec", f"unknown atlas codec {codec!r}")
    slots, slot = atlas.get("slots"), _side(atlas.get("slot"))
    across, down = map(_side, slots) if isinstance(slots, list) and len(slots) == 2 else (0, 0)
    if not 1 <= across * down * slot * slot <= MAX_PIXELS:
        yield Problem("metadata", "`tokpipe.atlas` lacks sensible slots and slot")


def _clip(clip: dict[str, Any]) -> Iterator[Problem]:
    codec, rate, samples = clip.get("codec"), clip.get("rate"), clip.get("samples")
    if codec not in ("opus", "flac"):
        yield Problem("codec", f"unknown clip codec {codec!r}")
    if not _side(rate) or not _number(samples) or not isinstance(samples, int):
        yield Problem("metadata", "`tokpipe.clip` lacks sensible rate and samples")


def _number(value: object) -> bool:
    # The comparison also refuses NaN, which Python's JSON reads.
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e15


def _side(value: object) -> int:
    """The value itself when it is a sensible size, else 0."""
    fine = isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= _MAX_SIDE
    return value if fine and isinstance(value, int) else 0
