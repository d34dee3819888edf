"""The app: verbs, version, and the way in."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from tokpipe_cli.boundary import Boundary
from tokpipe_cli.commands import (
    bench,
    compress,
    dataset,
    dedup,
    doctor,
    encode,
    eval_,
    export,
    inspect_,
    ops,
    plan,
    probe,
    project,
    verify,
)

# Threads of numpy's products spin while they wait, and ours are small; before numpy is loaded.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

_EPILOG = (
    "[bold]Examples[/bold]\n\n  tokpipe compress talk.mp4 --budget 2048\n\n"
    "  tokpipe plan talks/ --budget 10%\n\n  tokpipe inspect talk.tokpipe.safetensors"
)

app = typer.Typer(
    name="tokpipe",
    cls=Boundary,
    help="Turn long video and audio into small token caches that any multimodal LLM can read.",
    epilog=_EPILOG,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("compress", epilog=compress.EPILOG)(compress.compress)
app.command("probe")(probe.probe)
app.command("plan", epilog=plan.EPILOG)(plan.plan)
app.command("encode", epilog=encode.EPILOG)(encode.encode)
app.command("project", epilog=project.EPILOG)(project.project)
app.command("export", epilog=export.EPILOG)(export.export)
app.add_typer(dataset.app, name="dataset")
app.add_typer(eval_.app, name="eval")
app.command("inspect")(inspect_.inspect)
app.command("verify")(verify.verify)
app.command("dedup", epilog=dedup.EPILOG)(dedup.dedup)
app.command("bench", epilog=bench.EPILOG)(bench.bench)
app.add_typer(ops.app, name="ops")
app.command("doctor")(doctor.doctor)


def _version(wanted: bool) -> None:
    if wanted:
        from tokpipe import __version__

        typer.echo(f"tokpipe {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option(
            "--version", "-V", callback=_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """Turn long video and audio into small token caches that any multimodal LLM can read."""
    del version
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit(2)


def main() -> None:
    """Run the command line; exits with its code."""
    for stream in (sys.stdout, sys.stderr):
        # A terminal of another encoding gets escapes instead of an error.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    app(prog_name="tokpipe")


if __name__ == "__main__":
    main()
