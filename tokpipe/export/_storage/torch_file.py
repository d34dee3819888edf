"""Files of ``torch.save``, whose errors are those of the disk."""

from __future__ import annotations

from pathlib import Path
from typing import IO, Any


class _Kept:
    """A file that remembers why it could not be written: torch tells of a wrong position instead.

    Attributes:
        error: The first failure.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        """Write bytes, all of them."""
        try:
            return self._file.write(data)
        except OSError as error:
            self.error = self.error or error
            raise

    def flush(self) -> None:
        """Hand on what is buffered."""
        self._file.flush()


def save_tensors(value: Any, path: Path) -> None:
    """Write tensors and plain values; the same give the same bytes, whatever the file's name.

    Raises:
        OSError: The disk is full, or the file is there or cannot be written.
    """
    import torch

    # Buffered: what the system takes only part of is offered again, torch does not look.
    with path.open("xb") as out:
        kept = _Kept(out)
        try:
            torch.save(value, kept)  # type: ignore[arg-type]
        except RuntimeError:
            if kept.error is not None:
                raise kept.error from None
            raise
