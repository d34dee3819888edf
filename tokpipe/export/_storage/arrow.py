"""What both tables of Arrow share: the library, names and types."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tokpipe.cache.format import NUMPY_DTYPES
from tokpipe.errors import CacheError, MissingExtra

if TYPE_CHECKING:
    from tokpipe.export._storage.gather import Found


def load_arrow(extra: str = "dataset") -> Any:
    """Import pyarrow.

    Raises:
        MissingExtra: It is not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise MissingExtra(
            "pyarrow is not installed", hint=f"pip install 'tokpipe[{extra}]'"
        ) from error
    return pyarrow


def check_list(form: str, *, lists: bool) -> None:
    """Refuse bfloat16 where numbers are asked for.

    Raises:
        CacheError: Arrow has no such type.
    """
    if lists and form == "bfloat16":
        raise CacheError(
            "Arrow has no bfloat16 numbers", code="export.dtype",
            hint="use dtype=auto (float32, exact), or store the features as binary",
        )  # fmt: skip


def number_type(found: Found) -> Any:
    """Arrow's type of a tensor that holds no features."""
    dtype = NUMPY_DTYPES[next(iter(found.stored))]
    return load_arrow().from_numpy_dtype(dtype)


def flat(name: str) -> str:
    """``video.at`` as a column: ``video_at``."""
    return name.replace(".", "_")
