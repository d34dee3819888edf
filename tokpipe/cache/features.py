"""What towers made of single pictures or stretches of sound, kept so that nothing is encoded twice.

One store is a folder of the bank: a safetensors file an item, under the item's number, and
``entry.json``, which says which encoder made them. Items come as a run needs them, so a store grows
with every budget and query that looks at something new; each file is written under another name
and renamed, and one that is damaged counts as not there.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import zlib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from tokpipe.cache.bank import alive, cannot_write, described, sweep, trim
from tokpipe.digest import canonical_json, chain

#: Items written between two looks at the bank's size.
_TRIM_EVERY = 256


class FeatureStore:
    """Items by number; use as a context manager.

    Args:
        key: Digest the store is found by, None for one that lives only as long as the run.
        root: Folder of the bank.

    Attributes:
        about: What is known of the encoder; empty until :meth:`describe`.
    """

    def __init__(self, key: str | None, root: Path) -> None:
        """Open or make the folder."""
        self.key, self.root, self._written = key, root, 0
        try:
            root.mkdir(parents=True, exist_ok=True)
            sweep(root)
            if key is None:
                self.path = Path(tempfile.mkdtemp(prefix=f".{os.getpid()}-", dir=root))
            else:
                self.path = root / key
                self.path.mkdir(exist_ok=True)
        except OSError as error:
            raise cannot_write(root, error) from error
        _sweep_items(self.path)
        self.about: dict[str, Any] = {}
        with suppress(OSError, ValueError):
            self.about = described(self.path / "entry.json")
            os.utime(self.path / "entry.json")

    def __enter__(self) -> FeatureStore:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Remove a store without a key; keep the bank within its size."""
        if self.key is None:
            shutil.rmtree(self.path, ignore_errors=True)
        elif self._written:
            with suppress(OSError):
                trim(self.root, keep=self.key)

    def describe(self, about: Mapping[str, Any]) -> None:
        """Record what made the items."""
        self.about = dict(about)
        text = canonical_json({**self.about, "digest": chain(self.about)})
        self._write(self.path / "entry.json", text.encode())

    def has(self, item: str) -> bool:
        """The item is there, as far as its name tells."""
        return (self.path / f"{item}.safetensors").exists()

    def get(self, item: str) -> dict[str, Tensor] | None:
        """Tensors of an item, None where it is absent or damaged."""
        path = self.path / f"{item}.safetensors"
        try:
            with safe_open(path, "pt") as file:
                found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
                mark = (file.metadata() or {}).get("crc")
        except (OSError, SafetensorError):
            return None
        return found if mark == _mark(found) else None

    def put(self, item: str, tensors: Mapping[str, Tensor]) -> None:
        """Store the tensors of an item, on the CPU.

        Raises:
            ResourceError: The disk is full or read-only.
        """
        ready = {name: value.contiguous() for name, value in tensors.items()}
        self._write(self.path / f"{item}.safetensors", save(ready, {"crc": _mark(ready)}))
        self._written += 1
        if self.key is not None and self._written % _TRIM_EVERY == 0:
            with suppress(OSError):
                trim(self.root, keep=self.key)

    def _write(self, path: Path, data: bytes) -> None:
        temporary = path.with_name(f".{os.getpid()}.{path.name}")
        try:
            # Another run may have made room in the bank meanwhile.
            path.parent.mkdir(exist_ok=True)
            temporary.write_bytes(data)
            if path.is_dir():
                # Nothing of ours is a folder: damage, like a file that cannot be read.
                shutil.rmtree(path)
            os.replace(temporary, path)
        except OSError as error:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise cannot_write(self.root, error) from error


def _sweep_items(folder: Path) -> None:
    """Remove half-written items whose process is gone."""
    for path in folder.glob(".*.*"):
        pid = path.name[1:].partition(".")[0]
        if pid.isdigit() and not alive(int(pid)):
            with suppress(OSError):
                path.unlink()


def _mark(tensors: Mapping[str, Tensor]) -> str:
    """Checksum over names and bytes."""
    import torch

    total = 0
    for name in sorted(tensors):
        total = zlib.crc32(name.encode(), total)
        flat = tensors[name].contiguous().reshape(-1).view(torch.uint8)
        total = zlib.crc32(flat.numpy().tobytes(), total)
    return f"{total:08x}"
