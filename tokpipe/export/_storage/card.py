"""The card (``README.md``) of a data set of caches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from tokpipe.cache.format import lookup
from tokpipe.export._storage.arrow import flat

if TYPE_CHECKING:
    from tokpipe.export._storage.gather import Gathered
    from tokpipe.export._storage.item_table import ItemTable

_HEAD = """\
---
configs:
- config_name: default
  data_files:
  - split: train
    path: data/train-*.parquet
tags:
- tokpipe
- video
---

# Token caches

{items} token caches of media, one a row, written by tokpipe. {tokens}.
Every token has its own time in seconds of its media (`*_at`) and the span it stands for (`*_pts`).

## Read it

```python
{read}
```

{hint}

## Columns

Two-dimensional columns have a row for each token of the item.

| column | meaning |
|---|---|
{columns}

{same}"""

_ARRAYS = """\
from datasets import load_dataset

data = load_dataset("FOLDER", split="train")  # or this data set's name on the hub
view = data.with_format("torch", columns=["{stream}_tokens"], output_all_columns=True)
tokens, at = view[0]["{stream}_tokens"], view[0]["{stream}_at"]"""
_BYTES = """\
import torch
from datasets import load_dataset

row = load_dataset("FOLDER", split="train")[0]  # or this data set's name on the hub
dtype = getattr(torch, row["{stream}_dtype"])
flat = torch.frombuffer(bytearray(row["{stream}_tokens"]), dtype=dtype)
tokens, at = flat.reshape(row["{stream}_shape"]), row["{stream}_at"]"""
_ARRAY_HINT = """\
A torch or numpy format turns every number with a point into float32, which is exact for features
but rounds times of long media to milliseconds: format the features alone, as above."""
_BYTES_HINT = "Features are rows after rows, little-endian, in the dtype of `*_dtype`."

_FACTS = {
    "id": "unique name of the item", "name": "name of the media", "duration": "seconds",
    "domain": "signal or feature", "layout": "ragged, frames or grid",
    "metadata": "all metadata of the cache as JSON", "text": "lines of the transcript",
    "text_start": "start of each line, seconds", "text_stop": "stop of each line, seconds",
}  # fmt: skip
_SHOWN = ("tokpipe.domain", "tokpipe.layout", "tokpipe.encoder.video", "tokpipe.encoder.audio",
          "tokpipe.recipe")  # fmt: skip


def card(found: Gathered, table: ItemTable, *, arrays: bool) -> str:
    """What the data set holds and how it is read, for people and for ``load_dataset``."""
    stream = found.streams[0]
    counts = [f"{found.tokens[s]} {s} tokens" for s in found.streams]
    same = {key: found.same[key] for key in _SHOWN if key in found.same}
    return _HEAD.format(
        items=len(found.paths), tokens=" and ".join(counts),
        read=(_ARRAYS if arrays else _BYTES).format(stream=stream),
        hint=_ARRAY_HINT if arrays else _BYTES_HINT,
        columns="\n".join(_lines(table)), same=_same(same),
    )  # fmt: skip


def _lines(table: ItemTable) -> list[str]:
    names = {flat(name): name for name in table.sources}
    out = []
    for column in table.schema.names:
        meaning = _FACTS.get(column, "")
        if column in names and (found := lookup(names[column])):
            meaning = found[1].meaning
        for stream in table.forms:
            if column == f"num_{stream}":
                meaning = f"{stream} tokens"
            elif column == f"{stream}_shape":
                meaning = f"tokens and width of the {stream} features"
            elif column == f"{stream}_dtype":
                meaning = f"dtype of the {stream} features"
        out.append(f"| `{column}` | {meaning} |")
    return out


def _same(same: Mapping[str, str]) -> str:
    """Metadata that all items have in common."""
    if not same:
        return ""
    lines = [f"- `{key}`: `{value}`" for key, value in same.items()]
    return "\n".join(["## The same for all items", "", *lines, ""])
