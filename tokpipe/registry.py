"""Operators by file name. Names and summaries are read without importing anything heavy."""

from __future__ import annotations

import ast
import difflib
import importlib
import re
import tomllib
from dataclasses import dataclass, is_dataclass
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from tokpipe import survey
from tokpipe.errors import RecipeError, UnknownOperator

Kind = Literal["sampler", "encoder", "reducer", "projector", "preset"]
_ROOT = Path(__file__).parent
_FOLDERS: tuple[tuple[Kind, str], ...] = (
    ("sampler", "sample"),
    ("encoder", "encode"),
    ("reducer", "compress/transformation"),
    ("reducer", "compress/similarity"),
    ("reducer", "compress/attention"),
    ("reducer", "compress/query"),
)
_GROUPS: dict[str, Kind] = {
    "tokpipe.samplers": "sampler",
    "tokpipe.encoders": "encoder",
    "tokpipe.compressors": "reducer",
}
_FEATURE = re.compile(r'^    domain: ClassVar\[.*\] = "feature"$', re.M)
_ALIASES = re.compile(r"^    aliases: ClassVar\[tuple\[str, \.\.\.\]\] = (\(.*?\))$", re.M | re.S)


@dataclass(frozen=True, slots=True)
class Entry:
    """One name of the flat namespace.

    Attributes:
        mechanism: The survey's mechanism (folder under ``compress``), or the kind. A sampler that
            chooses among encoded frames is a reducer whose mechanism is ``sampler``.
        target: Module to import, or path of a preset.
        plugin: Distribution it comes from, None for our own.
        aliases: Other names of the same thing.
        feature: An encoder with weights: its tokens are of the feature domain.
    """

    name: str
    kind: Kind
    mechanism: str
    summary: str
    target: str
    plugin: str | None = None
    aliases: tuple[str, ...] = ()
    feature: bool = False


@cache
def entries() -> dict[str, Entry]:
    """Every entry by its own name, sorted. Raises RecipeError when two share a name or alias."""
    found: dict[str, Entry] = {}
    for entry in (*_operators(), *_presets(), *_plugins()):
        for name in (entry.name, *entry.aliases):
            if name in found:
                raise RecipeError(
                    f"two operators are called `{name}`: {found[name].target} and {entry.target}",
                    hint="rename one, or uninstall the plug-in",
                )
            found[name] = entry
    return {name: entry for name, entry in sorted(found.items()) if name == entry.name}


@cache
def aliases() -> dict[str, str]:
    """The name each alias stands for, sorted."""
    return dict(sorted((a, e.name) for e in entries().values() for a in e.aliases))


def _operators() -> list[Entry]:
    out = []
    for folder_kind, folder in _FOLDERS:
        for path in sorted((_ROOT / folder).glob("[a-z]*.py")):
            # Read, not imported: every start lists them.
            text = path.read_text(encoding="utf-8")
            kind = folder_kind
            if "\n    def project(" in text:
                kind = "projector"
            elif "\n    def decide(" in text:
                kind = "reducer"
            found = _ALIASES.search(text)
            out.append(
                Entry(
                    path.stem.replace("_", "-"), kind, folder.rpartition("/")[2]
                    if folder.startswith("compress") else folder_kind, _summary(text),
                    "tokpipe." + folder.replace("/", ".") + "." + path.stem,
                    aliases=ast.literal_eval(found[1]) if found else (),
                    feature=_FEATURE.search(text) is not None,
                )
            )  # fmt: skip
    return out


def _summary(text: str) -> str:
    first = text.partition("\n")[0].strip()
    return (
        first.removeprefix('"""').removesuffix('"""').rstrip(".") if first.startswith('"""') else ""
    )


def _presets() -> list[Entry]:
    out = []
    for path in sorted((_ROOT / "recipes").glob("*.toml")):
        with path.open("rb") as stream:
            raw = tomllib.load(stream)
        out.append(
            Entry(path.stem, "preset", "preset", str(raw.get("summary", "")), str(path),
                  aliases=tuple(raw.get("aliases", ())))
        )  # fmt: skip
    return out


def _plugins() -> list[Entry]:
    out = []
    for group, kind in _GROUPS.items():
        for point in entry_points(group=group):
            source = point.dist.name if point.dist else "unknown distribution"
            out.append(Entry(point.name, kind, kind, f"from {source}", point.value, source))
    return out


def names(kind: Kind | None = None) -> list[str]:
    """Names of one kind, or all."""
    return [name for name, entry in entries().items() if kind in (None, entry.kind)]


def known(name: str) -> str | None:
    """The entry's own name for a name or an alias, however written; None where there is none."""
    for spelling in (name, name.lower().replace("_", "-").replace(" ", "-")):
        own = aliases().get(spelling, spelling)
        if own in entries():
            return own
    return None


def lookup(name: str) -> Entry:
    """Find a name or an alias. Raises UnknownOperator with the nearest names."""
    entry = entries().get(known(name) or "")
    if entry is None and (row := survey.find(name.lower())) is not None:
        raise UnknownOperator(
            f"`{name}` is no name here: {row.why}", hint=f"see `tokpipe ops show {row.slug}`"
        )
    if entry is None:
        near = difflib.get_close_matches(name, [*entries(), *aliases()], n=3, cutoff=0.6)
        hint = "did you mean " + " or ".join(f"`{n}`" for n in near) + "?" if near else None
        raise UnknownOperator(
            f"unknown operator `{name}`", hint=hint or "list them with `tokpipe ops list`"
        )
    return entry


def load(name: str) -> type[Any]:
    """Import one operator's class.

    Raises:
        UnknownOperator: No such name.
        RecipeError: The name is a preset, or a plug-in that does not import.
    """
    entry = lookup(name)
    if entry.kind == "preset":
        raise RecipeError(
            f"`{name}` is a preset, not an operator", hint=f"use it as --recipe {name}"
        )
    module_name, _, attribute = entry.target.partition(":")
    try:
        module = importlib.import_module(module_name)
        if attribute:
            return getattr(module, attribute)  # type: ignore[no-any-return]
    except (ImportError, AttributeError, SyntaxError) as error:
        if entry.plugin is None:
            raise
        raise RecipeError(
            f"plug-in `{name}` of {entry.plugin} does not import: {error}",
            hint=f"repair or uninstall {entry.plugin}",
        ) from error
    return only_class(module, "source")


def only_class(module: ModuleType, mark: str) -> type[Any]:
    """The one dataclass of a module that has the class attribute ``mark``.

    Raises:
        RecipeError: There is none, or there are several.
    """
    classes = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and value.__module__ == module.__name__
        and is_dataclass(value) and mark in vars(value)
    ]  # fmt: skip
    if len(classes) != 1:
        raise RecipeError(f"`{module.__name__}` must define one class, found {len(classes)}")
    return classes[0]
