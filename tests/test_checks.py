"""Checks may wait for the end of a block; what they find is the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch

from tokpipe.checks import Refuse, check, checked_together
from tokpipe.maps import TokenMap


def refuse(name: str) -> Refuse:
    def raising(holds: Sequence[bool]) -> None:
        raise ValueError(f"{name} {list(holds)}")

    return raising


def given(name: str, *holds: bool) -> None:
    check(torch.tensor(holds), refuse(name))


def several(reached: list[str]) -> None:
    with checked_together():
        given("a", True, True)
        with checked_together():
            given("b", False)
        given("c", False)
        reached.append("end")


def broken() -> None:
    with checked_together():
        given("a", False)
        raise KeyError


def waiting() -> None:
    with checked_together():
        TokenMap.keep(torch.tensor([0, 3]), 3)


def test_a_check_tells_at_once() -> None:
    given("a", True, True)
    with pytest.raises(ValueError, match=r"a \[True, False\]"):
        given("a", True, False)


def test_checks_of_a_block_tell_at_its_end_the_first_first() -> None:
    reached: list[str] = []
    with pytest.raises(ValueError, match=r"b \[False\]"):
        several(reached)
    assert reached == ["end"]
    with pytest.raises(ValueError, match="d"):
        given("d", False)


def test_an_error_of_the_block_itself_comes_through() -> None:
    with pytest.raises(KeyError):
        broken()
    with pytest.raises(ValueError, match="d"):
        given("d", False)


@pytest.mark.parametrize("make", [waiting, lambda: TokenMap.keep(torch.tensor([0, 3]), 3)])
def test_a_map_out_of_range_is_refused(make: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match=r"TokenMap\.src: out of range for 3 sources"):
        make()
