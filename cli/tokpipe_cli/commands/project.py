"""``tokpipe project``: tokens for one model from rows of a tower that many share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tokpipe_cli import options as o
from tokpipe_cli.boundary import UsageProblem, os_problem
from tokpipe_cli.console import Screen, show_error
from tokpipe_cli.jsonl import emit, emit_item, summarise

if TYPE_CHECKING:
    from tokpipe.errors import TokpipeError
    from tokpipe.run import RunRecord

EPILOG = (
    "[bold]Examples[/bold]\n\n  tokpipe project talk.clip.tokpipe.safetensors "
    "--to llava-hf/llava-1.5-7b-hf\n\n"
    "  tokpipe project caches/ --to ./my-llava -o projected/ --device cuda"
)

_Files = Annotated[
    list[Path],
    typer.Argument(
        help="Caches of features made with --stage pre_projector, or folders of them.",
        metavar="FILE",
    ),
]
_To = Annotated[
    str,
    typer.Option(
        "--to", metavar="MODEL", rich_help_panel="Model",
        help="Multimodal model whose projector it is: NAME@REVISION or NAME on the hub, or a local "
        "folder.",
    ),
]  # fmt: skip
_Weights = Annotated[
    str,
    typer.Option(
        metavar="PATH", rich_help_panel="Model", show_default="the model's own",
        help="Local checkpoint or folder of the model.",
    ),
]  # fmt: skip
_Precision = Annotated[
    str,
    typer.Option(
        metavar="TYPE", rich_help_panel="Model",
        help="What the projector computes in: float32, bfloat16, float16, or auto: as the rows are "
        "stored.",
    ),
]  # fmt: skip
_NoCheck = Annotated[
    bool,
    typer.Option(
        "--no-check", rich_help_panel="Model",
        help="Do not read the tower's weights to compare them with those that made the rows.",
    ),
]  # fmt: skip
_DropIncomplete = Annotated[
    bool,
    typer.Option(
        "--drop-incomplete", rich_help_panel="Model",
        help="Leave out tokens some of whose rows the cache lacks, where the model pools rows.",
    ),
]  # fmt: skip
_PRECISIONS = ("auto", "float32", "bfloat16", "float16")


def project(
    files: _Files,
    to: _To,
    weights: _Weights = "",
    precision: _Precision = "auto",
    no_check: _NoCheck = False,
    drop_incomplete: _DropIncomplete = False,
    output: o.Output = None,
    force: o.Force = False,
    device: o.Device = "cpu",
    as_json: o.Json = False,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
    debug: o.Debug = False,
) -> None:
    """Run a model's projector over caches made before one.

    Budget, times and places stay. One cache of a tower serves every model that shares it.
    """
    screen = Screen(json=as_json, quiet=quiet, verbose=verbose, debug=debug)
    if precision not in _PRECISIONS:
        raise UsageProblem(
            f"unknown precision `{precision}`", hint=f"expected {', '.join(_PRECISIONS)}"
        )
    model, _, revision = to.partition("@") if not Path(to).exists() else (to, "", "")
    how = {
        "model": model, "revision": revision, "weights": weights, "precision": precision,
        "device": device, "check": not no_check, "drop_incomplete": drop_incomplete,
        "force": force,
    }  # fmt: skip
    run = _Run(screen, how)
    for path, target in _targets(files, model, output):
        run.one(path, target)
    raise typer.Exit(run.close())


def _targets(files: list[Path], model: str, output: str | None) -> list[tuple[Path, Path]]:
    """Caches named or found below folders, and an output for each, no two alike."""
    from tokpipe.batch import Entry, assign_outputs
    from tokpipe.batch.dedup import find_caches
    from tokpipe.project import projected_suffix
    from tokpipe.run import SUFFIX

    suffix = projected_suffix(model)
    found = [p for p in find_caches(files) if p in files or not p.name.endswith(suffix)]
    if not any(path.exists() for path in found):
        what = f"no such file `{found[0]}`" if found else "no token caches were found"
        raise UsageProblem(what, hint="name token caches, or folders that hold some")
    named = [p.with_name(p.name.removesuffix(SUFFIX) + ".cache") for p in found]
    entries = [
        Entry(name, Path(name.name), named=path in files)
        for name, path in zip(named, found, strict=True)
    ]
    try:
        targets = assign_outputs(entries, output, suffix=suffix)
    except FileExistsError as error:
        raise UsageProblem(str(error), hint="name a folder with -o, or give one cache") from error
    return list(zip(found, targets, strict=True))


class _Run:
    """The caches of one command, and what became of them."""

    def __init__(self, screen: Screen, how: dict[str, Any]) -> None:
        self.screen, self.how = screen, how
        self.statuses: list[str] = []
        self.codes: list[int] = []

    def one(self, path: Path, output: Path) -> None:
        """Project one cache."""
        from tokpipe.errors import TokpipeError
        from tokpipe.project import project_cache

        try:
            record = project_cache(path, output, **self.how)
        except TokpipeError as error:
            self._failed(path, error)
        except OSError as error:
            self._failed(path, os_problem(error))
        else:
            self._done(record)

    def close(self) -> int:
        """The summary, and the exit code."""
        counts = summarise(self.statuses)
        if self.screen.json:
            emit("summary", **counts)
        if not self.codes:
            return 0
        alike = len(self.codes) == len(self.statuses) and len(set(self.codes)) == 1
        return self.codes[0] if alike else 1

    def _done(self, record: RunRecord) -> None:
        from tokpipe_cli.render_item import show_item

        self.statuses.append(record.status)
        if self.screen.json:
            emit_item(record.to_dict(), None)
        show_item(record.to_dict(), self.screen, alone=True)

    def _failed(self, path: Path, error: TokpipeError) -> None:
        self.statuses.append("failed")
        self.codes.append(error.exit_code)
        if self.screen.json:
            from tokpipe.run import RunRecord

            record = RunRecord(input=str(path), output="", status="failed").closed(0.0)
            emit_item(record.to_dict(), error)
        show_error(error)
