"""The metadata that megatron-energon reads beside WebDataset shards, as ``energon prepare`` does.

Source: megatron-energon 7.4.1, ``flavors/webdataset/prepare.py``, ``indexing.py``, ``itar.py``.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import struct
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from tokpipe.export._storage.tar import Placed

#: Version whose files these are; it stands in ``.info.json``.
ENERGON_VERSION = "7.4.1"

_TABLES = """
CREATE TABLE samples (tar_file_id INTEGER NOT NULL, sample_key TEXT NOT NULL UNIQUE,
    sample_index INTEGER NOT NULL, byte_offset INTEGER, byte_size INTEGER);
CREATE TABLE sample_parts (tar_file_id INTEGER, sample_index INTEGER, part_name TEXT,
    content_byte_offset INTEGER, content_byte_size INTEGER);
"""
_INDICES = """
CREATE INDEX idx_samples_by_tar_and_idx ON samples(tar_file_id, sample_index);
CREATE INDEX idx_sample_parts_seq ON sample_parts(tar_file_id, sample_index, content_byte_offset);
CREATE INDEX idx_sample_parts_full ON sample_parts(tar_file_id, sample_index, part_name,
    content_byte_offset, content_byte_size);
"""


class EnergonIndex:
    """Writes ``.nv-meta`` and the ``.tar.idx`` files of a folder of shards.

    Args:
        folder: Where the shards are.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._meta = folder / ".nv-meta"
        self._meta.mkdir()
        self._db = sqlite3.connect(self._meta / "index.sqlite")
        self._db.executescript(_TABLES)
        self._digest = hashlib.sha256()
        self._offsets: BinaryIO | None = None
        self._shard, self._stop = -1, 0

    def add(self, sample: Placed, digest: str) -> None:
        """Record one sample.

        Args:
            sample: Where it lies.
            digest: Of its content: the identity of the set changes with it.
        """
        row = (sample.shard, sample.key, sample.index, sample.start, sample.stop - sample.start)
        self._db.execute("INSERT INTO samples VALUES (?, ?, ?, ?, ?)", row)
        parts = [(sample.shard, sample.index, *part) for part in sample.parts]
        self._db.executemany("INSERT INTO sample_parts VALUES (?, ?, ?, ?, ?)", parts)
        self._digest.update(json.dumps([row, parts, digest]).encode())
        if sample.shard != self._shard:
            self._end_shard()
            self._shard = sample.shard
            self._offsets = (self._folder / f"shard-{sample.shard:06d}.tar.idx").open("xb")
        assert self._offsets is not None  # noqa: S101 -- opened with the shard's first sample
        self._offsets.write(struct.pack("<Q", sample.start))
        self._stop = sample.stop

    def finish(self, counts: Mapping[str, int], splits: Mapping[str, list[str]]) -> None:
        """Write what describes the whole.

        Args:
            counts: Samples of each shard.
            splits: Shards of ``train``, ``val`` and ``test``.
        """
        self._end_shard()
        self._db.executescript(_INDICES)
        self._db.commit()
        self.close()
        info = {"energon_version": ENERGON_VERSION, "shard_counts": dict(counts)}
        self._write(".info.json", json.dumps(info, indent=2))
        self._write("index.uuid", str(uuid.uuid5(uuid.NAMESPACE_OID, self._digest.hexdigest())))
        lines = ["split_parts:"]
        for part, names in splits.items():
            lines.append(f"  {part}:" if names else f"  {part}: []")
            lines += [f"  - {name}" for name in names]
        self._write("split.yaml", "\n".join([*lines, "exclude: []", ""]))
        self._write("dataset.yaml", "__module__: megatron.energon\n__class__: CrudeWebdataset\n")

    def close(self) -> None:
        """Close the files; harmless when they are closed."""
        self._db.close()
        if self._offsets is not None:
            self._offsets.close()

    def _end_shard(self) -> None:
        if self._offsets is not None:
            self._offsets.write(struct.pack("<Q", self._stop))
            self._offsets.close()
            self._offsets = None

    def _write(self, name: str, text: str) -> None:
        (self._meta / name).write_text(text, encoding="utf-8")


def split_shards(names: list[str], val: float, test: float) -> dict[str, list[str]]:
    """Shards of each part: whole shards, the last ones for ``val`` and ``test``.

    A part that was asked for gets at least one shard as long as ``train`` keeps one.
    """
    left = len(names)
    sizes = {}
    for part, share in (("val", val), ("test", test)):
        wanted = max(1, round(share * len(names))) if share else 0
        sizes[part] = min(wanted, left - 1)
        left -= sizes[part]
    val_stop = left + sizes["val"]
    return {"train": names[:left], "val": names[left:val_stop], "test": names[val_stop:]}
