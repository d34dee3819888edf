"""``tokpipe encode``: run a real tower over what a signal cache kept."""

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
    from tokpipe.run import RunRecord

if TYPE_CHECKING:
    pass

EPILOG = (
    "[bold]Examples[/bold]\n\n  tokpipe encode talk.tokpipe.safetensors -e open_clip:ViT-B-32\n\n"
    "  tokpipe encode talk.tokpipe.safetensors -e hf_vision:Qwen/Qwen2.5-VL-7B-Instruct "
    "--stage post_projector --context kept\n\n"
    "  tokpipe encode talk.tokpipe.safetensors -e hf_audio:openai/whisper-small -o features/"
)


_Files = Annotated[
    list[Path], typer.Argument(help="Token caches of the signal domain.", metavar="FILE")
]
_Budget = Annotated[
    str | None,
    typer.Option(
        "--budget", "-b", metavar="TOKENS", rich_help_panel="Budget",
        show_default="as many as the cache holds",
        help="Most tokens of the streams that are encoded (others stay as they are): 2048, "
        "video=1536,audio=512 or 10%.",
    ),
]  # fmt: skip
_Rules = Annotated[
    str | None,
    typer.Option(
        "--recipe", "-r", metavar="RECIPE", rich_help_panel="Recipe",
        show_default="the farthest apart; sound: alike neighbours merge",
        help="Rules that meet the budget: a method by name, or a line such as 'dycoke'.",
    ),
]  # fmt: skip


def encode(
    files: _Files,
    encoder: o.Encoder = None,
    weights: o.Weights = None,
    fit: o.Fit = None,
    stage: o.Stage = None,
    query: o.QueryText = None,
    precision: o.Precision = "auto",
    context: o.Context = "frame",
    compile_: o.Compile = False,
    encode_batch: o.EncodeBatch = None,
    budget: _Budget = None,
    layout: o.Layout = "ragged",
    rules: _Rules = None,
    output: o.Output = None,
    force: o.Force = False,
    no_bank: o.NoBank = False,
    device: o.Device = "cpu",
    pool: o.Pool = None,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
    debug: o.Debug = False,
) -> None:
    """Encode the pictures and the sound of token caches with neural encoders.

    Only what a cache kept becomes tokens; a stream without an encoder stays as it is.
    """
    given = dict(locals())
    from tokpipe_cli.request import late_rules, options_from, towers_from

    screen = Screen(json=as_json, quiet=quiet, verbose=verbose, debug=debug)
    if not encoder:
        raise UsageProblem(
            "no --encoder given", hint="name one, such as --encoder open_clip:ViT-B-32"
        )
    steps = towers_from(given).steps()
    from tokpipe.run import Options

    options = Options(**options_from(given))
    from tokpipe.batch.dedup import find_caches
    from tokpipe.late_run import encode_cache, encoded_suffix

    caches, each = some_of(find_caches(files)), _Encoded(screen, media="tokpipe compress --encoder")
    how: dict[str, Any] = {
        "encoders": steps, "rules": late_rules(rules), "budget": budget, "options": options,
    }  # fmt: skip
    targets = outputs_of(caches, output, encoded_suffix(steps), files)
    for path, target in zip(caches, targets, strict=True):
        each.write(path, partial(encode_cache, path, target, **how))
    raise typer.Exit(each.close())


class _Encoded(Each):
    """Caches encoded."""

    def done(self, record: RunRecord) -> None:
        """Say what the budget counted, where a stream beside stays as it was."""
        super().done(record)
        stays = [s for s in ("video", "audio") if s not in record.encoder and record.tokens[s]]
        if record.budget and record.encoder and stays:
            self.screen.note(
                f"the budget of {record.budget} is for what is encoded "
                f"({', '.join(record.encoder)}); {record.tokens[stays[0]]:,} {stays[0]} tokens "
                "stay as they were"
            )
