"""Build and parse the safetensors header: nothing that is read is trusted before a check."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, NoReturn

from tokpipe.cache.format import (
    ALIGNMENT,
    ITEM_BYTES,
    MAX_HEADER_BYTES,
    METADATA,
    METADATA_DIGEST,
    PAD_PREFIX,
    is_feature,
    lookup,
)
from tokpipe.digest import canonical_json, sha256_text
from tokpipe.errors import CacheCorrupt, CacheError

_LENGTH = struct.Struct("<Q")


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where one tensor lies.

    Attributes:
        dtype: Safetensors dtype.
        shape: Sizes.
        start, stop: Bytes from the start of the data section.
    """

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return prod(self.shape[1:]) * ITEM_BYTES[self.dtype]


@dataclass(frozen=True, slots=True)
class Header:
    """A parsed header.

    Attributes:
        tensors: Every tensor but the pads, by name, in the order of the file.
        pads: The pad tensors.
        metadata: Raw strings of ``__metadata__``.
        data_start: First byte of the data section in the file.
    """

    tensors: dict[str, TensorInfo]
    pads: dict[str, TensorInfo]
    metadata: dict[str, str]
    data_start: int


def file_order(sizes: Mapping[str, tuple[str, int]]) -> list[str]:
    """Order of tensors in the file: small columns first, then blobs, features last.

    Columns go by falling element size, so each is naturally aligned without holes.

    Args:
        sizes: Name -> (dtype, bytes).
    """

    def key(name: str) -> tuple[int, int, str]:
        found = lookup(name)
        blob = found is not None and found[1].shape == ("B",)
        return (2 if is_feature(name) else int(blob), -ITEM_BYTES[sizes[name][0]], name)

    return sorted(sizes, key=key)


def plan_layout(specs: Mapping[str, tuple[str, tuple[int, ...]]]) -> dict[str, TensorInfo]:
    """Offsets of all tensors, pads included, in file order.

    Args:
        specs: Name -> (dtype, shape).
    """
    sizes = {n: (d, prod(s) * ITEM_BYTES[d]) for n, (d, s) in specs.items()}
    out: dict[str, TensorInfo] = {}
    cursor = pads = 0
    for name in file_order(sizes):
        if is_feature(name) and cursor % ALIGNMENT:
            gap = -cursor % ALIGNMENT
            out[f"{PAD_PREFIX}{pads}"] = TensorInfo("U8", (gap,), cursor, cursor + gap)
            cursor, pads = cursor + gap, pads + 1
        dtype, shape = specs[name]
        out[name] = TensorInfo(dtype, shape, cursor, cursor + sizes[name][1])
        cursor += sizes[name][1]
    return out


def metadata_digest(metadata: Mapping[str, str]) -> str:
    """Digest of all metadata but ``tokpipe.digest`` itself."""
    rest = {key: value for key, value in metadata.items() if key != "tokpipe.digest"}
    return "sha256:" + sha256_text(canonical_json(rest))


def encode_metadata(values: Mapping[str, object]) -> dict[str, str]:
    """Turn metadata values into strings.

    Args:
        values: Key -> text, or for ``json`` keys anything JSON can hold.

    Raises:
        CacheError: A value does not fit its key, or a key lacks the ``tokpipe.`` prefix and is
            no text.
    """
    out = {}
    for key, value in values.items():
        known = METADATA.get(key)
        text = known.form == "text" if known else isinstance(value, str)
        if text and not isinstance(value, str):
            raise CacheError(f"metadata {key!r} must be text", code="cache.metadata")
        try:
            out[key] = value if text and isinstance(value, str) else canonical_json(value)
            out[key].encode()
        except (TypeError, ValueError) as error:
            raise CacheError(f"metadata {key!r}: {error}", code="cache.metadata") from error
    return out


def build_header(
    layout: Mapping[str, TensorInfo], metadata: Mapping[str, str], digests: Mapping[str, str]
) -> bytes:
    """Bytes before the data section: length, canonical JSON, spaces up to the alignment.

    Args:
        layout: All tensors with their offsets.
        metadata: Strings, without ``tokpipe.digest``.
        digests: Tensor name -> ``sha256:hex``.

    Raises:
        CacheError: The header would be longer than safetensors allows.
    """
    marks = {**digests, METADATA_DIGEST: metadata_digest(metadata)}
    tensors = {
        name: {"dtype": t.dtype, "shape": list(t.shape), "data_offsets": [t.start, t.stop]}
        for name, t in layout.items()
    }
    full = {**metadata, "tokpipe.digest": canonical_json(marks)}
    body = canonical_json({"__metadata__": full, **tensors}).encode()
    body += b" " * (-(len(body) + _LENGTH.size) % ALIGNMENT)
    if len(body) > MAX_HEADER_BYTES:
        raise CacheError(f"the header would take {len(body)} bytes", code="cache.header")
    return _LENGTH.pack(len(body)) + body


def _refuse(message: str) -> NoReturn:
    raise CacheCorrupt(message, code="cache.header")


def header_length(head: bytes, file_size: int) -> int:
    """Length of the JSON from the first 8 bytes, checked against the limit and the file.

    Raises:
        CacheCorrupt: Too short for a header, or a length that cannot be.
    """
    if len(head) < _LENGTH.size:
        _refuse(f"{file_size} bytes are too few for a cache")
    length = int(_LENGTH.unpack_from(head)[0])
    if length > MAX_HEADER_BYTES:
        _refuse("not a safetensors file: the header length is beyond the limit")
    if length > file_size - _LENGTH.size:
        _refuse("the file ends inside its header")
    return length


def parse_header(body: bytes, file_size: int) -> Header:
    """Parse and check the JSON.

    Args:
        body: The JSON bytes with their padding.
        file_size: Size of the whole file in bytes.

    Raises:
        CacheCorrupt: Not JSON, a wrong type, a hole, an overlap, or data that ends early or late.
    """
    try:
        raw = json.loads(body.decode(), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise CacheCorrupt(f"the header is not valid JSON: {error}", code="cache.header") from error
    if not isinstance(raw, dict):
        _refuse("the header is not a JSON object")
    metadata = raw.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        _refuse("the metadata are not strings")
    found = {name: _tensor(name, entry) for name, entry in raw.items()}
    data_start = _LENGTH.size + len(body)
    ordered = sorted(found.items(), key=lambda item: (item[1].start, item[1].stop))
    _check_contiguous(ordered, file_size - data_start)
    tensors = {name: t for name, t in ordered if not name.startswith(PAD_PREFIX)}
    pads = {name: t for name, t in ordered if name.startswith(PAD_PREFIX)}
    return Header(tensors, pads, metadata, data_start)


def _unique(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in pairs:
        if key in out:
            raise ValueError(f"{key!r} appears twice")
        out[key] = value
    return out


def _is_size(value: object) -> bool:
    # bool is an int to Python, not to the format.
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 62


def _tensor(name: str, entry: object) -> TensorInfo:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        _refuse(f"tensor {name!r} has no dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        _refuse(f"tensor {name!r} has the unknown dtype {dtype!r}")
    if not isinstance(shape, list) or len(shape) > 16 or not all(map(_is_size, shape)):
        _refuse(f"tensor {name!r} has a shape that is not a list of sizes")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_is_size, offsets)):
        _refuse(f"tensor {name!r} has offsets that are not two sizes")
    start, stop = offsets
    if stop - start != prod(shape) * ITEM_BYTES[dtype]:
        _refuse(f"tensor {name!r}: {stop - start} bytes do not hold {dtype} {shape}")
    return TensorInfo(dtype, tuple(shape), start, stop)


def _check_contiguous(ordered: list[tuple[str, TensorInfo]], data_bytes: int) -> None:
    cursor = 0
    for name, tensor in ordered:
        if tensor.start != cursor:
            _refuse(f"tensor {name!r} starts at {tensor.start}, expected {cursor}")
        cursor = tensor.stop
    if cursor > data_bytes:
        _refuse(f"the file is cut short: {data_bytes} of {cursor} data bytes are there")
    if cursor < data_bytes:
        _refuse(f"{data_bytes - cursor} bytes follow the last tensor")
