"""Content digests: media fingerprint, weights, canonical JSON."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from tokpipe.errors import MediaNotFound

_MIB = 1 << 20
#: Files of a model's folder that its tokens depend on.
_CHECKPOINT = frozenset((".json", ".safetensors", ".bin", ".pt", ".pth"))


def canonical_json(value: Any) -> str:
    """One text per value: sorted keys, no spaces, no NaN."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )


def sha256_text(text: str) -> str:
    """Hex SHA-256 of a text in UTF-8."""
    return hashlib.sha256(text.encode()).hexdigest()


def chain(*parts: Any) -> str:
    """Digest of a chain of canonical values: the key of everything that depends on all of them."""
    return sha256_text(canonical_json(list(parts)))


def fingerprint(path: Path, *, full: bool = False) -> tuple[str, str, int]:
    """Fingerprint a file.

    Args:
        path: The file.
        full: Hash every byte instead of the first, middle and last MiB.

    Returns:
        (digest ``sha256:hex``, method ``head-middle-tail`` or ``full``, size in bytes).

    Raises:
        MediaNotFound: The file is missing or unreadable.
    """
    try:
        size = path.stat().st_size
        digest = hashlib.sha256(str(size).encode())
        with path.open("rb") as stream:
            if full or size <= 3 * _MIB:
                while block := stream.read(_MIB):
                    digest.update(block)
            else:
                for offset in (0, (size - _MIB) // 2, size - _MIB):
                    stream.seek(offset)
                    digest.update(stream.read(_MIB))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise MediaNotFound(
            f"cannot read `{path}`: {reason}", hint="check the path and its permissions"
        ) from error
    return f"sha256:{digest.hexdigest()}", "full" if full else "head-middle-tail", size


def portable(value: str) -> str:
    """A name of weights that means the same on every machine.

    A file or folder becomes its base name and a fingerprint of what it holds (configurations and
    checkpoints of a folder); any other text stays as it is.
    """
    path = Path(value) if value else None
    if path is None or not path.exists():
        return value
    if path.is_file():
        return f"{path.name}@{fingerprint(path)[0][:23]}"
    files = [p for p in sorted(path.iterdir()) if p.suffix in _CHECKPOINT and p.is_file()]
    found = chain(*([p.name, fingerprint(p)[0]] for p in files))
    return f"{path.resolve().name}@sha256:{found[:16]}"
