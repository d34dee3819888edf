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
from tokpipe.device import peak_memory_mb
from tokpipe.digest import fingerprint
from tokpipe.errors import BudgetError, UnsupportedMedia, error_context
from tokpipe.job import DEFAULT_RECIPE, Job, Options, prepare, with_budget
from tokpipe.offer import SOUND_CELL, find_offer, keeps_all
from tokpipe.recipe import Recipe
from tokpipe.spec import StepSpec

#: Mean bytes of a token in the file, measured over the sample media: pixels and descriptor with
#: columns (video), mel with columns and Opus (audio), and header, digests and segments.
_VIDEO_BYTES, _AUDIO_BYTES, _FILE_BYTES = 220, 900, 10_000
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
    """

    stream: str
    use: str
    kind: str
    params: dict[str, Any]
    gives: str
    tokens: int | None
    exact: bool


@dataclass(slots=True, kw_only=True)
class Plan:
    """What a run would give.

    Attributes:
        candidates, tokens: Per stream and in all.
        exact: Whether each of ``tokens`` is the very count; upper bounds otherwise.
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
            path, self.info, self.chains, keep_bank=o.keep_bank, strict=o.strict
        )

    def plan(self) -> Plan:
        offer, job = self.offer, self.job
        made = Plan(
            input=str(self.path), duration=self.info.duration, frames=len(offer.pts),
            budget=str(job.budget) if job.budget else None, layout=job.options.layout,
            recipe=job.name, reused=["decode", "encode"] if self.offer.banked else [],
        )  # fmt: skip
        total = offer.video + offer.sound
        made.candidates = {"video": offer.video, "audio": offer.sound, "total": total}
        sure = {"video": offer.exact_video, "audio": offer.exact_audio}
        made.candidates_exact = sure | {"total": all(sure.values())}
        made.tokens, made.exact = self._tokens()
        made.steps = list(self._steps(made))
        made.pool = self._pool(made)
        likely = self._likely_split(made.tokens["total"])
        made.bytes = _FILE_BYTES + likely[0] * _VIDEO_BYTES + likely[1] * _AUDIO_BYTES
        made.peak_memory_mb = round(self._memory(made), 1)
        made.warnings = [
            f"{code}: {text}" for code, text in (*self.info.warnings, *self._thin(likely))
        ]
        return made

    def _tokens(self) -> tuple[dict[str, int], dict[str, bool]]:
        """Counts and whether they are exact."""
        offer, budget = self.offer, self.job.budget
        if budget is None:
            bound = {"video": offer.video, "audio": offer.sound, "total": offer.video + offer.sound}
            keeps = {name: keeps_all(chain.reducers) for name, chain in self.chains.items()}
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
        _, tail = complete(self.chains["video"], budgeted=True)
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
        for name, chain in self.chains.items():
            before = chain.reducers[: together(chain, chain.reducers)]
            if name == "video":
                before, _ = complete(chain, budgeted=True)
            if not keeps_all(before) or any(chain.removes(r) for r in chain.reducers):
                return False
        return True

    def _steps(self, made: Plan) -> Iterator[PlannedStep]:
        for stream, chain in self.chains.items():
            specs = [(step, registry.lookup(step.use).kind) for step in chain.steps]
            last = len(specs) - 1
            for i, (step, kind) in enumerate(specs):
                yield self._step(made, stream, step, kind, final=i == last)

    def _step(
        self, made: Plan, stream: str, step: StepSpec, kind: str, *, final: bool
    ) -> PlannedStep:
        sure = made.candidates_exact[stream]
        if kind == "sampler":
            gives, tokens = "frames", made.frames
        elif kind == "encoder":
            spec = self.chains[stream].encoder.out_spec(self.info, made.frames)
            cells = f"{spec.grid[0]}x{spec.grid[1]}" if stream == "video" else "40 ms"
            gives = f"{cells} cells, D {spec.dim} {spec.dtype}"
            tokens = made.candidates[stream]
        elif final and (made.budget is not None or not self._removes(stream, step)):
            gives, tokens, sure = "kept", made.tokens[stream], made.exact[stream]
        else:
            operator = self._built(stream, step)
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
        )

    def _built(self, stream: str, step: StepSpec) -> Any:
        chain: Chain = self.chains[stream]
        kinds = ("reducer", "projector")
        reducers = [s for s in chain.steps if registry.lookup(s.use).kind in kinds]
        return chain.reducers[reducers.index(step)]

    def _removes(self, stream: str, step: StepSpec) -> bool:
        return self.chains[stream].removes(self._built(stream, step))

    def _pool(self, made: Plan) -> int | None:
        if "video" not in self.chains or self.job.budget is None:
            return None
        _, tail = complete(self.chains["video"], budgeted=True)
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
        offer = self.offer
        if self.job.budget is None:
            return
        if len(offer.pts) and likely[0] < offer.cells:
            yield (
                "thin-video",
                f"{likely[0]} video tokens are less than one frame of {offer.cells} cells",
            )
        seconds = offer.sound * SOUND_CELL
        if offer.sound and likely[1] < THIN_AUDIO * seconds and likely[1] < offer.sound:
            text = f"{likely[1]} audio tokens for up to {seconds:.0f} s of sound"
            text += ": speech will not be intelligible; raise the budget or --audio-share"
            yield "thin-audio", text


@cache
def _resident() -> float:
    """Megabytes this process takes with everything imported, before any work."""
    return peak_memory_mb()
