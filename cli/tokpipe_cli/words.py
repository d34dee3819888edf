"""How numbers read to people: clock times, sizes, counts."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction


def clock(seconds: float | None) -> str:
    """Seconds as ``2:02`` or ``1:02:03``; ``7.4 s`` under ten seconds; ``?`` when unknown."""
    if seconds is None:
        return "?"
    if seconds < 10:
        return f"{max(0.0, seconds):.1f} s"
    return stamp(seconds)


def stamp(seconds: float) -> str:
    """Seconds as ``0:07``, ``2:02`` or ``1:02:03``, rounded down."""
    whole = max(0, int(seconds))
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def took(seconds: float) -> str:
    """Wall time: ``0.42 s``, ``8.2 s``, ``3:20``."""
    if seconds < 1:
        return f"{seconds:.2f} s"
    return f"{seconds:.1f} s" if seconds < 100 else stamp(seconds)


def size(count: float) -> str:
    """Bytes in decimal units: ``812 B``, ``1.6 MB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 99.5 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def plural(count: int, noun: str) -> str:
    """``1 frame``, ``2,048 tokens``."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def rate(value: Fraction | float | str | None) -> str:
    """A frame rate as ``30 fps`` or ``29.97 fps``; empty when unknown."""
    if value is None:
        return ""
    return f"{float(Fraction(value)):.2f}".rstrip("0").rstrip(".") + " fps"


def joined(parts: Iterable[str], mark: str = "  ") -> str:
    """The parts that say something, with a mark between."""
    return mark.join(part for part in parts if part)
