"""Checks may wait for the end of a block; what they find is the same."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from tokpipe.checks import check, checked_together
from tokpipe.maps import TokenMap


def refuse(name: str) -> object:
    def raising(holds: Sequence[bool]) -> None:
        raise ValueError(f"{name} {list(holds)}")

    return raising


def test_a_check_tells_at_once() -> None:
    check(torch.tensor([True, True]), refuse("a"))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"a \[True, False\]"):
        check(torch.tensor([True, False]), refuse("a"))  # type: ignore[arg-type]


def test_checks_of_a_block_tell_at_its_end_the_first_first() -> None:
    reached = False
    with pytest.raises(ValueError, match=r"b \[False\]"), checked_together():
        check(torch.tensor([True, True]), refuse("a"))  # type: ignore[arg-type]
        with checked_together():
            check(torch.tensor([False]), refuse("b"))  # type: ignore[arg-type]
        check(torch.tensor([False]), refuse("c"))  # type: ignore[arg-type]
        reached = True
    assert reached
    with pytest.raises(ValueError, match="d"):
        check(torch.tensor([False]), refuse("d"))  # type: ignore[arg-type]


def test_an_error_of_the_block_itself_comes_through() -> None:
    with pytest.raises(KeyError), checked_together():
        check(torch.tensor([False]), refuse("a"))  # type: ignore[arg-type]
        raise KeyError


@pytest.mark.parametrize("waits", [False, True])
def test_a_map_out_of_range_is_refused(waits: bool) -> None:
    with pytest.raises(ValueError, match=r"TokenMap\.src: out of range for 3 sources"):
        if waits:
            with checked_together():
                TokenMap.keep(torch.tensor([0, 3]), 3)
        else:
            TokenMap.keep(torch.tensor([0, 3]), 3)
