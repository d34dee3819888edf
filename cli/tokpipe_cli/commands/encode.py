"""``tokpipe encode``: run a real tower over what a signal cache kept."""

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
        help="Most tokens of the encoded streams: 2048, video=1536,audio=512 or 10%.",
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
    run = _Run(screen, steps, late_rules(rules), options, budget)
    for path, target in _targets(files, steps, output):
        run.one(path, target)
    raise typer.Exit(run.close())


def _targets(files: list[Path], steps: list[Any], output: str | None) -> list[tuple[Path, Path]]:
    """Caches named or found below folders, and an output for each, no two alike."""
    from tokpipe.batch import Entry, assign_outputs
    from tokpipe.batch.dedup import find_caches
    from tokpipe.late_run import encoded_suffix
    from tokpipe.run import SUFFIX

    found = find_caches(files)
    if not any(path.exists() for path in found):
        what = f"no such file `{found[0]}`" if found else "no token caches were found"
        raise UsageProblem(what, hint="name token caches, or folders that hold some")
    # Outputs are named as for media, after the name without its two suffixes.
    named = [p.with_name(p.name.removesuffix(SUFFIX) + ".cache") for p in found]
    entries = [
        Entry(name, Path(name.name), named=path in files)
        for name, path in zip(named, found, strict=True)
    ]
    try:
        targets = assign_outputs(entries, output, suffix=encoded_suffix(steps))
    except FileExistsError as error:
        raise UsageProblem(str(error), hint="name a folder with -o, or give one cache") from error
    return list(zip(found, targets, strict=True))


class _Run:
    """The caches of one command, and what became of them."""

    def __init__(
        self, screen: Screen, steps: list[Any], rules: Any, options: Any, budget: str | None
    ) -> None:
        self.screen, self.steps, self.rules = screen, steps, rules
        self.options, self.budget = options, budget
        self.statuses: list[str] = []
        self.codes: list[int] = []

    def one(self, path: Path, output: Path) -> None:
        """Encode one cache."""
        from tokpipe.errors import TokpipeError
        from tokpipe.late_run import encode_cache

        try:
            record = encode_cache(
                path, output, encoders=self.steps, rules=self.rules, budget=self.budget,
                options=self.options,
            )  # fmt: skip
        except TokpipeError as error:
            if error.code.startswith("cache.") and path.suffix != ".safetensors":
                error.hint = "media files go to `tokpipe compress --encoder`"
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
