"""One .npz a cache: every tensor as a numpy array under its own name."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from tokpipe.export._contract import Written
from tokpipe.export._storage.columns import (
    NumpyDType,
    dtype_notes,
    metadata_text,
    plain_columns,
)
from tokpipe.export._storage.npy import npy_bytes, npy_head
from tokpipe.spec import Layout

if TYPE_CHECKING:
    from tokpipe.cache.reader import TokenCache

_EXAMPLE = """\
import json, numpy as np
cache = np.load("NAME.npz")
tokens, at = cache["{stream}.tokens"], cache["{stream}.at"]
metadata = json.loads(str(cache["metadata"]))"""


@dataclass(frozen=True, slots=True)
class Npz:
    """A zip of arrays, not compressed; ``metadata`` in it is a text of JSON.

    Attributes:
        dtype: Of the features: ``auto`` (F16 and F32 as they are, BF16 as float32, all exact),
            ``float16`` or ``float32``.
    """

    source: ClassVar[str] = "numpy.load of numpy 1.26 and later"
    takes: ClassVar[tuple[Layout, ...]] = ("ragged", "frames", "grid")
    domains: ClassVar[tuple[str, ...]] = ("signal", "feature")
    extra: ClassVar[str] = ""
    whole: ClassVar[bool] = False
    suffix: ClassVar[str] = ".npz"
    model_use: ClassVar[str] = "no"
    accepts: ClassVar[str] = "any cache"
    loses: ClassVar[str] = "slices (an array is read whole); bfloat16 becomes float32"
    python: ClassVar[str] = ""

    dtype: NumpyDType = "auto"

    def write(self, cache: TokenCache, target: Path) -> Written:
        """Write the file ``target``.

        Raises:
            CacheError: A feature is beyond float16.
        """
        columns = plain_columns(cache, self.dtype)
        with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
            for name, column in columns.items():
                _store(archive, name, npy_bytes(column)[1])
            text = np.array(json.dumps(metadata_text(cache), sort_keys=True, ensure_ascii=False))
            _store(archive, "metadata", iter([npy_head(text.dtype, ()), text.tobytes()]))
        return Written(
            tokens=cache.num_tokens(), items={"arrays": len(columns)},
            notes=dtype_notes(cache, self.dtype),
            example=_EXAMPLE.format(stream=cache.streams[0]),
        )  # fmt: skip


def _store(archive: zipfile.ZipFile, name: str, pieces: Iterable[bytes]) -> None:
    # A ZipInfo of its own has the date 1980, so that the same cache gives the same bytes.
    with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as out:
        for piece in pieces:
            out.write(piece)
