"""The error tree: builtins, fields, pickling, context."""

from __future__ import annotations

import pickle

import pytest

from tokpipe import errors
from tokpipe.errors import DecodeError, MediaNotFound, RecipeError, TokpipeError, error_context

KINDS = [
    value for value in vars(errors).values()
    if isinstance(value, type) and issubclass(value, TokpipeError)
]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_error_crosses_a_process_border_whole(kind: type[TokpipeError]) -> None:
    error = kind("it broke", hint="mend it", where="a.mp4", code="x.y")
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is kind
    assert copy.to_dict() == error.to_dict()
    assert str(copy) == "it broke (a.mp4)"


@pytest.mark.parametrize(
    ("name", "builtin", "exit_code"),
    [
        ("RecipeError", ValueError, 2), ("UnknownOperator", LookupError, 2),
        ("MediaError", OSError, 1), ("MediaNotFound", FileNotFoundError, 1),
        ("BudgetError", ValueError, 2), ("OutputExists", FileExistsError, 1),
        ("MissingExtra", ImportError, 3), ("ResourceError", TokpipeError, 3),
        ("ModelError", TokpipeError, 3), ("CacheCorrupt", errors.CacheError, 1),
    ],
)  # fmt: skip
def test_error_is_also_the_builtin(name: str, builtin: type, exit_code: int) -> None:
    kind = getattr(errors, name)
    assert issubclass(kind, builtin)
    assert kind.exit_code == exit_code


def test_error_codes_are_unique() -> None:
    codes = [kind.code for kind in KINDS]
    assert len(set(codes)) == len(codes)


def test_error_shows_only_its_message_without_a_place() -> None:
    error = MediaNotFound("cannot read `a.mp4`")
    assert str(error) == "cannot read `a.mp4`"
    assert error.hint is None


def test_context_names_the_place_once() -> None:
    with pytest.raises(DecodeError) as caught, error_context("outer"), error_context("inner"):
        raise DecodeError("bad packet")
    assert caught.value.where == "inner"


def test_context_keeps_a_place_that_is_known() -> None:
    with pytest.raises(RecipeError) as caught, error_context("file"):
        raise RecipeError("no", where="column 3")
    assert caught.value.where == "column 3"


def test_context_leaves_other_errors_alone() -> None:
    with pytest.raises(ZeroDivisionError), error_context("file"):
        _ = 1 / 0
