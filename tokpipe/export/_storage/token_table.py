"""Tokens as an Arrow table: a row for each token of a stream."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tokpipe.cache.format import is_feature, lookup
from tokpipe.export._storage.arrow import check_list, load_arrow, number_type
from tokpipe.export._storage.columns import Array, DType, Plain

if TYPE_CHECKING:
    from tokpipe.export._storage.gather import Gathered

#: Columns of several numbers a row, and what each number is called in a table of tokens.
PARTS: dict[str, tuple[str, ...]] = {
    "pts": ("pts_start", "pts_stop"),
    "frame": ("frame_first", "frame_last"),
    "cell": ("cell_t", "cell_y", "cell_x"),
    "extent": ("extent_t", "extent_y", "extent_x"),
    "atlas_box": ("atlas_page", "atlas_x", "atlas_y", "atlas_size"),
}


@dataclass(frozen=True, slots=True)
class TokenTable:
    """The table of one stream, a row a token.

    Attributes:
        stream: ``video`` or ``audio``.
        form: Dtype of the features.
        lists: Features as fixed-size lists of numbers; else as binary of D values, little-endian.
        schema: ``item``, the features, then every other column of the stream by name.
        sources: The stream's tensors in it.
    """

    stream: str
    form: str
    lists: bool
    schema: Any
    sources: tuple[str, ...]

    def batches(self, key: str, columns: Mapping[str, Plain], size: int) -> Iterator[Any]:
        """Record batches of one cache, each of about ``size`` bytes; none where it has no row.

        Args:
            key: The cache's id.
            columns: Its tensors.
            size: Bytes.
        """
        rows = columns[f"{self.stream}.at"].shape[0]
        wide = sum(
            columns[n].nbytes // max(1, columns[n].shape[0]) for n in self.sources if is_feature(n)
        )
        step = max(1, size // max(1, wide + 128))
        for start in range(0, rows, step):
            yield self._batch(key, columns, start, min(start + step, rows))

    def _batch(self, key: str, columns: Mapping[str, Plain], start: int, stop: int) -> Any:
        pa = load_arrow()
        count = stop - start
        arrays = [pa.array([key] * count, pa.string())]
        for name in self.sources:
            short = name.partition(".")[2]
            if short == "members":
                arrays.append(_members(pa, columns, self.stream, start, stop))
                continue
            if not columns[name].shape[0]:
                kinds = [self.schema.field(part).type for part in PARTS.get(short, (short,))]
                arrays += [pa.nulls(count, kind) for kind in kinds]
                continue
            block = columns[name].read(start, stop)
            if is_feature(name):
                arrays.append(self._features(pa, block))
            elif block.ndim == 2:
                arrays += [
                    pa.array(np.ascontiguousarray(block[:, k])) for k in range(block.shape[1])
                ]
            else:
                arrays.append(pa.array(block))
        return pa.record_batch(arrays, schema=self.schema)

    def _features(self, pa: Any, block: Array) -> Any:
        flat = np.ascontiguousarray(block)
        if self.lists:
            return pa.FixedSizeListArray.from_arrays(pa.array(flat.reshape(-1)), block.shape[1])
        kind = pa.binary(block.shape[1] * flat.dtype.itemsize)
        return pa.FixedSizeBinaryArray.from_buffers(
            kind, len(block), [None, pa.py_buffer(flat.tobytes())]
        )


def token_table(found: Gathered, stream: str, choice: DType, *, lists: bool) -> TokenTable:
    """The table of a stream over all caches.

    Raises:
        CacheError: Their widths differ, or a list is asked to hold bfloat16.
        MissingExtra: pyarrow is not installed.
    """
    pa = load_arrow()
    form = found.form(stream, choice)
    check_list(form, lists=lists)
    names = [n for n in found.tensors if n.startswith(f"{stream}.") and _per_row(n)]
    names.sort(key=lambda n: not is_feature(n))
    names.sort(key=lambda n: n != f"{stream}.tokens")
    fields = [pa.field("item", pa.string())]
    for name in names:
        short = name.partition(".")[2]
        if is_feature(name):
            width = found.width(name)
            what = {"tokpipe.dtype": form, "tokpipe.dim": str(width)}
            fields.append(
                pa.field(short, _feature_type(pa, form, width, lists=lists), metadata=what)
            )
        elif short == "members":
            fields.append(pa.field(short, pa.list_(pa.int64())))
        else:
            kind = number_type(found.tensors[name])
            fields += [pa.field(part, kind) for part in PARTS.get(short, (short,))]
    return TokenTable(stream, form, lists, pa.schema(fields), tuple(names))


def _per_row(name: str) -> bool:
    found = lookup(name)
    return found is not None and (found[1].per_row or name.endswith(".members"))


def _feature_type(pa: Any, form: str, width: int, *, lists: bool) -> Any:
    size = 2 if form == "bfloat16" else np.dtype(form).itemsize
    if not lists:
        return pa.binary(width * size)
    return pa.list_(pa.from_numpy_dtype(np.dtype(form)), width)


def _members(pa: Any, columns: Mapping[str, Plain], stream: str, start: int, stop: int) -> Any:
    edges = columns[f"{stream}.members_offsets"].read(start, stop + 1)
    flat = columns[f"{stream}.members"].read(int(edges[0]), int(edges[-1]))
    offsets = pa.array((edges - edges[0]).astype(np.int32))
    return pa.ListArray.from_arrays(offsets, pa.array(flat))
