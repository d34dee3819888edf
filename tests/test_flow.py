"""Prefetch: bounded, the same items, errors as themselves, nothing left behind."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokpipe.flow import prefetch


class Numbers:
    """A source that tells how far it was read and whether it was closed."""

    def __init__(self, count: int, fail_at: int | None = None) -> None:
        self.made = 0
        self.closed = False
        self.thread = ""
        self._count, self._fail_at = count, fail_at

    def __iter__(self) -> Iterator[int]:
        self.thread = threading.current_thread().name
        try:
            for i in range(self._count):
                if i == self._fail_at:
                    raise KeyError("broken")
                self.made += 1
                yield i
        finally:
            self.closed = True


def workers() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name == "tokpipe-prefetch"]


@settings(max_examples=20, deadline=None)
@given(count=st.integers(0, 30), depth=st.integers(0, 5))
def test_prefetch_gives_the_same_items_at_any_depth(count: int, depth: int) -> None:
    assert list(prefetch(Numbers(count), depth)) == list(range(count))
    assert not workers()


@pytest.mark.parametrize("depth", [1, 3])
def test_prefetch_runs_ahead_but_not_far(depth: int) -> None:
    source = Numbers(100)
    flow = prefetch(source, depth)
    assert next(flow) == 0
    deadline = time.monotonic() + 5
    while source.made < 1 + depth + 1 and time.monotonic() < deadline:
        time.sleep(0.005)
    time.sleep(0.05)
    assert source.made == 1 + depth + 1
    assert source.thread == "tokpipe-prefetch"
    flow.close()


@pytest.mark.parametrize("depth", [0, 1, 4])
def test_prefetch_error_surfaces_as_itself_after_the_items(depth: int) -> None:
    flow = prefetch(Numbers(10, fail_at=3), depth)
    assert [next(flow) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(KeyError, match="broken"):
        next(flow)
    assert not workers()


@pytest.mark.parametrize("depth", [0, 1, 4])
def test_prefetch_error_of_a_source_that_cannot_start_surfaces(depth: int) -> None:
    with pytest.raises(TypeError):
        list(prefetch(5, depth))  # type: ignore[arg-type]


@pytest.mark.parametrize("depth", [0, 1, 4])
def test_prefetch_close_ends_source_and_thread(depth: int) -> None:
    source = Numbers(1000)
    flow = prefetch(source, depth)
    assert next(flow) == 0
    flow.close()
    assert source.closed
    assert not workers()
    assert source.made < 1000


@pytest.mark.parametrize("depth", [0, 2])
def test_prefetch_that_is_nested_closes_all(depth: int) -> None:
    source = Numbers(1000)
    flow = prefetch((i + 1 for i in prefetch(source, depth)), depth)
    assert next(flow) == 1
    flow.close()
    assert source.closed
    assert not workers()


def test_prefetch_starts_nothing_before_it_is_pulled() -> None:
    source = Numbers(3)
    flow = prefetch(source, 2)
    assert (source.made, workers()) == (0, [])
    flow.close()
    assert source.made == 0


def test_prefetch_survives_an_error_in_the_consumer() -> None:
    source = Numbers(1000)

    flow = prefetch(source, 2)

    def consume() -> None:
        for item in flow:
            if item == 2:
                raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        consume()
    flow.close()
    assert source.closed
    assert not workers()
