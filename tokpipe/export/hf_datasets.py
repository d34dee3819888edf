"""A folder that `datasets.load_dataset` reads: a row for each cache, and a card that describes it.

Parquet files whose two-dimensional columns say in their schema that they are ``Array2D`` of the
``datasets`` library, which is not needed to write them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from tokpipe.cache.format import is_feature
from tokpipe.export._contract import Written
from tokpipe.export._storage.arrow import flat, load_arrow
from tokpipe.export._storage.card import card
from tokpipe.export._storage.columns import DType
from tokpipe.export._storage.gather import Gathered, gather
from tokpipe.export._storage.item_table import ItemTable, item_table
from tokpipe.export._storage.parquet_files import ParquetFiles, RowGroups
from tokpipe.spec import Layout

_EXAMPLE = """\
from datasets import load_dataset
data = load_dataset("FOLDER", split="train")
tokens = data.with_format("torch", columns=["{stream}_tokens"], output_all_columns=True)[0]"""


@dataclass(frozen=True, slots=True)
class HfDatasets:
    """A data set with the split ``train``.

    Attributes:
        features: Tokens as an ``array`` (``Array2D``), or as ``bytes`` beside their shape and
            dtype, which load faster and keep bfloat16.
        dtype: Of the features: ``auto`` (F16 and F32 as they are, BF16 as float32, all exact),
            ``float16``, ``float32``, or ``keep`` (BF16 stays, in bytes only).
        shard_mb: Megabytes of a file.
    """

    source: ClassVar[str] = "datasets 5.2.0, features of load_dataset('parquet')"
    takes: ClassVar[tuple[Layout, ...]] = ("ragged", "frames", "grid")
    domains: ClassVar[tuple[str, ...]] = ("signal", "feature")
    extra: ClassVar[str] = "dataset"
    whole: ClassVar[bool] = True
    suffix: ClassVar[str] = ""
    model_use: ClassVar[str] = "no"
    accepts: ClassVar[str] = "caches of one width a stream (of any, as bytes)"
    loses: ClassVar[str] = "bfloat16 in arrays; float64 times where a torch or numpy format is set"
    python: ClassVar[str] = ""

    features: Literal["array", "bytes"] = "array"
    dtype: DType = "auto"
    shard_mb: Annotated[float, Field(gt=0)] = 512.0

    def write_all(self, caches: Sequence[Path], target: Path) -> Written:
        """Write ``README.md`` and ``data/`` into the folder ``target``.

        Raises:
            CacheError: A file is no cache, widths differ, or a feature is beyond float16.
            MissingExtra: pyarrow is not installed.
        """
        load_arrow()
        found = gather(caches)
        binary = self.features == "bytes"
        table = item_table(found, self.dtype, binary=binary)
        schema = table.schema if binary else _as_arrays(table, found)
        (target / "data").mkdir(parents=True)
        raw = tuple(flat(n) for n in table.sources if is_feature(n)) if binary else ()
        limit = int(self.shard_mb * 1e6)
        with ParquetFiles(
            target / "data", "train", schema, limit, (*raw, "video_atlas", "audio_clip")
        ) as files:
            waiting = RowGroups(files)
            for key, cache, columns in found.open(self.dtype):
                waiting.add(table.row(key, cache, columns).cast(schema))
            waiting.flush()
        names = files.number_of()
        text = card(found, table, arrays=not binary)
        (target / "README.md").write_text(text, encoding="utf-8")
        return Written(
            tokens=sum(found.tokens.values()),
            items={"items": len(found.paths), "files": len(names)},
            notes=tuple(found.notes(self.dtype)),
            example=_EXAMPLE.format(stream=found.streams[0]),
        )


def _as_arrays(table: ItemTable, found: Gathered) -> Any:
    """The schema whose two-dimensional columns ``datasets`` reads as ``Array2D``."""
    pa = load_arrow()
    marks = {}
    for name in table.sources:
        tails = found.tensors[name].tails
        if not next(iter(tails)):
            continue
        width = found.width(name)
        number = table.schema.field(flat(name)).type.value_type.value_type
        kind = {"halffloat": "float16", "float": "float32", "double": "float64"}
        dtype = kind.get(str(number), str(number))
        marks[flat(name)] = {
            "ARROW:extension:name": "datasets.features.features.Array2DExtensionType",
            "ARROW:extension:metadata": json.dumps([[None, width], dtype]),
        }
    return pa.schema([f.with_metadata(marks.get(f.name, f.metadata)) for f in table.schema])
