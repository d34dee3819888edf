"""Arrays as the bytes of .npy and .safetensors files, block by block."""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from tokpipe.export._storage.columns import Plain


def npy_head(dtype: np.dtype[Any], shape: tuple[int, ...]) -> bytes:
    """What a .npy file of this array begins with."""
    out = io.BytesIO()
    descr = np.lib.format.dtype_to_descr(dtype)
    head = {"descr": descr, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(out, head)
    return out.getvalue()


def npy_bytes(column: Plain) -> tuple[int, Iterator[bytes]]:
    """Size and blocks of a .npy file."""
    head = npy_head(column.dtype, column.shape)
    return len(head) + column.nbytes, _with_head(head, column)


def safetensors_bytes(column: Plain) -> tuple[int, Iterator[bytes]]:
    """Size and blocks of a .safetensors file that holds one bfloat16 tensor under its name."""
    entry = {"dtype": "BF16", "shape": list(column.shape), "data_offsets": [0, column.nbytes]}
    body = json.dumps({column.name: entry}, separators=(",", ":")).encode()
    body += b" " * (-(8 + len(body)) % 64)
    head = struct.pack("<Q", len(body)) + body
    return len(head) + column.nbytes, _with_head(head, column)


def _with_head(head: bytes, column: Plain) -> Iterator[bytes]:
    yield head
    for block in column.blocks():
        yield np.ascontiguousarray(block).tobytes()
