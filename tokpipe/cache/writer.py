"""Write a token cache row by row: spooled, hashed on the way, published in one atomic step."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np

from tokpipe.cache._columns import to_column
from tokpipe.cache._file import Array, CacheFile, parse_metadata
from tokpipe.cache._header import TensorInfo, build_header, encode_metadata, plan_layout
from tokpipe.cache._publish import (
    create,
    exists_error,
    publish,
    sweep_stale,
    sync_file,
    sync_folder,
    temp_path,
)
from tokpipe.cache._spool import Spool, raise_io, sha256_hex
from tokpipe.cache._structure import streams_of, structure_problems
from tokpipe.cache._values import sorted_rows, value_problems
from tokpipe.cache.format import FEATURE_DTYPES, FORMAT_VERSION, PAD_PREFIX, STREAMS, bind, lookup
from tokpipe.errors import CacheError, TokpipeError, error_context

__all__ = ["CacheWriter", "sweep_stale"]

#: Blobs that ``append_bytes`` takes, and the tensor of offsets that grows with each call.
BLOBS: dict[str, str | None] = {
    "video.atlas": "video.atlas_offsets",
    "audio.clip": None,
    "thumb.data": "thumb.offsets",
}
_ORDER = ("at", "tile", "cell")


@dataclass(slots=True)
class _Rows:
    """What is known of a stream so far."""

    count: int = 0
    names: frozenset[str] = frozenset()
    sizes: dict[str, int] = field(default_factory=dict)
    last: dict[str, Array] = field(default_factory=dict)


class CacheWriter:
    """Writes one cache; memory does not grow with the number of rows.

    Rows wait in nameless files beside the target, so a killed process leaves nothing but, at
    worst, one stale temporary file that :func:`sweep_stale` removes. Leaving the ``with`` block
    without :meth:`finish` writes nothing.

    Args:
        target: The final path. Its folder must exist.
        force: Replace a file that is there.
        durability: ``full`` flushes file and folder to the disk, ``fast`` does not.
        dtype: Safetensors dtype of tokens and deepstack rows: F16, F32 or BF16; one for all or
            by stream.
        spool_dir: Folder of the nameless files; the target's when None.

    Attributes:
        warnings: What the file system could not do.

    Raises:
        OutputExists: The target is there and ``force`` is off.
        CacheError: The dtype is unknown, or the folder is not there.
    """

    def __init__(
        self,
        target: str | os.PathLike[str],
        *,
        force: bool = False,
        durability: Literal["full", "fast"] = "full",
        dtype: str | Mapping[str, str] = "F16",
        spool_dir: str | os.PathLike[str] | None = None,
    ) -> None:
        self.target = Path(target)
        self.warnings: list[str] = []
        self._force = force
        self._sync = durability == "full"
        chosen = dict.fromkeys(STREAMS, dtype) if isinstance(dtype, str) else dict(dtype)
        self._dtypes = {stream: chosen.get(stream, "F16") for stream in STREAMS}
        if not set(self._dtypes.values()) <= set(FEATURE_DTYPES):
            raise CacheError(f"unknown dtype in {chosen}, expected F16, F32 or BF16",
                             code="cache.dtype")  # fmt: skip
        self._folder = self.target.parent if spool_dir is None else Path(spool_dir)
        for folder in (self.target.parent, self._folder):
            if not folder.is_dir():
                raise CacheError(f"the folder `{folder}` does not exist", code="cache.write",
                                 hint="create it first")  # fmt: skip
        if not force and self.target.exists():
            raise exists_error(self.target)
        self._spools: dict[str, Spool] = {}
        self._rows = {stream: _Rows() for stream in STREAMS}
        self._open = True

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        """Throw away what was not finished."""
        self.abort()

    def num_rows(self, stream: str) -> int:
        """Rows appended to a stream so far."""
        return self._rows[stream].count

    def append(self, stream: str, columns: Mapping[str, Array]) -> None:
        """Append rows of one stream; any number at a time.

        Args:
            stream: ``video`` or ``audio``.
            columns: Arrays by column name without the prefix, all of one length, the same names
                each time; ``at``, ``tile`` and ``cell`` among them. BF16 features come as
                uint16 bit patterns. ``members`` [m] come with ``members_offsets`` [n+1] counted
                from this call's first member. What is only known at the end, such as ``rank``,
                may be left for :meth:`set`.

        Raises:
            CacheError: A name, shape or type does not fit, features are not finite or too
                large for F16, or rows are not sorted by (at, tile, y, x).
        """
        self._check_open()
        if stream not in STREAMS:
            raise CacheError(f"unknown stream {stream!r}", code="cache.invalid")
        rows, names = self._rows[stream], frozenset(columns)
        if absent := [n for n in _ORDER if n not in names]:
            raise CacheError(f"{stream}: rows without `{absent[0]}`", code="cache.invalid")
        if rows.count and names != rows.names:
            odd = ", ".join(sorted(names ^ rows.names))
            raise CacheError(f"{stream}: columns differ between calls: {odd}", code="cache.invalid")
        sizes = {k: v for k, v in rows.sizes.items() if k == "D"} | {"N": len(columns["at"])}
        ready = {n: self._ready(f"{stream}.{n}", a, sizes) for n, a in columns.items()}
        if not sizes["N"]:
            return
        self._check_sorted(stream, rows, ready)
        if "members_offsets" in ready:
            self._append_members(stream, ready)
        elif "members" in ready:
            raise CacheError(f"{stream}: members without members_offsets", code="cache.invalid")
        for name, (dtype, array) in ready.items():
            self._write(f"{stream}.{name}", dtype, array)
        rows.count, rows.names, rows.sizes = rows.count + sizes["N"], names, sizes
        rows.last = {n: ready[n][1][-1:].copy() for n in _ORDER}

    def append_bytes(self, name: str, data: bytes) -> None:
        """Append encoded bytes to a blob, with an offset a call where the blob has them.

        Args:
            name: ``video.atlas`` (one page a call), ``thumb.data`` (one picture a call) or
                ``audio.clip`` (any piece).
            data: The bytes.

        Raises:
            CacheError: The format has no such blob.
        """
        self._check_open()
        if name not in BLOBS:
            raise CacheError(f"`{name}` is no blob of the format", code="cache.invalid")
        self._write(name, "U8", np.frombuffer(data, dtype=np.uint8))
        if (offsets := BLOBS[name]) is not None:
            if offsets not in self._spools:
                self._write(offsets, "I64", np.zeros(1, dtype="<i8"))
            end = np.array([self._spools[name].rows], dtype="<i8")
            self._write(offsets, "I64", end)

    def set(self, name: str, array: Array) -> None:
        """Store a whole tensor by its full name, once: ``video.rank``, ``segment.pts``, ...

        Raises:
            CacheError: The format has no such tensor, it is there already, or it does not fit.
        """
        self._check_open()
        if name in self._spools:
            raise CacheError(f"`{name}` is there already", code="cache.invalid")
        dtype, ready = self._ready(name, array, {})
        self._write(name, dtype, ready)

    def finish(self, metadata: Mapping[str, object]) -> Path:
        """Check everything, write the file and give it its name.

        Args:
            metadata: Key -> value, keys as in ``format.METADATA``. ``json`` keys take objects.
                ``tokpipe.format`` and ``tokpipe.digest`` are written here, ``kept`` in
                ``tokpipe.counts`` and ``tokpipe.quant`` are filled in when they are absent.

        Returns:
            The target.

        Raises:
            CacheError: An invariant of the format page would be broken; nothing is written.
            OutputExists: The target appeared meanwhile and ``force`` is off.
            ResourceError: The disk is full.
        """
        self._check_open()
        temp = temp_path(self.target)
        try:
            with error_context(str(self.target)):
                self._drop_empty_streams()
                values = encode_metadata(self._complete(metadata))
                descriptor = create(temp)
                try:
                    self._write_file(descriptor, temp, values)
                finally:
                    os.close(descriptor)
                publish(temp, self.target, force=self._force, warnings=self.warnings)
                if self._sync:
                    sync_folder(self.target.parent, self.warnings)
        except TokpipeError:
            # Some of them are OSErrors too, and are named well already.
            raise
        except OSError as error:
            raise_io(error, f"write `{self.target}`")
        finally:
            temp.unlink(missing_ok=True)
            self.abort()
        return self.target

    def abort(self) -> None:
        """Throw everything away; harmless after :meth:`finish`."""
        self._open = False
        for spool in self._spools.values():
            spool.close()
        self._spools.clear()

    def _check_open(self) -> None:
        if not self._open:
            raise CacheError("the writer is closed", code="cache.closed")

    def _ready(self, name: str, array: Array, sizes: dict[str, int]) -> tuple[str, Array]:
        found = lookup(name)
        if found is None:
            raise CacheError(f"the format has no tensor `{name}`", code="cache.invalid")
        stream, column = found
        feature = column.dtypes == FEATURE_DTYPES and stream is not None
        dtype = self._dtypes[stream] if feature and stream is not None else column.dtypes[0]
        ready = to_column(name, np.asarray(array), dtype)
        expected = bind(ready.shape, column.shape, sizes)
        if expected is not None:
            raise CacheError(f"`{name}` has shape {list(ready.shape)}, expected {expected}",
                             code="cache.shape")  # fmt: skip
        return dtype, ready

    def _check_sorted(
        self, stream: str, rows: _Rows, ready: Mapping[str, tuple[str, Array]]
    ) -> None:
        keys = {n: ready[n][1] for n in _ORDER}
        if rows.last:
            keys = {n: np.concatenate([rows.last[n], a]) for n, a in keys.items()}
        if not sorted_rows(keys["at"], keys["tile"], keys["cell"]).all():
            raise CacheError(
                f"{stream}: rows are not sorted by (at, tile, y, x)", code="cache.order"
            )

    def _append_members(self, stream: str, ready: dict[str, tuple[str, Array]]) -> None:
        """Turn offsets of one call into offsets of the file."""
        dtype, offsets = ready["members_offsets"]
        count = len(ready["members"][1]) if "members" in ready else -1
        if offsets[0] != 0 or offsets[-1] != count or (np.diff(offsets) < 0).any():
            raise CacheError(
                f"{stream}: members and members_offsets disagree", code="cache.members"
            )
        name = f"{stream}.members"
        base = self._spools[name].rows if name in self._spools else 0
        first = f"{stream}.members_offsets" not in self._spools
        ready["members_offsets"] = (dtype, (offsets if first else offsets[1:]) + base)

    def _write(self, name: str, dtype: str, array: Array) -> None:
        spool = self._spools.get(name)
        if spool is None:
            spool = self._spools[name] = Spool(self._folder, dtype, array.shape[1:])
        if spool.tail != array.shape[1:]:
            raise CacheError(f"`{name}` changes its shape between calls", code="cache.shape")
        spool.write(np.ascontiguousarray(array).tobytes(), array.shape[0])

    def _drop_empty_streams(self) -> None:
        """A stream that kept no token has no tensors at all."""
        for stream in STREAMS:
            if not self._rows[stream].count and f"{stream}.tokens" not in self._spools:
                for name in [n for n in self._spools if n.startswith(f"{stream}.")]:
                    self._spools.pop(name).close()

    def _complete(self, metadata: Mapping[str, object]) -> dict[str, object]:
        values: dict[str, Any] = dict(metadata)
        for key in ("tokpipe.format", "tokpipe.digest"):
            if key in values:
                raise CacheError(f"`{key}` is written by the writer itself", code="cache.metadata")
        values["tokpipe.format"] = FORMAT_VERSION
        present = [s for s in STREAMS if f"{s}.tokens" in self._spools]
        values.setdefault("tokpipe.quant", {s: {"codec": "none"} for s in present})
        counts = values.get("tokpipe.counts")
        if isinstance(counts, Mapping):
            kept = {s: self._spools[f"{s}.tokens"].rows if s in present else 0 for s in STREAMS}
            values["tokpipe.counts"] = {
                k: {"kept": kept[k], **v} if k in kept and isinstance(v, Mapping) else v
                for k, v in counts.items()
            }
        return values

    def _write_file(self, descriptor: int, temp: Path, metadata: Mapping[str, str]) -> None:
        layout = plan_layout({n: (s.dtype, s.shape) for n, s in self._spools.items()})
        pads = {n: bytes(t.stop - t.start) for n, t in layout.items() if n.startswith(PAD_PREFIX)}
        digests = {n: sha256_hex(pads[n]) if n in pads else self._spools[n].digest for n in layout}
        with os.fdopen(descriptor, "wb", closefd=False) as stream:
            stream.write(build_header(layout, metadata, digests))
            self._write_tensors(stream.write, layout, pads)
        self._check_file(temp)
        if self._sync:
            sync_file(descriptor, self.warnings)

    def _write_tensors(
        self, write: Any, layout: Mapping[str, TensorInfo], pads: Mapping[str, bytes]
    ) -> None:
        for name in layout:
            if name in pads:
                write(pads[name])
                continue
            for block in self._spools[name].blocks():
                write(block)

    @staticmethod
    def _check_file(temp: Path) -> None:
        """Read the columns back: nothing is published that a reader would refuse."""
        with CacheFile(temp) as file:
            metadata = parse_metadata(file.header.metadata)
            problems = list(structure_problems(file, metadata))
            if not problems:
                problems = list(value_problems(file, metadata, streams_of(file)))
        if problems:
            first = problems[0]
            more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
            parts = "a rule of the recipe keeps parts of pictures: leave out --layout frames"
            raise CacheError(f"the cache would be invalid: {first.message}{more}",
                             hint=parts if first.code == "layout" else None,
                             code=f"cache.{first.code}")  # fmt: skip
