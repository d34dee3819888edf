"""Check every invariant of the format page; deep also digests, features, pictures and sound."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tokpipe.cache._clip import decode_clip
from tokpipe.cache._file import CacheFile, parse_metadata
from tokpipe.cache._header import metadata_digest
from tokpipe.cache._rebuild import Atlas
from tokpipe.cache._structure import Problem, check_version, streams_of, structure_problems
from tokpipe.cache._values import feature_problems, value_problems
from tokpipe.cache.format import METADATA_DIGEST
from tokpipe.errors import CacheError

__all__ = ["Problem", "VerifyReport", "verify"]


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyReport:
    """What was checked and what is wrong.

    Attributes:
        path: The file.
        deep: Contents were checked too.
        problems: Broken invariants as (code, message); empty when the file is sound.
        counts: Things seen: bytes, tensors, tokens by stream, segments, and when deep
            digests, pages and samples.
    """

    path: str
    deep: bool
    problems: tuple[Problem, ...]
    counts: Mapping[str, int]

    @property
    def ok(self) -> bool:
        """Nothing is wrong."""
        return not self.problems

    def to_dict(self) -> dict[str, Any]:
        """The report for JSON."""
        return {
            "path": self.path,
            "deep": self.deep,
            "ok": self.ok,
            "problems": [p._asdict() for p in self.problems],
            "counts": dict(self.counts),
        }


def verify(
    path: str | os.PathLike[str],
    deep: bool = False,
    window: tuple[int, int] | None = None,
    decode: bool = True,
) -> VerifyReport:
    """Check a cache without stopping at the first fault; memory stays flat.

    Args:
        path: The file.
        deep: Also compare digests, look for features that are not finite, and decode every
            atlas page and the clip (needs Pillow and PyAV).
        window: First byte and number of bytes of a cache that lies in a larger file.
        decode: Off, ``deep`` leaves pictures and sound as they are.

    Raises:
        CacheError: The file cannot be opened or read at all. A damaged one is reported instead.
    """
    counts: dict[str, int] = {}
    problems = list(_problems(path, deep, counts, window, decode))
    return VerifyReport(path=str(path), deep=deep, problems=tuple(problems), counts=counts)


def _problems(
    path: str | os.PathLike[str], deep: bool, counts: dict[str, int],
    window: tuple[int, int] | None, decode: bool,
) -> Iterator[Problem]:  # fmt: skip
    try:
        file = CacheFile(path, window=window)
    except CacheError as error:
        if error.code == "cache.open":
            raise
        yield _problem(error)
        return
    with file:
        counts["bytes"] = file.size
        counts["tensors"] = len(file.header.tensors)
        try:
            check_version(file.header.metadata)
            metadata = parse_metadata(file.header.metadata)
        except CacheError as error:
            yield _problem(error)
            return
        structure = list(structure_problems(file, metadata))
        yield from structure
        yield from _digest_names(file, metadata)
        if not structure:
            yield from value_problems(file, metadata, _count(file, counts))
        if deep:
            yield from digest_problems(file, metadata, counts)
            if not structure:
                yield from feature_problems(file)
                if decode:
                    yield from _contents(file, metadata, counts)


def _problem(error: CacheError) -> Problem:
    return Problem(error.code.removeprefix("cache."), error.message)


def _count(file: CacheFile, counts: dict[str, int]) -> tuple[str, ...]:
    streams = streams_of(file)
    for stream in streams:
        counts[stream] = file.num_rows(f"{stream}.at")
    counts["segments"] = file.num_rows("segment.pts") if "segment.pts" in file else 0
    return streams


def _digest_names(file: CacheFile, metadata: Mapping[str, Any]) -> Iterator[Problem]:
    digests = metadata.get("tokpipe.digest")
    if not isinstance(digests, dict):
        return
    names = {*file.header.tensors, *file.header.pads, METADATA_DIGEST}
    for name in sorted(names ^ set(digests)):
        there = "has no digest" if name in names else "is named by a digest but not there"
        yield Problem("digest", f"`{name}` {there}")
    if digests.get(METADATA_DIGEST) != metadata_digest(file.header.metadata):
        yield Problem("digest", "the metadata differ from their digest")


def digest_problems(
    file: CacheFile, metadata: Mapping[str, Any], counts: dict[str, int]
) -> Iterator[Problem]:
    """Tensors whose bytes differ from their digest."""
    digests = metadata.get("tokpipe.digest")
    if not isinstance(digests, dict):
        return
    counts["digests"] = 0
    for name in (*file.header.tensors, *file.header.pads):
        if name not in digests:
            continue
        running = hashlib.sha256()
        for block in file.raw_blocks(name):
            running.update(block)
        counts["digests"] += 1
        if digests[name] != f"sha256:{running.hexdigest()}":
            yield Problem("digest", f"the bytes of `{name}` differ from their digest")


def _contents(
    file: CacheFile, metadata: Mapping[str, Any], counts: dict[str, int]
) -> Iterator[Problem]:
    if "video.atlas" in file and "tokpipe.atlas" in metadata:
        yield from _pages(file, metadata["tokpipe.atlas"], counts)
    if "audio.clip" in file and "tokpipe.clip" in metadata:
        try:
            samples, _ = decode_clip(file.read("audio.clip").tobytes(), metadata["tokpipe.clip"])
            counts["samples"] = len(samples)
        except CacheError as error:
            yield _problem(error)
    if "text.utf8" in file:
        try:
            file.read("text.utf8").tobytes().decode()
        except UnicodeDecodeError as error:
            yield Problem("text", f"`text.utf8` is not UTF-8: {error.reason} at {error.start}")


def _pages(file: CacheFile, spec: Mapping[str, Any], counts: dict[str, int]) -> Iterator[Problem]:
    atlas = Atlas(file, spec)
    counts["pages"] = atlas.num_pages
    sizes = []
    for index in range(atlas.num_pages):
        try:
            sizes.append(atlas.page(index).shape[:2])
        except CacheError as error:
            yield _problem(error)
            return
    for start, block in file.blocks("video.atlas_box"):
        for offset, (page, x, y, size) in enumerate(block.tolist()):
            if not -1 <= page < len(sizes):
                continue
            if page >= 0 and (y + size > sizes[page][0] or x + size > sizes[page][1]):
                yield Problem("atlas", f"video row {start + offset}: the box is off page {page}")
                return
