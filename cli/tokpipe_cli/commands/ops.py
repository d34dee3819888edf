"""``tokpipe ops``: the operators and presets there are, and what each one takes."""

from __future__ import annotations

import inspect
from dataclasses import MISSING, fields
from typing import Annotated, Any, get_type_hints

import typer

from tokpipe_cli import options as o
from tokpipe_cli.boundary import UsageProblem
from tokpipe_cli.console import Screen, table
from tokpipe_cli.jsonl import emit, summarise

app = typer.Typer(help="List and show operators and presets.")
_FACTS = ("source", "scope", "needs", "modalities", "causal", "layouts", "exact", "version")


@app.callback(invoke_without_command=True)
def root(context: typer.Context) -> None:
    """List and show operators and presets."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit(2)


@app.command("list")
def list_(
    kind: Annotated[
        str | None,
        typer.Option(
            metavar="KIND",
            help="Only sampler, encoder, reducer or preset, or one mechanism such as similarity.",
        ),
    ] = None,
    as_json: o.Json = False,
    debug: o.Debug = False,
) -> None:
    """List operators and presets with one line each; imports none of them."""
    from tokpipe import registry

    found = registry.entries().values()
    kinds = sorted({e.kind for e in found} | {e.mechanism for e in found})
    if kind is not None and kind not in kinds:
        raise UsageProblem(f"no operators of kind `{kind}`", hint=f"use one of: {', '.join(kinds)}")
    chosen = [e for e in found if kind in (None, e.kind, e.mechanism)]
    if as_json:
        for e in chosen:
            emit(
                "operator",
                name=e.name,
                kind=e.kind,
                mechanism=e.mechanism,
                summary=e.summary,
                plugin=e.plugin,
            )
        emit("summary", **summarise(["done"] * len(chosen)))
        return
    del debug
    order = {"preset": 0, "sampler": 1, "encoder": 2, "reducer": 3}
    chosen.sort(key=lambda e: (order.get(e.kind, 4), e.mechanism, e.name))
    table([(e.name, e.mechanism, e.summary) for e in chosen], head=("name", "kind", "summary"))


@app.command("show")
def show(name: o.OperatorName, as_json: o.Json = False, debug: o.Debug = False) -> None:
    """Show what an operator does and takes, or the steps of a preset."""
    from tokpipe import registry

    del debug
    entry = registry.lookup(name)
    found = _preset(name) if entry.kind == "preset" else _operator(name)
    found = {
        "name": name,
        "kind": entry.kind,
        "mechanism": entry.mechanism,
        "summary": entry.summary,
        **found,
    }
    if as_json:
        emit("operator", **found)
        return
    screen = Screen()
    screen.say(f"{name}  ({entry.mechanism})", style="bold")
    if entry.kind == "preset":
        screen.say(entry.summary + "\n")
        screen.say("as one line:", style="bold")
        screen.say(f"{found['line']}\n")
        screen.say("as TOML:", style="bold")
        screen.say(found["toml"].rstrip())
        return
    screen.say(found["doc"] + "\n")
    if found["parameters"]:
        rows = [
            (p["name"], p["type"], _literal(p["default"]), joined_range(p))
            for p in found["parameters"]
        ]
        table(rows, head=("parameter", "type", "default", "range"))
    else:
        screen.say("no parameters")
    screen.say("")
    table([(fact, _literal(found[fact])) for fact in _FACTS if found.get(fact) is not None])


def _preset(name: str) -> dict[str, Any]:
    from tokpipe.recipe import load_recipe

    made = load_recipe(name)
    return {"line": made.to_line(), "toml": made.to_toml()}


def _operator(name: str) -> dict[str, Any]:
    from tokpipe import registry

    kind = registry.load(name)
    module = inspect.getdoc(inspect.getmodule(kind)) or ""
    own = inspect.getdoc(kind) or ""
    hints = get_type_hints(kind, include_extras=True)
    parameters = [_parameter(f, hints[f.name]) for f in fields(kind)]
    facts = {fact: _plain(getattr(kind, fact, None)) for fact in _FACTS}
    if not isinstance(getattr(kind, "scope", ""), str):
        # The scope is a parameter, or follows from one: the default operator knows.
        facts["scope"] = kind().scope
    return {"doc": f"{module}\n\n{own}".strip(), "parameters": parameters, **facts}


def _parameter(field: Any, hint: Any) -> dict[str, Any]:
    """Name, type, default and bounds of one field."""
    bounds: dict[str, Any] = {}
    text = _type(hint, bounds)
    default = None if field.default is MISSING else field.default
    return {"name": field.name, "type": text, "default": _plain(default), **bounds}


def _type(hint: Any, bounds: dict[str, Any]) -> str:
    """A type as people read it; collects ``ge``, ``gt``, ``le``, ``lt`` on the way."""
    from typing import Literal, Union, get_args, get_origin

    for mark in getattr(hint, "__metadata__", ()):
        for bound in getattr(mark, "metadata", (mark,)):
            for name in ("ge", "gt", "le", "lt"):
                if getattr(bound, name, None) is not None:
                    bounds[name] = getattr(bound, name)
    origin = get_origin(hint)
    if hasattr(hint, "__metadata__"):
        return _type(hint.__origin__, bounds)
    if origin is Literal:
        return " or ".join(str(a) for a in get_args(hint))
    if origin is Union or type(hint).__name__ == "UnionType":
        return " or ".join(_type(a, bounds) for a in get_args(hint))
    return "none" if hint is type(None) else getattr(hint, "__name__", str(hint))


def joined_range(parameter: dict[str, Any]) -> str:
    """Bounds as ``0 to 1`` or ``above 0``."""
    low = (
        f"{parameter['ge']:g}"
        if "ge" in parameter
        else f"above {parameter['gt']:g}"
        if "gt" in parameter
        else ""
    )
    high = (
        f"{parameter['le']:g}"
        if "le" in parameter
        else f"below {parameter['lt']:g}"
        if "lt" in parameter
        else ""
    )
    if low and high:
        return f"{low} to {high}"
    return (
        low + (" or more" if "ge" in parameter else "")
        if low
        else (f"at most {high}" if high else "")
    )


def _plain(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return [_plain(v) for v in value]
    return value if value is None or isinstance(value, str | int | float | bool) else str(value)


def _literal(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return "none" if value is None else str(value)
