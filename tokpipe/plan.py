"""What a run would do, without decoding: counts, bytes, memory, from packets and the bank.

probe ─▶ packet scan ─▶ the recipe's own sampler ─▶ candidates ─▶ the budget's arithmetic
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

from tokpipe import registry
from tokpipe.budget import THIN_AUDIO, Budget, Supply, split_modalities
from tokpipe.chain import Chain
from tokpipe.decide import BLOCK, CHUNK, POOL, complete, is_stream, together
from tokpipe.decode import probe
from tokpipe.device import peak_memory_mb, pick_device
from tokpipe.digest import fingerprint
from tokpipe.errors import BudgetError, UnsupportedMedia, error_context
from tokpipe.job import DEFAULT_RECIPE, Job, Options, prepare, with_budget
from tokpipe.offer import find_offer, keeps_all
from tokpipe.recipe import Recipe
from tokpipe.spec import StepSpec

#: Mean bytes of a token in the file, measured over the sample media: pixels and descriptor with
#: columns (video), mel with columns and Opus (audio), and header, digests and segments.
_VIDEO_BYTES, _AUDIO_BYTES, _FILE_BYTES = 420, 1100, 10_000
#: The same of a feature's columns alone.
_COLUMN_BYTES = 110
#: MB a run takes at least above the imports, and pictures a decoder holds at once.
_RUN_MB, _DECODER_PICTURES = 55.0, 20
#: Bytes a candidate of the pool costs while a reducer looks at it.
_POOL_BYTES = 400


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedStep:
    """One step and what leaves it.

    Attributes:
        tokens: Tokens after the step (frames after a sampler), None where only a run can tell.
        exact: ``tokens`` is the count, not an upper bound.
        neural: An encoder with weights, which take memory of their own.
    """

    stream: str
    use: str
    kind: str
    params: dict[str, Any]
    gives: str
    tokens: int | None
    exact: bool
    neural: bool = False


@dataclass(slots=True, kw_only=True)
class Plan:
    """What a run would give.

    Attributes:
        candidates, tokens: Per stream and in all.
        exact: Whether each of ``tokens`` is the very count; upper bounds otherwise.
        loose: The others are no bounds: frames may come on top that only decoding shows.
        bytes: Estimated size of the output.
        peak_memory_mb: Predicted peak of the process, imports included.
        pool: Most candidates a step of video scope sees at once, None without such a step.
        reused: Stages that are in the bank already.
        warnings: What will be normalised, and what the budget cannot carry.
    """

    input: str
    duration: float | None
    steps: list[PlannedStep] = field(default_factory=list)
    candidates: dict[str, int] = field(default_factory=dict)
    candidates_exact: dict[str, bool] = field(default_factory=dict)
    tokens: dict[str, int] = field(default_factory=dict)
    exact: dict[str, bool] = field(default_factory=dict)
    loose: bool = False
    frames: int = 0
    bytes: int = 0
    peak_memory_mb: float = 0.0
    pool: int | None = None
    reused: list[str] = field(default_factory=list)
    budget: str | None = None
    layout: str = "ragged"
    recipe: str = ""
    warnings: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def plan_file(
    path: str | Path,
    *,
    recipe: str | Recipe = DEFAULT_RECIPE,
    budget: str | int | Budget | None = None,
    options: Options | None = None,
    job: Job | None = None,
) -> Plan:
    """Plan one input; reads packet headers and one picture, decodes nothing else.

    Args:
        path: Video or audio file.
        recipe, budget, options, job: As for :func:`tokpipe.run.compress_file`.

    Raises:
        TokpipeError: The errors a run would meet before decoding.
    """
    job = job or prepare(recipe, with_budget(options, budget))
    with error_context(str(path)):
        return _Planner(Path(path), job).plan()


class _Planner:
    def __init__(self, path: Path, job: Job) -> None:
        self.path, self.job = path, job
        o = job.options
        self.info = probe(path, video_stream=o.video_stream, audio_stream=o.audio_stream)
        if o.full_hash:
            self.info = replace(self.info, fingerprint=fingerprint(path, full=True)[0])
        self.chains = {
            name: made for name, made in job.chains.items()
            if (self.info.video if name == "video" else self.info.audio) is not None
        }  # fmt: skip
        if not self.chains:
            raise UnsupportedMedia(
                f"the recipe has no chain for what `{path.name}` holds",
                hint="use a recipe with a video and an audio chain, such as auto",
            )
        self.offer = find_offer(
            path,
            self.info,
            self.chains,
            keep_bank=o.keep_bank,
            strict=o.strict,
            decoder=o.decoder,
            device=str(pick_device(o.device)),
            effort=o.effort,
        )

    def plan(self) -> Plan:
        offer, job = self.offer, self.job
        made = Plan(
            input=str(self.path), duration=self.info.duration, frames=len(offer.pts),
            budget=str(job.budget) if job.budget else None, layout=job.options.layout,
            recipe=job.name, reused=self._reused(), loose=offer.loose,
        )  # fmt: skip
        total = offer.video + offer.sound
        made.candidates = {"video": offer.video, "audio": offer.sound, "total": total}
        sure = {"video": offer.exact_video, "audio": offer.exact_audio}
        made.candidates_exact = sure | {"total": all(sure.values())}
        made.tokens, made.exact = self._tokens()
        made.steps = list(self._steps(made))
        made.pool = self._pool(made)
        likely = self._likely_split(made.tokens["total"])
        made.bytes = _FILE_BYTES + sum(
            count * self._row_bytes(stream)
            for stream, count in zip(("video", "audio"), likely, strict=True)
        )
        made.peak_memory_mb = round(self._memory(made), 1)
        made.warnings = [
            f"{code}: {text}" for code, text in (*self.info.warnings, *self._thin(likely))
        ]
        return made

    def _reused(self) -> list[str]:
        """Stages found in the bank; what towers made of single pictures shows only in a run."""
        if not self.offer.banked:
            return []
        towers = any(chain.late is not None for chain in self.chains.values())
        return ["decode"] if towers else ["decode", "encode"]

    def _tokens(self) -> tuple[dict[str, int], dict[str, bool]]:
        """Counts and whether they are exact."""
        offer, budget = self.offer, self.job.budget
        if budget is None:
            bound = {"video": offer.video, "audio": offer.sound, "total": offer.video + offer.sound}
            keeps = {name: keeps_all(rules_of(chain)) for name, chain in self.chains.items()}
            sure = {
                "video": keeps.get("video", True) and offer.exact_video,
                "audio": keeps.get("audio", True) and offer.exact_audio,
            }
            return bound, sure | {"total": all(sure.values())}
        if budget.form == "per_frame" and not len(offer.pts):
            raise BudgetError(
                "a budget per frame needs video", hint="use a total or 20/s", code="budget.form"
            )
        if budget.form == "split":
            video, sure_video = self._shaped(min(budget.video or 0, offer.video))
            audio = min(budget.audio or 0, offer.sound)
            sure_audio = audio <= offer.sound - offer.slack or offer.exact_audio
            tokens = {"video": video, "audio": audio, "total": video + audio}
            sure = {"video": sure_video, "audio": sure_audio, "total": sure_video and sure_audio}
        else:
            tokens, sure = self._one_total(budget)
        if not self._meets():
            sure = dict.fromkeys(sure, False)
        return tokens, sure

    def _one_total(self, budget: Budget) -> tuple[dict[str, int], dict[str, bool]]:
        offer = self.offer
        total = offer.spent(budget, offer.sound, offer.end)
        low = offer.spent(budget, max(0, offer.sound - offer.slack), offer.least_end)
        sure = offer.exact_video and (total == low or offer.exact_audio)
        if self.job.options.layout != "ragged":
            # What whole shapes leave over goes to the sound, as far as there is any.
            if not offer.sound:
                total, sure = self._shaped(total)
            elif budget.form != "total" or offer.sound - offer.slack < total:
                sure = False
        video, audio = min(total, offer.video), min(total, offer.sound)
        alone = {"video": sure and not audio, "audio": sure and not video}
        return {"video": video, "audio": audio, "total": total}, alone | {"total": sure}

    def _shaped(self, budget: int) -> tuple[int, bool]:
        """Video tokens of the layout within a budget, and whether that is certain."""
        offer, layout = self.offer, self.job.options.layout
        if layout == "ragged" or not budget or "video" not in self.chains:
            return budget, offer.exact_video
        _, tail = complete(last_part(self.chains["video"]), budgeted=True)
        final = tail[-1]
        if not hasattr(final, "settle"):
            whole = layout == "frames" and budget >= offer.cells
            return (budget // offer.cells * offer.cells if whole else budget), False
        grid = self.chains["video"].encoder.grid(self.info)
        state = final.begin(0, grid.rows, grid.cols)
        state.frames = len(offer.pts)
        final.settle(state, budget, layout, None)
        count = len(state.chosen)
        if state.pieces:
            count = count // offer.cells * len(state.pieces)
        return count, offer.exact_video

    def _meets(self) -> bool:
        """No step before the last takes tokens away by itself, so the budget is met exactly."""
        for name, whole in self.chains.items():
            chain = last_part(whole)
            before = chain.reducers[: together(chain, chain.reducers)]
            if name == "video":
                before, _ = complete(chain, budgeted=True)
            if not keeps_all(before) or any(chain.removes(r) for r in chain.reducers):
                return False
            # Before a tower, only the default scout lets enough survive for any budget.
            if whole.late is None:
                continue
            inside = getattr(whole.late.encoder, "inside", "")
            if inside or (whole.reducers and not _scouts(whole)):
                return False
        return True

    def _steps(self, made: Plan) -> Iterator[PlannedStep]:
        for stream, chain in self.chains.items():
            parts = [chain] if chain.late is None else [chain, chain.late]
            for part in parts:
                for i, step in enumerate(part.steps):
                    final = part is parts[-1] and i == len(part.steps) - 1
                    yield self._step(made, stream, part, step, final=final)

    def _step(
        self, made: Plan, stream: str, part: Chain, step: StepSpec, *, final: bool
    ) -> PlannedStep:
        sure, kind = made.candidates_exact[stream], registry.lookup(step.use).kind
        signal = part.late is not None
        tokens: int | None
        if kind == "sampler":
            gives, tokens = "frames", made.frames
        elif kind == "encoder":
            gives, tokens = self._encoded(made, stream, part)
        elif signal:
            gives, tokens, sure = "what survives", None, False
        elif final and (made.budget is not None or not part.removes(_built(part, step))):
            gives, tokens, sure = "kept", made.tokens[stream], made.exact[stream]
        else:
            operator = _built(part, step)
            keeps = keeps_all([operator])
            gives = "scored" if keeps else "reduced"
            tokens, sure = made.candidates[stream], keeps and sure
        return PlannedStep(
            stream=stream,
            use=step.use,
            kind=kind,
            params=step.params,
            gives=gives,
            tokens=tokens,
            exact=sure,
            neural=registry.lookup(step.use).feature,
        )

    def _encoded(self, made: Plan, stream: str, part: Chain) -> tuple[str, int]:
        """What an encoder gives, and how many of it."""
        encoder = part.encoder
        if part.encoder is not self.chains[stream].encoder:
            rate = "" if stream == "video" else f", {1 / self.offer.sound_cell:.4g} a second"
            each = f"{self.offer.cells} tokens a picture, " if stream == "video" else "tokens, "
            return f"{each}D {encoder.outline().dim}{rate}", made.candidates[stream]
        spec = encoder.out_spec(self.info, made.frames)
        cells = f"{spec.grid[0]}x{spec.grid[1]}" if stream == "video" else "40 ms"
        whole = spec.tokens if part.late is not None else None
        count = made.candidates[stream] if whole is None else whole
        return f"{cells} cells, D {spec.dim} {spec.dtype}", count

    def _row_bytes(self, stream: str) -> int:
        """Bytes of one token in the file."""
        late = self.chains[stream].late if stream in self.chains else None
        if late is None:
            return _VIDEO_BYTES if stream == "video" else _AUDIO_BYTES
        outline = late.encoder.outline()
        size = 4 if self.job.options.running().dtype == "float32" else 2
        return int(_COLUMN_BYTES + outline.dim * (1 + outline.deepstack) * size)

    def _pool(self, made: Plan) -> int | None:
        if "video" not in self.chains or self.job.budget is None:
            return None
        _, tail = complete(last_part(self.chains["video"]), budgeted=True)
        streams = is_stream(tail[-1]) and tail[-1].exact and len(tail) == 1
        if streams or all(r.scope == "frame" for r in tail):
            return None
        wanted = made.tokens["video"]
        return min(self.offer.video, max(wanted, self.job.options.pool or max(16 * wanted, POOL)))

    def _likely_split(self, total: int) -> tuple[int, int]:
        """Tokens of each stream when everything is worth having."""
        budget, offer = self.job.budget, self.offer
        if budget is not None and budget.form == "split":
            return min(budget.video or 0, offer.video), min(budget.audio or 0, offer.sound)
        share = Fraction(str(self.job.options.audio_share))
        video, audio = Supply(offer.video, offer.video), Supply(offer.sound, offer.sound)
        return split_modalities(total, video, audio, share=share)

    def _memory(self, made: Plan) -> float:
        """Megabytes: what is there anyway, pictures under way, and what is decided upon at once."""
        total = _resident() + _RUN_MB
        video, o = self.info.video, self.job.options
        if video is not None and "video" in self.chains and not self.offer.banked:
            grid = self.chains["video"].encoder.grid(self.info)
            total += _DECODER_PICTURES * video.width * video.height * 1.5 / 1e6
            total += (o.prefetch + 3) * o.batch_size * grid.width * grid.height * 3 / 1e6
        block = BLOCK * self.offer.cells * _POOL_BYTES * 3
        sound = min(CHUNK, self.offer.sound) * _POOL_BYTES
        kept = made.tokens["total"] * 2000 + min(made.tokens["video"], self.offer.video) * 60
        return total + (block + sound + kept + (made.pool or 0) * _POOL_BYTES) / 1e6

    def _thin(self, likely: tuple[int, int]) -> Iterator[tuple[str, str]]:
        """What the budget cannot carry."""
        offer, budget, share = self.offer, self.job.budget, self.job.options.audio_share
        if budget is None:
            return
        if len(offer.pts) and not budget.refuses("video", share) and likely[0] < offer.cells:
            yield (
                "thin-video",
                f"{likely[0]} video tokens are less than one frame of {offer.cells} cells",
            )
        seconds = offer.sound * offer.sound_cell
        if budget.refuses("audio", share):
            return
        if offer.sound and likely[1] < THIN_AUDIO * seconds and likely[1] < offer.sound:
            text = f"{likely[1]} audio tokens for up to {seconds:.0f} s of sound"
            text += ": speech will not be intelligible; raise the budget or --audio-share"
            yield "thin-audio", text


def last_part(chain: Chain) -> Chain:
    """The part of a chain whose rules meet the budget."""
    return chain.late or chain


def rules_of(chain: Chain) -> list[Any]:
    """All rules of a chain, before and after its tower."""
    return [*chain.reducers, *(chain.late.reducers if chain.late is not None else ())]


def _scouts(chain: Chain) -> bool:
    """The rules before the tower only choose pictures or mark what is audible."""
    return not any(chain.removes(rule) for rule in chain.reducers) and (
        hasattr(chain.reducers[-1], "settle")
        or all(getattr(r, "light", False) for r in chain.reducers)
    )


def _built(chain: Chain, step: StepSpec) -> Any:
    """The operator of one of a chain's rules."""
    return chain.reducers[chain.rules.index(step)]


@cache
def _resident() -> float:
    """Megabytes this process takes with everything imported, before any work."""
    return peak_memory_mb()
