"""How values of parameters are written in recipes: in one line and in TOML."""

from __future__ import annotations

import json
import math
import re
import tomllib
from typing import Any

from tokpipe.errors import RecipeError

INT_LIMIT = 1 << 63
_BARE = re.compile(r"[A-Za-z][A-Za-z0-9_.\-]*")
_WORDS = {"true", "false", "inf", "nan"}


def split_at(text: str, mark: str) -> list[str]:
    """Split at ``mark`` outside double quotes and brackets."""
    parts, depth, quoted, escaped, last = [], 0, False, False, 0
    for i, char in enumerate(text):
        if escaped:
            escaped = False
        elif char == "\\" and quoted:
            escaped = True
        elif char == '"':
            quoted = not quoted
        elif not quoted and char in "[]":
            depth += 1 if char == "[" else -1
        elif not quoted and depth == 0 and char == mark:
            parts.append(text[last:i])
            last = i + 1
    return [*parts, text[last:]]


def parse_value(text: str, where: str) -> Any:
    """Read a TOML value; what is none is text. ``where`` names the place in errors."""
    try:
        raw = tomllib.loads(f"x = {text}")
    except tomllib.TOMLDecodeError:
        return plain_value(text, where)
    except (ValueError, RecursionError) as error:
        raise RecipeError(f"cannot read `{text[:40]}`: {error}", where=where) from error
    if set(raw) != {"x"}:
        raise RecipeError(f"`{text[:40]}` is more than one value", where=where)
    return plain_value(raw["x"], where)


def plain_value(value: Any, where: str) -> Any:
    """A parameter's value, lists as tuples; whatever both forms and the digest can write."""
    if isinstance(value, list | tuple):
        return tuple(plain_value(item, where) for item in value)
    bad = (
        not isinstance(value, bool | int | float | str)
        or (isinstance(value, float) and not math.isfinite(value))
        or (isinstance(value, int) and not -INT_LIMIT <= value < INT_LIMIT)
        or (isinstance(value, str) and not _encodable(value))
    )
    if bad:
        raise RecipeError("a value is not a finite number, text, boolean or list", where=where)
    return value


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def literal(value: Any, *, bare: bool = True) -> str:
    """Write a value; ``bare`` text goes without quotes where that is safe."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, tuple | list):
        return "[" + ", ".join(literal(v, bare=False) for v in value) + "]"
    text = str(value)
    if bare and _BARE.fullmatch(text) and text not in _WORDS:
        return text
    # JSON leaves DEL as it is, which TOML does not allow.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
