"""Options shared by commands, each with its panel, unit and default in the help."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tokpipe_cli.complete import encoder_names, operator_names, recipe_names

_INPUT, _BUDGET, _RECIPE, _OUTPUT, _RUN = "Input", "Budget", "Recipe", "Output", "Run"
_ENCODER = "Encoder"

Inputs = Annotated[
    list[Path], typer.Argument(help="Video or audio files, or folders of them.", metavar="INPUT")
]
VideoStream = Annotated[
    str,
    typer.Option(
        help="Video stream: auto, none, or a stream index.", metavar="WHICH", rich_help_panel=_INPUT
    ),
]
AudioStream = Annotated[
    str,
    typer.Option(
        help="Audio stream: auto, none, an index, or a language code.",
        metavar="WHICH",
        rich_help_panel=_INPUT,
    ),
]
Decoder = Annotated[
    str,
    typer.Option(
        metavar="READER", rich_help_panel=_INPUT,
        help="pyav (the reference); for plain files torchcodec, on the --device, or decord.",
    ),
]  # fmt: skip
Effort = Annotated[
    str,
    typer.Option(
        metavar="EFFORT", rich_help_panel=_INPUT,
        help="How many pictures are decoded: fast (keys and changes), balanced (as many as the "
        "packets deserve) or thorough (all, each looked at).",
    ),
]  # fmt: skip
Strict = Annotated[
    bool,
    typer.Option(
        "--strict",
        help="Fail at the first damage instead of going on past it.",
        rich_help_panel=_INPUT,
    ),
]
FullHash = Annotated[
    bool,
    typer.Option(
        "--full-hash",
        help="Fingerprint the whole file, not its first, middle and last MiB.",
        rich_help_panel=_INPUT,
    ),
]

BudgetText = Annotated[
    str | None,
    typer.Option(
        "--budget", "-b", metavar="TOKENS", rich_help_panel=_BUDGET, show_default="2048",
        help="Most tokens: 2048, video=1536,audio=512, 64/frame, 20/s or 10%.",
    ),
]  # fmt: skip
Ratio = Annotated[
    float | None,
    typer.Option(
        metavar="R", rich_help_panel=_BUDGET,
        help="Part of the candidates to keep, above 0 to 1 (instead of --budget).",
    ),
]  # fmt: skip
Threshold = Annotated[
    float | None,
    typer.Option(
        metavar="T", rich_help_panel=_BUDGET,
        help="Threshold of the last video step that has one (else audio step), in its own unit; "
        "no budget (instead of --budget).",
    ),
]  # fmt: skip
Layout = Annotated[
    str,
    typer.Option(
        metavar="LAYOUT", rich_help_panel=_BUDGET,
        help="ragged (exact to the token), frames (whole frames) or grid (a regular grid).",
    ),
]  # fmt: skip
AudioShare = Annotated[
    float,
    typer.Option(
        min=0, max=1, metavar="SHARE", rich_help_panel=_BUDGET,
        help="Part of one total that goes to audio first, 0 to 1.",
    ),
]  # fmt: skip

RecipeText = Annotated[
    str,
    typer.Option(
        "--recipe", "-r", metavar="RECIPE", rich_help_panel=_RECIPE, autocompletion=recipe_names,
        help="A preset, a .toml file, or one line such as 'fps:fps=1.0 | pixels | tome'.",
    ),
]  # fmt: skip
Cells = Annotated[
    int | None,
    typer.Option(
        min=8, max=64, metavar="CELLS", rich_help_panel=_RECIPE, show_default="the recipe's, 16",
        help="Cells on the long side of the picture, 8 to 64.",
    ),
]  # fmt: skip
Fps = Annotated[
    float | None,
    typer.Option(
        metavar="FPS", rich_help_panel=_RECIPE, show_default="the recipe's, 2",
        help="Frames looked at a second.",
    ),
]  # fmt: skip
Detail = Annotated[
    str | None,
    typer.Option(
        metavar="DETAIL", rich_help_panel=_RECIPE, show_default="the recipe's, auto",
        help="Moments against detail: low (more moments, coarser), high (fewer, never coarser than "
        "the grid) or auto (what loses least).",
    ),
]  # fmt: skip

Encoder = Annotated[
    list[str] | None,
    typer.Option(
        "--encoder", "-e", metavar="ENCODER", rich_help_panel=_ENCODER, show_default="none",
        autocompletion=encoder_names,
        help="A neural encoder, FAMILY:NAME\\[@REV] such as open_clip:ViT-B-32, or a card; one for "
        "the pictures, one for the sound.",
    ),
]  # fmt: skip
Weights = Annotated[
    list[str] | None,
    typer.Option(
        metavar="PATH", rich_help_panel=_ENCODER, show_default="the model's own",
        help="Local checkpoint or folder of each --encoder, in the same order.",
    ),
]  # fmt: skip
Fit = Annotated[
    str | None,
    typer.Option(
        metavar="FIT", rich_help_panel=_ENCODER, show_default="pad",
        help="How a picture enters a tower of fixed size: pad, squash or crop.",
    ),
]  # fmt: skip
Stage = Annotated[
    str | None,
    typer.Option(
        metavar="STAGE", rich_help_panel=_ENCODER, show_default="pre_projector",
        help="Tokens before or after the projector: pre_projector or post_projector.",
    ),
]  # fmt: skip
QueryText = Annotated[
    str | None,
    typer.Option(
        "--query", metavar="TEXT", rich_help_panel=_ENCODER,
        help="What the tokens should answer, for recipes that need it; takes a text tower.",
    ),
]  # fmt: skip
Precision = Annotated[
    str,
    typer.Option(
        metavar="TYPE", rich_help_panel=_ENCODER,
        help="What towers compute in: float32, bfloat16, float16, or auto: float32 on the CPU, "
        "else bfloat16.",
    ),
]  # fmt: skip
Context = Annotated[
    str,
    typer.Option(
        metavar="CONTEXT", rich_help_panel=_ENCODER,
        help="What a tower sees: frame (whole pictures) or kept (only what was kept of them).",
    ),
]  # fmt: skip
Compile = Annotated[
    bool,
    typer.Option("--compile", help="Run towers through torch.compile.", rich_help_panel=_ENCODER),
]
EncodeBatch = Annotated[
    int | None,
    typer.Option(
        min=1, metavar="PICTURES", rich_help_panel=_ENCODER, show_default="found by trying",
        help="Pictures of one forward pass.",
    ),
]  # fmt: skip

Output = Annotated[
    str | None,
    typer.Option(
        "--output", "-o", metavar="PATH", rich_help_panel=_OUTPUT, show_default="beside the input",
        help="A file for one input, else a folder that mirrors the tree.",
    ),
]  # fmt: skip
AudioCodec = Annotated[
    str,
    typer.Option(
        metavar="CODEC", rich_help_panel=_OUTPUT, help="Codec of the kept sound: opus or flac."
    ),
]
Force = Annotated[
    bool, typer.Option("--force", "-f", help="Replace an existing output.", rich_help_panel=_OUTPUT)
]
NoBank = Annotated[
    bool,
    typer.Option(
        "--no-bank",
        help="Do not leave decoded pictures and sound on disk for the next run.",
        rich_help_panel=_OUTPUT,
    ),
]

Device = Annotated[
    str,
    typer.Option(metavar="DEVICE", rich_help_panel=_RUN, help="cpu, cuda, cuda:N, mps or auto."),
]
Pool = Annotated[
    int | None,
    typer.Option(
        min=1, metavar="TOKENS", rich_help_panel=_RUN, show_default="max(16 x budget, 16384)",
        help="Most candidates a step that looks at the whole video sees at once.",
    ),
]  # fmt: skip
Threads = Annotated[
    int | None,
    typer.Option(
        min=1, max=64, metavar="N", rich_help_panel=_RUN,
        show_default="one a core, at most 8; 1 with --workers",
        help="Groups of pictures decoded at once.",
    ),
]  # fmt: skip
BatchSize = Annotated[
    int,
    typer.Option(min=1, metavar="FRAMES", rich_help_panel=_RUN, help="Frames handed on together."),
]
Prefetch = Annotated[
    int,
    typer.Option(
        min=0, metavar="BATCHES", rich_help_panel=_RUN, help="Batches the decoder may run ahead."
    ),
]
Workers = Annotated[
    int,
    typer.Option(
        min=1,
        max=256,
        metavar="N",
        rich_help_panel=_RUN,
        help="Inputs worked on at once, a process each.",
    ),
]
DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run",
        "-n",
        help="Show the plan and stop; same as `tokpipe plan`.",
        rich_help_panel=_RUN,
    ),
]
Json = Annotated[
    bool, typer.Option("--json", help="Events for programs on stdout.", rich_help_panel=_RUN)
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Only errors.", rich_help_panel=_RUN)]
Verbose = Annotated[
    bool, typer.Option("--verbose", "-v", help="Also details.", rich_help_panel=_RUN)
]
Debug = Annotated[
    bool, typer.Option("--debug", help="Show the traceback of errors.", rich_help_panel=_RUN)
]
NoProgress = Annotated[
    bool,
    typer.Option(
        "--no-progress",
        envvar="TOKPIPE_NO_PROGRESS",
        help="No progress on stderr.",
        rich_help_panel=_RUN,
    ),
]

OperatorName = Annotated[
    str,
    typer.Argument(
        help="Name of an operator or preset.", metavar="NAME", autocompletion=operator_names
    ),
]
