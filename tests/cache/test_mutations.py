"""Damaged bytes: only tokpipe errors escape, and deep verify sees every flip."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tokpipe.cache import open_cache
from tokpipe.cache.verify import verify
from tokpipe.errors import TokpipeError

Make = Callable[..., Any]


def use(path: Path) -> bool:
    """Read everything a cache offers; False when it was refused by a tokpipe error."""
    try:
        with open_cache(path) as cache:
            for part in cache.tokens(budget=5).values():
                assert len(part) <= 5
            if cache.domain == "signal":
                list(cache.frames())
                cache.audio()
    except TokpipeError:
        return False
    return True


@pytest.fixture(scope="module", params=["feature", "signal"])
def sound(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("sound")
    path: Path = request.getfixturevalue(f"write_{request.param}")(folder / "a")
    assert verify(path, deep=True).ok
    return path.read_bytes()


def test_deep_verify_sees_every_bit_flip(sound: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a"
    chosen = random.Random(7).sample(range(len(sound) * 8), 400)
    for bit in chosen:
        data = bytearray(sound)
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        use(path)
        assert not verify(path, deep=True).ok, f"bit {bit % 8} of byte {bit // 8}"


def test_every_flip_in_the_first_header_bytes_is_seen(sound: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a"
    for bit in range(64 * 3):
        data = bytearray(sound)
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        use(path)
        assert not verify(path).ok, f"bit {bit % 8} of byte {bit // 8}"


def test_truncation_and_growth_are_refused(sound: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a"
    cuts = {0, 1, 7, 8, 9, 63, 64, 1000, len(sound) // 2, len(sound) - 1}
    for cut in sorted(cuts):
        path.write_bytes(sound[:cut])
        assert not use(path), cut
    path.write_bytes(sound + b"\0")
    assert not use(path)


def test_zero_tail_is_seen_by_deep_verify(sound: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a"
    for tail in (16, 64, 500):
        path.write_bytes(sound[:-tail] + bytes(tail))
        use(path)
        assert not verify(path, deep=True).ok


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_replaced_header_bytes_raise_only_tokpipe_errors(
    sound: bytes, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.getbasetemp() / "mutated"
    length = int.from_bytes(sound[:8], "little")
    start = data.draw(st.integers(0, length + 7))
    piece = data.draw(
        st.binary(min_size=1, max_size=8)
        | st.sampled_from([b"null", b"-1", b"1e9", b"[]", b"{}", b'"', b"true", b"NaN", b"F4"])
    )
    path.write_bytes(sound[:start] + piece + sound[start + len(piece) :])
    use(path)
    verify(path, deep=True)


@settings(max_examples=60, deadline=None)
@given(body=st.binary(max_size=200), length=st.integers(0, 2**64 - 1) | st.integers(0, 220))
def test_random_files_raise_only_tokpipe_errors(
    tmp_path_factory: pytest.TempPathFactory, body: bytes, length: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "random"
    path.write_bytes(length.to_bytes(8, "little") + body)
    assert not use(path)
