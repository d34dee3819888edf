"""A job: a recipe and its options, checked once for any number of inputs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from tokpipe.budget import AUDIO_SHARE, Budget
from tokpipe.chain import Chain, build_chain, with_whole_frames
from tokpipe.decide import check_layout
from tokpipe.device import pick_device
from tokpipe.digest import chain
from tokpipe.encode._clip import ClipCodec
from tokpipe.errors import RecipeError
from tokpipe.recipe import Recipe, load_recipe
from tokpipe.spec import LAYOUTS, Layout
from tokpipe.towers import Running

Precision = Literal["auto", "float32", "bfloat16", "float16"]
Context = Literal["frame", "kept"]
Effort = Literal["fast", "balanced", "thorough"]
Decoder = Literal["pyav", "torchcodec", "decord"]
DEFAULT_BUDGET = "2048"
DEFAULT_RECIPE = "auto"


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What changes the tokens besides the recipe, and how the run behaves.

    Attributes:
        budget: None takes the recipe's, else 2048 (unless the recipe removes by threshold).
        audio_share: Part of one total that goes to audio first, 0 to 1.
        pool: Most tokens a reducer of video scope sees at once.
        keep_bank: Leave decoded pictures and sound in the bank for the next run.
        strict: Fail at the first damage.
        query: What the user asks, for rules that need it; takes an encoder with a text tower.
        decoder: Reader of the pictures: ``pyav``, the reference; for plain files ``torchcodec``,
            which decodes on ``device``, or ``decord``, on the CPU in a process of its own.
        effort: How much of the pictures ``pyav`` decodes. fast: key pictures, and changes that the
            packets show; balanced: also pictures between, as many as the packets' bytes deserve;
            thorough: all, each compared with the one before.
        threads: Groups of pictures decoded at once, None: a core each, at most 8. Results do not
            depend on it.
        precision: What towers compute in: float32, bfloat16, float16; auto: float32 on the CPU,
            else bfloat16. Features are stored in it.
        context: ``frame`` encodes whole pictures, ``kept`` only their live tokens.
        compiled: Run towers through ``torch.compile``.
        encode_batch: Pictures of one forward pass of a tower, None: found by trying.
    """

    budget: Budget | None = None
    layout: Layout = "ragged"
    audio_share: float = float(AUDIO_SHARE)
    audio_codec: ClipCodec = "opus"
    pool: int | None = None
    video_stream: str = "auto"
    audio_stream: str = "auto"
    strict: bool = False
    full_hash: bool = False
    keep_bank: bool = True
    force: bool = False
    device: str = "cpu"
    batch_size: int = 16
    prefetch: int = 2
    query: str | None = None
    decoder: Decoder = "pyav"
    effort: Effort = "balanced"
    threads: int | None = None
    precision: Precision = "auto"
    context: Context = "frame"
    compiled: bool = False
    encode_batch: int | None = None

    def running(self) -> Running:
        """How towers run."""
        return Running(
            device=self.device, precision=self.precision, batch=self.encode_batch,
            compiled=self.compiled, context=self.context,
        )  # fmt: skip


@dataclass(slots=True)
class Job:
    """A recipe and its options, checked once for any number of inputs."""

    recipe: Recipe
    options: Options
    chains: dict[str, Chain]
    budget: Budget | None
    name: str = DEFAULT_RECIPE

    def digest(self) -> str:
        """Digest of every option that changes the tokens."""
        return chain(self.settings())

    def settings(self) -> dict[str, Any]:
        """Every option that changes the tokens."""
        o = self.options
        chains = {name: made.canonical for name, made in self.chains.items()}
        late = {}
        if any(made.late is not None for made in self.chains.values()):
            late = {"query": o.query, "precision": o.running().dtype, "context": o.context}
        return {
            **late,
            **chains, "seed": self.recipe.seed, "budget": str(self.budget) if self.budget else None,
            "layout": o.layout, "audio_share": o.audio_share,
            "audio_codec": o.audio_codec, "pool": o.pool, "video_stream": o.video_stream,
            "audio_stream": o.audio_stream, "strict": o.strict,
            **({"effort": o.effort} if o.decoder == "pyav" else {"decoder": o.decoder}),
        }  # fmt: skip


def prepare(recipe: str | Recipe = DEFAULT_RECIPE, options: Options | None = None) -> Job:
    """Check recipe and options before anything is opened.

    Raises:
        RecipeError, BudgetError, ResourceError: As they say; nothing has started.
    """
    options = options or Options()
    name = recipe if isinstance(recipe, str) else "recipe"
    made = load_recipe(recipe) if isinstance(recipe, str) else recipe
    if options.layout not in LAYOUTS:
        raise RecipeError(
            f"unknown layout `{options.layout}`", hint=f"use one of: {', '.join(LAYOUTS)}"
        )
    if not 0 <= options.audio_share <= 1:
        raise RecipeError(f"audio share {options.audio_share} is not within 0 to 1")
    pick_device(options.device)
    for option, value, allowed in (("precision", options.precision, get_args(Precision)),
                                   ("context", options.context, get_args(Context)),
                                   ("effort", options.effort, get_args(Effort)),
                                   ("decoder", options.decoder, get_args(Decoder))):  # fmt: skip
        if value not in allowed:
            listed = ", ".join(allowed)
            raise RecipeError(f"unknown {option} `{value}`", hint=f"use one of: {listed}")
    chains = {
        stream: build_chain(
            stream,
            with_whole_frames(steps, options.layout) if stream == "video" else steps,
            made.fill,
            query=options.query is not None,
        )
        for stream, steps in made.chains.items()
    }
    if options.query is not None:
        check_query(options.query)
    if options.query is not None and not _reads(chains):
        raise RecipeError(
            "--query needs an encoder with a text tower for the video",
            hint="add --encoder, such as open_clip:ViT-B-32",
        )
    budget = options.budget or made.budget
    if budget is None and not _limits_itself(chains):
        budget = Budget.parse(DEFAULT_BUDGET)
    check_layout(chains, options.layout, budgeted=budget is not None)
    return Job(made, options, chains, budget, name)


def check_query(text: str) -> None:
    """Raise RecipeError for a question that is empty or no text."""
    if not text.strip():
        raise RecipeError("the query is empty", hint="leave out --query, or ask something")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RecipeError("the query is not UTF-8 text", hint="write it in UTF-8") from error


def _reads(chains: dict[str, Chain]) -> bool:
    """The chain of the pictures has a tower with a text tower beside it."""
    late = chains["video"].late if "video" in chains else None
    return late is not None and bool(late.encoder.outline().text)


def with_budget(options: Options | None, budget: str | int | Budget | None) -> Options:
    """The options with a budget put in, where one is given."""
    options = options or Options()
    return options if budget is None else replace(options, budget=Budget.parse(budget))


def _limits_itself(chains: dict[str, Chain]) -> bool:
    parts = [part for made in chains.values() for part in (made, made.late) if part is not None]
    return any(part.removes(r) for part in parts for r in part.reducers)
