"""Caches as an Arrow table: a row for each cache."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from tokpipe.cache.format import is_feature
from tokpipe.errors import CacheError
from tokpipe.export._storage.arrow import check_list, flat, load_arrow, number_type
from tokpipe.export._storage.columns import DType, Plain, metadata_text, transcript

if TYPE_CHECKING:
    from tokpipe.cache.reader import TokenCache
    from tokpipe.export._storage.gather import Gathered

#: Tensors that hold encoded pieces end to end, and the tensor that cuts them.
_BLOBS = {
    "video.atlas": "video.atlas_offsets", "audio.clip": "", "thumb.data": "thumb.offsets",
}  # fmt: skip
_LIST_MAX = (1 << 31) - 1


@dataclass(frozen=True, slots=True)
class ItemTable:
    """A table with a row for each cache.

    Attributes:
        schema: Facts on the cache; with ``rows`` also every column of its streams, as
            ``STREAM_NAME``.
        sources: Tensors in it.
        binary: Features as bytes beside ``STREAM_shape`` and ``STREAM_dtype``.
        forms: Dtype of the features by stream.
    """

    schema: Any
    sources: tuple[str, ...]
    binary: bool
    forms: Mapping[str, str]

    def row(self, key: str, cache: TokenCache, columns: Mapping[str, Plain]) -> Any:
        """One cache as a table of one row.

        Raises:
            CacheError: A list would have more entries than Arrow counts.
        """
        pa = load_arrow()
        lines = transcript(cache)
        made: dict[str, Any] = {
            "id": key, "name": cache.info.get("name"), "duration": cache.duration,
            "domain": cache.domain, "layout": cache.layout,
            "metadata": json.dumps(metadata_text(cache), sort_keys=True, ensure_ascii=False),
            "text": [line[2] for line in lines], "text_start": [line[0] for line in lines],
            "text_stop": [line[1] for line in lines],
        }  # fmt: skip
        for stream, form in self.forms.items():
            made[f"num_{stream}"] = cache.num_tokens(stream)
            if self.binary:
                made[f"{stream}_shape"] = list(columns[f"{stream}.tokens"].shape)
                made[f"{stream}_dtype"] = form
        arrays = {}
        for field in self.schema:
            if field.name in made:
                arrays[field.name] = pa.array([made[field.name]], field.type)
        for name in self.sources:
            arrays[flat(name)] = self._cell(pa, name, columns)
        return pa.table([arrays[f.name] for f in self.schema], schema=self.schema)

    def _cell(self, pa: Any, name: str, columns: Mapping[str, Plain]) -> Any:
        block = np.ascontiguousarray(columns[name].read())
        kind = self.schema.field(flat(name)).type
        if name in _BLOBS:
            data = block.tobytes()
            if not (cut := _BLOBS[name]):
                return pa.array([data], kind)
            edges = columns[cut].read().tolist()
            return pa.array([[data[a:b] for a, b in pairwise(edges)]], kind)
        if is_feature(name) and self.binary:
            return pa.array([block.tobytes()], kind)
        if block.size > _LIST_MAX:
            raise CacheError(
                f"`{name}` has {block.size} numbers, a list of Arrow holds 2^31",
                hint="store features as bytes, or a row for each token", code="export.too_large",
            )  # fmt: skip
        inner = pa.array(block.reshape(-1))
        if block.ndim == 2:
            steps = np.arange(len(block) + 1, dtype=np.int32) * np.int32(block.shape[1])
            inner = pa.ListArray.from_arrays(pa.array(steps), inner)
        return pa.ListArray.from_arrays(pa.array([0, len(block)], pa.int32()), inner)


def item_table(
    found: Gathered, choice: DType, *, rows: bool = True, binary: bool = False, blobs: bool = True
) -> ItemTable:
    """The table of the caches.

    Args:
        rows: With every column of every token; else only what is not a token's.
        binary: Features as bytes.
        blobs: With pages of atlases, sound and small pictures.

    Raises:
        CacheError: A list is asked to hold bfloat16.
        MissingExtra: pyarrow is not installed.
    """
    pa = load_arrow()
    text, real = pa.string(), pa.float64()
    fields = [
        pa.field("id", text), pa.field("name", text), pa.field("duration", real),
        pa.field("domain", text), pa.field("layout", text), pa.field("metadata", text),
        pa.field("text", pa.list_(text)), pa.field("text_start", pa.list_(real)),
        pa.field("text_stop", pa.list_(real)),
    ]  # fmt: skip
    forms = {stream: found.form(stream, choice) for stream in found.streams}
    binary = binary and rows
    for stream, form in forms.items():
        if rows:
            check_list(form, lists=not binary)
        fields.append(pa.field(f"num_{stream}", pa.int64()))
        if binary:
            fields.append(pa.field(f"{stream}_shape", pa.list_(pa.int64())))
            fields.append(pa.field(f"{stream}_dtype", text))
    sources = [n for n in found.tensors if _in_items(n, rows=rows, blobs=blobs)]
    fields += [_item_field(pa, name, found, forms, binary=binary) for name in sources]
    return ItemTable(pa.schema(fields), tuple(sources), binary, forms)


def _in_items(name: str, *, rows: bool, blobs: bool) -> bool:
    if name in _BLOBS:
        return blobs
    if name.startswith("text.") or name in _BLOBS.values():
        return False
    return name.startswith(("segment.", "thumb.")) or rows


def _item_field(
    pa: Any, name: str, found: Gathered, forms: Mapping[str, str], *, binary: bool
) -> Any:
    if name in _BLOBS:
        whole = pa.large_binary()
        return pa.field(flat(name), pa.list_(whole) if _BLOBS[name] else whole)
    if not is_feature(name):
        kind = pa.list_(number_type(found.tensors[name]))
        tail = next(iter(found.tensors[name].tails))
        return pa.field(flat(name), pa.list_(kind) if tail else kind)
    form = forms[name.partition(".")[0]]
    if binary:
        return pa.field(flat(name), pa.large_binary(), metadata={"tokpipe.dtype": form})
    number = pa.from_numpy_dtype(np.dtype(form))
    return pa.field(flat(name), pa.list_(pa.list_(number)))
