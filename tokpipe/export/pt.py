"""One .pt a cache: a dictionary of torch tensors that loads with `weights_only=True`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from tokpipe.export._contract import Written
from tokpipe.export._storage.columns import DType, dtype_notes, metadata_text, plain_columns
from tokpipe.export._storage.torch_file import save_tensors
from tokpipe.spec import Layout

if TYPE_CHECKING:
    from tokpipe.cache.reader import TokenCache

_EXAMPLE = """\
import torch
cache = torch.load("NAME.pt", weights_only=True)
tokens, at = cache["{stream}.tokens"], cache["{stream}.at"]"""


@dataclass(frozen=True, slots=True)
class Pt:
    """Tensors under the names of the format; ``metadata`` holds the texts of the cache.

    The file holds tensors, texts and dictionaries alone; ``mmap=True`` maps it.

    Attributes:
        dtype: Of the features: ``keep`` (as they are), ``auto`` (BF16 as float32), ``float16`` or
            ``float32``.
    """

    source: ClassVar[str] = "torch.load(weights_only=True) of torch 2.11 and later"
    takes: ClassVar[tuple[Layout, ...]] = ("ragged", "frames", "grid")
    domains: ClassVar[tuple[str, ...]] = ("signal", "feature")
    extra: ClassVar[str] = ""
    whole: ClassVar[bool] = False
    suffix: ClassVar[str] = ".pt"
    model_use: ClassVar[str] = "no"
    accepts: ClassVar[str] = "any cache"
    loses: ClassVar[str] = "nothing"
    python: ClassVar[str] = ""

    dtype: DType = "keep"

    def write(self, cache: TokenCache, target: Path) -> Written:
        """Write the file ``target``; the cache is in memory while it is written.

        Raises:
            CacheError: A feature is beyond float16.
            OSError: The disk is full.
        """
        import torch

        made: dict[str, Any] = {"metadata": metadata_text(cache)}
        for name, column in plain_columns(cache, self.dtype).items():
            array = np.array(column.read())
            if column.form == "bfloat16":
                made[name] = torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
            else:
                made[name] = torch.from_numpy(array)
        save_tensors(made, target)
        return Written(
            tokens=cache.num_tokens(), items={"tensors": len(made) - 1},
            notes=dtype_notes(cache, self.dtype),
            example=_EXAMPLE.format(stream=cache.streams[0]),
        )  # fmt: skip
