"""What one name of the registry is and needs, read from its source without importing it.

Listing a hundred operators must not load torch, so the facts come from the constants in each
operator's file (``ast``) and in each preset's TOML.
"""

from __future__ import annotations

import ast
import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from tokpipe import registry
from tokpipe.registry import Entry

_RULES = ("reducer", "projector")
#: Columns and names the built-in encoders offer: a need among these is always met.
BUILT_IN = frozenset(("pixels", "mel", "score", "rms_db", "near_db", "noise_db", "change"))
#: Where a method runs in its paper, and here.
STAGES = {
    "pixels": "before the encoder",
    "encoder": "encoder; here: outputs",
    "outputs": "encoder outputs",
    "llm": "language model; here: outputs",
}
#: How an operator meets a budget.
BUDGETS = {
    "exact": "its own rule gives exactly the budget",
    "threshold": "the threshold is searched; the rest is trimmed or filled by score",
    "count": "a count of its own; trimmed or filled by score",
    "frames": "whole frames; filled by score where the layout is ragged",
    "grid": "the largest regular grid; filled by score where the layout is ragged",
    "project": "new vectors; an even part of them",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """One operator or preset, for lists and documents.

    Attributes:
        mechanism: The survey's: transformation, similarity, attention or query; else the kind.
        modalities: Streams it works on.
        where: A key of ``STAGES``, empty for what is no reducer.
        needs: Extra columns, ``query``, ``features`` or ``joint`` that its input must have.
        scope: Context it sees: frame, window, stream, video, or "by parameter".
        causal: It never looks ahead.
        budget: A key of ``BUDGETS``, empty for what is no reducer.
        parity: "golden" (checked against results of its authors' code), "spec only" (against its
            description), or "own" (nothing to compare with).
        steps: Operators of a preset, in order.
        golden: Prefixes of the stored cases that check it.
    """

    name: str
    kind: str
    mechanism: str
    summary: str
    source: str
    modalities: tuple[str, ...]
    where: str
    needs: tuple[str, ...]
    scope: str
    causal: bool
    budget: str
    parity: str
    steps: tuple[str, ...] = ()
    golden: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    plugin: str | None = None

    @property
    def unmet(self) -> tuple[str, ...]:
        """Needs the built-in encoders do not meet."""
        return tuple(need for need in self.needs if need not in BUILT_IN)


@cache
def card(name: str) -> Card:
    """Facts about a name or alias. Raises UnknownOperator."""
    entry = registry.lookup(name)
    return _of_preset(entry) if entry.kind == "preset" else _of_operator(entry)


def cards() -> list[Card]:
    """All of them, by name."""
    return [card(name) for name in registry.entries()]


def _of_operator(entry: Entry) -> Card:
    facts, parameters = _constants(entry)
    golden = tuple(facts.get("golden", ()))
    source = str(facts.get("source", ""))
    return Card(
        name=entry.name, kind=entry.kind, mechanism=entry.mechanism, summary=entry.summary,
        source=source, modalities=tuple(facts.get("modalities", ())),
        where=str(facts.get("where", "outputs")) if entry.kind in _RULES else "",
        needs=tuple(facts.get("needs", ())), scope=str(facts.get("scope", "")),
        causal=bool(facts.get("causal", False)), budget=_budget(entry, facts, parameters),
        parity=_parity(entry.kind, golden, source), golden=golden, aliases=entry.aliases,
        plugin=entry.plugin,
    )  # fmt: skip


def _constants(entry: Entry) -> tuple[dict[str, Any], set[str]]:
    """Literal class attributes of the operator, and the names of its parameters."""
    if entry.plugin is not None:
        kind = registry.load(entry.name)
        return {k: v for k, v in vars(kind).items() if not k.startswith("_")}, set()
    path = Path(__file__).parent.joinpath(*entry.target.split(".")[1:]).with_suffix(".py")
    facts: dict[str, Any] = {}
    parameters: set[str] = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        # The operator is the one public class with a source; states and the like have none.
        if isinstance(node, ast.ClassDef) and "source" in _targets(node):
            for part in node.body:
                if isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name):
                    fact = "ClassVar" in ast.dump(part.annotation)
                    if not fact:
                        parameters.add(part.target.id)
                    if part.value is not None and (fact or part.target.id == "scope"):
                        facts[part.target.id] = _literal(part.value)
                elif isinstance(part, ast.FunctionDef) and part.name in ("scope", "needs"):
                    facts[part.name] = "by parameter" if part.name == "scope" else ()
        if "default_needs" in facts:
            # Needs that follow from parameters: what the default ones need.
            facts["needs"] = facts["default_needs"]
    return facts, parameters


def _targets(node: ast.ClassDef) -> set[str]:
    return {
        part.target.id
        for part in node.body
        if isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name)
    }


def _literal(value: ast.expr) -> Any:
    try:
        return ast.literal_eval(value)
    except ValueError:
        return ""


def _budget(entry: Entry, facts: dict[str, Any], parameters: set[str]) -> str:
    if entry.kind != "reducer":
        return "project" if entry.kind == "projector" else ""
    if facts.get("exact"):
        return "exact"
    if "threshold" in parameters:
        return "threshold"
    layouts = facts.get("layouts", ())
    return layouts[0] if layouts and layouts[0] in ("frames", "grid") else "count"


def _parity(kind: str, golden: tuple[str, ...], source: str) -> str:
    if golden:
        return "golden"
    return "own" if kind not in _RULES or source.startswith("tokpipe") else "spec only"


def _of_preset(entry: Entry) -> Card:
    raw = tomllib.loads(Path(entry.target).read_text(encoding="utf-8"))
    steps = {stream: [s["use"] for s in raw.get(stream, {}).get("step", ())]
             for stream in ("video", "audio")}  # fmt: skip
    used = [card(use) for chain in steps.values() for use in chain]
    rules = [c for c in used if c.kind in _RULES]
    last = rules[-1] if rules else used[-1]
    golden, source = tuple(raw.get("golden", ())), str(raw.get("source", last.source))
    needs = [need for c in rules for need in c.needs]
    return Card(
        name=entry.name, kind="preset", mechanism=last.mechanism, summary=entry.summary,
        source=source, modalities=tuple(s for s, chain in steps.items() if chain),
        where=str(raw.get("where", last.where)),
        needs=tuple(raw.get("needs", dict.fromkeys(needs))), scope=last.scope,
        causal=all(c.causal for c in rules), budget=last.budget,
        parity=_parity("reducer", golden, source), steps=tuple(c.name for c in used),
        golden=golden, aliases=entry.aliases,
    )  # fmt: skip
