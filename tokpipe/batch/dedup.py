"""Near-duplicate segments across a dataset of token caches.

Every segment becomes one vector (``_pooled``); those whose cosine reaches a threshold are put
together. Caches of different encoders are never compared. Letters: G segments, D width.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tokpipe.batch._pooled import Pooled, pooled_segments
from tokpipe.batch.manifest import CACHE_SUFFIX
from tokpipe.cache.reader import open_cache
from tokpipe.compress._neighbors import Backend, find_neighbors
from tokpipe.errors import CacheError, TokpipeError
from tokpipe.spec import Modality

#: Segments compared among themselves at a time.
_BLOCK = 1024
#: What rounding may take from a cosine: equal vectors reach a threshold of 1.
_ROUNDING = 1e-6


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of one cache.

    Attributes:
        cache: The file.
        start, stop: Seconds.
    """

    cache: Path
    start: float
    stop: float

    def to_dict(self) -> dict[str, Any]:
        """Fields as JSON has them."""
        return {"cache": str(self.cache), "start": self.start, "stop": self.stop}


@dataclass(frozen=True, slots=True)
class DuplicateGroup:
    """Segments that show the same.

    Attributes:
        encoder: Name of what made their tokens.
        representative: The first of them in the order of the caches; the one to keep.
        copies: The others, each with its cosine to the representative.
    """

    encoder: str
    representative: Segment
    copies: tuple[tuple[Segment, float], ...]

    def to_dict(self) -> dict[str, Any]:
        """Fields as JSON has them; similarities have six digits."""
        copies = [{**s.to_dict(), "similarity": round(v, 6)} for s, v in self.copies]
        return {
            "encoder": self.encoder, "representative": self.representative.to_dict(),
            "copies": copies,
        }  # fmt: skip


@dataclass(slots=True)
class Duplicates:
    """What was found.

    Attributes:
        groups: In the order of their representatives, encoder by encoder.
        encoders: Caches and segments of each encoder, by a name that tells them apart.
        problems: Caches that cannot be read, and why.
        absent: Caches without the stream.
        flat: Segments that show or sound nothing (black, silence), left out.
        short: Segments below the least length, left out.
        seconds: Length of all segments that were compared.
    """

    groups: list[DuplicateGroup] = field(default_factory=list)
    encoders: dict[str, tuple[int, int]] = field(default_factory=dict)
    problems: list[tuple[Path, TokpipeError]] = field(default_factory=list)
    absent: list[Path] = field(default_factory=list)
    flat: int = 0
    short: int = 0
    seconds: float = 0.0

    @property
    def segments(self) -> int:
        """Segments that were compared."""
        return sum(segments for _, segments in self.encoders.values())

    @property
    def copies(self) -> list[Segment]:
        """Every segment that a representative stands for."""
        return [segment for group in self.groups for segment, _ in group.copies]


def find_caches(inputs: Iterable[str | Path]) -> list[Path]:
    """Caches named, and those found at any depth below folders named, each once, by name.

    Hidden entries are passed over. What is named need not exist: reading it tells.
    """
    found: dict[str, Path] = {}
    for given in map(Path, inputs):
        for path in _below(given) if given.is_dir() else [given]:
            found.setdefault(os.path.abspath(path), path)  # noqa: PTH100 - links stay
    return list(found.values())


def _below(folder: Path) -> Iterator[Path]:
    # `os.walk` does not go into linked folders, so it ends.
    for root, folders, names in os.walk(folder):
        folders[:] = sorted(n for n in folders if not n.startswith("."))
        for name in sorted(names):
            if name.endswith(CACHE_SUFFIX) and not name.startswith("."):
                yield Path(root) / name


def find_duplicates(
    caches: Sequence[str | Path],
    threshold: float = 0.95,
    *,
    stream: Modality = "video",
    min_seconds: float = 0.0,
    backend: Backend = "auto",
    device: str | torch.device = "cpu",
    seen: Callable[[Path, TokpipeError | None], None] | None = None,
) -> Duplicates:
    """Find near-duplicate segments across caches.

    Segments are gone through in the order of the caches. One that reaches the threshold with an
    earlier representative joins the most alike of them; else it may represent later ones. So each
    copy is alike to its representative, not only to a copy of it.

    Args:
        caches: Files; see :func:`find_caches` for folders.
        threshold: Least cosine of a copy with its representative, above 0 to 1.
        stream: ``video`` or ``audio``.
        min_seconds: Shorter segments are left out.
        backend: ``torch``, ``faiss`` or ``auto``, see ``compress._neighbors.find_neighbors``.
        device: Where vectors are compared.
        seen: Called with each cache that was read, and with the error where it could not be.

    Returns:
        Groups and counts; caches that cannot be read are among ``problems``.

    Raises:
        MissingExtra: faiss is asked for and not installed.
        ValueError: The threshold is out of range.
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold: expected above 0 to 1, got {threshold}")
    found = Duplicates()
    pools: dict[tuple[str, str], list[tuple[Path, Pooled]]] = {}
    for path in map(Path, caches):
        problem: TokpipeError | None = None
        try:
            made = _read(path, stream, min_seconds)
        except TokpipeError as error:
            problem = error
            found.problems.append((path, error))
        else:
            if made is None:
                found.absent.append(path)
            else:
                found.flat += made.flat
                found.short += made.short
                pools.setdefault(made.encoder, []).append((path, made))
        if seen is not None:
            seen(path, problem)
    names = [name for name, _ in pools]
    for (name, digest), members in pools.items():
        label = name if names.count(name) == 1 else f"{name} ({digest[:8]})"
        found.encoders[label] = (len(members), sum(len(pool.spans) for _, pool in members))
        found.seconds += float(sum(np.diff(pool.spans).sum() for _, pool in members))
        found.groups += _groups(label, members, threshold, backend, torch.device(device))
    return found


def _read(path: Path, stream: Modality, min_seconds: float) -> Pooled | None:
    try:
        with open_cache(path) as cache:
            return pooled_segments(cache, stream, min_seconds)
    except OSError as error:
        if isinstance(error, TokpipeError):
            raise
        raise CacheError(
            f"cannot read `{path}`: {error.strerror or error}", hint="check the path",
            code="cache.unreadable",
        ) from error  # fmt: skip


def _groups(
    encoder: str, pools: list[tuple[Path, Pooled]], threshold: float, backend: Backend,
    device: torch.device,
) -> list[DuplicateGroup]:  # fmt: skip
    """Groups among the segments of caches of one encoder."""
    vectors = torch.from_numpy(np.concatenate([pool.vectors for _, pool in pools])).to(device)
    if len(vectors) < 2:
        return []
    segments = [Segment(path, *span) for path, pool in pools for span in pool.spans.tolist()]
    nearest, _ = find_neighbors(vectors, vectors, 1, exclude_self=True, backend=backend)
    # Most segments are like no other; only the rest is gone through one by one.
    twins = torch.nonzero(nearest[:, 0] >= threshold - 2 * _ROUNDING).flatten()
    owner, value = _led(vectors[twins], threshold - _ROUNDING, backend)
    copies: dict[int, list[tuple[Segment, float]]] = {}
    where = twins.tolist()
    for i, (leader, cosine) in enumerate(zip(owner.tolist(), value.tolist(), strict=True)):
        if leader != i:
            copies.setdefault(where[leader], []).append((segments[where[i]], min(1.0, cosine)))
    return [DuplicateGroup(encoder, segments[i], tuple(copies[i])) for i in sorted(copies)]


def _led(
    vectors: Tensor, threshold: float, backend: Backend
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The representative int64 [G] of each vector (itself for one), and their cosine [G]."""
    n = len(vectors)
    owner, value = np.arange(n), np.ones(n, dtype=np.float32)
    leaders: list[int] = []
    for a in range(0, n, _BLOCK):
        block = vectors[a : a + _BLOCK]
        best = np.full(len(block), -np.inf, dtype=np.float32)
        which = np.zeros(len(block), dtype=np.int64)
        if leaders:
            led = vectors[torch.tensor(leaders, device=vectors.device)]
            near, index = find_neighbors(block, led, 1, backend=backend)
            best, which = near[:, 0].cpu().numpy(), np.array(leaders)[index[:, 0].cpu().numpy()]
        alike = (block @ block.T).cpu().numpy()
        for i in range(len(block)):
            if best[i] >= threshold:
                owner[a + i], value[a + i] = which[i], best[i]
                continue
            leaders.append(a + i)
            nearer = alike[i] > best
            best, which = np.where(nearer, alike[i], best), np.where(nearer, a + i, which)
    return owner, value


def write_report(found: Duplicates, path: Path) -> None:
    """Write one JSON object a line for each group; a file that is there is replaced whole."""
    part = path.with_name(f".{path.name}.part")
    with part.open("w", encoding="utf-8") as out:
        for group in found.groups:
            out.write(json.dumps(group.to_dict()) + "\n")
    part.replace(path)
