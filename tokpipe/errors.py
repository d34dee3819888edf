"""Errors of tokpipe: one tree, each leaf also the matching builtin.

TokpipeError                      message, hint, where, code
├── RecipeError (ValueError)      syntax, order or parameter of a recipe
│   └── UnknownOperator (LookupError)
├── MediaError (OSError)
│   ├── MediaNotFound (FileNotFoundError)
│   ├── UnsupportedMedia          no decodable stream, not a media file
│   └── DecodeError               damaged beyond what the run accepts
├── ModelError
│   ├── WeightsMissing
│   └── WeightsMismatch
├── BudgetError (ValueError)      a budget that cannot be read or met
├── OutputExists (FileExistsError)
├── CacheError
│   ├── CacheCorrupt              an invariant of the format page is broken
│   ├── StreamMissing (KeyError)  an item without the video or the audio asked for
│   └── CacheVersion              written by a newer format
├── ResourceError                 memory, disk, device; what was tried
└── MissingExtra (ImportError)    an optional dependency, with its install line
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class TokpipeError(Exception):
    """Base of every error tokpipe raises on purpose.

    Args:
        message: What went wrong, one sentence without a full stop.
        hint: What to do about it.
        where: File, step or time the error belongs to; filled by :func:`error_context`.
        code: Stable dotted name for programs; defaults to the class's own.
        exit_code: Exit status of the command line (1 input, 2 usage, 3 environment).
    """

    code = "error"
    exit_code = 1

    def __init__(
        self,
        message: str,
        *,
        hint: str | None = None,
        where: str | None = None,
        code: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.where = where
        self.code = code or type(self).code

    def __str__(self) -> str:
        """One line: what, and where when it is known."""
        if not self.where or self.where.rpartition("/")[2] in self.message:
            return self.message
        return f"{self.message} ({self.where})"

    def __reduce__(self) -> tuple[object, ...]:
        """Keep every field when the error crosses a process border."""
        return (_rebuild, (type(self), self.message, self.hint, self.where, self.code))

    def to_dict(self) -> dict[str, str | None]:
        """Return the error object of the JSON event stream."""
        return {
            "code": self.code,
            "class": type(self).__name__,
            "message": self.message,
            "hint": self.hint,
            "where": self.where,
        }


def _rebuild(
    kind: type[TokpipeError], message: str, hint: str | None, where: str | None, code: str
) -> TokpipeError:
    return kind(message, hint=hint, where=where, code=code)


class RecipeError(TokpipeError, ValueError):
    """A recipe that cannot be read, has a wrong order, or a wrong parameter."""

    code = "recipe"
    exit_code = 2


class UnknownOperator(RecipeError, LookupError):
    """No operator, preset or alias has this name."""

    code = "recipe.unknown"


class MediaError(TokpipeError, OSError):
    """A media file that cannot be used."""

    code = "media"


class MediaNotFound(MediaError, FileNotFoundError):
    """The path does not exist or is not readable."""

    code = "media.not_found"


class UnsupportedMedia(MediaError):
    """Not a media file, or no stream in it can be decoded."""

    code = "media.unsupported"


class DecodeError(MediaError):
    """Damage that the run does not accept (``--strict``), or nothing decodable."""

    code = "media.decode"


class ModelError(TokpipeError):
    """An encoder's weights are not what is needed."""

    code = "model"
    exit_code = 3


class WeightsMissing(ModelError):
    """Weights are not on disk and cannot be fetched."""

    code = "model.missing"


class WeightsMismatch(ModelError):
    """Weights differ from the digest or shape on record."""

    code = "model.mismatch"


class BudgetError(TokpipeError, ValueError):
    """A budget that cannot be read or cannot be met."""

    code = "budget"
    exit_code = 2


class OutputExists(TokpipeError, FileExistsError):
    """The output is there already and was made differently."""

    code = "output.exists"


class CacheError(TokpipeError):
    """A token cache that cannot be used."""

    code = "cache"


class CacheCorrupt(CacheError):
    """An invariant of the format page does not hold."""

    code = "cache.corrupt"


class StreamMissing(CacheError, KeyError):
    """An item has no tokens of the stream that is asked for."""

    code = "dataset.stream"


class CacheVersion(CacheError):
    """The file was written by a newer major version of the format."""

    code = "cache.version"


class ResourceError(TokpipeError):
    """Memory, disk or device ran out, or is not there."""

    code = "resource"
    exit_code = 3


class MissingExtra(TokpipeError, ImportError):
    """An optional dependency is not installed."""

    code = "extra"
    exit_code = 3


@contextmanager
def error_context(where: str) -> Iterator[None]:
    """Name the place (file, step, time) of any tokpipe error that leaves the block."""
    try:
        yield
    except TokpipeError as error:
        if error.where is None:
            error.where = where
        raise
