"""Recipes: what to do to each stream, as TOML or as one line, exact inverses of each other.

One line:  ``video: fps:fps=2.0 | pixels | temporal-drop; audio: mel; budget=2048``
TOML:      ``[[video.step]]`` and ``[[audio.step]]`` tables with ``use`` and parameters.

A chain is sampler* encoder reducer*, and then, at will, a tower with weights and reducer* again.
Parameters are numbers, strings, booleans and lists of them.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from tokpipe import registry
from tokpipe._recipe_order import check_order, with_head
from tokpipe._recipe_text import INT_LIMIT, literal, parse_value, plain_value, split_at
from tokpipe.budget import Budget
from tokpipe.digest import canonical_json, sha256_text
from tokpipe.errors import RecipeError, TokpipeError, error_context
from tokpipe.parameters import field_hints
from tokpipe.spec import MODALITIES, StepSpec

FORMAT = 1
_NAME = re.compile(r"[a-z][a-z0-9\-]*")
_KEY = re.compile(r"[a-z][a-z0-9_]*")
#: The preset whose sampler and encoder stand in where a chain names none.
_DEFAULT = "auto"
_SCORERS = {"video": "temporal-drop", "audio": "silence-gate"}
#: What a preset may say about itself beside its steps; see ``tokpipe.card``.
_KEYS = ("format", "summary", "base", "budget", "seed", "fill", "video", "audio")
_ABOUT = ("source", "golden", "where", "needs", "aliases")


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Steps of each stream, budget, seed.

    Attributes:
        video, audio: Chains of steps; an empty chain leaves that stream out.
        budget: None takes the command's.
        fill: Thresholds, ratios and counts of the steps only order the candidates: the budget is
            filled. Presets say so; in a recipe of one's own, what a step is told holds.
        summary: One line for people (presets); not part of the digest.
    """

    video: tuple[StepSpec, ...] = ()
    audio: tuple[StepSpec, ...] = ()
    budget: Budget | None = None
    seed: int = 0
    fill: bool = False
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
        fill = {"fill": True} if self.fill else {}
        return {"format": FORMAT, "budget": budget, "seed": self.seed, **fill, **chains}

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
        if self.fill:
            parts.append("fill=true")
        return "; ".join(parts)

    def to_toml(self) -> str:
        """The TOML form."""
        lines = [f"format = {FORMAT}"]
        if self.summary:
            lines.append(f"summary = {literal(self.summary, bare=False)}")
        if self.budget:
            lines.append(f'budget = "{self.budget}"')
        if self.seed:
            lines.append(f"seed = {self.seed}")
        if self.fill:
            lines.append("fill = true")
        for name, chain in self.chains.items():
            for step in chain:
                lines += ["", f"[[{name}.step]]", f'use = "{step.use}"']
                lines += [f"{k} = {literal(v, bare=False)}" for k, v in step.params.items()]
        return "\n".join(lines) + "\n"

    def over(self, base: Recipe) -> Recipe:
        """A copy with what it leaves out taken from ``base``: streams, budget, seed, ``fill``."""
        return replace(
            self, video=self.video or base.video, audio=self.audio or base.audio,
            budget=self.budget or base.budget, seed=self.seed or base.seed,
            fill=self.fill or base.fill,
        )  # fmt: skip

    def with_budget(self, budget: Budget | None) -> Recipe:
        """A copy with another budget."""
        return replace(self, budget=budget)


def load_recipe(text: str, within: tuple[str, ...] = ()) -> Recipe:
    """Read a name, a path of a TOML file, or a one-line recipe.

    The name of a preset, of an operator (with its defaults, the other stream as in ``auto``), or an
    alias of either.

    Raises:
        RecipeError: With the place in the text, and what would be right.
    """
    stripped = text.strip()
    own = registry.known(stripped)
    named = registry.lookup(own) if own else None
    if named is not None and named.kind == "preset":
        return from_toml(Path(named.target).read_text(encoding="utf-8"), named.name, within)
    if named is not None and named.kind in ("reducer", "projector"):
        return _of_operator(named.name)
    if stripped.endswith(".toml") and not any(c in stripped for c in "|;"):
        try:
            return from_toml(Path(stripped).read_text(encoding="utf-8-sig"), stripped, within)
        except (OSError, ValueError) as error:
            if isinstance(error, TokpipeError):
                raise
            raise RecipeError(
                f"cannot read recipe `{stripped}`: {error}", hint="check the path"
            ) from error
    if _NAME.fullmatch(stripped) and named is None:
        registry.lookup(stripped)
    return from_line(text)


def _of_operator(name: str) -> Recipe:
    """One operator behind the default encoder, the other stream as in the default preset."""
    kind = registry.load(name)
    stream = getattr(kind, "modalities", MODALITIES)[0]
    # A rule that goes by scores alone gets the stream's own scorer before it.
    scorer = [StepSpec(use=_SCORERS[stream])] if "score" in kind().needs else []
    made = _checked({stream: (*scorer, StepSpec(use=name))}, None, 0, False, name)
    return made.over(load_recipe(_DEFAULT))


def from_toml(text: str, name: str = "recipe", within: tuple[str, ...] = ()) -> Recipe:
    """Read the TOML form; ``within`` names the recipes whose base it is."""
    try:
        raw = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise RecipeError(f"not TOML: {error}", where=name, hint="see docs/recipes.md") from error
    if raw.pop("format", FORMAT) != FORMAT:
        raise RecipeError(f"recipe format is not {FORMAT}", where=name, hint="update tokpipe")
    summary, budget, seed = raw.pop("summary", ""), raw.pop("budget", None), raw.pop("seed", 0)
    base, fill = raw.pop("base", None), raw.pop("fill", False)
    for key in _ABOUT:
        raw.pop(key, None)
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
            hint=f"known: {', '.join(_KEYS + _ABOUT)}",
        )
    made = _checked(chains, budget, seed, fill, name)
    made = replace(made, summary=str(summary))
    if base is None:
        return made
    if base in (name, *within):
        raise RecipeError(
            f"the base `{base}` leads back to itself", where=name, hint="name another base"
        )
    with error_context(name):
        return made.over(load_recipe(str(base), (*within, name)))


def _step(raw: Any, where: str) -> StepSpec:
    if not isinstance(raw, dict) or not isinstance(raw.get("use"), str):
        raise RecipeError('a step needs `use = "operator"`', where=where)
    params = {k: plain_value(v, where) for k, v in raw.items() if k != "use"}
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
    offset, labelled = 0, False
    for part in split_at(text, ";"):
        label = re.match(r"\s*(video|audio)\s*:(?!\w+\s*=)", part)
        stream, labelled = label[1] if label else "video", labelled or label is not None
        body = part[label.end() :] if label else part
        start = offset + (label.end() if label else 0)
        steps = []
        for piece in split_at(body, "|"):
            column = start + len(piece) - len(piece.lstrip()) + 1
            start += len(piece) + 1
            option = re.fullmatch(r"\s*(budget|seed|fill)\s*=\s*(.+?)\s*", piece)
            if option and option[1] in options:
                raise RecipeError(f"two values for {option[1]}", where=f"column {column}")
            if option:
                options[option[1]] = parse_value(option[2], f"column {column}")
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
    seed, fill = options.get("seed", 0), options.get("fill", False)
    made = _checked(chains, options.get("budget"), seed, fill, "recipe")
    # Bare rules say nothing of the sound: they are what the rule's name alone would be.
    bare = not labelled and made.video != chains.get("video")
    return made.over(load_recipe(_DEFAULT)) if bare else made


def _parse_step(text: str, where: str) -> StepSpec:
    name, colon, rest = text.partition(":")
    if not _NAME.fullmatch(name.strip()):
        raise RecipeError(
            f"`{name.strip()}` is not an operator name",
            where=where,
            hint="write operator:parameter=value",
        )
    params = parse_params(name, rest, where) if colon else {}
    return _canonical_step(name.strip(), params, where)


def parse_params(name: str, text: str, where: str) -> dict[str, Any]:
    """Values of ``parameter=value,parameter=value``.

    Raises:
        RecipeError: A piece cannot be read, or a parameter comes twice.
    """
    params: dict[str, Any] = {}
    for piece in split_at(text, ","):
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
        params[key.strip()] = parse_value(value.strip(), where)
    return params


def _step_text(step: StepSpec) -> str:
    params = ",".join(f"{k}={literal(v)}" for k, v in step.params.items())
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
    return StepSpec(use=entry.name, params=dict(sorted(params.items())))


def _checked(chains: dict[str, Any], budget: Any, seed: Any, fill: Any, where: str) -> Recipe:
    if not any(chains.values()):
        raise RecipeError(
            "the recipe has no steps",
            where=where,
            hint="name at least one, for example `pixels` or `tome`",
        )
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < INT_LIMIT:
        raise RecipeError("seed must be a whole number from 0 to 2^63 - 1", where=where)
    if not isinstance(fill, bool):
        raise RecipeError("fill must be true or false", where=where)
    chains = dict(chains)
    for stream, chain in chains.items():
        default = load_recipe(_DEFAULT).chains[stream] if _headless(chain) else ()
        chains[stream] = with_head(chain, default)
        check_order(stream, chains[stream], where)
    with error_context(where):
        parsed = None if budget is None else Budget.parse(plain_value(budget, where))
    return Recipe(
        video=chains.get("video", ()),
        audio=chains.get("audio", ()),
        budget=parsed,
        seed=seed,
        fill=fill,
    )


def _headless(chain: tuple[StepSpec, ...]) -> bool:
    """The chain names no encoder of the signal."""
    found = [registry.lookup(step.use) for step in chain]
    return bool(chain) and not any(e.kind == "encoder" and not e.feature for e in found)


def build(step: StepSpec) -> Any:
    """Make the operator of a step, its parameters checked against their types and ranges.

    Raises:
        RecipeError: Unknown parameter, wrong type or out of range, naming step and parameter.
    """
    hint = f"see `tokpipe ops show {step.use}`"
    return make(registry.load(step.use), step.use, step.params, hint)


def make(kind: type[Any], use: str, params: Mapping[str, Any], hint: str) -> Any:
    """Make a dataclass of parameters, each checked against its type and range.

    Raises:
        RecipeError: Unknown parameter, wrong type or out of range, naming ``use`` and parameter.
    """
    from pydantic import TypeAdapter, ValidationError

    # Strict mode takes a dataclass only ready made, so the fields are checked one by one.
    hints = field_hints(kind)
    known = [f.name for f in fields(kind)]
    values: dict[str, Any] = {}
    for name, value in params.items():
        if name not in known:
            listed = ", ".join(known) or "none"
            raise RecipeError(
                f"`{use}` has no parameter `{name}`",
                hint=f"parameters: {listed}",
                code="recipe.parameter",
            )
        try:
            values[name] = TypeAdapter(hints[name]).validate_python(value, strict=True)
        except ValidationError as error:
            reason = error.errors()[0]["msg"]
            raise RecipeError(
                f"`{use}`: {name}: {reason}, got {value!r}", hint=hint, code="recipe.parameter"
            ) from error
    try:
        return kind(**values)
    except (TypeError, ValueError) as error:
        raise RecipeError(f"`{use}`: {error}", hint=hint, code="recipe.parameter") from error
