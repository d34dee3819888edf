"""Properties: reading gives back what was written; a slice is a filter of the whole."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokpipe.cache import CacheWriter, open_cache
from tokpipe.cache.verify import verify

Make = Callable[..., Any]
Rows = dict[str, npt.NDArray[Any]]
TIMES = st.floats(-1e3, 1e6, allow_nan=False) | st.sampled_from([0.0, 0.5, 1.0])


@st.composite
def stream_rows(draw: st.DrawFn) -> Rows:
    """Sorted rows with every column at random within its range."""
    n, width = draw(st.integers(1, 12)), draw(st.integers(1, 5))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    at = np.sort(np.array(draw(st.lists(TIMES, min_size=n, max_size=n))))
    cell = random.integers(-1, 3, (n, 3)).astype(np.int32)
    tile = random.integers(0, 2, n).astype(np.int32)
    order = np.lexsort((cell[:, 2], cell[:, 1], tile, at))
    frame = np.sort(random.integers(-1, 99, (n, 2)), axis=1)
    score = random.standard_normal(n).astype(np.float32)
    score[random.random(n) < 0.3] = np.nan
    return {
        "tokens": random.standard_normal((n, width)).astype(np.float32),
        "at": at[order],
        "pts": np.stack([at[order] - random.random(n), at[order] + random.random(n)], 1),
        "frame": frame,
        "cell": cell[order],
        "extent": random.integers(1, 4, (n, 3)).astype(np.int32),
        "tile": tile[order],
        "mass": (random.random(n) + 0.1).astype(np.float32),
        "kind": random.integers(0, 5, n).astype(np.uint8),
        "segment": np.full(n, -1, dtype=np.int32),
        "score": score,
    }


@st.composite
def caches(draw: st.DrawFn) -> dict[str, Rows]:
    """Rows of one or both streams with joint ranks."""
    names = draw(st.sampled_from([["video"], ["audio"], ["video", "audio"]]))
    rows = {name: draw(stream_rows()) for name in names}
    total = sum(len(r["at"]) for r in rows.values())
    rank = np.random.default_rng(draw(st.integers(0, 99))).permutation(total).astype(np.int32)
    for part in rows.values():
        part["rank"], rank = rank[: len(part["at"])], rank[len(part["at"]) :]
    return rows


def write(path: Path, rows: dict[str, Rows], step: int, metadata: dict[str, object]) -> Path:
    counts = {}
    with CacheWriter(path, force=True, durability="fast", dtype="F32") as writer:
        for stream, part in rows.items():
            for start in range(0, len(part["at"]), step):
                writer.append(stream, {n: v[start : start + step] for n, v in part.items()})
            counts[stream] = {"source": float(part["mass"].sum(dtype=float)) + 3, "dropped": 3}
        return writer.finish({**metadata, "tokpipe.counts": counts})


@settings(max_examples=60, deadline=None)
@given(rows=caches(), step=st.integers(1, 13), start=TIMES, length=st.floats(0, 1e3),
       budget=st.none() | st.integers(1, 30))  # fmt: skip
def test_reading_is_the_inverse_of_writing_and_slices_are_filters(
    tmp_path_factory: pytest.TempPathFactory, make_metadata: Make, rows: dict[str, Rows],
    step: int, start: float, length: float, budget: int | None,
) -> None:  # fmt: skip
    path = tmp_path_factory.getbasetemp() / "property"
    write(path, rows, step, make_metadata("feature", **dict.fromkeys(rows, 0)))
    stop = start + length
    with open_cache(path) as cache:
        whole, part = cache.tokens(), cache.tokens(start, stop, budget=budget)
    assert set(whole) == set(part) == set(rows)
    for stream, columns in rows.items():
        keep = (columns["at"] >= start) & (columns["at"] < stop)
        if budget is not None:
            keep &= columns["rank"] < budget
        for name, value in columns.items():
            read = getattr(whole[stream], name)
            np.testing.assert_array_equal(read, value)
            np.testing.assert_array_equal(getattr(part[stream], name), read[keep])
    assert verify(path, deep=True).ok


@settings(max_examples=20, deadline=None)
@given(rows=caches(), steps=st.tuples(st.integers(1, 13), st.integers(1, 13)))
def test_bytes_do_not_depend_on_the_pieces(
    tmp_path_factory: pytest.TempPathFactory, make_metadata: Make, rows: dict[str, Rows],
    steps: tuple[int, int],
) -> None:  # fmt: skip
    path = tmp_path_factory.getbasetemp() / "pieces"
    metadata = make_metadata("feature", **dict.fromkeys(rows, 0))
    one, two = (write(path, rows, step, metadata).read_bytes() for step in steps)
    assert one == two
