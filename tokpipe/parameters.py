"""The parameters of operators: types, ranges, defaults, and a JSON schema of recipes from them."""

from __future__ import annotations

import re
import sys
from dataclasses import MISSING, dataclass, fields
from types import SimpleNamespace, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from tokpipe import registry
from tokpipe.spec import MODALITIES

_BOUNDS = {"ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum", "lt": "exclusiveMaximum"}
_TYPES = {"int": "integer", "float": "number", "str": "string", "bool": "boolean"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """One field of an operator.

    Attributes:
        type: As people read it: ``int or none``, ``frame or video``.
        default: Plain value.
        bounds: ``ge``, ``gt``, ``le``, ``lt`` where given.
        about: What the class's docstring says of it.
        choices: Values of a Literal.
    """

    name: str
    type: str
    default: Any
    bounds: dict[str, float]
    about: str
    choices: tuple[Any, ...] = ()

    @property
    def range(self) -> str:
        """Bounds as ``0 to 1`` or ``above 0``."""
        b = self.bounds
        low = f"{b['ge']:g}" if "ge" in b else f"above {b['gt']:g}" if "gt" in b else ""
        high = f"{b['le']:g}" if "le" in b else f"below {b['lt']:g}" if "lt" in b else ""
        if low and high:
            return f"{low} to {high}"
        if low:
            return low + (" or more" if "ge" in b else "")
        return f"at most {high}" if high else ""

    def schema(self) -> dict[str, Any]:
        """JSON schema of its value."""
        if self.choices:
            return {"enum": list(self.choices), "description": self.about}
        kinds = [_TYPES[t] for t in self.type.split(" or ") if t in _TYPES]
        out: dict[str, Any] = {"type": kinds[0] if len(kinds) == 1 else kinds} if kinds else {}
        if self.type.startswith("tuple"):
            out = {"type": "array"}
        out |= {_BOUNDS[k]: v for k, v in self.bounds.items()}
        if self.default is not None:
            out["default"] = self.default
        return {**out, "description": self.about}


def parameters(name: str) -> list[Parameter]:
    """Parameters of a registered operator (imports it)."""
    return parameters_of(registry.load(name))


def parameters_of(kind: type[Any]) -> list[Parameter]:
    """Parameters of a dataclass, as its fields, hints and docstring tell them."""
    hints = field_hints(kind)
    texts = _described(kind.__doc__ or "")
    out = []
    for field in fields(kind):
        bounds: dict[str, float] = {}
        choices: list[Any] = []
        text = _type(hints[field.name], bounds, choices)
        default = None if field.default is MISSING else field.default
        out.append(
            Parameter(name=field.name, type=text, default=_plain(default), bounds=bounds,
                      about=texts.get(field.name, ""), choices=tuple(choices))
        )  # fmt: skip
    return out


def field_hints(kind: type[Any]) -> dict[str, Any]:
    """Types of a dataclass's fields; those of its class attributes may need modules not loaded."""
    own = SimpleNamespace(__annotations__={f.name: f.type for f in fields(kind)})
    return get_type_hints(own, vars(sys.modules[kind.__module__]), include_extras=True)


def recipe_schema() -> dict[str, Any]:
    """JSON schema of the TOML form of recipes, from every operator's parameters."""
    steps: dict[str, list[dict[str, str]]] = {stream: [] for stream in MODALITIES}
    found: dict[str, Any] = {}
    for name, entry in registry.entries().items():
        if entry.kind == "preset":
            continue
        own = {p.name: p.schema() for p in parameters(name)}
        found[name] = {
            "type": "object", "description": entry.summary, "required": ["use"],
            "properties": {"use": {"enum": [name, *entry.aliases]}, **own},
            "additionalProperties": False,
        }  # fmt: skip
        for stream in getattr(registry.load(name), "modalities", MODALITIES):
            steps[stream].append({"$ref": f"#/$defs/{name}"})
    chains = {
        stream: {"type": "object", "additionalProperties": False,
                 "properties": {"step": {"type": "array", "items": {"oneOf": refs}}}}
        for stream, refs in steps.items()
    }  # fmt: skip
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema", "title": "tokpipe recipe",
        "type": "object", "$defs": found,
        "properties": {
            "format": {"const": 1}, "summary": {"type": "string"}, "base": {"type": "string"},
            "budget": {"type": ["string", "integer"]}, "seed": {"type": "integer", "minimum": 0},
            "fill": {"type": "boolean"}, **chains,
        },
    }  # fmt: skip


def _described(doc: str) -> dict[str, str]:
    """Text of each name under ``Attributes:``; ``a, b: text`` describes both."""
    section = re.search(r"Attributes:\n(.*?)(?:\n\s*\n|\Z)", doc, re.S)
    out: dict[str, str] = {}
    for part in re.split(r"\n {8}(?=\S)", "\n" + (section[1] if section else "")):
        names, colon, text = part.partition(":")
        if colon:
            for name in names.split(","):
                out[name.strip()] = " ".join(text.split())
    return out


def _type(hint: Any, bounds: dict[str, float], choices: list[Any]) -> str:
    """A type as people read it; collects bounds and choices on the way."""
    for mark in getattr(hint, "__metadata__", ()):
        for bound in getattr(mark, "metadata", (mark,)):
            for name in _BOUNDS:
                if getattr(bound, name, None) is not None:
                    bounds[name] = getattr(bound, name)
    if hasattr(hint, "__metadata__"):
        return _type(hint.__origin__, bounds, choices)
    origin = get_origin(hint)
    if origin is Literal:
        choices.extend(get_args(hint))
        return " or ".join(str(a) for a in get_args(hint))
    if origin is Union or isinstance(hint, UnionType):
        return " or ".join(_type(a, bounds, choices) for a in get_args(hint))
    if origin is tuple:
        inner = [_type(a, bounds, choices) for a in get_args(hint) if a is not ...]
        return f"tuple of {', '.join(dict.fromkeys(inner))}"
    return "none" if hint is type(None) else getattr(hint, "__name__", str(hint))


def _plain(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return [_plain(v) for v in value]
    return value if value is None or isinstance(value, str | int | float | bool) else str(value)
