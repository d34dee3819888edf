"""``tokpipe ops``: the operators and presets there are, and what each one takes."""

from __future__ import annotations

import inspect
import json
import textwrap
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from tokpipe_cli import options as o
from tokpipe_cli.boundary import UsageProblem
from tokpipe_cli.console import Screen, table, width
from tokpipe_cli.jsonl import emit, summarise

if TYPE_CHECKING:
    from tokpipe.card import Card
    from tokpipe.survey import Row


class _Names(TyperGroup):
    """A group whose help ends with every name there is."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """The usual help, then the names."""
        from tokpipe import registry

        super().format_help(ctx, formatter)
        names = ", ".join(sorted([*registry.entries(), *registry.aliases()]))
        typer.echo(
            textwrap.fill(names, width() or 100, initial_indent="Names: ", break_on_hyphens=False)
        )


app = typer.Typer(help="List and show operators and presets.", cls=_Names)
_FACTS = ("source", "where", "scope", "needs", "modalities", "causal", "layouts", "budget",
          "parity", "version")  # fmt: skip
_MADE = ("scope", "needs", "layouts", "version")


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
            help="Only preset, sampler, encoder, reducer or projector; one mechanism such as "
            "similarity; or one stream: video, audio.",
        ),
    ] = None,
    everything: Annotated[
        bool,
        typer.Option("--all", help="Also the survey's methods that do not run here, and why."),
    ] = False,
    as_json: o.Json = False,
    debug: o.Debug = False,
) -> None:
    """List operators and presets: where each runs, what it needs, how it was checked."""
    from tokpipe.card import cards

    del debug
    found = cards()
    kinds = sorted({word for c in found for word in (c.kind, c.mechanism, *c.modalities)})
    if kind is not None and kind not in kinds:
        raise UsageProblem(f"no operators of kind `{kind}`", hint=f"use one of: {', '.join(kinds)}")
    chosen = [c for c in found if kind in (None, c.kind, c.mechanism, *c.modalities)]
    missing = _missing() if everything and kind is None else []
    if as_json:
        for c in chosen:
            emit("operator", **asdict(c))
        for row in missing:
            emit("method", **asdict(row))
        emit("summary", **summarise(["done"] * (len(chosen) + len(missing))))
        return
    order = {"preset": 0, "sampler": 1, "encoder": 2, "reducer": 3}
    chosen.sort(key=lambda c: (order.get(c.kind, 4), c.mechanism, c.name))
    if (width() or _WIDE) < _WIDE:
        # The facts of a narrow terminal stand behind the summary, where lines wrap.
        rows = [(line[0], f"{line[-1]} [{_short(line)}]") for line in map(_line, chosen)]
        table(rows, head=("name", "summary [facts]"))
    else:
        table([_line(c) for c in chosen], head=_HEAD)
    if missing:
        typer.echo("")
        reasons = [(row.slug, ", ".join(row.lists), row.why) for row in missing]
        table(reasons, head=("does not run here", "list", "why"))


#: Columns of a terminal from which all facts stand side by side.
_WIDE = 180
_HEAD = ("name", "kind", "streams", "runs on", "needs", "causal", "budget", "parity", "summary")


def _line(c: Card) -> tuple[str, ...]:
    kind = c.mechanism if c.kind in ("reducer", "preset") else c.kind
    needs = ", ".join(c.unmet)
    causal = ("yes" if c.causal else "no") if c.where else ""
    return (c.name, kind, ", ".join(c.modalities), c.where, needs, causal, c.budget,
            c.parity if c.where else "", c.summary)  # fmt: skip


def _short(line: tuple[str, ...]) -> str:
    facts = dict(zip(_HEAD, line, strict=True))
    facts["needs"] = f"needs {facts['needs']}" if facts["needs"] else ""
    facts["causal"] = "causal" if facts["causal"] == "yes" else ""
    return "; ".join(word for word in list(facts.values())[1:-1] if word)


def _missing() -> list[Row]:
    """Rows of the survey that no name of the registry runs."""
    from tokpipe import registry, survey

    named = {*registry.entries(), *registry.aliases()}
    return [r for r in survey.rows() if r.status not in ("runs", "reading") and r.slug not in named]


@app.command("encoders")
def encoders(as_json: o.Json = False, debug: o.Debug = False) -> None:
    """List what --encoder takes: families of models, and cards, one model with settings each."""
    from tokpipe import registry
    from tokpipe.encoder_choice import card_names, read_card

    del debug
    families = [entry for entry in registry.entries().values() if entry.feature]
    cards = {name: read_card(name) for name in card_names()}
    if as_json:
        for entry in families:
            emit("family", name=entry.name, about=entry.summary)
        for name, found in cards.items():
            emit("card", name=name, **found)
        return
    rows = [(f"{entry.name.replace('-', '_')}:NAME", "", entry.summary) for entry in families]
    rows += [(name, str(found["licence"]), str(found["about"])) for name, found in cards.items()]
    table(rows, head=("encoder", "licence", "what"))


@app.command("show")
def show(name: o.OperatorName, as_json: o.Json = False, debug: o.Debug = False) -> None:
    """Show what an operator does and takes, or the steps of a preset."""
    from tokpipe import registry, survey
    from tokpipe.card import BUDGETS, STAGES, card

    del debug
    row = survey.find(name.lower())
    if row is not None and registry.known(name) is None:
        _show_row(row, as_json)
        return
    entry, facts = registry.lookup(name), card(name)
    found = _preset(entry.name) if entry.kind == "preset" else _operator(entry.name)
    found = {**asdict(facts), **found}
    if as_json:
        emit("operator", **found)
        return
    screen = Screen()
    also = f", also called {', '.join(entry.aliases)}" if entry.aliases else ""
    screen.say(f"{entry.name}  ({facts.mechanism}{also})", style="bold")
    if entry.kind == "preset":
        screen.say(entry.summary + "\n")
        screen.say("as one line:", style="bold")
        screen.say(f"{found['line']}\n")
        screen.say("as TOML:", style="bold")
        screen.say(found["toml"].rstrip())
    else:
        screen.say(found["doc"] + "\n")
        if found["parameters"]:
            rows = [
                (p["name"], p["type"], _literal(p["default"]), p["range"])
                for p in found["parameters"]
            ]
            table(rows, head=("parameter", "type", "default", "range"))
        else:
            screen.say("no parameters")
    screen.say("")
    about = {**{fact: found.get(fact) for fact in _FACTS}, "where": STAGES.get(facts.where),
             "budget": BUDGETS.get(facts.budget)}  # fmt: skip
    table([(k, _literal(v)) for k, v in about.items() if v is not None])


def _show_row(row: Row, as_json: bool) -> None:
    """A method of the survey that is no name here: why, and what a cache carries for it."""
    if as_json:
        emit("method", **asdict(row))
        return
    screen = Screen()
    screen.say(row.name, style="bold")
    screen.say(row.why)
    if row.runs and row.status != "runs":
        screen.say(f"what runs of it: {', '.join(row.runs)}")
    if row.carries:
        screen.say(f"for a consumer: {row.carries}")


def _preset(name: str) -> dict[str, Any]:
    from tokpipe.recipe import load_recipe

    made = load_recipe(name)
    return {"line": made.to_line(), "toml": made.to_toml()}


def _operator(name: str) -> dict[str, Any]:
    from tokpipe import registry
    from tokpipe.parameters import parameters

    kind = registry.load(name)
    module = inspect.getdoc(inspect.getmodule(kind)) or ""
    own = inspect.getdoc(kind) or ""
    # Some facts follow from parameters: the default operator knows.
    made = kind()
    facts = {fact: _plain(getattr(made, fact)) for fact in _MADE if hasattr(made, fact)}
    return {"doc": f"{module}\n\n{own}".strip(), "parameters": [
        {"name": p.name, "type": p.type, "default": p.default, **p.bounds, "range": p.range,
         "about": p.about} for p in parameters(name)
    ], **facts}  # fmt: skip


@app.command("schema")
def schema(debug: o.Debug = False) -> None:
    """Print the JSON schema of recipe files, for editors that check and complete TOML."""
    from tokpipe.parameters import recipe_schema

    del debug
    typer.echo(json.dumps(recipe_schema(), indent=1))


def _plain(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return [_plain(v) for v in value]
    return value if value is None or isinstance(value, str | int | float | bool) else str(value)


def _literal(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "none"
    return "none" if value is None else str(value)
