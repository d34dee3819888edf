"""Recipes: what to do to each stream, as TOML or as one line, exact inverses of each other.

One line:  ``video: fps:fps=2.0 | pixels | temporal-drop; audio: mel; budget=2048``
TOML:      ``[[video.step]]`` and ``[[audio.step]]`` tables with ``use`` and parameters.

A chain is sampler* encoder reducer*. Parameters are numbers, strings, booleans and lists of them.
"""

from __future__ import annotations

import json
import math
import re
import tomllib
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, get_type_hints

from tokpipe import registry
from tokpipe.budget import Budget
from tokpipe.digest import canonical_json, sha256_text
from tokpipe.errors import RecipeError, TokpipeError, error_context
from tokpipe.spec import MODALITIES, StepSpec

FORMAT = 1
_BARE = re.compile(r"[A-Za-z][A-Za-z0-9_.\-]*")
_NAME = re.compile(r"[a-z][a-z0-9\-]*")
_KEY = re.compile(r"[a-z][a-z0-9_]*")
_STAGES = {"sampler": 0, "encoder": 1, "reducer": 2}
_WORDS = {"true", "false", "inf", "nan"}
_INT_LIMIT = 1 << 63


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Steps of each stream, budget, seed.

    Attributes:
        video, audio: Chains of steps; an empty chain leaves that stream out.
        budget: None takes the command's.
        summary: One line for people (presets); not part of the digest.
    """

    video: tuple[StepSpec, ...] = ()
    audio: tuple[StepSpec, ...] = ()
    budget: Budget | None = None
    seed: int = 0
    summary: str = field(default="", compare=False)

    @property
    def chains(self) -> dict[str, tuple[StepSpec, ...]]:
        """Chains by stream name, the empty ones left out."""
        return {name: chain for name in MODALITIES if (chain := getattr(self, name))}

    def canonical(self) -> dict[str, Any]:
        """Plain value that determines the result, for digests and metadata."""
        chains = {
            name: [{"use": step.use, **step.params} for step in chain]
            for name, chain in self.chains.items()
        }
        budget = str(self.budget) if self.budget else None
        return {"format": FORMAT, "budget": budget, "seed": self.seed, **chains}

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical form."""
        return sha256_text(canonical_json(self.canonical()))

    def to_line(self) -> str:
        """The one-line form."""
        parts = []
        for name, chain in self.chains.items():
            parts.append(f"{name}: " + " | ".join(_step_text(step) for step in chain))
        if self.budget:
            parts.append(
                f"budget={self.budget}"
                if "," not in str(self.budget)
                else f'budget="{self.budget}"'
            )
        if self.seed:
            parts.append(f"seed={self.seed}")
        return "; ".join(parts)

    def to_toml(self) -> str:
        """The TOML form."""
        lines = [f"format = {FORMAT}"]
        if self.summary:
            lines.append(f"summary = {_literal(self.summary, bare=False)}")
        if self.budget:
            lines.append(f'budget = "{self.budget}"')
        if self.seed:
            lines.append(f"seed = {self.seed}")
        for name, chain in self.chains.items():
            for step in chain:
                lines += ["", f"[[{name}.step]]", f'use = "{step.use}"']
                lines += [f"{k} = {_literal(v, bare=False)}" for k, v in step.params.items()]
        return "\n".join(lines) + "\n"

    def with_budget(self, budget: Budget | None) -> Recipe:
        """A copy with another budget."""
        return replace(self, budget=budget)


def load_recipe(text: str) -> Recipe:
    """Read a preset's name, a path of a TOML file, or a one-line recipe.

    Raises:
        RecipeError: With the place in the text, and what would be right.
    """
    known = registry.entries()
    stripped = text.strip()
    if stripped in known and known[stripped].kind == "preset":
        return from_toml(Path(known[stripped].target).read_text(encoding="utf-8"), stripped)
    if stripped.endswith(".toml") and not any(c in stripped for c in "|;"):
        try:
            return from_toml(Path(stripped).read_text(encoding="utf-8"), stripped)
        except (OSError, ValueError) as error:
            if isinstance(error, TokpipeError):
                raise
            raise RecipeError(
                f"cannot read recipe `{stripped}`: {error}", hint="check the path"
            ) from error
    if _NAME.fullmatch(stripped) and stripped not in known:
        registry.lookup(stripped)
    return from_line(text)


def from_toml(text: str, name: str = "recipe") -> Recipe:
    """Read the TOML form."""
    try:
        raw = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise RecipeError(f"not TOML: {error}", where=name, hint="see docs/recipes.md") from error
    if raw.pop("format", FORMAT) != FORMAT:
        raise RecipeError(f"recipe format is not {FORMAT}", where=name, hint="update tokpipe")
    summary, budget, seed = raw.pop("summary", ""), raw.pop("budget", None), raw.pop("seed", 0)
    chains: dict[str, tuple[StepSpec, ...]] = {}
    for stream in MODALITIES:
        table = raw.pop(stream, {})
        if (
            not isinstance(table, dict)
            or set(table) - {"step"}
            or not isinstance(table.get("step", []), list)
        ):
            raise RecipeError(f"`{stream}` must hold only [[{stream}.step]] tables", where=name)
        lines = [
            i for i, line in enumerate(text.splitlines(), 1) if line.strip() == f"[[{stream}.step]]"
        ]
        steps = table.get("step", [])
        chains[stream] = tuple(
            _step(step, f"{name}, line {lines[i]}" if len(lines) == len(steps) else name)
            for i, step in enumerate(steps)
        )
    if raw:
        raise RecipeError(
            f"unknown key `{next(iter(raw))}`",
            where=name,
            hint="known: format, summary, budget, seed, video, audio",
        )
    return _checked(chains, budget, seed, str(summary), name)


def _step(raw: Any, where: str) -> StepSpec:
    if not isinstance(raw, dict) or not isinstance(raw.get("use"), str):
        raise RecipeError('a step needs `use = "operator"`', where=where)
    params = {k: _plain(v, where) for k, v in raw.items() if k != "use"}
    for key in params:
        if not _KEY.fullmatch(key):
            raise RecipeError(
                f"`{key}` is not a parameter name",
                where=where,
                hint="lower case letters, digits and _",
            )
    return _canonical_step(raw["use"], params, where)


def from_line(text: str) -> Recipe:
    """Read the one-line form."""
    chains: dict[str, tuple[StepSpec, ...]] = {}
    options: dict[str, Any] = {}
    offset = 0
    for part in _split(text, ";"):
        label = re.match(r"\s*(video|audio)\s*:(?!\w+\s*=)", part)
        stream = label[1] if label else "video"
        body = part[label.end() :] if label else part
        start = offset + (label.end() if label else 0)
        steps = []
        for piece in _split(body, "|"):
            column = start + len(piece) - len(piece.lstrip()) + 1
            start += len(piece) + 1
            option = re.fullmatch(r"\s*(budget|seed)\s*=\s*(.+?)\s*", piece)
            if option and option[1] in options:
                raise RecipeError(f"two values for {option[1]}", where=f"column {column}")
            if option:
                options[option[1]] = _value(option[2], f"column {column}")
            elif piece.strip():
                steps.append(_parse_step(piece.strip(), f"column {column}"))
            elif label or "|" in part:
                raise RecipeError(
                    "empty step", where=f"column {column}", hint="remove the extra `|`"
                )
        if steps:
            if stream in chains:
                raise RecipeError(f"two chains for {stream}", where=f"column {offset + 1}")
            chains[stream] = tuple(steps)
        offset += len(part) + 1
    return _checked(chains, options.get("budget"), options.get("seed", 0), "", "recipe")


def _parse_step(text: str, where: str) -> StepSpec:
    name, colon, rest = text.partition(":")
    if not _NAME.fullmatch(name.strip()):
        raise RecipeError(
            f"`{name.strip()}` is not an operator name",
            where=where,
            hint="write operator:parameter=value",
        )
    params: dict[str, Any] = {}
    for piece in _split(rest, ",") if colon else []:
        key, equals, value = piece.partition("=")
        if (
            not equals
            or not value.strip()
            or not _KEY.fullmatch(key.strip())
            or key.strip() in params
        ):
            raise RecipeError(
                f"cannot read parameter `{piece.strip()}` of `{name}`",
                where=where,
                hint="write parameter=value, each once",
            )
        params[key.strip()] = _value(value.strip(), where)
    return _canonical_step(name.strip(), params, where)


def _split(text: str, mark: str) -> list[str]:
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


def _value(text: str, where: str) -> Any:
    try:
        raw = tomllib.loads(f"x = {text}")
    except tomllib.TOMLDecodeError:
        return _plain(text, where)
    except (ValueError, RecursionError) as error:
        raise RecipeError(f"cannot read `{text[:40]}`: {error}", where=where) from error
    if set(raw) != {"x"}:
        raise RecipeError(f"`{text[:40]}` is more than one value", where=where)
    return _plain(raw["x"], where)


def _plain(value: Any, where: str) -> Any:
    """A parameter's value, lists as tuples; whatever both forms and the digest can write."""
    if isinstance(value, list | tuple):
        return tuple(_plain(item, where) for item in value)
    bad = (
        not isinstance(value, bool | int | float | str)
        or (isinstance(value, float) and not math.isfinite(value))
        or (isinstance(value, int) and not -_INT_LIMIT <= value < _INT_LIMIT)
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


def _literal(value: Any, *, bare: bool = True) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, tuple | list):
        return "[" + ", ".join(_literal(v, bare=False) for v in value) + "]"
    text = str(value)
    if bare and _BARE.fullmatch(text) and text not in _WORDS:
        return text
    # JSON leaves DEL as it is, which TOML does not allow.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _step_text(step: StepSpec) -> str:
    params = ",".join(f"{k}={_literal(v)}" for k, v in step.params.items())
    return f"{step.use}:{params}" if params else step.use


def _canonical_step(use: str, params: dict[str, Any], where: str) -> StepSpec:
    """Check the name; parameters are checked when the operator is built."""
    try:
        entry = registry.lookup(use)
    except TokpipeError as error:
        error.where = where
        raise
    if entry.kind == "preset":
        raise RecipeError(
            f"`{use}` is a preset and cannot be a step",
            where=where,
            hint=f"use it as --recipe {use}",
        )
    return StepSpec(use=use, params=dict(sorted(params.items())))


def _checked(chains: dict[str, Any], budget: Any, seed: Any, summary: str, where: str) -> Recipe:
    if not any(chains.values()):
        raise RecipeError(
            "the recipe has no steps",
            where=where,
            hint="name at least an encoder, for example `pixels`",
        )
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < _INT_LIMIT:
        raise RecipeError("seed must be a whole number from 0 to 2^63 - 1", where=where)
    for stream, chain in chains.items():
        _check_order(stream, chain, where)
    with error_context(where):
        parsed = None if budget is None else Budget.parse(_plain(budget, where))
    return Recipe(
        video=chains.get("video", ()),
        audio=chains.get("audio", ()),
        budget=parsed,
        seed=seed,
        summary=summary,
    )


def _check_order(stream: str, chain: tuple[StepSpec, ...], where: str) -> None:
    if not chain:
        return
    kinds = [registry.lookup(step.use).kind for step in chain]
    for (left, a), (right, b) in zip(
        zip(chain, kinds, strict=True), zip(chain[1:], kinds[1:], strict=True), strict=False
    ):
        if _STAGES[a] > _STAGES[b] or a == b == "encoder":
            raise RecipeError(
                f"`{right.use}` ({b}) cannot follow `{left.use}` ({a}) in the {stream} chain",
                where=where, hint="the order is samplers, one encoder, reducers",
            )  # fmt: skip
    if "encoder" not in kinds:
        raise RecipeError(
            f"the {stream} chain has no encoder", where=where, hint="add `pixels` or `mel`"
        )


def build(step: StepSpec) -> Any:
    """Make the operator of a step, its parameters checked against their types and ranges.

    Raises:
        RecipeError: Unknown parameter, wrong type or out of range, naming step and parameter.
    """
    from pydantic import TypeAdapter, ValidationError

    kind = registry.load(step.use)
    # Strict mode takes a dataclass only ready made, so the fields are checked one by one.
    hints = get_type_hints(kind, include_extras=True)
    known = [f.name for f in fields(kind)]
    hint = f"see `tokpipe ops show {step.use}`"
    values: dict[str, Any] = {}
    for name, value in step.params.items():
        if name not in known:
            listed = ", ".join(known) or "none"
            raise RecipeError(
                f"`{step.use}` has no parameter `{name}`",
                hint=f"parameters: {listed}",
                code="recipe.parameter",
            )
        try:
            values[name] = TypeAdapter(hints[name]).validate_python(value, strict=True)
        except ValidationError as error:
            reason = error.errors()[0]["msg"]
            raise RecipeError(
                f"`{step.use}`: {name}: {reason}, got {value!r}", hint=hint, code="recipe.parameter"
            ) from error
    try:
        return kind(**values)
    except (TypeError, ValueError) as error:
        raise RecipeError(f"`{step.use}`: {error}", hint=hint, code="recipe.parameter") from error
