"""Digests: canonical, and a fingerprint that sees head, middle, tail and size."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from tokpipe.digest import canonical_json, chain, fingerprint, sha256_text
from tokpipe.errors import MediaNotFound

MIB = 1 << 20


def test_canonical_json_does_not_depend_on_the_order_of_keys() -> None:
    assert canonical_json({"b": 1, "a": [True, None, "ü"]}) == '{"a":[true,null,"ü"],"b":1}'


def test_canonical_json_refuses_what_has_no_single_text() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json(float("nan"))


def test_sha256_text_is_that_of_utf8() -> None:
    assert sha256_text("ü") == hashlib.sha256(b"\xc3\xbc").hexdigest()


def test_chain_keeps_parts_apart() -> None:
    assert chain("ab", "c") != chain("a", "bc")
    assert chain({"x": 1, "y": 2}) == chain({"y": 2, "x": 1})


def test_fingerprint_is_size_and_three_pieces(tmp_path: Path) -> None:
    data = bytes(range(256)) * (5 * MIB // 256) + b"tail"
    path = tmp_path / "a.bin"
    path.write_bytes(data)
    middle = (len(data) - MIB) // 2
    told = str(len(data)).encode() + data[:MIB] + data[middle : middle + MIB] + data[-MIB:]
    expected = "sha256:" + hashlib.sha256(told).hexdigest()
    assert fingerprint(path) == (expected, "head-middle-tail", len(data))


def test_fingerprint_in_full_sees_every_byte(tmp_path: Path) -> None:
    data = bytearray(5 * MIB)
    path = tmp_path / "a.bin"
    path.write_bytes(data)
    quick, (full, method, _) = fingerprint(path), fingerprint(path, full=True)
    data[int(1.5 * MIB)] = 1
    path.write_bytes(data)
    assert method == "full"
    assert fingerprint(path) == quick
    assert fingerprint(path, full=True)[0] != full


@pytest.mark.parametrize("size", [0, 1, MIB, 3 * MIB])
def test_fingerprint_of_a_small_file_is_of_all_of_it(tmp_path: Path, size: int) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"x" * size)
    expected = hashlib.sha256(str(size).encode() + b"x" * size).hexdigest()
    assert fingerprint(path)[0] == f"sha256:{expected}"


@pytest.mark.parametrize("name", ["absent.mp4", ".", "a\0b"])
def test_fingerprint_of_no_file_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(MediaNotFound) as caught:
        fingerprint(tmp_path / name)
    assert caught.value.hint
