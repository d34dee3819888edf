"""Budgets of an evaluation: tokens, or frames' worth of tokens."""

from __future__ import annotations

import re

from tokpipe.errors import BudgetError

#: Budgets tried when none is named.
DEFAULT = ("8f", "16f", "32f", "64f")
_ONE = re.compile(r"([1-9][0-9]{0,8})(f?)")


def parse_budgets(text: str) -> tuple[str, ...]:
    """Read ``8f,16f`` or ``2048,8192``, each once.

    Raises:
        BudgetError: A part is neither a number of tokens nor of frames.
    """
    parts = [part.strip() for part in text.split(",")]
    for part in parts:
        tokens_of(part, 1)
    return tuple(dict.fromkeys(parts))


def tokens_of(budget: str, cells: int) -> int:
    """Tokens of one budget, where a frame has ``cells`` of them.

    Raises:
        BudgetError: It is neither a number of tokens nor of frames.
    """
    match = _ONE.fullmatch(budget)
    if match is None:
        raise BudgetError(
            f"cannot read budget `{budget}`",
            hint="write tokens or frames' worth of tokens, such as 2048,8192 or 8f,16f,32f,64f",
        )
    return int(match[1]) * (cells if match[2] else 1)


def frames_of(tokens: int, cells: int) -> int:
    """Whole frames a budget is worth, at least one."""
    return max(1, tokens // cells)
