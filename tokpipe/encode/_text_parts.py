"""Cut a text into parts that a text tower takes, so that nothing of a long query is lost."""

from __future__ import annotations

from collections.abc import Callable


def text_parts(text: str, fits: Callable[[str], bool]) -> list[str]:
    """Cut a text between words, and within a word only where one alone is too long.

    Args:
        text: Any.
        fits: Says whether a piece of text fits; of one that does, so does every start.

    Returns:
        At least one part; a text that fits is left as it is.
    """
    if fits(text):
        return [text]
    found: list[str] = []
    rest = text.split()
    while rest:
        count = _longest(rest, " ", fits)
        if not count:
            at = max(1, _longest(list(rest[0]), "", fits))
            rest[:1], count = [part for part in (rest[0][:at], rest[0][at:]) if part], 1
        found.append(" ".join(rest[:count]))
        rest = rest[count:]
    return found


def _longest(pieces: list[str], between: str, fits: Callable[[str], bool]) -> int:
    """How many of the first pieces fit together, by bisection; 0 where not even one does."""
    low, high = 0, len(pieces)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(between.join(pieces[:middle])) else (low, middle - 1)
    return low
