"""Turn arrays into columns of the format: little-endian, contiguous, without silent loss."""

from __future__ import annotations

import numpy as np

from tokpipe.cache._file import Array
from tokpipe.cache.format import F16_MAX, NUMPY_DTYPES, is_feature, is_finite
from tokpipe.errors import CacheError


def to_column(name: str, array: Array, dtype: str) -> Array:
    """Convert to a safetensors dtype.

    Integers must fit exactly; floats may lose precision, but never range.

    Args:
        name: Tensor name, which tells features from other columns.
        array: What to store; uint16 bit patterns for BF16.
        dtype: Safetensors dtype to store.

    Raises:
        CacheError: The kind does not fit, an integer is out of range, features are not finite,
            or one is beyond the range of F16.
    """
    want = NUMPY_DTYPES[dtype]
    if dtype == "BF16" and array.dtype != np.uint16:
        raise CacheError(f"`{name}`: BF16 comes as uint16 bit patterns, got {array.dtype}",
                         code="cache.dtype")  # fmt: skip
    kinds = "fiu" if want.kind == "f" else "iub"
    if array.dtype.kind not in kinds:
        raise CacheError(f"`{name}`: {array.dtype} cannot be stored as {dtype}", code="cache.dtype")
    if want.kind != "f" and array.size and array.dtype != want:
        limits = np.iinfo(want.type)  # type: ignore[type-var]
        if int(array.min()) < limits.min or int(array.max()) > limits.max:
            raise CacheError(f"`{name}`: a value is beyond {dtype}", code="cache.range")
    if is_feature(name):
        _check_feature(name, array, dtype)
    return np.ascontiguousarray(array, dtype=want)


def _check_feature(name: str, array: Array, dtype: str) -> None:
    source = dtype if dtype == "BF16" else "F64" if array.dtype.itemsize == 8 else "F32"
    if not is_finite(array, source):
        raise CacheError(f"`{name}` is not finite", code="cache.finite")
    if dtype == "F16" and array.size and array.dtype.itemsize > 2:
        largest = float(np.abs(array).max())
        if largest > F16_MAX:
            raise CacheError(
                f"`{name}` reaches {largest:g}, beyond the range of F16", code="cache.overflow",
                hint="store it as BF16 or F32",
            )  # fmt: skip
