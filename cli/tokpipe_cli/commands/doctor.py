"""``tokpipe doctor``: is everything here that a run needs?"""

from __future__ import annotations

import typer

from tokpipe_cli import options as o
from tokpipe_cli.console import Screen, table
from tokpipe_cli.jsonl import emit

_MARKS = {"ok": "ok", "missing": "MISSING", "optional": "-"}


def doctor(as_json: o.Json = False, debug: o.Debug = False) -> None:
    """Check versions, devices, codecs, extras and the bank, and run a small test.

    Exit code 3 if something needed is missing.
    """
    from dataclasses import asdict

    from tokpipe_cli.diagnose import findings

    screen = Screen(json=as_json, debug=debug)
    found = list(findings())
    bad = [f for f in found if f.state == "missing"]
    if as_json:
        emit("doctor", ok=not bad, findings=[asdict(f) for f in found])
    else:
        rows = [
            (_MARKS[f.state], f.topic, f.name, f"{f.text}; {f.fix}" if f.fix else f.text)
            for f in found
        ]
        table(rows)
        screen.say(
            "everything needed is here" if not bad else f"{len(bad)} needed things are missing",
            style="bold",
        )
    raise typer.Exit(3 if bad else 0)
