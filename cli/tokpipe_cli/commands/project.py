"""``tokpipe project``: tokens for one model from rows of a tower that many share."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tokpipe_cli import options as o
from tokpipe_cli.boundary import UsageProblem
from tokpipe_cli.console import Screen
from tokpipe_cli.each import Each, outputs_of, some_of

if TYPE_CHECKING:
    pass

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
    from tokpipe.batch.dedup import find_caches
    from tokpipe.project import project_cache, projected_suffix

    screen = Screen(json=as_json, quiet=quiet, verbose=verbose, debug=debug)
    if precision not in _PRECISIONS:
        raise UsageProblem(
            f"unknown precision `{precision}`", hint=f"expected {', '.join(_PRECISIONS)}"
        )
    model, _, revision = to.partition("@") if not Path(to).exists() else (to, "", "")
    how: dict[str, Any] = {
        "model": model, "revision": revision, "weights": weights, "precision": precision,
        "device": device, "check": not no_check, "drop_incomplete": drop_incomplete,
        "force": force,
    }  # fmt: skip
    suffix = projected_suffix(model)
    found = [p for p in find_caches(files) if p in files or not p.name.endswith(suffix)]
    caches, each = some_of(found), Each(screen)
    for path, target in zip(caches, outputs_of(caches, output, suffix, files), strict=True):
        each.write(path, partial(project_cache, path, target, **how))
    raise typer.Exit(each.close())
