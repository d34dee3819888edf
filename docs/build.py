"""Write the pages that follow from the code: methods.md, operators/NAME.md and consumers.md.

    python docs/build.py [FOLDER]

Everything comes from the operator files, the presets, the exporters, the survey's rows and the last
benchmark (benchmarks/operators.json); FOLDER is this folder by default. Pages of names that are
gone are removed. The measured tables of benchmarks.md come from benchmarks/*.json.
"""

from __future__ import annotations

import inspect
import json
import sys
from pathlib import Path

from benchmark_tables import filled, schema

from tokpipe import registry, survey
from tokpipe.card import BUDGETS, STAGES, Card, cards
from tokpipe.export import exporters, load_exporter
from tokpipe.parameters import parameters
from tokpipe.recipe import load_recipe

HERE = Path(__file__).parent
_MADE = "<!-- Made by docs/build.py from the operators themselves; do not edit. -->\n\n"
_LISTS = {"image": "Image methods", "vit": "Vision transformer methods", "video": "Video methods",
          "audio": "Audio methods"}  # fmt: skip
_MECHANISMS = ("transformation", "similarity", "attention", "query", "sampler")


_HEAD = "| name | what it does | streams | runs on | needs | causal | budget | parity | cost |"


def costs() -> dict[str, tuple[float, float | None]]:
    """Measured ratio of each name, and the one recorded for its authors' code."""
    path = HERE / "benchmarks" / "operators.json"
    if not path.exists():
        return {}
    found = json.loads(path.read_text(encoding="utf-8"))["results"]
    return {row["name"]: (row["ratio"], row["recorded"]) for row in found}


def cost(name: str, known: dict[str, tuple[float, float | None]]) -> str:
    """``0.38 (0.65)``: ours, and the authors' in brackets."""
    if name not in known:
        return ""
    ratio, recorded = known[name]
    return f"{ratio:.2f}" + ("" if recorded is None else f" ({recorded:.2f})")


def methods_page(found: list[Card]) -> str:
    """The taxonomy with status, parity and cost, and every row of the survey's lists."""
    known = costs()
    lines = [_MADE + "# Methods\n", _INTRO]
    for mechanism in _MECHANISMS:
        chosen = [c for c in found if c.where and c.mechanism == mechanism]
        if not chosen:
            continue
        title = "Frame selection" if mechanism == "sampler" else mechanism.capitalize()
        lines += [f"## {title}\n", _HEAD, "|---" * 9 + "|"]
        for c in chosen:
            needs = ", ".join(f"`{n}`" for n in c.unmet)
            lines.append(
                f"| [`{c.name}`](operators/{c.name}.md){_also(c)} | {c.summary} "
                f"| {', '.join(c.modalities)} | {c.where} | {needs} "
                f"| {'yes' if c.causal else 'no'} | {c.budget} | {c.parity} "
                f"| {cost(c.name, known)} |"
            )
        lines.append("")
    lines += ["## The survey's lists\n", _SURVEY]
    for name, title in _LISTS.items():
        lines += [f"### {title}\n", "| method | status | here | for a consumer, a cache carries |",
                  "|---|---|---|---|"]  # fmt: skip
        for row in survey.rows():
            if name in row.lists:
                runs = ", ".join(f"[`{r}`](operators/{r}.md)" for r in row.runs)
                status = survey.STATUS[row.status]
                why = f"{status}: {row.reason}" if row.reason else status
                lines.append(f"| {row.name} | {why} | {runs} | {row.carries} |")
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def _also(c: Card) -> str:
    return f" ({', '.join(f'`{name}`' for name in c.aliases)})" if c.aliases else ""


def operator_page(c: Card) -> str:
    """What one operator or preset does, needs and takes."""
    lines = [_MADE + f"# {c.name}\n", f"{c.summary}.\n"]
    facts = [("kind", c.kind), ("mechanism", c.mechanism), ("source", c.source),
             ("also called", ", ".join(c.aliases)), ("streams", ", ".join(c.modalities)),
             ("runs on", STAGES.get(c.where, "")), ("needs", ", ".join(c.unmet)),
             ("scope", c.scope), ("causal", ("yes" if c.causal else "no") if c.where else ""),
             ("budget", BUDGETS.get(c.budget, "")),
             ("parity", c.parity if c.where else "")]  # fmt: skip
    lines += ["| | |", "|---|---|", *(f"| {k} | {v} |" for k, v in facts if v), ""]
    if c.kind == "preset":
        made = load_recipe(c.name)
        lines += ["```toml", made.to_toml().rstrip(), "```", "", "As one line:", "",
                  "```text", made.to_line(), "```"]  # fmt: skip
    else:
        kind = registry.load(c.name)
        module = inspect.getdoc(inspect.getmodule(kind)) or ""
        lines += ["```text", module, "", inspect.getdoc(kind) or "", "```"]
        found = parameters(c.name)
        if found:
            lines += [
                "",
                "| parameter | type | default | range | meaning |",
                "|---|---|---|---|---|",
            ]
            lines += [
                f"| `{p.name}` | {p.type} | {'' if p.default is None else p.default} | {p.range} "
                f"| {p.about} |" for p in found
            ]  # fmt: skip
    if c.where and not c.unmet:
        lines += ["", "```console", f"$ tokpipe compress film.mp4 --recipe {c.name} --budget 2048",
                  "```"]  # fmt: skip
    elif c.where:
        lines += ["", _UNMET]
    return "\n".join(lines) + "\n"


def consumers_page() -> str:
    """What each consumer accepts, and what it loses."""
    lines = [_MADE.replace("operators", "exporters") + "# Consumers\n", _CONSUMERS]
    lines += ["| to | makes | takes | accepts | loses |", "|---|---|---|---|---|"]
    for name, summary in exporters().items():
        kind = load_exporter(name)
        page = HERE / "consumers" / f"{name}.md"
        target = f"consumers/{page.name if page.exists() else 'datasets.md'}"
        takes = f"{' or '.join(kind.domains)}; {', '.join(kind.takes)}"
        lines.append(f"| [`{name}`]({target}) | {summary} | {takes} | {kind.accepts} "
                     f"| {kind.loses} |")  # fmt: skip
    return "\n".join(lines) + "\n"


def main(folder: Path) -> None:
    """Write every page."""
    found = [c for c in cards() if c.plugin is None]
    pages = folder / "operators"
    pages.mkdir(parents=True, exist_ok=True)
    (folder / "benchmarks").mkdir(exist_ok=True)
    for old in pages.glob("*.md"):
        if old.stem not in {c.name for c in found}:
            old.unlink()
    for c in found:
        (pages / f"{c.name}.md").write_text(operator_page(c), encoding="utf-8")
    (folder / "methods.md").write_text(methods_page(found), encoding="utf-8")
    (folder / "consumers.md").write_text(consumers_page(), encoding="utf-8")
    page = (HERE / "benchmarks.md").read_text(encoding="utf-8")
    (folder / "benchmarks.md").write_text(filled(page, HERE / "benchmarks"), encoding="utf-8")
    (folder / "benchmarks" / "report.schema.json").write_text(schema(), encoding="utf-8")


_UNMET = """\
The built-in encoders do not give what it needs. `--encoder` adds one that may, see
[Neural encoders](../encoders.md); from Python, `tokpipe.reduce_tokens` takes tokens that carry it,
see [Rules on features of your own](../features.md)."""

_INTRO = """\
Every method here is run as `--recipe NAME` and meets one meaning of budget: at most N tokens,
exactly N where the layout is ragged. `tokpipe ops show NAME` shows its parameters; the official
ratio or threshold form is among them.

- **runs on**: where the method runs in its paper. Here every method runs on the tokens an encoder
  gives (or on cells of the signal); methods that their papers put inside an encoder or a language
  model do the same arithmetic on its outputs or on columns handed to them.
- **needs**: what it needs beyond tokens; nothing where the field is empty. Columns such as
  `attention` are explained on [Rules on features of your own](features.md); `query` is a text;
  `features` means vectors of a neural encoder, since cells of the signal keep their width; `joint`
  means sound and picture in one space. The built-in encoders give none of these, an `--encoder`
  many ([Neural encoders](encoders.md)); a method that lacks one is refused by name, never run on a
  substitute. Frame selectors take a `query` by default
  and run without one as `aks:score=novelty`.
- **budget**: `exact` has a form of its own that gives exactly N; `threshold` is searched; `count`,
  `frames` and `grid` give their own shape, then the rest is trimmed or filled by score; `project`
  makes new vectors, an even part of which is kept.
- **parity**: `golden`: compared with what the authors' released code made of the same inputs,
  indices equal and values to 2e-4; `spec only`: written from the paper, no reference results;
  `own`: nothing to compare with.
- **cost**: time on one CPU thread, deciding and applying, in units of the similarity product of
  the same tokens; in brackets the authors' code on the same problem in the same unit
  (`tests/benchmarks/operators.py`).
"""

_CONSUMERS = """\
`tokpipe export FILE --to NAME` writes a cache in the form a model, server, API or trainer takes;
`tokpipe export --list --to NAME` tells the parameters. What holds for all:

- A **signal** cache (the default) holds pictures and sound: any chat model takes it as a
  `storyboard`. A **feature** cache holds what one model's encoder made, and fits that model alone:
  a checkpoint with another encoder is refused. `tokpipe encode` makes features from signal,
  `tokpipe project` turns rows before a projector into rows after it.
- **Layouts**: `frames` (whole pictures), `grid` (a smaller regular grid a picture), `ragged` (any
  subset or merge). Servers that compute positions from a grid cannot take `ragged`; they are named
  below and refuse it, saying what does.
- **Positions** are never stored. A token keeps its time and its place in the encoder's grid, and
  the exporter computes positions as the consumer's version does: `original` (those of the whole
  pictures, the default) or `compact` (renumbered).
- Separators, newlines and timestamps that only the consumer needs are added here, are no part of
  the budget, and are counted in what the command prints.
"""

_SURVEY = """\
Shao et al., "A Survey of Token Compression for Efficient Multimodal Large Language Models",
arXiv:2507.20198, with its companion lists. A method that acts inside the language model or is a
trained module cannot run before it; a cache still carries what a consumer needs to run it: the
tokens in order with positions, times and masses (`cell`, `at`, `mass`), scores and a `rank` by
which it can be cut shorter.
"""

if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE)
